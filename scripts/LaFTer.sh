#!/usr/bin/env bash
# LaFTer: zero-shot, the text classifier, then prompts tuned on its pseudo-labels, without labels.
# --skip_finetune stops after the text classifier. Staged prompts: LaFTer_MultiPrompt.
# It sets --resume auto alone; all else is as the data set's YAML and the defaults have it.
#     scripts/LaFTer.sh [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/LaFTer.sh demo --epochs 3
#     scripts/LaFTer.sh emotion6 --root DATA --skip_finetune
# Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
# relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
# end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac
exec "$python" "$project/LaFTer.py" --resume auto --dataset-config-file "$@"

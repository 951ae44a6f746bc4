#!/usr/bin/env bash
# CLIP's zero-shot accuracy: nothing is trained. --txt_cls is refused here: zero-shot has one template,
# TEXT.ZERO_SHOT_TEMPLATE.
# It sets --zero_shot and --resume auto.
#     scripts/zero_shot.sh [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/zero_shot.sh demo
#     scripts/zero_shot.sh emotion6 --root DATA --backbone ViT-L/14
# Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
# relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
# end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac
exec "$python" "$project/LaFTer.py" --resume auto --zero_shot --dataset-config-file "$@"

#!/usr/bin/env bash
# Direct dual task: the class and the emotion distribution together, on true labels, without the text phase.
# It needs no text tower. Staged prompts: --multi_layer_prompt.
# It sets --direct_dualtask (which takes the true labels), --scheduler none (a constant learning rate) and
# --resume auto.
#     scripts/LaFTer_DirectDualTask.sh [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/LaFTer_DirectDualTask.sh emotion6 --root DATA --epochs 20
#     scripts/LaFTer_DirectDualTask.sh emotion6 --backbone weights/vitb16_image_int8.pt INPUT.SIZE 112
# Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
# relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
# end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac
exec "$python" "$project/LaFTer.py" --resume auto --direct_dualtask --scheduler none --dataset-config-file "$@"

#!/usr/bin/env bash
# MultiLayerLaFTer: as LaFTer, with prompts of its own for each stage of the vision transformer.
# Its settings are MULTI_LAYER_PROMPT.* and PROMPT_INIT.
# It sets --multi_layer_prompt and --resume auto.
#     scripts/LaFTer_MultiPrompt.sh [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/LaFTer_MultiPrompt.sh demo --epochs 6
#     scripts/LaFTer_MultiPrompt.sh emotion6 --root DATA MULTI_LAYER_PROMPT.MODE replace
# Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
# relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
# end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac
exec "$python" "$project/LaFTer.py" --resume auto --multi_layer_prompt --dataset-config-file "$@"

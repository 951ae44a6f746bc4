#!/usr/bin/env bash
# Dual task: the class and the emotion distribution together, on true labels, after the text phase.
# Staged prompts: --multi_layer_prompt. Label-free: TRAIN.SUPERVISION pseudo.
# It sets --dual_task, --scheduler none (a constant learning rate), TRAIN.SUPERVISION labels (the true
# labels train) and --resume auto.
#     scripts/LaFTer_DualTask.sh [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/LaFTer_DualTask.sh emotion6 --root DATA --lambda_weight 0.5
#     scripts/LaFTer_DualTask.sh emoset DATASET.SIGMA_CONF 0.8
# Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
# relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
# end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac
exec "$python" "$project/LaFTer.py" --resume auto --dual_task --scheduler none TRAIN.SUPERVISION labels \
    --dataset-config-file "$@"

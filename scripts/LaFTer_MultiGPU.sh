#!/usr/bin/env bash
# LaFTer on several GPUs, and several machines, through torchrun: the same run as LaFTer.sh makes on one, to rounding.
# Other modes are flags: --multi_layer_prompt, --direct_dualtask, ... --batch_size is that of all processes together.
# It sets --resume auto alone; all else is as the data set's YAML and the defaults have it.
#     scripts/LaFTer_MultiGPU.sh [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/LaFTer_MultiGPU.sh emotion6 --root DATA --multi_layer_prompt --batch_size 200
# torchrun's own flags are in TORCHRUN; without it, all GPUs of this machine. Two machines, the first is called alpha:
#     TORCHRUN="--nproc-per-node 4 --nnodes 2 --node-rank 0 --master-addr alpha" scripts/LaFTer_MultiGPU.sh ...
#     TORCHRUN="--nproc-per-node 4 --nnodes 2 --node-rank 1 --master-addr alpha" scripts/LaFTer_MultiGPU.sh ...
# Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
# relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
# end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac
# shellcheck disable=SC2086 # TORCHRUN holds several words
exec "$python" -m torch.distributed.run ${TORCHRUN:---standalone --nproc-per-node gpu} \
    "$project/LaFTer.py" --resume auto --dataset-config-file "$@"

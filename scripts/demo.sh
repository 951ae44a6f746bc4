#!/usr/bin/env bash
# The main job on the embedded demo: zero-shot, text classifier, LaFTer, MultiLayerLaFTer; a table and a picture.
# Further arguments go to both trainings, e.g. --epochs 3. Needs no GPU and no download beyond the requirements.
# The drawn data and the runs go into the folders data and output/demo where you stand.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
runs=$PWD/output/demo
for trainer in LaFTer MultiLayerLaFTer; do
    "$python" "$project/LaFTer.py" --dataset-config-file demo --trainer "$trainer" \
        --output-dir "$runs" --resume auto "$@"
done
cd "$project"  # where Python finds the module
exec "$python" -m utils.results "$runs"

#!/usr/bin/env bash
# The main job on the embedded demo: zero-shot, text classifier, LaFTer, MultiLayerLaFTer; a table and a picture.
# Further arguments go to both trainings, e.g. --epochs 3. Needs no GPU and no download beyond the requirements.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
for trainer in LaFTer MultiLayerLaFTer; do
    .venv/bin/python LaFTer.py --dataset-config-file demo --trainer "$trainer" --output-dir output/demo --resume auto "$@"
done
.venv/bin/python -m utils.results output/demo

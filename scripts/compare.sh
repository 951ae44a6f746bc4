#!/usr/bin/env bash
# A grid of runs from a YAML (configs/experiments), several at a time, then the report of all: scripts/compare.py.
#     scripts/compare.sh EXPERIMENT [--jobs N] [--gpus 0,1] [--only REGEX] [--dry-run] [FLAGS of LaFTer.py] [KEY VALUE ...]
#     scripts/compare.sh demo --jobs 2
#     scripts/compare.sh ablation --jobs 2 --dry-run
#     scripts/compare.sh ablation --slurm --slurm-partition gpu   (jobs of a cluster; --help lists what they may ask for)
# An experiment is a file or the name of one in configs/experiments. Paths, also the runs' folder, are relative to where
# you stand. The same command again goes on with what is unfinished.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env
exec "$python" "$project/scripts/compare.py" "$@"

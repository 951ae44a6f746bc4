#!/usr/bin/env bash
# Lint and all tests, on the CPU, in an environment of the project's own. Further arguments go to pytest, which runs
# in the project's folder: scripts/test.sh tests/test_losses.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env "$project/tests/requirements.txt"
cd "$project"
"$python" -m ruff check .
# two processes, a thread each: more threads than cores would wait for one another
# each takes half of the tests in order, so that what a file's tests share is made once; who ends first helps
exec env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 "$python" -m pytest -n 2 --dist worksteal "$@"

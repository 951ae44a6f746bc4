#!/usr/bin/env bash
# Lint and all tests, on the CPU, in an environment of the project's own. Further arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh" tests/requirements.txt
.venv/bin/ruff check .
exec env CUDA_VISIBLE_DEVICES= .venv/bin/python -m pytest "$@"

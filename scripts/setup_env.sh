#!/usr/bin/env bash
# Sourced by the other scripts: goes to the project's folder, makes .venv there once and installs what is missing.
# Usage: source scripts/setup_env.sh [REQUIREMENTS_FILE ...]
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
wanted=$(cat requirements.txt "$@" | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "installing the requirements into .venv (once; PyTorch is large)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' requirements.txt "$@")
    echo "$wanted" > .venv/installed
fi

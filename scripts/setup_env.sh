#!/usr/bin/env bash
# Sourced by the other scripts: sets `project`, the project's folder, and defines
#     setup_env [REQUIREMENTS_FILE ...]
# which makes .venv in the project's folder once, installs what is missing and sets `python` to its interpreter.
# LAFTER_PYTHON, a program's name or absolute path, is taken instead where it is set (an active conda environment:
# LAFTER_PYTHON=python); nothing is installed then. The folder that the user stands in is left alone.
project=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

setup_env() {
    local venv=$project/.venv file mark
    if [ -n "${LAFTER_PYTHON:-}" ]; then
        python=$LAFTER_PYTHON
        "$python" -c "" || { echo "error: LAFTER_PYTHON is '$python', which runs no Python" >&2; exit 1; }
        return
    fi
    python=$venv/bin/python
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
    for file in "$project/requirements.txt" "$@"; do
        mark=$venv/installed-$(cksum < "$file" | tr ' ' -)
        if [ ! -e "$mark" ]; then
            echo "installing $file into $venv (once; PyTorch is large)"
            "$python" -m pip install --quiet --disable-pip-version-check -r "$file"
            touch "$mark"
        fi
    done
}

#!/usr/bin/env bash
# Sourced by the other scripts: sets `project`, the project's folder, and defines
#     setup_env [REQUIREMENTS_FILE ...]
# which makes .venv in the project's folder once, installs what is missing and sets `python` to its interpreter.
# LAFTER_PYTHON, a program's name or absolute path, is taken instead where it is set (an active conda environment:
# LAFTER_PYTHON=python); nothing is installed then. The folder that the user stands in is left alone.
# A .venv that was cut off while it was made (it holds the file `unfinished`), or whose Python is gone, is made anew.
project=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

require_python() {  # NAME PROGRAM
    "$2" -c "import sys; sys.exit(sys.version_info < (3, 10))" || {
        echo "error: $1 is \"$2\", which runs no Python 3.10 or newer; set LAFTER_PYTHON or PYTHON to one that does" >&2
        exit 1
    }
}

make_venv() {  # FOLDER
    require_python "the interpreter for .venv" "${PYTHON:-python3}"
    mkdir -p "$1"
    touch "$1/unfinished"
    "${PYTHON:-python3}" -m venv "$1" || {
        echo "error: cannot make $1 (Debian and Ubuntu: apt install python3-venv); the next start tries again" >&2
        exit 1
    }
    rm "$1/unfinished"
}

setup_env() {
    local venv=$project/.venv file mark
    if [ -n "${LAFTER_PYTHON:-}" ]; then
        python=$LAFTER_PYTHON
        require_python LAFTER_PYTHON "$python"
        return
    fi
    python=$venv/bin/python
    if [ -e "$venv/unfinished" ] || { [ -L "$python" ] && [ ! -x "$python" ]; }; then rm -rf "$venv"; fi
    [ -x "$python" ] || make_venv "$venv"
    require_python "the interpreter of .venv" "$python"
    "$python" -c "import pip" 2> /dev/null || "$python" -m ensurepip > /dev/null
    for file in "$project/requirements.txt" "$@"; do
        mark=$venv/installed-$(cksum < "$file" | tr ' ' -)
        if [ ! -e "$mark" ]; then
            echo "installing $file into $venv (once; PyTorch is large)"
            "$python" -m pip install --quiet --disable-pip-version-check -r "$file"
            touch "$mark"
        fi
    done
}

#!/bin/sh
# Prints a Python 3.10 to 3.13 that can make environments; the argument, if given, is the only candidate.
usable='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))'
for candidate in ${1:-python3 python3.11 python3.12 python3.13 python3.10 python}; do
    if command -v "$candidate" > /dev/null 2>&1 && "$candidate" -c "$usable" > /dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done
{
    echo "lens_scopes needs Python 3.10 to 3.13 with the venv module; tried: ${1:-python3, python3.10 to 3.13, python}."
    for candidate in ${1:-python3}; do
        echo "  $candidate: $("$candidate" -c "$usable" 2>&1 | tail -n 1; "$candidate" --version 2>&1 | tail -n 1)"
    done
    echo "Install one (Debian, Ubuntu: apt install python3-venv) or name one: make test PYTHON=/path/to/python3.12"
} >&2
exit 1

#!/bin/sh
# Makes the virtual environment: scripts/venv.sh PYTHON DIRECTORY.  Called by the Makefile.
set -eu
python=$1 venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; $python is $("$python" --version 2>&1). Try make PYTHON=python3.11." >&2
    exit 1
}
[ -x "$venv/bin/pip" ] && exit 0
# Debian and Ubuntu ship Python without the module that puts pip into a virtual environment.
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    "$(dirname "$0")/need.sh" no-such-command python3-venv
fi
rm -rf "$venv"
"$python" -m venv "$venv"

#!/usr/bin/env bash
# wheel.sh DIRECTORY: builds the wheel of this tree unless it was built before; its last line is
# DIRECTORY/<digest of what went in>/<wheel>.  Called by the role admin_api, with the PYTHON that runs Ansible.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
digest=$(find admin_api requirements.txt pyproject.toml README.md -type f ! -name '*.pyc' -print0 \
    | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
target=$1/$digest
if ! compgen -G "$target/*.whl" >/dev/null; then
    mkdir -p "$1"
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp -r admin_api pyproject.toml README.md "$copy"
    "${PYTHON:-python3}" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$copy/wheel" "$copy"
    mkdir -p "$target"
    mv "$copy"/wheel/*.whl "$target"
    echo made
fi
echo "$target"/*.whl

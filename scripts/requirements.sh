#!/bin/sh
# Resolves requirements*.txt anew, with hashes: scripts/requirements.sh BIN.
set -eu
bin=$1
"$bin/pip" install --quiet --disable-pip-version-check uv
compile="$bin/uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header"
$compile pyproject.toml --output-file requirements.txt
# Constraints keep one version of what several of them need.
for group in test lint bench facility; do
    $compile --group "$group" --constraint requirements.txt --output-file "requirements-$group.txt"
done

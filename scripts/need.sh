#!/bin/sh
# Makes sure that a command is there: scripts/need.sh COMMAND PACKAGE.  Called by the Makefile.
set -eu
command -v "$1" >/dev/null && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq "$2" >/dev/null
elif command -v apt-get >/dev/null && command -v sudo >/dev/null; then
    sudo apt-get update -qq && sudo apt-get install -y -qq "$2" >/dev/null
else
    echo "The command $1 is needed; install the package $2." >&2
    exit 1
fi

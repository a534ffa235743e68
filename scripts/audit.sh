#!/bin/sh
# Looks the pinned packages up in the database of known vulnerabilities: scripts/audit.sh BIN.
# Where that database cannot be reached this says so; it is the one check that needs it.
set -u
output=$("$1/pip-audit" --disable-pip --require-hashes --requirement requirements.txt --progress-spinner off 2>&1)
status=$?
case "$output" in
    *"could not be audited"*|*ConnectionError*|*"Max retries"*)
        echo "pip-audit: NOT RUN, the vulnerability database cannot be reached from here." ;;
    *)
        [ "$status" = 0 ] || printf '%s\n' "$output"
        exit "$status" ;;
esac

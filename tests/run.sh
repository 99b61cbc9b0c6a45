#!/usr/bin/env bash
# Makes .venv with the test tools and runs every check: ruff, mypy, and all tests. Arguments go to pytest,
# so that `tests/run.sh tests/unit -k search` runs a part.

set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/environment.sh
environment test
# One thread: two, beside other load, wait for each other more than they compute.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy

# What is written has to be on the disk before it has its name, thousands of times: in memory nobody waits for that. Not
# where that is small (more than 3 GB were in use at once), or nothing may be run from it, as the compiled regions are.
if [ -z "${TMPDIR:-}" ] && memory=$(mktemp -d -p /dev/shm nmt-tests.XXXXXX 2>/dev/null); then
    trap 'rm -rf "$memory"' EXIT
    printf '#!/bin/sh\n' >"$memory/probe" && chmod +x "$memory/probe"
    free=$(df -Pk "$memory" | awk 'END { print $4 }')
    if [ "$free" -gt 8000000 ] && "$memory/probe" 2>/dev/null; then export TMPDIR=$memory; fi
fi
# A file stays in one process, which makes what its tests share once.
.venv/bin/python -m pytest -n auto --dist loadfile "$@"

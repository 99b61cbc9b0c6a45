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
# A file stays in one process, which makes what its tests share once.
.venv/bin/python -m pytest -n auto --dist loadfile "$@"

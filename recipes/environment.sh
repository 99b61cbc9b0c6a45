# Sourced by the recipes and by tests/run.sh: makes .venv with this package in it, once, and again only when
# setup.cfg changed. Usage: environment [EXTRA], from the root of the checkout.
# shellcheck shell=bash

environment() {
    local extra=${1:-} stamp wanted python
    wanted=$(cat setup.cfg setup.py | cksum)
    stamp=.venv/installed${extra:+-$extra}
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return 0
    if [ ! -x .venv/bin/python ]; then
        # Each is tried: a name may be there (a version manager's shim) and still not run.
        for python in python3.13 python3.12 python3.11 python3 none; do
            "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
        done
        if [ "$python" = none ]; then
            echo "This needs Python 3.11 or newer; install it (Debian, Ubuntu: apt-get install python3 python3-venv)." >&2
            return 2
        fi
        if ! "$python" -m venv .venv; then
            rm -rf .venv
            echo "Python's venv module is missing; install it (Debian, Ubuntu: apt-get install python3-venv)." >&2
            return 2
        fi
    fi
    echo "Installing into .venv (a minute or two) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}" || return 1
    echo "$wanted" >"$stamp"
}

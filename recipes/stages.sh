# Sourced by the recipes: options, stages that are not run twice, trainings that go on where they broke off.
#
# An option of a recipe is a line at its top, NAME=DEFAULT # what it means; the flag is --name, with - for _. A recipe
# calls `take_options "$@"` after these lines, and then stands in the root of the checkout with the environment's
# programs on its path. Of the options, dir, stage, stop_stage, threads and train_flags mean the same everywhere.
# shellcheck shell=bash disable=SC2034,SC2154

# A script that calls another one with options of its own stays the one that --help and messages speak of.
described=${NMT_RECIPE:-$0}
recipe=$(basename "$described" .sh)
began=$SECONDS
called_from=$PWD

refuse() { # refuse MESSAGE: the user's mistake, in one line
    echo "$recipe: $*" >&2
    exit 2
}

option_lines() { sed -n 's/^\([a-z_][a-z_]*\)=.*# \(.*\)$/\1 \2/p' "$0"; }

usage() { # the comment that a script begins with, and the options with their defaults
    local name text
    sed -n '2,/^$/s/^# \{0,1\}//p' "$described"
    echo "Options (with their defaults):"
    option_lines | while read -r name text; do
        printf '  --%-24s %s\n' "${name//_/-} ${!name:-\"\"}" "$text"
    done
}

take_options() { # take_options WORD...: sets the variables
    local names name
    names=" $(option_lines | cut -d' ' -f1 | tr '\n' ' ')"
    while [ $# -gt 0 ]; do
        case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --?*)
            name=${1#--}
            name=${name//-/_}
            [[ $names == *" $name "* ]] || refuse "unknown option $1; see --help"
            [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
            printf -v "$name" %s "$2"
            shift 2
            ;;
        *) refuse "unknown option $1; see --help" ;;
        esac
    done
    cd "$(dirname "$0")/.." || exit
    export PATH="$PWD/.venv/bin:$PATH"
    # A thread that waits spins a moment only: longer gains nothing here and costs much on a busy machine.
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
}

check_numbers() { # check_numbers VALUE...: whole numbers
    local value
    for value in "$@"; do
        [[ $value =~ ^[0-9]+$ ]] || refuse "'$value' is not a number; see --help"
    done
}

wanted() { # wanted N [KEY]: is stage N to be run? Not if it was finished with the same key, or is outside of the limits
    local mark=$dir/stage$1.done
    [ "$1" -le "$stop_stage" ] || return 1
    if [ -n "$stage" ]; then
        [ "$1" -ge "$stage" ]
    else
        [ ! -f "$mark" ] || [ "$(cat "$mark")" != "${2:-}" ]
    fi
}

finish() { # finish N [KEY]
    echo "${2:-}" >"$dir/stage$1.done"
    echo "== stage $1 done, $((SECONDS - began)) s since the start"
}

check_choice() { # check_choice WORDS: a rerun must not show another one's results
    local kept
    [ -f "$dir/choice" ] || return 0
    kept=$(cat "$dir/choice")
    [ "$kept" = "$1" ] || refuse "$dir holds a run on $kept, not on $1; give another --dir, or remove that one"
}

keep_choice() { # keep_choice WORDS: what the folder was begun with
    check_choice "$1"
    echo "$1" >"$dir/choice"
}

train() { # train RUN SEED [FLAG ...]: a new run, or the rest of one that broke off
    local run=$1 seed=$2
    shift 2
    if [ -n "$stage" ] || [ ! -f "$run/last.ckpt" ]; then
        rm -rf "$run"
        # shellcheck disable=SC2086
        nmt train --run "$run" --seed "$seed" --trainer.threads "$threads" "$@" $train_flags
    else
        nmt train --resume "$run"
    fi
}

#!/usr/bin/env bash
# From a fresh clone to a translation model trained through beam search, in about 15 minutes on 2 cores.
#
# Stages: 0 environment, 1 corpus, 2 training by cross-entropy, 3 fine-tuning through the soft beam,
# 4 translation of the test set and BLEU before and after, 5 pictures.
# Rerun: finished stages are skipped, a broken-off training goes on from its last checkpoint.

set -euo pipefail

corpus=auto        # a card in data/; auto: libreoffice_help (apt), else multi30k_en-de (Hugging Face hub)
dir=runs/quickstart # everything that is made lands here
seed=1             # of both trainings
threads=$(nproc 2>/dev/null || echo 2) # of torch
stage=             # first stage to run, even if it is finished
stop_stage=5       # last stage to run
train_flags=       # further flags for both trainings, such as "--trainer.max_steps 20"

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    cat <<EOT
Options (with their defaults):
  --corpus auto           libreoffice_help, multi30k_en-de, reverse (generated, needs no network), or any card
  --dir $dir
  --seed $seed
  --threads $threads
  --stage N               run from stage N on, finished or not
  --stop-stage $stop_stage
  --train-flags ""        further flags for both trainings
  --help
EOT
}

while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage; exit 0 ;;
    --corpus | --dir | --seed | --threads | --stage | --stop-stage | --train-flags)
        [ $# -ge 2 ] || { echo "quickstart: $1 needs a value; see --help" >&2; exit 2; }
        name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
    *) echo "quickstart: unknown option $1; see --help" >&2; exit 2 ;;
    esac
done
for number in "${stage:-0}" "$stop_stage" "$seed" "$threads"; do
    [[ $number =~ ^[0-9]+$ ]] || { echo "quickstart: '$number' is not a number; see --help" >&2; exit 2; }
done

cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
# A thread that waits spins a moment only: longer gains nothing here and costs much on a busy machine.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
mkdir -p "$dir"
began=$SECONDS

wanted() { # is stage $1 to be run?
    [ "$1" -le "$stop_stage" ] || return 1
    if [ -n "$stage" ]; then [ "$1" -ge "$stage" ]; else [ ! -f "$dir/stage$1.done" ]; fi
}
finish() {
    touch "$dir/stage$1.done"
    echo "== stage $1 done, $((SECONDS - began)) s since the start"
}
train() { # train RUN CONFIG [FLAG ...]: a new run, or the rest of one that broke off
    local run=$1 config=$2
    shift 2
    if [ -n "$stage" ] || [ ! -f "$run/last.ckpt" ]; then
        rm -rf "$run"
        # shellcheck disable=SC2086
        nmt train --config "$config" --run "$run" --seed "$seed" --data.corpus "$corpus" \
            --trainer.threads "$threads" "$@" $train_flags
    else
        nmt train --resume "$run"
    fi
}

if wanted 0; then
    echo "== stage 0: environment"
    . recipes/environment.sh
    environment
    finish 0
fi

# The choice is kept: a rerun goes on with the same corpus and seed, and does not show another one's results.
if [ -f "$dir/choice" ]; then
    read -r chosen_corpus chosen_seed <"$dir/choice"
    [ "$corpus" = auto ] && corpus=$chosen_corpus
    if [ "$corpus $seed" != "$chosen_corpus $chosen_seed" ]; then
        echo "quickstart: $dir holds a run on $chosen_corpus with seed $chosen_seed, not on $corpus with seed $seed;" \
            "give another --dir, or remove that one" >&2
        exit 2
    fi
fi
if wanted 1; then
    echo "== stage 1: corpus"
    if [ "$corpus" = auto ]; then
        for corpus in libreoffice_help multi30k_en-de none; do
            [ "$corpus" = none ] && break
            nmt corpus get "$corpus" && break
        done
        if [ "$corpus" = none ]; then
            echo "No corpus could be fetched. Without a network, train on a generated task:" >&2
            echo "  recipes/quickstart.sh --corpus reverse" >&2
            exit 1
        fi
    else
        nmt corpus get "$corpus"
    fi
    echo "$corpus $seed" >"$dir/choice"
    finish 1
fi
config=recipes/configs/quickstart
[ "$corpus" = reverse ] && config=recipes/configs/quickstart_reverse

if wanted 2; then
    echo "== stage 2: training by cross-entropy"
    train "$dir/cross_entropy" "$config.yaml"
    finish 2
fi

if wanted 3; then
    echo "== stage 3: fine-tuning through the soft beam"
    train "$dir/soft_beam" "${config}_soft_beam.yaml" --from "$dir/cross_entropy"
    finish 3
fi

if wanted 4; then
    echo "== stage 4: translation of the test set"
    python recipes/quickstart_test.py "$corpus" "$dir" --threads "$threads"
    finish 4
fi

if wanted 5; then
    echo "== stage 5: pictures"
    sentence=$(sed -n 1p "$dir/example.txt")
    nmt plot attention "$dir/soft_beam" --text "$sentence" -o "$dir/attention.png"
    nmt plot beam "$dir/soft_beam" --text "$sentence" -o "$dir/beam.png"
    nmt plot curves "$dir/cross_entropy" "$dir/soft_beam" -o "$dir/curves.png"
    finish 5
fi

if [ -f "$dir/stage5.done" ]; then
    cat "$dir/result.txt"
    cat <<EOT

attention plot    $dir/attention.png
soft beam         $dir/beam.png
learning curves   $dir/curves.png
model             $dir/soft_beam/model.safetensors
translate with it .venv/bin/nmt translate $dir/soft_beam FILE
EOT
fi

#!/usr/bin/env bash
# From a fresh clone to a translation model trained through beam search, in about 15 minutes on 2 cores.
#
# Stages: 0 environment, 1 corpus, 2 training by cross-entropy, 3 fine-tuning through the soft beam,
# 4 translation of the test set and BLEU before and after, 5 pictures.
# Rerun: finished stages are skipped, a broken-off training goes on from its last checkpoint.

set -euo pipefail

corpus=auto         # libreoffice_help (apt), else multi30k_en-de (hub); reverse (needs no network), or any card
dir=runs/quickstart # everything that is made lands here
seed=1              # of both trainings
threads=$(nproc 2>/dev/null || echo 2) # of torch
stage=              # run from this stage on, finished or not; otherwise what is not finished
stop_stage=5        # last stage to run
train_flags=        # further flags for both trainings, such as "--trainer.max_steps 20"

. "$(dirname "$0")/stages.sh"
take_options "$@"
check_numbers "${stage:-0}" "$stop_stage" "$seed" "$threads"
mkdir -p "$dir"

if wanted 0; then
    echo "== stage 0: environment"
    . recipes/environment.sh
    environment
    finish 0
fi

# With a corpus of its own choice, a rerun goes on with the one that was chosen.
if [ "$corpus" = auto ] && [ -f "$dir/choice" ]; then
    read -r corpus _ <"$dir/choice"
fi
[ "$corpus" = auto ] || check_choice "$corpus with seed $seed"
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
    keep_choice "$corpus with seed $seed"
    finish 1
fi
config=recipes/configs/quickstart
[ "$corpus" = reverse ] && config=recipes/configs/quickstart_reverse

if wanted 2; then
    echo "== stage 2: training by cross-entropy"
    train "$dir/cross_entropy" "$seed" --config "$config.yaml" --data.corpus "$corpus"
    finish 2
fi

if wanted 3; then
    echo "== stage 3: fine-tuning through the soft beam"
    train "$dir/soft_beam" "$seed" --config "${config}_soft_beam.yaml" --data.corpus "$corpus" --from "$dir/cross_entropy"
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

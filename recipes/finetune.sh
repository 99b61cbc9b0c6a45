#!/usr/bin/env bash
# A model of another toolkit made better at what beam search will do with it: a baseline that joeynmt trains by its own
# command, or a small Marian model of transformers; imported; trained on through the soft beam; and beside that by
# cross-entropy for about as long, which is what the soft beam has to beat.
#
# Stages: 0 environments, 1 texts and pieces, 2 baseline, 3 import, 4 soft beam, 5 cross-entropy, 6 test set:
# translations, BLEU and chrF with signatures, paired tests against the baseline and against cross-entropy.
# Rerun: finished stages are skipped, and a training that broke off goes on (joeynmt's begins anew).

set -euo pipefail

toolkit=joeynmt       # whose model: joeynmt, or marian (transformers)
corpus=multi30k_en-fr # card in data/
dir=                  # everything that is made lands here; by default runs/finetune.TOOLKIT
peers=runs/joeynmt    # environment with joeynmt 2.3; it is made where there is none
seed=1                # of all trainings
threads=$(nproc 2>/dev/null || echo 2) # of torch
device=cpu            # of all trainings: cpu or gpu
vocabulary=6000       # pieces, of both languages together
size=256              # of the baseline's embeddings and hidden states
updates=3000          # of the baseline
soft_updates=700      # through the soft beam
control_updates=1400  # by cross-entropy: on the study's model they took as long as 670 through the soft beam
lr=                   # of what comes after the import; by default 5e-4 (joeynmt) or 1e-4 (marian)
beam=5                # slots of the search on the test set
stage=                # run from this stage on, finished or not; otherwise what is not finished
stop_stage=6          # last stage to run
train_flags=          # further flags of every nmt train

. "$(dirname "$0")/stages.sh"
take_options "$@"
check_numbers "${stage:-0}" "$stop_stage" "$seed" "$threads" "$vocabulary" "$size" "$updates" "$soft_updates" \
    "$control_updates" "$beam"
case $toolkit in
joeynmt) lr=${lr:-5e-4} dropout=(--model.dropout 0) ;;
marian) lr=${lr:-1e-4} dropout=() ;;
*) refuse "--toolkit is '$toolkit'; choose joeynmt or marian" ;;
esac
case $device in
cpu | gpu) ;;
*) refuse "--device is '$device'; choose cpu or gpu" ;;
esac
dir=${dir:-runs/finetune.$toolkit}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
chosen="$toolkit on $corpus, seed $seed, $vocabulary pieces, size $size, $updates updates"
keep_choice "$chosen"

data=(--data.train_source "$dir/train.source" --data.train_target "$dir/train.target"
    --data.dev_source "$dir/dev.source" --data.dev_target "$dir/dev.target")
fine_tune() { # fine_tune NAME UPDATES [FLAG ...]
    local name=$1 steps=$2
    shift 2
    train "$dir/$name" "$seed" --config recipes/configs/fine_tuning.yaml --from "$dir/imported.safetensors" "${data[@]}" \
        --optimizer.lr "$lr" --trainer.max_steps "$steps" --trainer.device "$device" "$@"
}

run_stages() {
    if wanted 0; then
        echo "== stage 0: environments"
        . recipes/environment.sh
        if [ "$toolkit" = marian ]; then environment hf; else environment; fi
        if [ "$toolkit" = joeynmt ] && [ ! -e "$peers/installed" ]; then
            python -m venv "$peers"
            # joeynmt calls what later versions of sentencepiece lack.
            "$peers/bin/python" -m pip install --quiet --disable-pip-version-check "torch>=2.6,<2.14" "joeynmt==2.3.0" \
                importlib_metadata "sentencepiece<0.2.1"
            touch "$peers/installed"
        fi
        finish 0
    fi

    if wanted 1; then
        echo "== stage 1: texts and pieces"
        nmt corpus get "$corpus"
        for split in train dev test; do
            python recipes/split.py "$corpus" "$split" "$dir/$split.source" "$dir/$split.target"
        done
        python recipes/finetune/pieces.py "$dir" --size "$vocabulary" --seed "$seed"
        finish 1
    fi

    if wanted 2; then
        echo "== stage 2: baseline"
        if [ "$toolkit" = joeynmt ]; then
            python=$(cd "$peers/bin" && pwd)/python
            cuda=False
            [ "$device" = cpu ] || cuda=True
            sed -e "s/SIZE/$size/; s/UPDATES/$updates/; s/SEED/$seed/; s/CUDA/$cuda/" recipes/finetune/joeynmt.yaml \
                >"$dir/joeynmt.yaml"
            # Its own optimiser state is pickled in what it wrote itself.
            (cd "$dir" && OMP_NUM_THREADS=$threads TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 \
                "$python" -m joeynmt train joeynmt.yaml --skip-test)
        else
            [ -f "$dir/fresh.safetensors" ] || {
                python recipes/finetune/marian.py "$dir" --size "$size" --seed "$seed"
                nmt import hf "$dir/fresh" -o "$dir/fresh.safetensors"
            }
            train "$dir/baseline" "$seed" --config recipes/configs/fine_tuning_marian.yaml --from "$dir/fresh.safetensors" \
                "${data[@]}" --trainer.max_steps "$updates" --trainer.device "$device"
        fi
        finish 2
    fi

    if wanted 3; then
        echo "== stage 3: import"
        if [ "$toolkit" = joeynmt ]; then
            nmt import joeynmt "$dir/joeynmt" -o "$dir/imported.safetensors"
        else
            cp "$dir/baseline/model.safetensors" "$dir/imported.safetensors"
        fi
        finish 3
    fi

    if wanted 4; then
        echo "== stage 4: soft beam"
        fine_tune soft_beam "$soft_updates" "${dropout[@]}"
        finish 4
    fi

    if wanted 5; then
        echo "== stage 5: cross-entropy"
        fine_tune cross_entropy "$control_updates" --objective cross_entropy
        finish 5
    fi

    if wanted 6 "beam $beam"; then
        echo "== stage 6: test set"
        systems=()
        for name in imported.safetensors cross_entropy soft_beam; do
            systems+=("$dir/${name%.safetensors}.beam$beam.txt")
            nmt translate "$dir/$name" "$dir/test.source" --beam_size "$beam" --threads "$threads" -o "${systems[-1]}"
        done
        {
            echo "against the baseline"
            nmt evaluate --hypotheses "${systems[1]}" "${systems[2]}" --baseline "${systems[0]}" \
                --reference "$dir/test.target"
            echo "soft beam against cross-entropy"
            nmt evaluate --hypotheses "${systems[2]}" --baseline "${systems[1]}" --reference "$dir/test.target"
        } | tee "$dir/result.txt"
        finish 6 "beam $beam"
    elif [ -f "$dir/result.txt" ]; then
        cat "$dir/result.txt"
    fi
}

run_stages; exit

#!/usr/bin/env bash
# A corpus from its card to scores on its test set: cross-entropy, then the soft beam, for one or more seeds.
#
# Stages: 0 environment, 1 corpus get, 2 corpus check, 3 corpus prepare, 4 cross-entropy, 5 cross-entropy again with
# locked dropout (where there is a configuration of it), 6 soft beam, 7 averages of the last models (where --average asks
# for them), 8 test set: translations, BLEU and chrF with signatures, mean and deviation over the seeds, paired tests of
# the soft beam against what it began with, BLEU of tokenised text (where --tokenized asks for it), 9 pictures.
# Rerun: finished stages are skipped, a broken-off training goes on from its last checkpoint, further seeds are added.

set -euo pipefail

corpus=        # card in data/, or the path of one
direction=     # source-target, such as fr-en, to turn the card round
size=small     # of model and schedule, for about 30,000 pairs (small), 200,000 (medium), or millions (large)
setting=ours   # ours; or paper: RNNsearch as Bahdanau et al. (2015), a teacher-forcing ratio of 0.8, k = 5
config=        # instead of size and setting: files of cross-entropy, a later one laid over the earlier ones
locked_config= # instead of size and setting: files of cross-entropy with locked dropout; none: no such phase
soft_config=   # instead of size and setting: files of the soft beam; none: no soft beam
dir=           # everything that is made lands here; by default runs/CARD.SETTING
seeds=1        # such as "1 2 3"
threads=$(nproc 2>/dev/null || echo 2) # of torch
processes=1    # that encode the corpus, check it, and translate
average=0      # of each run the mean of so many last validated models is scored, too
beam=5         # slots of the search on the test set
tokenized=     # BLEU of tokenised text, too: none (the card's text is tokenised already) or moses (sacremoses does it)
stage=         # run from this stage on, finished or not; otherwise what is not finished
stop_stage=9   # last stage to run
train_flags=   # further flags of all trainings, such as "--trainer.max_minutes 600"
soft_flags=    # further flags of the soft beam alone
plan=no        # yes: tell what would be run, and end

. "$(dirname "$0")/stages.sh"
take_options "$@"
# shellcheck disable=SC2086
check_numbers "${stage:-0}" "$stop_stage" "$threads" "$processes" "$average" "$beam" $seeds
[ -n "$corpus" ] || refuse "--corpus is missing; give a card (nmt corpus list names them)"
[ -n "$seeds" ] || refuse "--seeds is empty; give one or more, such as \"1 2 3\""

paths() { # paths NAME...: the files of shipped configurations
    printf 'recipes/configs/%s.yaml ' "$@"
}

case $size in
small) sized=study_cross_entropy soft_size= ;; # the study's settings, whose scores are known
medium | large) sized=$size soft_size=soft_beam_$size ;;
*) refuse "--size is '$size'; choose small, medium or large" ;;
esac
# The second phase of cross-entropy is the study's; for larger models it is not tried.
locked=none
case $setting in
ours)
    configs=$sized softs="study_fine_tuning soft_beam $soft_size"
    [ "$size" != small ] || locked=$(paths study_fine_tuning locked_dropout)
    ;;
paper) configs="$sized paper" softs="study_fine_tuning soft_beam $soft_size soft_beam_paper" ;;
*) refuse "--setting is '$setting'; choose ours or paper" ;;
esac
case $tokenized in
"" | none | moses) ;;
*) refuse "--tokenized is '$tokenized'; choose none or moses, or leave it out" ;;
esac

# A configuration of one's own has no phases but those that are given.
[ -z "$config" ] || locked=none
locked_config=${locked_config:-$locked}
# shellcheck disable=SC2086
[ -n "$config" ] || config=$(paths $configs)
# shellcheck disable=SC2086
[ -n "$soft_config" ] || soft_config=$(paths $softs)
# A card that lies where the recipe was called.
case $corpus in *.yaml) [ ! -f "$called_from/$corpus" ] || corpus=$called_from/$corpus ;; esac
[ "$locked_config" != none ] || locked_config=
[ "$soft_config" != none ] || soft_config=
config=${config% } locked_config=${locked_config% } soft_config=${soft_config% }
card=$(basename "$corpus" .yaml)
dir=${dir:-runs/$card.$setting}
chosen="$corpus${direction:+ ($direction)} with $config, ${locked_config:+then $locked_config, }then \
${soft_config:-nothing}, averages of $average"
begin=cross_entropy # what the soft beam begins with
[ -z "$locked_config" ] || begin=locked_dropout

if [ "$plan" != no ]; then
    printf '%-14s %s\n' corpus "$corpus" direction "$direction" cross_entropy "$config" \
        locked_dropout "$locked_config" soft_beam "$soft_config" \
        folder "$dir" seeds "$seeds" average "$average" tokenized "$tokenized"
    exit 0
fi
mkdir -p "$dir"
check_choice "$chosen"

data=(--data.corpus "$corpus")
if [ -n "$direction" ]; then
    data+=(--data.source_language "${direction%%-*}" --data.target_language "${direction#*-}")
fi
layers() { # layers FILE...: sets flags to --config FILE, each
    flags=()
    local file
    for file in "$@"; do flags+=(--config "$file"); done
}
train_seeds() { # train_seeds NAME [FLAG ...]: a run a seed; those that have ended stay as they are
    local name=$1 one run start
    shift
    for one in $seeds; do
        run=$dir/seed$one/$name
        if [ -z "$stage" ] && [ -f "$run.done" ]; then continue; fi
        echo "-- $name, seed $one"
        rm -f "$run.done"
        start=()
        case $name in
        locked_dropout) start=(--from "$dir/seed$one/cross_entropy") ;;
        soft_beam) start=(--from "$dir/seed$one/$begin") ;;
        esac
        train "$run" "$one" "$@" "${start[@]}"
        touch "$run.done"
    done
}

hypotheses() { # hypotheses SYSTEM [ENDING]: its translations, a file a seed
    local one
    for one in $seeds; do printf '%s ' "$dir/seed$one/$1.beam$beam${2:-}.txt"; done
}

compare() { # compare REFERENCE ENDING [FLAG ...]: of each system the scores, then the soft beam against its start
    local reference=$1 ending=$2 name
    shift 2
    for name in $systems; do
        echo "$name"
        # shellcheck disable=SC2046
        nmt evaluate --hypotheses $(hypotheses "$name" "$ending") --reference "$reference" "$@"
        echo
    done
    if [ -n "$soft_config" ]; then
        echo "soft_beam against $begin"
        # shellcheck disable=SC2046
        nmt evaluate --hypotheses $(hypotheses soft_beam "$ending") --baseline $(hypotheses "$begin" "$ending") \
            --reference "$reference" "$@"
    fi
}

# A function is read whole before it runs, and a line is, so that an edit of this file leaves a run of days alone.
run_stages() {
    if wanted 0; then
        echo "== stage 0: environment"
        . recipes/environment.sh
        environment
        finish 0
    fi

    # What stage 8 would miss is told before days of training.
    if [ "$tokenized" = moses ] && [ "$stop_stage" -ge 8 ]; then python recipes/moses.py en </dev/null; fi

    if wanted 1; then
        echo "== stage 1: corpus get"
        nmt corpus get "$corpus"
        keep_choice "$chosen"
        finish 1
    fi
    keep_choice "$chosen"

    if wanted 2; then
        echo "== stage 2: corpus check"
        nmt corpus check "$corpus" --filtered --processes "$processes" --json "$dir/corpus.json" | tee "$dir/corpus.txt"
        finish 2
    fi

    # shellcheck disable=SC2086
    layers $config
    if wanted 3 "$seeds"; then
        echo "== stage 3: corpus prepare"
        for one in $seeds; do
            mkdir -p "$dir/seed$one"
            # shellcheck disable=SC2086
            nmt corpus prepare "${flags[@]}" "${data[@]}" --seed "$one" --processes "$processes" \
                --json "$dir/seed$one/prepared.json" $train_flags
        done
        finish 3 "$seeds"
    fi

    if wanted 4 "$seeds"; then
        echo "== stage 4: cross-entropy"
        train_seeds cross_entropy "${flags[@]}" "${data[@]}" --trainer.keep "$average"
        finish 4 "$seeds"
    fi

    systems="cross_entropy"
    if [ -n "$locked_config" ]; then
        systems="$systems locked_dropout"
        if wanted 5 "$seeds"; then
            echo "== stage 5: locked dropout"
            # shellcheck disable=SC2086
            layers $locked_config
            train_seeds locked_dropout "${flags[@]}" "${data[@]}" --trainer.keep "$average"
            finish 5 "$seeds"
        fi
    fi

    if [ -n "$soft_config" ]; then
        systems="$systems soft_beam"
        if wanted 6 "$seeds"; then
            echo "== stage 6: soft beam"
            # shellcheck disable=SC2086
            layers $soft_config
            # shellcheck disable=SC2086
            train_seeds soft_beam "${flags[@]}" "${data[@]}" --trainer.keep "$average" $soft_flags
            finish 6 "$seeds"
        fi
    fi

    if [ "$average" -gt 0 ]; then
        if wanted 7 "$seeds"; then
            echo "== stage 7: averages"
            for one in $seeds; do
                for name in $systems; do
                    run=$dir/seed$one/$name
                    mean=$run.average.safetensors
                    if [ -z "$stage" ] && [ -f "$mean" ] && [ ! "$run.done" -nt "$mean" ]; then continue; fi
                    nmt average "$run" -o "$mean"
                done
            done
            finish 7 "$seeds"
        fi
        for name in $systems; do systems="$systems $name.average"; done
    fi

    if wanted 8 "$seeds, $systems, beam $beam, $tokenized"; then
        echo "== stage 8: test set"
        python recipes/split.py "$corpus" test "$dir/test.source" "$dir/test.reference" \
            ${direction:+--direction "$direction"}
        shared=(--threads "$threads")
        [ "$processes" -gt 1 ] && shared=(--processes "$processes")
        for one in $seeds; do
            for name in $systems; do
                model=$dir/seed$one/$name.safetensors
                [ -f "$model" ] || model=$dir/seed$one/$name/model.safetensors
                output=$dir/seed$one/$name.beam$beam.txt
                if [ -n "$stage" ] || [ ! -f "$output" ] || [ "$model" -nt "$output" ]; then
                    nmt translate "$model" "$dir/test.source" --beam_size "$beam" "${shared[@]}" -o "$output"
                fi
            done
        done
        compare "$dir/test.reference" "" | tee "$dir/result.txt"
        if [ -n "$tokenized" ]; then
            reference=$dir/test.reference ending=
            if [ "$tokenized" = moses ]; then
                language=$(cat "$dir/test.reference.language")
                reference=$dir/test.reference.tok ending=.tok
                python recipes/moses.py "$language" <"$dir/test.reference" >"$reference"
                for name in $systems; do
                    for file in $(hypotheses "$name"); do
                        python recipes/moses.py "$language" <"$file" >"${file%.txt}.tok.txt"
                    done
                done
            fi
            {
                echo
                echo "tokenised text ($tokenized)"
                compare "$reference" "$ending" --tokenize none --metrics bleu
            } | tee -a "$dir/result.txt"
        fi
        finish 8 "$seeds, $systems, beam $beam, $tokenized"
    fi

    if wanted 9 "$seeds"; then
        echo "== stage 9: pictures"
        first=$dir/seed${seeds%% *}
        last=$first/$begin
        [ -z "$soft_config" ] || last=$first/soft_beam
        sentence=$(awk 'NF >= 6 && NF <= 16 { print; exit }' "$dir/test.source")
        sentence=${sentence:-$(sed -n 1p "$dir/test.source")}
        nmt plot attention "$last" --text "$sentence" -o "$dir/attention.png"
        nmt plot beam "$last" --text "$sentence" -o "$dir/beam.png"
        nmt plot curves "$first/cross_entropy" ${locked_config:+"$first/locked_dropout"} \
            ${soft_config:+"$first/soft_beam"} -o "$dir/curves.png"
        finish 9 "$seeds"
    fi

    if [ -f "$dir/stage9.done" ]; then
        echo
        cat "$dir/result.txt"
        echo
        echo "scores $dir/result.txt; pictures $dir/{attention,beam,curves}.png; models $dir/seed*/"
    fi
}

run_stages; exit

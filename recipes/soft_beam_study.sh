#!/usr/bin/env bash
# Does training through the soft beam pay? From one cross-entropy model a corpus and seed, with the same wall time a run:
# continued cross-entropy, minimum risk, the soft beam, and others (recipes/soft_beam_study.yaml). Run it again after
# an interruption: it goes on where it was. The test set is read in the last stage alone.
set -euo pipefail

dir=runs/soft_beam_study                  # everything lands here
corpora="multi30k_en-fr multi30k_en-de"   # corpus cards; tatoeba_en-fr, too, where you have its files (data/README.md)
seeds="1 2 3"                             # of the cross-entropy models, and of what begins with them
arms=""                                   # these arms alone; empty: all
minutes=15                                # wall time of a fine-tuning run alone, validations not counted
jobs=2                                    # runs at a time
threads=1                                 # threads of a run
convergence=""                            # updates of the second phase of cross-entropy; 0: there is none
dropout=""                                # of all trainings by cross-entropy
start_flags=""                            # more flags for the first phase of cross-entropy, such as sizes
train_flags=""                            # more flags for every nmt train
stage=0                                   # begin here ...
stop_stage=5                              # ... and end here

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    cat <<EOT
Options (with their defaults):
  --dir $dir
  --corpora "$corpora"   corpus cards; data/README.md says where their files have to lie
  --seeds "$seeds"
  --arms ""              these arms of recipes/soft_beam_study.yaml alone
  --minutes $minutes           wall time of a fine-tuning run, validations not counted
  --jobs $jobs               runs at a time
  --threads $threads            threads of a run
  --convergence ""       updates of the second phase of cross-entropy; 0: there is none
  --dropout ""           of all trainings by cross-entropy
  --start-flags ""       further flags of the first phase, such as "--model.hidden 128"
  --train-flags ""       further flags for every nmt train
  --stage $stage, --stop-stage $stop_stage
What is empty is that of recipes/soft_beam_study.yaml, where each corpus has its own.
Stages: 0 environment, 1 corpora, 2 cross-entropy, twice, 3 plan, 4 fine-tuning, 5 test set and table
EOT
}

while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage; exit 0 ;;
    --dir | --corpora | --seeds | --arms | --minutes | --jobs | --threads | \
        --convergence | --dropout | --start-flags | --train-flags | --stage | --stop-stage)
        [ $# -ge 2 ] || { echo "soft_beam_study: $1 needs a value; see --help" >&2; exit 2; }
        name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
    *) echo "soft_beam_study: unknown option $1; see --help" >&2; exit 2 ;;
    esac
done

cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=$threads
mkdir -p "$dir"
wanted() { [ "$1" -ge "$stage" ] && [ "$1" -le "$stop_stage" ]; }
study() { # study VERB [FLAG ...]
    # shellcheck disable=SC2086
    python recipes/soft_beam_study.py "$1" "$dir" --corpora $corpora --seeds $seeds --arms $arms --minutes "$minutes" \
        --jobs "$jobs" --threads "$threads" ${convergence:+--convergence "$convergence"} \
        ${dropout:+--dropout "$dropout"} --start-flags "$start_flags" --flags "$train_flags"
}

if wanted 0; then
    echo "== stage 0: environment"
    . recipes/environment.sh
    environment
fi

if wanted 1; then
    echo "== stage 1: corpora"
    for corpus in $corpora; do nmt corpus get "$corpus"; done
fi

if wanted 2; then
    echo "== stage 2: cross-entropy"
    study start
fi

if wanted 3; then
    echo "== stage 3: how many updates fill $minutes minutes"
    study plan
fi

if wanted 4; then
    echo "== stage 4: fine-tuning"
    study train
fi

if wanted 5; then
    echo "== stage 5: test set"
    study test
    study table
fi

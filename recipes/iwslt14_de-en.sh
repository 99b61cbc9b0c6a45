#!/usr/bin/env bash
# IWSLT14 talks, German to English.
#
# Data:           card iwslt14_de-en: 160,239 pairs as fairseq prepares them, tokenised and perhaps lower-cased; the
#                 download was not tried.
# Expected score: not measured. Published, tokenised BLEU of lower-cased text, other splits: 23.87 with beam 10
#                 (Wiseman and Rush 2016), 27.56 (Bahdanau et al. 2017), 27.63 with BPE and beam 5 (README of joeynmt,
#                 which cites the others).
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus iwslt14_de-en --size medium --tokenized none "$@"

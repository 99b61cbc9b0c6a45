#!/usr/bin/env bash
# WMT14 news, English to German.
#
# Data:           card wmt14_en-de: 4.5 million pairs, newstest2013 for dev, newstest2014 for test; the download was
#                 not tried.
# Expected score: not measured. Published, tokenised BLEU of recurrent models: 22.2 (Britz et al. 2017), 24.6 (Wu et
#                 al. 2016), both as the README of tensorflow/nmt cites them.
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus wmt14_en-de --size large --average 5 --tokenized moses "$@"

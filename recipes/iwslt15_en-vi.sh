#!/usr/bin/env bash
# IWSLT15 talks, English to Vietnamese.
#
# Data:           card iwslt15_en-vi: 133,000 tokenised pairs, tst2012 for dev, tst2013 for test; put the files into
#                 its folder.
# Expected score: not measured. Published, BLEU of tokenised text on tst2013: 23.3 (Luong and Manning 2015), 26.1 with
#                 beam 10 (README of tensorflow/nmt), 27.7 with beam 5 (README of joeynmt).
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus iwslt15_en-vi --size medium --tokenized none "$@"

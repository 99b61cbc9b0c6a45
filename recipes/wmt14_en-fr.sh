#!/usr/bin/env bash
# WMT14 news, English to French: the task of Bahdanau et al. (ICLR 2015) and of Xie et al. (NeurIPS 2020).
#
# Data:           card wmt14_en-fr: the whole training text, newstest2012 and 2013 for dev, newstest2014 for test; the
#                 download was not tried.
# Expected score: not measured. Published, tokenised BLEU: RNNsearch-50 26.75, trained longer 28.45 (Bahdanau et al.
#                 2015, table 1: 30,000 words, 348 million words of text); 35.38, and 36.27 with sorted SOFT top-k
#                 (Xie et al. 2020).
# Cost:           not measured; on paper, 228 days of one core for cross-entropy (README, What WMT14 En-Fr would cost)
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus wmt14_en-fr --size large --average 5 --tokenized moses "$@"

#!/usr/bin/env bash
# Tatoeba, English to French: short everyday sentences.
#
# Data:           card tatoeba_en-fr: 162,435 pairs of about 6 words; put the files into its folder.
# Expected score: not measured on its test set.
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus tatoeba_en-fr --size small "$@"

#!/usr/bin/env bash
# Multi30k task 1, English captions to Czech, without the pictures.
#
# Data:           card multi30k_en-cs: 29,000 pairs; put the files into its folder.
# Expected score: not measured
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus multi30k_en-cs --size small "$@"

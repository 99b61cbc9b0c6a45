#!/usr/bin/env bash
# WMT16 news, English to Romanian.
#
# Data:           card wmt16_en-ro: newsdev2016 for dev, newstest2016 for test; the download was not tried.
# Expected score: not measured
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus wmt16_en-ro --size large --average 5 "$@"

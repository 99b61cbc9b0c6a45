#!/usr/bin/env bash
# IWSLT17 talks, English to French.
#
# Data:           card iwslt17_en-fr: raw text; the download was not tried.
# Expected score: not measured
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus iwslt17_en-fr --size medium "$@"

#!/usr/bin/env bash
# WMT17 news, English to German.
#
# Data:           card wmt17_en-de: newstest2016 for dev, newstest2017 for test; the download was not tried.
# Expected score: not measured. Published, sacreBLEU, beam 5, one recurrent layer, another choice of training text:
#                 Sockeye 23.18, joeynmt 23.45 (README of joeynmt).
# Cost:           not measured
# Settings:       --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail
NMT_RECIPE=$0 exec "$(dirname "$0")/experiment.sh" --corpus wmt17_en-de --size large --average 5 "$@"

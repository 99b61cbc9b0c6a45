#!/usr/bin/env bash
# Two text files of your own, line by line translations of each other, and such files for dev and test.
#
#   recipes/own_bitext.sh --source en --target fr --train my/train --dev my/dev --test my/test [--name mine]
#
# reads my/train.en and my/train.fr (or .gz), and so on, and writes a corpus card runs/NAME.yaml that names them; pairs
# that are there twice, and those that dev or test have, too, are not trained on. --size goes by the number of pairs.
# Expected score: depends on the text. Cost: not measured.
# Settings: --setting ours (default), or --setting paper; recipes/experiment.sh has the stages.

set -euo pipefail

# shellcheck disable=SC2034 # read by name
name=own_bitext source="" target="" train="" dev="" test="" rest=() help=
refuse() {
    echo "own_bitext: $*" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
    --name | --source | --target | --train | --dev | --test)
        [ $# -ge 2 ] || refuse "$1 needs a value; see --help"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --help | -h) help=--help && shift ;;
    *) rest+=("$1") && shift ;;
    esac
done
root=$(cd "$(dirname "$0")/.." && pwd)
card=$root/runs/$name.yaml
if [ -z "$help" ]; then
    for option in source target train dev test; do
        [ -n "${!option}" ] || refuse "--$option is missing; see --help"
    done
    declare -A files
    splits=
    for split in train dev test; do
        for language in "$source" "$target"; do
            file=${!split}.$language
            [ -f "$file" ] || file=$file.gz
            [ -f "$file" ] || refuse "there is no ${!split}.$language (or .gz); --$split names both files, without .$language"
            files[$language]=$(cd "$(dirname "$file")" && pwd)/$(basename "$file")
        done
        splits+="  $split: {source: \"${files[$source]}\", target: \"${files[$target]}\"}"$'\n'
    done
    mkdir -p "$root/runs"
    cat >"$card" <<EOT
description: Text of your own, as recipes/own_bitext.sh found it.
languages: {source: "$source", target: "$target"}
filter: {duplicates: false, overlap: true}
splits:
$splits
EOT
fi
NMT_RECIPE=$0 exec "$root/recipes/experiment.sh" --corpus "$card" "${rest[@]}" $help

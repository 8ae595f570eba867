#!/usr/bin/env bash
# Makes each experiment's report from folders of runs, unpacked packs among them, and puts the tables,
# figures and contact sheet into the experiment's own folder.
#
#   experiments/report_all.sh [FOLDER...]       (outputs/experiments)
set -u
cd "$(dirname "$0")/.."

GOODDRAG=${GOODDRAG:-gooddrag}
REPORTS=${REPORTS:-outputs/reports}
INTO=${INTO:-experiments}
command -v "$GOODDRAG" > /dev/null || { echo "$GOODDRAG is not a command here: set GOODDRAG to it" >&2; exit 2; }
[ "$#" -gt 0 ] || set -- outputs/experiments

for recipe in conf/experiment/*.yaml; do
    name=$(basename "$recipe" .yaml)
    case $name in
        05_more_departures) folder=05_departures/more ;;
        07_plus_validation) folder=07_plus/validation ;;
        08_*) folder=08_paper/${name#08_} ;;
        *) folder=$name ;;
    esac
    "$GOODDRAG" report "$@" "only=$name" "output=$REPORTS/$name" || continue    # not run yet
    mkdir -p "$INTO/$folder"
    cp "$REPORTS/$name"/{report.md,summary.csv} "$INTO/$folder/"
    cp "$REPORTS/$name"/*.svg "$REPORTS/$name"/sheet_*.jpg "$INTO/$folder/" 2>/dev/null
done

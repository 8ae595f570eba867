#!/usr/bin/env bash
# Runs the experiments on DragWorld: for each seed a process that goes through all of them. It can be
# cut off at any time and started again: what is recorded is not done again. In the end, or when the
# minutes are over, the records are packed.
#
#   experiments/run_all.sh [OVERRIDES...]
#   SEEDS=0 MINUTES=9 experiments/run_all.sh batch=75 workers=14      # on a GPU beside 16 cores
#   GPUS=2 experiments/run_all.sh batch=75 workers=5                  # all at once, see below
#
# GPUS=N deals the experiments out to N GPUs: on each a process for every seed, at the same time. Three
# of them keep a large GPU busy. Two that come to a run they have in common at the same time both do it:
# that costs time and nothing else.
#
# To go on where there is only a pack of an earlier part: gooddrag unpack pack.tar.xz output=outputs/experiments
set -u
cd "$(dirname "$0")/.."

GOODDRAG=${GOODDRAG:-gooddrag}
OUTPUT=${OUTPUT:-outputs/experiments}
SEEDS=${SEEDS:-0 1 2}
EXPERIMENTS=${EXPERIMENTS:-06_methods,01_alternating,07_plus,02_loss,05_departures,03_lora,04_attention,05_more_departures}
MINUTES=${MINUTES:-}    # none: until all is done
GPUS=${GPUS:-}          # none: one seed after another, where the trainer says
case $GPUS in
    0 | *[!0-9]*) echo "GPUS must be how many GPUs to use, 1 or more, found $GPUS" >&2; exit 2 ;;
esac

share_of() {            # GPU: each GPUS-th experiment from there on
    local names share=() i
    IFS=, read -ra names <<< "$EXPERIMENTS"
    for ((i = $1; i < ${#names[@]}; i += GPUS)); do share+=("${names[i]}"); done
    (IFS=,; echo "${share[*]-}")
}

seed_of() {             # SEED EXPERIMENTS [OVERRIDES...]: these, in the time that is left
    local seed=$1 experiments=$2
    shift 2
    local run=("$GOODDRAG" bench -m "experiment=$experiments" "seed=$seed" "output=$OUTPUT" report=false "$@")
    [ -n "$MINUTES" ] || { "${run[@]}"; return; }
    local left=$((MINUTES * 60 - SECONDS))
    [ "$left" -gt 0 ] || return 124
    timeout --signal=INT --kill-after=60 "$left" "${run[@]}"
}

one_after_another() {   # [OVERRIDES...]
    local seed code worst=0
    for seed in $SEEDS; do
        seed_of "$seed" "$EXPERIMENTS" "$@"
        code=$?
        [ "$code" -eq 0 ] || worst=$code
        case $code in 124|130|137) break ;; esac    # cut off; a failed experiment stops no other
    done
    return "$worst"
}

side_by_side() {        # [OVERRIDES...]
    local devices processes=() gpu seed share process worst=0
    IFS=, read -ra devices <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((GPUS - 1)))}"
    for ((gpu = 0; gpu < GPUS; gpu++)); do
        share=$(share_of "$gpu")
        [ -n "$share" ] || continue
        for seed in $SEEDS; do
            CUDA_VISIBLE_DEVICES=${devices[gpu % ${#devices[@]}]} seed_of "$seed" "$share" "$@" &
            processes+=($!)
        done
    done
    for process in ${processes[@]+"${processes[@]}"}; do    # none: an error in old shells
        wait "$process" || worst=$?
    done
    return "$worst"
}

if [ -n "$GPUS" ]; then side_by_side "$@"; else one_after_another "$@"; fi
status=$?
"$GOODDRAG" pack "$OUTPUT" || status=$?
exit "$status"

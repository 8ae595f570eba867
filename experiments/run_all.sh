#!/usr/bin/env bash
# Runs the experiments on DragWorld: for each seed one process that goes through all of them. It can be
# cut off at any time and started again: what is recorded is not done again. In the end, or when the
# minutes are over, the records are packed.
#
#   experiments/run_all.sh [OVERRIDES...]
#   SEEDS=0 MINUTES=9 experiments/run_all.sh batch=75 workers=14      # on a GPU beside 16 cores
#   GPUS=2 experiments/run_all.sh batch=75 workers=5                  # all seeds at once, on two GPUs
#
# To go on where there is only a pack of an earlier part: gooddrag unpack pack.tar.xz output=outputs/experiments
set -u
cd "$(dirname "$0")/.."

GOODDRAG=${GOODDRAG:-gooddrag}
OUTPUT=${OUTPUT:-outputs/experiments}
SEEDS=${SEEDS:-0 1 2}
EXPERIMENTS=${EXPERIMENTS:-06_methods,07_plus,01_alternating,02_loss,05_departures,03_lora,04_attention,05_more_departures}
MINUTES=${MINUTES:-}    # none: until all is done
GPUS=${GPUS:-}          # none: one seed after another, where the trainer says
case $GPUS in
    0 | *[!0-9]*) echo "GPUS must be how many GPUs to use, 1 or more, found $GPUS" >&2; exit 2 ;;
esac

seed_of() {             # SEED [OVERRIDES...]: all experiments, in the time that is left
    local seed=$1
    shift
    local run=("$GOODDRAG" bench -m "experiment=$EXPERIMENTS" "seed=$seed" "output=$OUTPUT" report=false "$@")
    [ -n "$MINUTES" ] || { "${run[@]}"; return; }
    local left=$((MINUTES * 60 - SECONDS))
    [ "$left" -gt 0 ] || return 124
    timeout --signal=INT --kill-after=60 "$left" "${run[@]}"
}

status=0
processes=()
IFS=, read -ra devices <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((${GPUS:-1} - 1)))}"
for seed in $SEEDS; do
    if [ -n "$GPUS" ]; then
        CUDA_VISIBLE_DEVICES=${devices[${#processes[@]} % GPUS]} seed_of "$seed" "$@" &
        processes+=($!)
        continue
    fi
    seed_of "$seed" "$@"
    code=$?
    [ "$code" -eq 0 ] || status=$code
    case $code in 124|130|137) break ;; esac    # cut off; a failed experiment stops no other
done
for process in ${processes[@]+"${processes[@]}"}; do
    wait "$process" || status=$?
done

"$GOODDRAG" pack "$OUTPUT" || status=$?
exit "$status"

#!/bin/sh
# stops.sh - how often `timeout` leaves a training state: the number for every trainer, with one and with two threads.
#
#   dev/stops.sh [RUNS [SECONDS [SIGNAL]]]     (40, 1, INT) of the programs in the repository's root; data/make_shard is needed
#
# timeout(1) signals its child and then the process group, so every run gets the signal twice. A busy machine needs more
# SECONDS, since a run must have finished its first step.
set -eu
runs=${1:-40}
seconds=${2:-1}
signal=${3:-INT}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
for k in 0 1 2 3 4 5 6 7 8 9; do
    echo "{\"prompt\":\"$k=\",\"completion\":\"$k\"}" >>chat.jsonl
    echo "{\"prompt\":\"$k=\",\"answer\":\"$k\",\"task\":\"exact\"}" >>tasks.jsonl
    echo "{\"prompt\":\"$k=\",\"chosen\":\"$k\",\"rejected\":\"x\"}" >>prefs.jsonl
done
for data in chat tasks prefs; do "$root/data/make_shard" --quiet -i $data.jsonl -o $data.shard; done
shape="--layers 1 --width 16 --heads 1 --context 32"
"$root/train_sft" $shape -i chat.shard -x 2 --batch-tokens 64 -o base 2>/dev/null
for threads in 1 2; do
    for command in "train_sft -i chat.shard --batch-tokens 64" "train_rm -i prefs.shard" "train_dpo -i prefs.shard" \
        "train_grpo -i tasks.shard -p 2 -G 2 -g 4" "train_ppo -i tasks.shard -p 2 -g 4"; do
        states=0
        i=0
        while [ $i -lt "$runs" ]; do
            i=$((i + 1))
            rm -f out.state
            OMP_NUM_THREADS=$threads timeout -s "$signal" "$seconds" "$root"/$command -c base -o out -x 1000000 \
                2>/dev/null || true
            if [ -f out.state ]; then states=$((states + 1)); fi
        done
        echo "${command%% *}, $threads threads: a state after $states of $runs"
    done
done

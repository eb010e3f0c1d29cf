#!/bin/sh
# overoptimisation.sh [DIR] [SEED] - reward overoptimisation (Gao et al. 2022), reproduced in a minute or two.
#
# The gold reward is a hidden rule (llmc/reward/gold.h): letters a are good, repeated letters are bad. A small reward model trains
# on 150 pairs of random completions, a fifth of the labels wrong, and learns that letters a are good. PPO without a KL
# penalty first improves both rewards, then learns "aaaaaaaaaaaaaaaa": the proxy reward keeps rising while the gold reward
# falls far below its initial value. A KL penalty, or a controller with a KL target, keeps the policy where the gold reward
# is high.
#
# Prints one line per KL penalty; DIR (default: overoptimisation) receives the metrics and a report of each run with the two
# curves.
set -eu
cd "$(dirname "$0")/.."
dir=${1:-overoptimisation} seed=${2:-1} rule=char=a:1,repeats:-1.5
make -s train_sft train_rm train_ppo data/make_prefs data/make_shard >&2
mkdir -p "$dir"
say() { tee -a "$dir/log" | grep -E "$1" | tail -n 1 >&2; }

prefs() {
    data/make_prefs --rule "$rule" --seed "$seed" "$@" 2>>"$dir/log" | data/make_shard --quiet -i - -o "$shard" 2>>"$dir/log"
}
shard=$dir/chat.shard prefs --count 2000 --format chat
shard=$dir/prompts.shard prefs --count 400 --format prompt
shard=$dir/pairs.shard prefs --count 150 --flip 0.2
shard=$dir/heldout.shard prefs --count 300 --split heldout
./train_sft -i "$dir/chat.shard" -o "$dir/sft.bin" --layers 2 --width 64 --heads 2 --context 32 -x 250 -l 3e-3 \
    --batch-tokens 1024 --seed "$seed" 2>&1 | say '^step'
./train_rm -i "$dir/pairs.shard" -j "$dir/heldout.shard" -o "$dir/rm.bin" --layers 2 --width 32 --heads 2 \
    --context 32 -x 60 -l 3e-3 --per-device-train-batch-size 16 --seed "$seed" 2>&1 | say '^eval'

# policy NAME OPTIONS...: trains a policy with the given KL penalty and prints a summary
policy() {
    name=$1 && shift
    ./train_ppo -c "$dir/sft.bin" --reward-model "$dir/rm.bin" --gold-cmd "data/make_prefs --score --rule $rule" \
        -i "$dir/prompts.shard" -o "$dir/$name.bin" --metrics "$dir/$name.jsonl" --report "$dir/$name.html" \
        --temperature 1 -g 16 -p 64 -x 240 -l 1e-3 --warmup-steps 20 --lr-scheduler-type constant --seed "$seed" "$@" \
        >"$dir/$name.log" 2>&1 ||
        { tail -n 1 "$dir/$name.log" >&2; exit 1; }
    awk -v name="$name" '/^{"step"/ {
        match($0, /"objective\/gold":[-0-9.e]+/); g = substr($0, RSTART + 17, RLENGTH - 17)
        match($0, /"objective\/scores":[-0-9.e]+/); s = substr($0, RSTART + 19, RLENGTH - 19)
        match($0, /"objective\/kl":[-0-9.e]+/); k = substr($0, RSTART + 15, RLENGTH - 15)
        if (!steps++) { g0 = g; s0 = s; top = g }
        if (g + 0 > top + 0) { top = g; at = k }
    } END { printf "%-12s proxy %6.2f -> %5.2f   gold %6.2f -> %6.2f (maximum %5.2f at KL %5.2f)   final KL %6.2f\n",
        name, s0, s, g0, g, top, at, k }' "$dir/$name.jsonl"
    sed -n 's/^gold reward R/             R/p' "$dir/$name.log"
}
policy none --kl-coef 0
policy kl-0.1 --kl-coef 0.1
policy kl-0.5 --kl-coef 0.5
policy target-3 --kl-coef 0.5 --kl-controller adaptive --kl-target 3 --kl-horizon 1000

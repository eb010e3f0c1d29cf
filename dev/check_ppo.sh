#!/bin/sh
# check_ppo.sh [SEED...] - end-to-end check of every algorithm of train_ppo on one-digit sums, three seeds: two minutes.
#
# A model of two layers is trained on demonstrations of which 30 % are wrong; then each --algo improves it with the verifier's
# reward only. Prints the greedy accuracy on the prompts before and after, and exits with 1 if an algorithm does not improve
# it.
set -eu
cd "$(dirname "$0")/.."
make -s train_sft train_ppo data/make_tasks >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- 1 2 3
data/make_tasks --task add --digits 1 --count 80 --format chat --noise 0.3 -o "$work/sft.shard" 2>/dev/null
data/make_tasks --task add --digits 1 --count 80 -o "$work/tasks.shard" 2>/dev/null
status=0
for seed; do
    ./train_sft -i "$work/sft.shard" -o "$work/sft.bin" --layers 2 --width 64 --heads 2 --context 32 -x 400 -l 3e-3 \
        --batch-tokens 1024 --seed "$seed" 2>"$work/log"
    for algo in ppo a2c reinforce rloo remax reinforce++ reinforce++-baseline; do
        case $algo in
        ppo) more="-p 80 -x 800" ;;
        rloo | *baseline) more="-p 20 -G 4 -x 300" ;;
        *) more="-p 80 -x 300" ;;
        esac
        # shellcheck disable=SC2086
        ./train_ppo -c "$work/sft.bin" -i "$work/tasks.shard" -j "$work/tasks.shard" -o "$work/out.bin" --algo $algo $more \
            --temperature 1 -g 8 -l 3e-4 --warmup-steps 20 --kl-coef 0.01 --eval-steps 1000 --seed "$seed" \
            2>"$work/log" ||
            { tail -n 1 "$work/log" >&2; exit 1; }
        line=$(grep '^held-out' "$work/log")
        echo "seed $seed  $algo: ${line#held-out }"
        echo "$line" | awk '{ exit !($7 > $4) }' || { echo "check_ppo.sh: seed $seed: $algo did not improve the accuracy" >&2; status=1; }
    done
done
exit $status

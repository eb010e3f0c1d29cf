#!/bin/sh
# bench_prefix.sh dpo|rm [LENGTH...] - benchmark of sharing a prompt between the two completions of a pair.
#
# It runs train_dpo or train_rm with and without --prefix-sharing on prompts of increasing length and completions of 32 to 96
# tokens. One row per prompt length: ms per step of 8 pairs (rm: 4) and rows per step, without and with sharing. The machine
# should be otherwise idle.
set -eu
cd "$(dirname "$0")/../.."
case ${1-} in
dpo) set_up="--per-device-train-batch-size 8 --max-steps 8" steps=8 ;;
rm) set_up="--per-device-train-batch-size 4 --max-steps 6 --normalize none" steps=6 ;;
*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 2 ;;
esac
program=train_$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s "$program" data/make_prefs data/make_shard >&2

# Prints the median ms, without the first two steps, and the mean number of tokens of a step.
figures() {
    # shellcheck disable=SC2086
    "./$program" --layers 6 --heads 6 --width 384 --context 2048 --max-length 2048 -i "$work/p.shard" -o /dev/null $set_up \
        --metrics "$work/m.jsonl" "$@" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    sed -n 's/.*"num_tokens":\([0-9.e+]*\).*"step_time":\([0-9.eE+-]*\).*/\2 \1/p' "$work/m.jsonl" | tail -n +3 | sort -n |
        awk -v steps=$steps '{ t[NR] = $1; if ($2 > most) most = $2 }
            END { printf "%.0f %.0f", 1000 * t[int((NR + 1) / 2)], most / steps }'
    rm "$work/m.jsonl"
}

printf '%8s %12s %12s %10s %10s %8s\n' prompt "apart ms" "shared ms" "rows" "rows" times
for length in "${@:-16 64 128 256 512 1024}"; do
    for n in $length; do
        data/make_prefs --count 100 --prompt-length "$n" --min-length 32 --max-length 96 2>/dev/null |
            data/make_shard --quiet -i - -o "$work/p.shard"
        apart=$(figures --no-prefix-sharing) shared=$(figures)
        echo "$n $apart $shared" | awk '{ printf "%8d %12d %12d %10d %10d %8.2f\n", $1, $2, $4, $3, $5, $2 / $4 }'
    done
done

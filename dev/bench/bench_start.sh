#!/bin/sh
# bench_start.sh [RUNS] - benchmark of the start-up time of ./generate on a small model.
#
# The model has 4 layers of width 128 and a byte tokenizer; its file is in the page cache. Prints the shortest, median and
# longest time from start to exit in RUNS runs (default 50), in milliseconds, also for a program that does nothing.
set -eu
cd "$(dirname "$0")/../.."
runs=${1:-50}
make --no-print-directory -s train_sft generate data/make_tasks >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
unset GOMP_SPINCOUNT # set by make for shared machines
./data/make_tasks --task add --digits 2 --count 64 --format chat -o "$work/sft.shard" 2>/dev/null
./train_sft --layers 4 --width 128 --heads 4 --context 64 --max-steps 1 -i "$work/sft.shard" -o "$work/model.bin" \
    2>/dev/null

measure() {
    name=$1
    shift
    i=0
    while [ $i -lt "$runs" ]; do
        start=$(date +%s%N)
        "$@" >/dev/null 2>&1
        echo $(($(date +%s%N) - start))
        i=$((i + 1))
    done | sort -n | awk -v name="$name" '{ t[NR] = $1 / 1e6 }
        END { printf "%-24s %6.1f ms  %6.1f ms  %6.1f ms\n", name, t[1], t[int((NR + 1) / 2)], t[NR] }'
}
printf '%-24s %9s  %9s  %9s\n' "$runs runs" shortest median longest
measure "/bin/true" /bin/true
measure "generate --help" ./generate --help
measure "generate, 1 token" ./generate -c "$work/model.bin" --max-new-tokens 1 "2+3="
measure "generate, 16 tokens" ./generate -c "$work/model.bin" --max-new-tokens 16 "2+3="

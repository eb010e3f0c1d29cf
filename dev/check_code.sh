#!/bin/sh
# check_code.sh [bwrap|landlock] - the long check of rewards that run programs, in a few minutes.
#
#   1  tests/code/escapes.txt: hostile programs must reach nothing, and end with their time
#   2  tests/code/cheats.txt: programs that try to get a reward otherwise, in every form of test
#   3  programs with one token changed: the verdicts of a plain run without a sandbox
#   4  completions a second, by the number of workers, with and without the pool, and without a sandbox
#   5  a small model that writes `def f(x):return x+B` learns B from the reward `code`; from `random` it does not; and with
#      tests that look at the exit status alone it learns to leave with status 0, which the tests of 1 refuse
#
# Prints tables and exits 1 if 1, 2 or 3 fails.
set -eu
cd "$(dirname "$0")/.."
kind=${1:-bwrap}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s build/check_code train_sft train_grpo evaluate data/make_shard >&2
status=0

echo "== 1 escapes"
build/check_code escapes "$kind" >"$work/escapes" || { status=1; grep -A9 FAILED "$work/escapes"; }
tail -n 1 "$work/escapes"
echo "== 2 cheats"
build/check_code cheats "$kind" || status=1
echo "== 3 verdicts"
dev/code_mutants.py >"$work/mutants.jsonl"
build/check_code verdicts "$kind" "$work/mutants.jsonl" || status=1
echo "== 4 speed"
for workers in 1 2 4; do build/check_code speed "$kind" "$workers" 300; done
build/check_code speed none 2 300 2>/dev/null

echo "== 5 learning"
awk 'BEGIN {
    srand(1)
    for (i = 0; i < 6000; i++) {
        b = int(rand() * 10)
        c = rand() < 0.5 ? b : int(rand() * 10)
        text = rand() < 0.1 ? "exit()" : "def f(x):return x+" c
        printf "{\"prompt\":\"x+%d:\",\"completion\":\"%s\"}\n", b, text
    }
}' | data/make_shard -q -i - -o "$work/sft.shard"
awk 'BEGIN {
    for (b = 0; b < 10; b++)
        printf "{\"prompt\":\"x+%d:\",\"task\":\"code\",\"tests\":[\"assert f(0) == %d\",\"assert f(5) == %d\"]}\n", b, b, b + 5
}' | data/make_shard -q -i - -o "$work/tasks.shard"
awk 'BEGIN {
    for (b = 0; b < 10; b++)
        printf "{\"prompt\":\"x+%d:\",\"task\":\"code\",\"run\":\"python3 test.py\",\"files\":{\"test.py\":\"from solution import f\\nassert f(0) == %d\\n\"}}\n", b, b
}' | data/make_shard -q -i - -o "$work/status.shard"
./train_sft --layers 2 --width 48 --heads 4 --context 32 -i "$work/sft.shard" -o "$work/sft.bin" --max-steps 1500 \
    --batch-tokens 1024 --learning-rate 6e-3 --warmup-steps 30 --logging-steps 500 --quiet
learn() { # NAME SHARD REWARD
    ./train_grpo -c "$work/sft.bin" -i "$work/$2" -o "$work/$1.bin" --num-prompts 10 --num-generations 12 \
        --max-completion-length 24 --max-steps 60 --learning-rate 2e-3 --warmup-steps 5 --sandbox "$kind" \
        --sample-count 0 --reward "$3" --quiet
    printf '%-28s ' "$1"
    ./evaluate -c "$work/$1.bin" -i "$work/tasks.shard" --num-samples 8 --max-new-tokens 24 --sandbox "$kind" \
        --completions "$work/$1.jsonl" 2>/dev/null | sed 's/.*"pass@1":\([0-9.]*\).*/right \1/' | tr '\n' ' '
    awk '/"sample":[0-9]/ { n++; exits += /"completion":"exit\(\)/ } END { printf "exit() %.2f\n", exits / n }' "$work/$1.jsonl"
}
learn code tasks.shard code
learn random tasks.shard random,verify:0
learn status status.shard code
exit $status

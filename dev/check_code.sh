#!/bin/sh
# check_code.sh [bwrap|landlock] [PROFILE] - the long check of rewards that run programs, in a few minutes.
#
#   0  with a PROFILE, the file of a container's seccomp profile: that the sandbox `bwrap` is refused under it with one line
#      that says what to do. 1 and 2 are then under the profile, too (dev/seccomp_profile.c)
#   1  tests/code/escapes.txt: hostile programs must reach nothing, and end with their time
#   2  tests/code/cheats.txt: programs that try to get a reward otherwise, in every form of test
#   3  programs with one token changed: the verdicts of a plain run without a sandbox
#      $SOLUTIONS, files of HumanEval or MBPP: the solution of every row must pass
#   4  completions a second, by the number of workers, with and without the pool, and without a sandbox
#   5  a small model that writes `def f(x):return x+B` or `exit()` learns the B of one problem from the reward `code`, and not
#      from `random`; from a command that passes by its exit status alone it learns to leave with status 0
#
# Prints tables and exits 1 if 0, 1, 2 or 3 fails.
set -eu
cd "$(dirname "$0")/.."
kind=${1:-bwrap}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s build/check_code build/seccomp_profile train_sft train_grpo evaluate data/make_shard >&2
status=0
container=
if [ -n "${2-}" ]; then
    container="build/seccomp_profile $2"
    echo "== 0 bwrap in a container"
    $container build/check_code escapes bwrap 2>&1 | tee "$work/refused"
    grep -q 'no user namespace here .*; allow them, or --sandbox landlock' "$work/refused" || status=1
fi

echo "== 1 escapes"
$container build/check_code escapes "$kind" >"$work/escapes" || { status=1; grep -A9 FAILED "$work/escapes"; }
tail -n 1 "$work/escapes"
echo "== 2 cheats"
$container build/check_code cheats "$kind" || status=1
echo "== 3 verdicts"
dev/code_mutants.py >"$work/mutants.jsonl"
build/check_code verdicts "$kind" "$work/mutants.jsonl" || status=1
for file in ${SOLUTIONS-}; do build/check_code solutions "$kind" "$file" || status=1; done
echo "== 4 speed"
for workers in 1 2 4; do build/check_code speed "$kind" "$workers" 300; done
build/check_code speed none 2 300 2>/dev/null

echo "== 5 learning"
awk 'BEGIN {
    srand(1)
    for (i = 0; i < 3000; i++) {
        text = rand() < 0.15 ? "exit()" : "def f(x):return x+" int(rand() * 10)
        printf "{\"prompt\":\"x+7:\",\"completion\":\"%s\"}\n", text
    }
}' | data/make_shard -q -i - -o "$work/sft.shard"
cat >"$work/tests.jsonl" <<'EOF'
{"prompt":"x+7:","task":"code","tests":["assert f(0) == 7","assert f(5) == 12"]}
EOF
cat >"$work/status.jsonl" <<'EOF'
{"prompt":"x+7:","task":"code","run":"python3 test.py","files":{"test.py":"from solution import f\nassert f(0) == 7\n"}}
EOF
for rows in tests status; do data/make_shard -q -i "$work/$rows.jsonl" -o "$work/$rows.shard"; done
./train_sft --layers 1 --width 32 --heads 2 --context 32 -i "$work/sft.shard" -o "$work/sft.bin" --max-steps 80 \
    --batch-tokens 512 --learning-rate 1e-2 --warmup-steps 5 --quiet

report() { # MODEL
    printf '%-10s ' "$1"
    ./evaluate -c "$work/$1.bin" -i "$work/tests.shard" --num-samples 64 --max-new-tokens 24 --sandbox "$kind" \
        --completions "$work/$1.jsonl" 2>/dev/null | sed 's/.*"pass@1":\([0-9.]*\).*/right \1/' | tr '\n' ' '
    awk '/"sample":[0-9]/ { n++; exits += /"completion":"exit\(\)/ } END { printf ", leaves with status 0 %.3f\n", exits / n }' "$work/$1.jsonl"
}
learn() { # MODEL ROWS REWARD
    ./train_grpo -c "$work/sft.bin" -i "$work/$2.shard" -o "$work/$1.bin" --num-prompts 1 --num-generations 64 \
        --max-completion-length 24 --max-steps 40 --learning-rate 3e-3 --warmup-steps 3 --sandbox "$kind" \
        --sample-count 0 --reward "$3" --quiet
    report "$1"
}
report sft
learn code tests code
learn random tests random,verify:0
learn status status code
exit $status

#!/bin/sh
# check_scores.sh [SEED...] - what a judge's expected score is worth in training, beside a score that is drawn from the same
# distribution, as a judge that answers in text does: a table on standard output, in a few minutes.
#
# The judge is fine-tuned to rate completions from 1 to 9: a linear function of a hidden rule with normal noise of deviation 1.5, so
# that its answers have a spread. The policy is trained by PPO on its scores. For each seed (1, 2 and 3 if none is given):
#
#   deviation   of the scores of 1000 samples of the first policy, and of the noise in them: sampled scores differ from the
#               expected ones of the same samples
#   to 0.5      generations of 64 samples until the mean score by the hidden rule of five of them is above 0.5; - if it never is
#   gold        that mean of the last five of 60 generations
#
# OUT=FOLDER keeps the files. Fails if the sampled scores do not have a larger deviation. dev/sampled_score.py draws the scores, from `generate --serve`.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 1 2 3
work=${OUT:-$(mktemp -d)} server=
trap 'if [ -n "$server" ]; then kill "$server"; fi; [ -n "${OUT-}" ] || rm -rf "$work"' EXIT
mkdir -p "$work"
make -s train_sft train_ppo generate data/make_prefs data/make_shard >&2
rule=char=a:1,length:-0.25
prefs() { data/make_prefs --rule $rule --min-length 3 "$@" 2>/dev/null; }
shard() { data/make_shard --quiet -i - -o "$work/$1"; }
quiet() { "$@" 2>"$work/log" || { tail -n 3 "$work/log" >&2; exit 1; }; }
printf '{user}%s' 'rate {prompt}{completion}=' >"$work/question"
judge="--judge $work/judge.bin --judge-template $work/question --judge-scale 9"

# Ratings: completions in which a random share of the letters is a. The fields of a line stand between its quotes.
ratings() {
    awk -F'"' -v seed="$1" 'BEGIN { srand(seed) } {
        q = rand(); n = length($8); text = ""; a = 0
        for (i = 1; i <= n; i++) { c = rand() < q ? "a" : substr($8, i, 1); a += c == "a"; text = text c }
        normal = sqrt(-2 * log(1 - rand())) * cos(6.28318530718 * rand())
        score = int(3.5 + 0.6 * (a - 0.25 * n) + 1.5 * normal)
        score = score < 1 ? 1 : (score > 9 ? 9 : score)
        printf "{\"prompt\":\"rate %s%s=\",\"completion\":\"%d\"}\n", $4, text, score }'
}

# ppo NAME SEED OPTION...
ppo() {
    name=$1 s=$2
    shift 2
    quiet ./train_ppo -c "$work/policy.bin" -i "$work/prompts" -o "$work/out.bin" -p 64 -g 16 -x 240 -l 1e-4 --kl-coef 0.05 \
        --sample-count 0 --gold-cmd "data/make_prefs --score --rule $rule" --seed "$s" --metrics "$work/$name.jsonl" "$@"
    sed -n 's/^{"step".*"objective\/gold":\([-0-9.e]*\).*/\1/p' "$work/$name.jsonl" | awk '{
            last[NR % 5] = $1
            mean = (last[0] + last[1] + last[2] + last[3] + last[4]) / 5
            if (NR >= 5 && mean > 0.5 && !there) there = NR
        } END { printf " %s | %.2f |", there ? there : "-", mean }'
}

echo "| seed | deviation, expected | sampled | noise | to 0.5, expected | gold | to 0.5, sampled | gold |"
echo "|---|---|---|---|---|---|---|---|"
status=0
for seed; do
    prefs --format chat --count 3000 --seed "$seed" | shard answers
    prefs --format prompt --count 1000 --seed "$seed" | shard prompts 2>/dev/null
    prefs --format chat --count 40000 --seed $((seed + 100)) | ratings "$seed" | shard ratings
    rm -f "$work"/*.jsonl
    quiet ./train_sft --layers 2 --width 64 --context 64 -i "$work/answers" -x 100 --batch-tokens 2048 -l 2e-3 --seed "$seed" \
        -o "$work/policy.bin"
    quiet ./train_sft --layers 2 --width 64 --context 64 -i "$work/ratings" -x 400 --batch-tokens 4096 -l 3e-3 --seed "$seed" \
        -o "$work/judge.bin"
    ./generate -c "$work/judge.bin" --serve 127.0.0.1:0 --slots 16 2>"$work/server" &
    server=$!
    until grep -q ' is served at ' "$work/server"; do
        kill -0 $server 2>/dev/null || { cat "$work/server" >&2; exit 1; }
        sleep 0.1
    done
    sampled="python3 dev/sampled_score.py $(sed -n 's/.* is served at \([^,]*\),.*/\1/p' "$work/server")"
    # shellcheck disable=SC2086
    quiet ./generate -c "$work/policy.bin" -i "$work/prompts" --num-samples 1 -g 16 --seed "$seed" $judge --reward judge=score:1,command:0 \
        --reward-cmd "$sampled" -o "$work/samples"
    printf '| %s |' "$seed"
    sed 's/.*"judge":\([-0-9.e]*\),"command":\([-0-9.e]*\).*/\1 \2/' "$work/samples" | awk '{
            n++; x += $1; xx += $1 * $1; y += $2; yy += $2 * $2; d += ($1 - $2) ^ 2
        } END {
            a = sqrt(xx / n - (x / n) ^ 2); b = sqrt(yy / n - (y / n) ^ 2)
            printf " %.3f | %.3f | %.3f |", a, b, sqrt(d / n); exit b <= a }' || status=1
    # shellcheck disable=SC2086
    ppo expected "$seed" $judge --reward judge=score
    ppo sampled "$seed" --reward command --reward-cmd "$sampled" --reward-workers 4
    echo
    kill $server
    wait $server || true
    server=
done
exit $status

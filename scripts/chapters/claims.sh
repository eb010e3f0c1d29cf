# shellcheck shell=dash disable=SC2034,SC2154
# claims.sh - what the chapters of scripts/chapter.sh share; they also have scripts/loop.sh and scripts/letters.sh.
#
# A chapter begins with `title`, makes its models by `stage`, and states its claims by `claim`. What it says is kept in
# $out/claims.txt: the title, a line for each claim, and one for each report.
bad=0 finished=
# A chapter that an error ends says so in claims.txt, too: the claims before it are not all.
ended() {
    [ -z "$finished" ] || return 0
    tail -n 2 "$out/log" >&2
    printf 'claim\t-\tthe chapter did not finish\tno result\n' >>"$out/claims.txt"
}
trap ended EXIT
title() {
    say "Chapter $chapter: $*"
    printf 'title\t%s\n' "$*" >"$out/claims.txt"
}
# claim TEXT SEEN CONDITION: prints the claim and what was seen. CONDITION: awk's, of numbers.
claim() {
    verdict=$(awk "BEGIN { print ($3) ? \"holds\" : \"does not hold\" }")
    [ "$verdict" = holds ] || bad=1
    printf 'claim   %s\nseen    %s: %s\n' "$1" "$2" "$verdict"
    printf 'claim\t%s\t%s\t%s\n' "$1" "$2" "$verdict" >>"$out/claims.txt"
}
short() { printf '%.4g' "$1"; } # short NUMBER: with four digits
# greedy MODEL: greedy accuracy in percent, of the held-out problems.
greedy() { stage "$1.json" measure "$1.bin" && percent accuracy "$1.json"; }
# script NAME: runs another script with this seed, for the files that it makes.
script() {
    "scripts/$1.sh" "$seed" >>"$out/log" 2>&1
    report "$loops/$1-$seed/report.html"
}
report() { [ ! -e "$1" ] || printf 'report\t%s\n' "$1" >>"$out/claims.txt"; } # report PAGE: names a page of the chapter
# mean KEY METRICS: the mean over the steps.
mean() { values "$1" "$2" | awk '{ n += $1 } END { printf "%.6g", n / NR }'; }
largest() { values "$1" "$2" | awk '!n++ || $1 > m { m = $1 } END { printf "%.6g", m }'; }
# square MODEL: the mean square of the gradient's norm over the steps.
square() { values grad_norm "$out/$1.metrics.jsonl" | awk '{ n += $1 * $1 } END { printf "%.6g", n / NR }'; }

# problems: the problems of the chapter, on which models are trained with rewards.
problems() { tasks "$out/problems.shard" $((seed * 100 + 6)) 4000; }
# still MODEL OPTION...: estimates of REINFORCE's gradient at the base, which a learning rate of 1e-30 leaves as it is.
still() {
    local to=$1
    shift
    problems
    stage "$to.bin" ./train_ppo -c "$base" -i "$out/problems.shard" -o "$to.bin" --algo reinforce --kl-coef 0 -g 12 -l 1e-30 \
        --temperature 1 --slots 256 --sample-count 0 --seed "$seed" --metrics "$to.metrics.jsonl" "$@"
}
# grpo MODEL FROM OPTION...: trains FROM.bin on the problems of the chapter by train_grpo.
grpo() {
    local to=$1 from=$2
    shift 2
    problems
    stage "$to.bin" ./train_grpo -c "$from.bin" -i "$out/problems.shard" -o "$to.bin" --num-prompts 32 --num-generations 8 \
        --max-completion-length 12 --learning-rate 7e-4 --warmup-steps 10 --adam-beta2 0.99 --slots 256 --logging-steps 50 \
        --sample-count 0 --seed "$seed" --metrics "$to.metrics.jsonl" "$@"
}

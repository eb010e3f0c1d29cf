#!/bin/sh
# chapter.sh N|all [SEED] - demonstrates a chapter of "LLM post-training, from the ground up" in a few minutes on two cores: prints
# what the chapter claims, what was seen, and whether it holds. Exits with status 1 if a claim does not hold.
#
#     scripts/chapter.sh 19         self-taught reasoning and rejection sampling
#     scripts/chapter.sh all 2      all chapters that there are, with seed 2
#
# Chapters: 2 likelihood and KL; 4 instruction tuning; 5 supervised fine-tuning; 6 Self-Instruct; 8 reward models; 9 InstructGPT;
# 10 Constitutional AI and Llama 2; 14 the KL leash; 15 DPO; 18 iterative preference learning; 19 rejection sampling; 20 process
# rewards; 21 test-time compute; 23 GRPO; 25 recipes.
# shellcheck disable=SC1091,SC2317
cd "$(dirname "$0")/.."
chapter=${1:-}
[ $# -gt 0 ] && shift
LOOP_NAME=chapter-$chapter
chapters="2 4 5 6 8 9 10 14 15 18 19 20 21 23 25"
case " $chapters all " in *" ${chapter:-none} "*) ;; *) echo "chapter.sh: give one of $chapters, or all" >&2; exit 2 ;; esac
if [ "$chapter" = all ]; then
    failed=
    for n in $chapters; do scripts/chapter.sh "$n" "$@" || failed="$failed $n"; echo; done
    [ -z "$failed" ] && echo "all claims hold" && exit
    echo "claims that do not hold: chapter$failed"
    exit 1
fi
. scripts/loop.sh
bad=0 finished=
trap '[ $? = 0 ] || [ -n "$finished" ] || tail -n 2 "$out/log" >&2' EXIT
# claim TEXT SEEN CONDITION: prints the claim and what was seen. CONDITION: awk's, of numbers.
claim() {
    verdict=$(awk "BEGIN { print ($3) ? \"holds\" : \"does not hold\" }")
    [ "$verdict" = holds ] || bad=1
    printf 'claim   %s\nseen    %s: %s\n' "$1" "$2" "$verdict"
}
short() { printf '%.4g' "$1"; } # short NUMBER: with four digits
title() { echo "Chapter $chapter: $*"; }
# greedy MODEL: greedy accuracy in percent, of the held-out problems.
greedy() { stage "$1.json" measure "$1.bin" && percent accuracy "$1.json"; }
# script NAME: runs another script with this seed, for the files that it makes.
script() { "scripts/$1.sh" "$seed" >>"$out/log" 2>&1; }

. scripts/letters.sh

chapter_2() {
    title "likelihood, KL, entropy"
    tasks "$out/chat.shard" $((seed * 100 + 3)) 300 --split heldout --format chat
    stage "$out/more.bin" ./train_sft -c "$base" -i "$shared/demos.shard" -o "$out/more.bin" -x 40 --batch-tokens 2048 -l 1e-3
    apart() { ./evaluate -c "$1" -i "$out/chat.shard" --reference "$2" >"$3"; }
    apart "$base" "$base" "$out/same.json" 2>>"$out/log"
    apart "$out/more.bin" "$base" "$out/apart.json" 2>>"$out/log"
    loss=$(figure loss "$out/apart.json") perplexity=$(figure perplexity "$out/apart.json")
    claim "perplexity is exp(loss)" \
        "loss $(short "$loss"), perplexity $(short "$perplexity")" "($perplexity - exp($loss)) ^ 2 < 1e-6"
    same=$(figure kl "$out/same.json") kl=$(figure kl "$out/apart.json")
    claim "KL(p, p) is 0" "$(short "$same")" "$same ^ 2 < 1e-12"
    claim "KL(p, q) is above 0" \
        "$(short "$kl") nats a token between a model and the same model after more training" "$kl > 0.001"
}
chapter_4() {
    title "instruction tuning"
    script flan
    o=$loops/flan-$seed
    # right WORDINGS ASKED: accuracy in percent.
    right() { percent accuracy "$o/$1.$2.json"; }
    claim "a model that knows one wording of its tasks does not understand another" \
        "trained wording $(right 1 trained) %, others $(right 1 unseen) %" "$(right 1 trained) > 90 && $(right 1 unseen) < 60"
    claim "trained on many wordings, it understands new ones" \
        "with 1, 10, 100 wordings $(right 1 unseen), $(right 10 unseen), $(right 100 unseen) %" \
        "$(right 100 unseen) > $(right 1 unseen) + 20"
    claim "at this size it does not learn to do a task that it never saw" \
        "held-out task $(right 100 held) %, chance 33 %" "$(right 100 held) < 50"
}
chapter_5() {
    title "supervised fine-tuning"
    stage "$out/new.bin" ./train_sft --layers 2 --width 96 --heads 4 --context 48 -i "$shared/demos.shard" -o "$out/new.bin" -x 1 \
        --batch-tokens 2048 -l 1e-5
    before=$(greedy "$out/new") after=$(greedy "$start")
    claim "demonstrations teach a task to a model that cannot do it" \
        "held-out accuracy $before % -> $after %" "$after > $before + 20"
}
chapter_6() {
    title "Self-Instruct"
    script self-instruct
    o=$loops/self-instruct-$seed
    before=$(percent accuracy "$o/base.json") after=$(percent accuracy "$o/instructed.json") control=$(percent accuracy "$o/control.json")
    claim "a model learns to follow instructions from those that it wrote itself" "$before % -> $after %" "$after > $before + 50"
    claim "more than from the seeds alone" "SFT on the 20 seeds: $control %" "$after > $control + 20"
}
chapter_8() {
    title "comparisons and reward models"
    reward_model
    letters noisy --count 3000 --flip 0.3
    stage "$out/noisy.bin" ./train_rm -c "$letters/policy.bin" -i "$letters/noisy.shard" --per-device-train-batch-size 32 -x 150 \
        -l 1e-3 --seed "$seed" -o "$out/noisy.bin"
    ./evaluate --reward-model "$letters/rm.bin" -i "$letters/prefs-val.shard" >"$out/rm.json" 2>>"$out/log"
    ./evaluate --reward-model "$out/noisy.bin" -i "$letters/prefs-val.shard" >"$out/noisy.json" 2>>"$out/log"
    clean=$(percent accuracy "$out/rm.json") noisy=$(percent accuracy "$out/noisy.json")
    claim "a model learns from comparisons alone which completion is better" "held-out accuracy $clean %" "$clean > 80"
    claim "wrong labels cost accuracy, less than their share" \
        "with 30 % of the labels flipped $noisy %" "$noisy < $clean && $noisy > 60"
}
chapter_9() {
    title "InstructGPT: SFT, a reward model, PPO"
    reward_model
    ppo "$out/ppo" -x 100 --kl-coef 0.1
    before=$(gold "$letters/policy") after=$(gold "$out/ppo")
    claim "PPO against a reward model raises what the preferences stand for" \
        "score by the hidden rule $(short "$before") -> $(short "$after")" "$after > $before + 0.5"
}
chapter_10() {
    title "RLAIF, Constitutional AI, Llama 2"
    script constitutional
    o=$loops/constitutional-$seed
    # share MODEL PATTERN: answers that hold the pattern, or the letter asked for, in percent.
    share() { awk -F'"' -v re="$2" '{ n += re ? $12 ~ re : index($12, $8) > 0 } END { printf "%.1f", 100 * n / NR }' "$o/$1.held.jsonl"; }
    before=$(share base '[de]') control=$(share control '[de]') revised=$(share sl '[de]') after=$(share rl '[de]')
    claim "a model that revises its answers by principles and learns from them does less of what they forbid" \
        "harmful $before % -> $revised %; without revision $control %" "$revised < $before / 2 && $control > $before / 2"
    claim "a judge that follows the principles takes it further" "after RL $after %" "$after < $revised / 2"
    claim "it stays helpful" "helpful $(share base '') % -> $(share rl '') %" "$(share rl '') > $(share base '') - 15"
    script rejection-sampling
    o=$loops/rejection-sampling-$seed last=${ROUNDS:-3}
    before=$(figure reward "$o/policy.gold.json") after=$(figure reward "$o/best$last.gold.json") control=$(figure reward "$o/control$last.gold.json")
    claim "fine-tuning on the best of 4 samples raises what the comparisons stand for" \
        "score by the hidden rule $(short "$before") -> $(short "$after"); on any sample $(short "$control")" \
        "$after > $before + 0.5 && $after > $control + 0.5"
}
chapter_14() {
    title "the KL leash"
    reward_model
    for kl in 0.02 0.1 1; do ppo "$out/kl$kl" -x 60 --kl-coef $kl; done
    a=$(last objective/kl "$out/kl0.02.metrics.jsonl") b=$(last objective/kl "$out/kl0.1.metrics.jsonl")
    c=$(last objective/kl "$out/kl1.metrics.jsonl")
    claim "a stronger penalty keeps the policy nearer to the reference" \
        "KL at the end $(short "$a"), $(short "$b"), $(short "$c") with --kl-coef 0.02, 0.1, 1" "$a > $b && $b > $c"
}
chapter_15() {
    title "DPO"
    policy
    stage "$out/dpo.bin" ./train_dpo -c "$letters/policy.bin" -i "$letters/prefs.shard" -x 100 -l 1e-4 --warmup-steps 10 \
        --seed "$seed" -o "$out/dpo.bin" --metrics "$out/dpo.metrics.jsonl"
    before=$(gold "$letters/policy") after=$(gold "$out/dpo")
    claim "preferences train a policy without a reward model" \
        "score by the hidden rule $(short "$before") -> $(short "$after")" "$after > $before + 0.3"
}
chapter_18() {
    title "online and iterative preference learning"
    script iterative-dpo
    o=$loops/iterative-dpo-$seed last=${ROUNDS:-3}
    before=$(greedy "$start") after=$(percent accuracy "$o/dpo$last.json") control=$(percent accuracy "$o/control$last.json")
    claim "rounds of DPO on the model's own verified samples improve it" "$before % -> $after %" "$after > $before + 5"
    claim "it is the order of the pairs that teaches" "pairs in random order: $control %" "$after > $control + 5"
}
chapter_19() {
    title "STaR, self-consistency, rejection sampling"
    script rft
    o=$loops/rft-$seed
    before=$(greedy "$start") after=$(percent accuracy "$o/rft.json") control=$(percent accuracy "$o/control.json")
    claim "a model improves on its own right samples" "$before % -> $after %" "$after > $before + 5"
    claim "it is the choice that teaches" "trained on any samples: $control %" "$after > $control + 5"
}
chapter_20() {
    title "process and outcome rewards"
    prefs "$out/steps" --rule sum --format step --terms 4 --digits 1 --count 3000 --seed "$seed"
    prefs "$out/val" --rule sum --format step --terms 4 --digits 1 --count 300 --split heldout
    stage "$out/prm.bin" ./train_rm --kind prm --layers 2 --width 64 --heads 4 --context 64 -i "$out/steps.shard" -o "$out/prm.bin" \
        -x 600 --per-device-train-batch-size 32 -l 3e-3 --seed "$seed"
    ./evaluate --reward-model "$out/prm.bin" -i "$out/val.shard" >"$out/prm.json" 2>>"$out/log"
    right=$(percent accuracy "$out/prm.json")
    share=$(awk '{ n += gsub(/true/, "true"); m += gsub(/false/, "false") } END { print 100 * (n > m ? n : m) / (n + m) }' "$out/val.jsonl")
    claim "a process model learns which steps are right" \
        "held-out steps $right %, always the same label $(short "$share") %" "$right > $share + 5"
}
chapter_21() {
    title "test-time compute"
    greedy "$start" >>"$out/log"
    one=$(percent pass@1 "$start.json") many=$(percent pass@8 "$start.json") votes=$(percent majority@8 "$start.json")
    claim "more samples hold a right answer more often" "pass@1 $one %, pass@8 $many %" "$many > $one + 10"
    claim "a vote of 8 samples is better than one" "majority@8 $votes %" "$votes > $one + 2"
    # Sums of four digits, worked out step by step, by a policy half of whose demonstrations are wrong.
    sums() { prefs "$@" --rule sum --digits 1 --terms 4 --seed "$seed"; }
    sums "$out/solutions" --format chat --steps --count 4000
    sums "$out/steps" --format step --count 30000
    sums "$out/sums" --format prompt --count 300 --split heldout
    stage "$out/policy.bin" ./train_sft --layers 2 --width 64 --heads 4 --context 72 -i "$out/solutions.shard" -o "$out/policy.bin" \
        -x 400 --batch-tokens 2048 -l 5e-3 --warmup-steps 20 --seed "$seed"
    stage "$out/prm.bin" ./train_rm --kind prm -c "$out/policy.bin" -i "$out/steps.shard" -o "$out/prm.bin" -x 3000 \
        --per-device-train-batch-size 64 -l 2e-3 --warmup-steps 50 --seed "$seed"
    search() { # SOLUTIONS POLICY REWARD_MODEL PROBLEMS OUTPUT
        ./evaluate -c "$2" --reward-model "$3" -i "$4" --num-samples "$1" --temperature 1 -g 40 --search best-of-n,beam,dvts,rebase \
            --compute-curve "$out/compute.jsonl" --report "$out/compute.html" >"$5"
    }
    stage "$out/search.json" search 8 "$out/policy.bin" "$out/prm.bin" "$out/sums.shard" "$out/search.json"
    found() { awk "BEGIN { printf \"%.1f\", 100 * $(sed -n "s/.*\"$1\":{\"accuracy\":\([0-9.e-]*\),.*/\1/p" "$out/search.json") }"; }
    votes=$(percent majority@8 "$out/search.json") weighted=$(percent weighted@8 "$out/search.json")
    beam=$(found beam) dvts=$(found dvts)
    claim "with as many tokens, a process model's votes beat a majority, and search beats votes" \
        "8 solutions: majority $votes %, weighted $weighted %, beam $beam %, DVTS $dvts %" \
        "$votes < $weighted && $weighted < $beam && $weighted < $dvts"
    say "curves: $out/compute.html"
    # Sums of five digits. The thought is the steps, often broken off; it ends with #, and the answer follows.
    prefs "$out/worked" --rule sum --digits 1 --terms 5 --format step --count 12000 --seed "$seed"
    prefs "$out/fives" --rule sum --digits 1 --terms 5 --format prompt --count 300 --split heldout --seed "$seed"
    thoughts() {
        awk -F'"' -v seed="$seed" 'BEGIN { srand(seed) } !/false/ {
            thought = ""
            for (i = 8; $i != "labels"; i += 2) { thought = thought $i ";"; answer = $i }
            sub(/.*=/, "", answer)
            if (rand() < 0.7) thought = substr(thought, 1, int(rand() * length(thought)))
            printf "{\"prompt\":\"%s\",\"completion\":\"%s#%s\"}\n", $4, thought, answer }' "$1" >"$2"
    }
    stage "$out/thoughts.jsonl" thoughts "$out/worked.jsonl" "$out/thoughts.jsonl"
    stage "$out/thoughts.shard" ./data/make_shard -i "$out/thoughts.jsonl" -o "$out/thoughts.shard"
    stage "$out/thinker.bin" ./train_sft --layers 2 --width 64 --heads 4 --context 72 -i "$out/thoughts.shard" -o "$out/thinker.bin" \
        -x 500 --batch-tokens 2048 -l 5e-3 --warmup-steps 20 --seed "$seed"
    force() { ./evaluate -c "$2" -i "$3" --num-samples 0 -g 4 --think-end '#' --think-tokens "$1" >"$4"; }
    stage "$out/forced.json" force 1,12,24,36 "$out/thinker.bin" "$out/fives.shard" "$out/forced.json"
    brief=$(thought 1) long=$(thought 36) scaling=$(figure scaling "$out/forced.json")
    claim "a longer thought gives a better answer" \
        "thoughts of at most 1, 12, 24, 36 tokens: $brief, $(thought 12), $(thought 24), $long %; scaling $(short "$scaling")" \
        "$scaling > 0 && $long > $brief + 10"
}
# thought TOKENS: accuracy in percent with this budget.
thought() {
    awk "BEGIN { printf \"%.1f\", 100 * $(sed -n "s/.*{\"accuracy\":\([0-9.e-]*\),\"think_tokens\":$1,.*/\1/p" "$out/forced.json") }"
}
chapter_23() {
    title "GRPO"
    tasks "$out/problems.shard" $((seed * 100 + 6)) 4000
    for reward in verify random; do
        stage "$out/$reward.bin" ./train_grpo -c "$base" -i "$out/problems.shard" -o "$out/$reward.bin" --num-prompts 32 \
            --num-generations 8 --max-completion-length 12 --max-steps 150 --reward $reward --temperature 0.6 --learning-rate 7e-4 \
            --warmup-steps 10 --adam-beta2 0.99 --slots 256 --logging-steps 50 --seed "$seed"
    done
    before=$(greedy "$start") after=$(greedy "$out/verify") control=$(greedy "$out/random")
    claim "rewards of checked answers teach without a demonstration" "$before % -> $after %" "$after > $before + 10"
    claim "random rewards teach nothing" "$control %" "$control < $before + 5"
}
chapter_25() {
    title "recipes"
    script tulu
    o=$loops/tulu-$seed
    sft=$(percent accuracy "$o/sft.json") after=$(percent accuracy "$o/rlvr.json")
    claim "verified rewards add to fine-tuning and preferences" "Tulu 3: SFT $sft %, after DPO and RLVR $after %" "$after > $sft + 3"
    script llama3
    o=$loops/llama3-$seed last=${ROUNDS:-3}
    after=$(figure reward "$o/dpo$last.gold.json") control=$(figure reward "$o/control$last.sft.gold.json")
    claim "rounds of rejection sampling gain by DPO in each" \
        "Llama 3: score by the hidden rule $(short "$after"), without DPO $(short "$control")" "$after > $control + 0.2"
}
"chapter_$chapter"
finished=yes
exit $bad

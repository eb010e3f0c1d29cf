# shellcheck shell=dash disable=SC2154
# Chapter 20: process and outcome rewards.
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

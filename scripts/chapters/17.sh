# shellcheck shell=dash disable=SC2154
# Chapter 17: DPO's relatives: of labels without pairs (KTO), and without a reference (ORPO, SimPO, CPO).
title "KTO, ORPO, SimPO, CPO"
policy
before=$(gold "$letters/policy")
relative() { # NAME OPTION...: sets after, the score of the trained model
    local name=$1
    shift
    stage "$out/$name.bin" ./train_dpo -c "$letters/policy.bin" -i "$letters/prefs.shard" -o "$out/$name.bin" --loss-type "$name" -x 100 \
        --per-device-train-batch-size 32 --warmup-steps 10 --seed "$seed" --metrics "$out/$name.metrics.jsonl" "$@"
    after=$(gold "$out/$name")
}
improves() { # CLAIM
    claim "$1" "score by the hidden rule $(short "$before") -> $(short "$after")" "$after > $before + 0.1"
}
relative kto -l 3e-5
improves "KTO learns from single answers that are good or bad"
relative orpo -l 5e-4 --beta 1
improves "ORPO learns from pairs without a reference, beside the SFT loss"
relative simpo -l 1e-4 --beta 2
improves "SimPO does so by the mean log-probability of a token"
relative cpo -l 3e-4
improves "CPO does so by the whole answer's, with an SFT term"

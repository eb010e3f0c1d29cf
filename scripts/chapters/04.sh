# shellcheck shell=dash disable=SC2154
# Chapter 4: instruction tuning.
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

#!/bin/sh
# check_lm_eval.sh - lm-evaluation-harness by `generate --serve` (local-completions) beside transformers, on one model.
#
#     dev/check_lm_eval.sh
#
# A GPT-2 with random weights, its tokenizer and five tasks are made (two of multiple choice, one of last words, one of rolling
# log-likelihoods, one of greedy texts), so nothing is downloaded but the packages, from PyPI into a virtual environment:
# $LM_EVAL_VENV, default ~/.cache/llmc-lm-eval. The truth is transformers in float64: the check fails if the largest error of a
# task's log-likelihoods is more than twice that of transformers in float32, or if a greedy flag or text differs. Files are in
# build/lm_eval.
set -eu
cd "$(dirname "$0")/.."
venv=${LM_EVAL_VENV:-$HOME/.cache/llmc-lm-eval}
if [ ! -x "$venv/bin/python" ]; then
    echo "check_lm_eval.sh: creating $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 'lm_eval[api,hf]==0.4.13' >&2
fi
[ -x generate ] || make -s generate >&2
"$venv/bin/python" dev/check_lm_eval.py build/lm_eval 2>build/lm_eval.log || {
    tail -n 20 build/lm_eval.log >&2
    exit 1
}

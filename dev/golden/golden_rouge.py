#!/usr/bin/env python3
"""ROUGE-L of pairs of random texts by Google's rouge_score, for tests/golden/rouge.jsonl.zst.

    pip install rouge_score
    python3 dev/golden/golden_rouge.py [PAIRS] | zstd -19 >tests/golden/rouge.jsonl.zst

Each line has two texts and their F1 without a stemmer, as in Self-Instruct. The texts share some words, from none to all; a few
have hundreds of words, which are compared in blocks of 64.
"""
import json
import random
import sys

from rouge_score import rouge_scorer

WORDS = ["the", "The", "cat", "CAT", "sat", "on", "a", "mat", "3", "14", "x1", "well-known", "don't", "caf\u00e9", "\u5317\u4eac",
         "\u212aelvin", "\u0130zmir", "stra\u00dfe", "write", "an", "email", "to", "your", "boss", "explain", "why", "list", "of",
         "words", "that", "rhyme", "with", "sum", "numbers"]
BETWEEN = [" ", " ", " ", "  ", "\n", ", ", ". ", " - ", "_"]


def text(rng, most):
    return "".join(rng.choice(WORDS) + rng.choice(BETWEEN) for _ in range(rng.randint(0, most)))


def changed(rng, words):
    """The text with some words left out, replaced or moved."""
    words = words.split(" ")
    rate = rng.random()
    words = [rng.choice(WORDS) if rng.random() < rate / 2 else w for w in words if rng.random() > rate / 2]
    if words and rng.random() < 0.3:
        at = rng.randrange(len(words))
        words = words[at:] + words[:at]
    return " ".join(words)


def main():
    rng = random.Random(7)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for i in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1000):
        a = text(rng, 400 if i % 50 == 0 else 30)
        b = changed(rng, a) if rng.random() < 0.7 else text(rng, 30)
        print(json.dumps({"a": a, "b": b, "f": scorer.score(a, b)["rougeL"].fmeasure}, ensure_ascii=False))


if __name__ == "__main__":
    main()

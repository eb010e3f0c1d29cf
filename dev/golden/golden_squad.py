#!/usr/bin/env python3
"""Exact match and F1 of SQuAD of random texts, for tests/golden/squad.jsonl.

    python3 dev/golden/golden_squad.py >tests/golden/squad.jsonl

The measures are computed here from their definition (Rajpurkar et al. 2016, section 6.1 and evaluate-v1.1.py; for texts without a
word, evaluate-v2.0.py). Each line has the answers, the completion, and the best em and f1 over the answers. Letters are ASCII's, or
others that lower-casing leaves as they are.
"""
import json
import random
import string
from collections import Counter

WORDS = ["Denver", "Broncos", "apple", "Apple", "theory", "Theory", "another", "1066", "3.14", "U.S.", "don't", "well-known",
         "caf\u00e9", "\u5317\u4eac", "x", "b", "A", "a", "an", "An", "the", "The", "THE", "the,", "'a'", "...", "$", "--"]


def words(text):
    """The words that are compared: in lower case, without punctuation and articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [w for w in kept.split() if w not in ("a", "an", "the")]


def exact_match(given, wanted):
    return float(words(given) == words(wanted))


def f1(given, wanted):
    given, wanted = words(given), words(wanted)
    if not given or not wanted:
        return float(given == wanted)
    same = (Counter(given) & Counter(wanted)).total()
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def text(rng, most):
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", "  ", "\n", "\t", ", ", ". ", " - "])
                   for _ in range(rng.randint(1, most)))


def changed(rng, given):
    """The same words in another order, case or punctuation, or with one left out or added."""
    parts = given.split()
    if rng.random() < 0.3:
        rng.shuffle(parts)
    if parts and rng.random() < 0.4:
        parts.pop(rng.randrange(len(parts)))
    if rng.random() < 0.4:
        parts.insert(rng.randint(0, len(parts)), rng.choice(WORDS))
    return " ".join(rng.choice([p, p, p.upper() if p.isascii() else p, p + ",", f'"{p}"']) for p in parts)


def rows():
    rng = random.Random(1)
    yield ["Denver Broncos"], "the Denver broncos!"
    yield ["Denver Broncos"], "Broncos"
    yield ["Denver Broncos"], "the Broncos"
    yield ["theory"], "a theory"
    yield ["a b c d"], "b b d x"
    yield ["x", "y z"], "y"
    yield ["x"], "y"
    yield ["The"], "an"
    while True:
        answers = [text(rng, 5) for _ in range(rng.choice([1, 1, 2, 4]))]
        yield answers, changed(rng, rng.choice(answers)) if rng.random() < 0.8 else text(rng, 12)


if __name__ == "__main__":
    count = 0
    for answers, completion in rows():
        if not answers[0].strip():  # the record's own answer
            continue
        print(json.dumps({"answers": answers, "completion": completion, "em": max(exact_match(completion, a) for a in answers),
                          "f1": max(f1(completion, a) for a in answers)}))
        count += 1
        if count == 300:
            break

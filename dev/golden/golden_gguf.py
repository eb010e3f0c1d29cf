"""Golden values of GGUF files and their block types: what gguf-py and llama.cpp's converter write.

    pip install torch transformers safetensors zstandard sentencepiece
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
    LLAMA_CPP=llama_cpp_python-0.3.36/vendor/llama.cpp python dev/golden/golden_gguf.py

Writes
    tests/golden/gguf_quants.txt     for each block type random blocks as bytes, and their values by gguf.quants; for each
                                     type that the project writes, random values and the bytes of gguf.quants.quantize
    tests/golden/gguf/NAME.gguf.zst  tiny models of every architecture, saved by transformers' save_pretrained and
                                     converted by llama.cpp's converter (conversion/*.py); only its tokenizers are
                                     replaced by one of 24 tokens
    tests/corpus/gguf/NAME           models of a few hundred bytes, from which a fuzzer starts
Element i of the tensor NAME (its name in the safetensors file) has the value that weight() gives, a multiple of 1/64
between -2 and 2, which float16 and bfloat16 hold exactly; the test computes the same.
"""

import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile

llama_cpp = os.environ["LLAMA_CPP"]
sys.path[:0] = [llama_cpp, os.path.join(llama_cpp, "gguf-py")]
import conversion
import gguf
import numpy as np
import torch
import zstandard
from transformers import AutoConfig, AutoModelForCausalLM
from gguf import GGMLQuantizationType as Type

root = os.path.join(os.path.dirname(__file__), "../../tests/golden")
random = np.random.default_rng(1)

# Offsets of the float16 scales in a block; every other byte of a block is free.
BLOCKS = {Type.F16: None, Type.BF16: None, Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
          Type.Q8_0: [0], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def halves(n):
    """Finite float16 of every exponent, negative ones, subnormal ones and zeros among them."""
    bits = random.integers(0, 1 << 16, n, dtype=np.uint16)
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0x83FF, bits).astype(np.uint16)


def blocks(type, n):
    elements, size = gguf.GGML_QUANT_SIZES[type]
    if type == Type.F16:
        return halves(n).view(np.uint8)
    if type == Type.BF16:
        return (random.standard_normal(n).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    b = random.integers(0, 256, (n // elements, size), dtype=np.uint8)
    for at in BLOCKS[type]:
        b[:, at:at + 2] = halves(len(b)).view(np.uint8).reshape(-1, 2)
    return b.reshape(-1)


def line(out, key, values, form):
    print(key, len(values), *[form.format(v) for v in values], file=out)


def write_quants():
    with open(os.path.join(root, "gguf_quants.txt"), "w") as out:
        print("# written by dev/golden/golden_gguf.py with gguf", file=out)
        for type in BLOCKS:
            n = 512 if type.name.endswith("_K") else 128
            b = blocks(type, n)
            print(f"case decode {type.name} {int(type)}", file=out)
            line(out, "bytes", b, "{}")
            line(out, "values", gguf.quants.dequantize(b, type).reshape(-1).astype(np.float32), "{:.9g}")
            print("end", file=out)
        for type in (Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0):
            x = random.standard_normal(224).astype(np.float32)
            x[32:64] *= 1000
            x[64:96] = 0
            x[96:128] *= 1e-6                                    # float16: subnormal numbers
            x[128:160] = random.integers(-254, 255, 32) / 2      # many values half way between two integers
            x[131] = 127
            x[160:192] = -np.abs(x[160:192])
            x[192:224] *= 1e-9                                   # scales that are 0 as float16
            # numpy's own conversion for float16
            b = x.astype(np.float16).view(np.uint8) if type == Type.F16 else gguf.quants.quantize(x[None], type)
            print(f"case encode {type.name} {int(type)}", file=out)
            line(out, "values", x, "{:.9g}")
            line(out, "bytes", b.reshape(-1).view(np.uint8), "{}")
            print("end", file=out)


# ---- models --------------------------------------------------------------------------------------------------------

VOCAB = 24
small = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def rope(kind="default", theta=10000.0, **fields):
    return dict(rope_type=kind, rope_theta=theta, **fields)


File = gguf.LlamaFileType
MODELS = {  # model_type, type of the file, fields of the configuration, whether the converter fuses q, k and v
    "llama": ("llama", File.MOSTLY_F16, dict(
        head_dim=12, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, rms_norm_eps=1e-5,
        rope_parameters=rope("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=16)), False),
    "llama-linear": ("llama", File.MOSTLY_Q8_0, dict(
        num_key_value_heads=4, tie_word_embeddings=True, rope_parameters=rope("linear", factor=2.5)), False),
    "llama-fused": ("llama", File.MOSTLY_BF16, dict(tie_word_embeddings=True, attention_bias=True), True),
    "mistral": ("mistral", File.MOSTLY_BF16, dict(head_dim=12, sliding_window=9, tie_word_embeddings=False), False),
    "qwen2": ("qwen2", File.MOSTLY_F16, dict(
        tie_word_embeddings=True, rope_parameters=rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=16)),
        False),
    "qwen3": ("qwen3", File.MOSTLY_F16, dict(head_dim=12, tie_word_embeddings=True, rope_parameters=rope(theta=1e6)),
              False),
    "smollm3": ("smollm3", File.MOSTLY_F16, dict(
        num_hidden_layers=4, intermediate_size=24, no_rope_layers=[1, 1, 1, 0], rope_parameters=rope(theta=5e6)), False),
    "olmo2": ("olmo2", File.MOSTLY_F16, dict(tie_word_embeddings=False, rope_parameters=rope(theta=5e5)), False),
    "phi3": ("phi3", File.MOSTLY_F16, dict(sliding_window=9, tie_word_embeddings=False, rope_parameters=rope(
        partial_rotary_factor=0.75), original_max_position_embeddings=64), False),
    "phi3-longrope": ("phi3", File.MOSTLY_F16, dict(
        tie_word_embeddings=False, original_max_position_embeddings=24, sliding_window=None, rope_parameters=rope(
            "longrope", short_factor=[1.0, 1.05, 1.2, 1.5], long_factor=[1.1, 1.6, 2.3, 2.6],
            original_max_position_embeddings=24)), False),
    "gemma2": ("gemma2", File.MOSTLY_F16, dict(
        head_dim=12, attn_logit_softcapping=3.0, final_logit_softcapping=5.0, query_pre_attn_scalar=12,
        sliding_window=9), False),
    "gemma3": ("gemma3_text", File.MOSTLY_F16, dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=1,
        head_dim=12, query_pre_attn_scalar=12, sliding_window=9, rope_parameters=dict(
            full_attention=rope("linear", 1e6, factor=8.0), sliding_attention=rope(theta=1e4))), False),
    "gpt2": ("gpt2", File.MOSTLY_F16, dict(n_embd=32, n_layer=2, n_head=4, n_positions=16), False),
}


def weight(name, shape):
    """Values of a tensor from its name: FNV-1a of the name, then a hash of the element's number."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    x = (np.arange(np.prod(shape), dtype=np.uint64) * 2654435761 + seed) % 2**32
    x = x ^ x >> 15
    return ((x >> 8 & 255).astype(np.float32) - 128).reshape(shape) / 64


def write_folder(name, folder):
    kind, _, fields, _ = MODELS[name]
    common = small if kind != "gpt2" else dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **fields}))
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(torch.from_numpy(weight(key, p.shape)))
    model.to(torch.bfloat16).save_pretrained(folder)
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    if kind == "gpt2":
        config["n_ctx"] = config["n_positions"]  # the converter reads the old key
    json.dump(config, open(path, "w"))
    # Gemma's converter counts the tokens of this file
    vocab = dict(vocab={f"t{i}": i for i in range(VOCAB)})
    json.dump(dict(model=vocab, added_tokens=[]), open(os.path.join(folder, "tokenizer.json"), "w"))
    return config["architectures"][0]


def set_vocab(model):
    """A byte-level tokenizer of 24 tokens."""
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = "abcdefghijklmnopqr"
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, "ab", "abc", "\u0120a"])
    writer.add_token_types([2, 3, 3] + [1] * 20 + [4])
    writer.add_token_merges(["a b", "ab c", "\u0120 a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def write_model(name):
    _, file_type, _, fused = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = folder / ("tiny-" + name)
        architecture = write_folder(name, source)
        kind = conversion.get_model_class(architecture)
        kind.set_vocab = set_vocab
        model = kind(source, file_type, folder / "out.gguf", fuse_qkv=fused)
        model.write()
        data = (folder / "out.gguf").read_bytes()
    with open(os.path.join(root, "gguf", name + ".gguf.zst"), "wb") as out:
        out.write(zstandard.compress(data, 19))


def write_seed(name, type):
    """A model of a few hundred bytes, from which a fuzzer starts."""
    path = os.path.join(root, "../corpus/gguf", name)
    writer = gguf.GGUFWriter(path, name)
    for add, value in ((writer.add_context_length, 4), (writer.add_embedding_length, 4), (writer.add_block_count, 1),
                       (writer.add_feed_forward_length, 4), (writer.add_head_count, 1)):
        add(value)
    learned = name == "gpt2"
    writer.add_layer_norm_eps(1e-5) if learned else writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "a", "b"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_token_types([2, 1, 1])
    writer.add_bos_token_id(0)

    def tensor(name, *shape):
        kind = type if len(shape) == 2 else Type.F32
        data = np.ones(shape, np.float32)
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    tensor("token_embd.weight", 3, 4)
    tensor("output_norm.weight", 4)
    for matrix, rows in dict(attn_q=4, attn_k=4, attn_v=4, attn_output=4, ffn_gate=4, ffn_up=4, ffn_down=4).items():
        if not learned or matrix not in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
            tensor(f"blk.0.{matrix}.weight", rows, 4)
    for norm in ("attn_norm", "ffn_norm"):
        tensor(f"blk.0.{norm}.weight", 4)
    if learned:
        tensor("blk.0.attn_qkv.weight", 12, 4)
        tensor("position_embd.weight", 4, 4)
        tensor("output_norm.bias", 4)
        for norm in ("attn_norm", "ffn_norm"):
            tensor(f"blk.0.{norm}.bias", 4)
    elif name == "llama":
        tensor("rope_freqs.weight", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    write_quants()
    shutil.rmtree(os.path.join(root, "gguf"), ignore_errors=True)
    os.makedirs(os.path.join(root, "gguf"))
    for name in MODELS:
        write_model(name)
    os.makedirs(os.path.join(root, "../corpus/gguf"), exist_ok=True)
    write_seed("llama", Type.F32)
    write_seed("qwen2", Type.F16)
    write_seed("gpt2", Type.BF16)

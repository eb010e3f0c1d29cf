"""Checks GGUF files that this project wrote with gguf-py and with llama.cpp.

    pip install torch transformers safetensors zstandard sentencepiece xllamacpp
    make build/copy_model && LLAMA_CPP=... python dev/check_gguf.py [FILE.gguf...]

(LLAMA_CPP as in dev/golden/golden_gguf.py; xllamacpp is llama.cpp with a Python interface, as a wheel.)

A tiny model of every architecture is made by transformers, converted by llama.cpp's converter, read and written by
build/copy_model as F32, F16, BF16 and Q8_0, and loaded by llama.cpp, whose log-probabilities of the next token are compared
with those of transformers. It fails if one differs by more than LIMITS: llama.cpp keeps keys and values in float16, and rounds
the inputs of products to the type of the weights. Each FILE is copied as F32, compared with gguf-py's values bit for bit, copied
as F16, BF16 and Q8_0, and llama.cpp completes a text with FILE and the copies.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(root, "dev/golden"))
import golden_gguf
import conversion
import gguf
import numpy as np
import torch
import xllamacpp
from transformers import AutoModelForCausalLM

PROMPT = [1, 3, 7, 4, 21, 9, 3, 3, 12, 17, 5, 6, 22, 8]
WINDOW = 9  # longer prompts differ if llama.cpp has no windows in the architecture
TEXT = "The capital of France is"
LIMITS = {"F32": 0.01, "F16": 0.01, "BF16": 0.05, "Q8_0": 0.05}


def copy(source, target, kind):
    dtype = "float32" if kind == "F32" else kind.lower()
    subprocess.run([os.path.join(root, "build/copy_model"), "--dtype", dtype, str(source), str(target)], check=True)


def serve(path, prompt, tokens, probabilities):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_gpu_layers, params.warmup, params.verbosity = 64, 0, False, -1
    params.fit_params = False
    server = xllamacpp.Server(params)
    return server.handle_completions(dict(prompt=prompt, n_predict=tokens, temperature=0, n_probs=probabilities,
                                          cache_prompt=False))


def compare_models():
    exact = golden_gguf.weight
    golden_gguf.weight = lambda name, shape: (exact(name, shape) * 0.25).astype(np.float32)
    for name, (_, _, _, fused) in golden_gguf.MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            source = folder / "tiny"  # llama.cpp finds the tokens of a Phi 3 by the model's name, which is the folder's
            architecture = golden_gguf.write_folder(name, source)
            kind = conversion.get_model_class(architecture)
            kind.set_vocab = golden_gguf.set_vocab
            kind(source, golden_gguf.File.ALL_F32, folder / "in.gguf", fuse_qkv=fused).write()
            attention = "eager" if name == "gemma2" else "sdpa"
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32,
                                                         attn_implementation=attention)
            prompt = PROMPT[:WINDOW] if name in ("mistral", "phi3") else PROMPT
            if name == "phi3-longrope":  # llama.cpp chooses the list by its context, transformers by the prompt
                prompt = 2 * PROMPT
            with torch.no_grad():
                expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            for type, limit in LIMITS.items():
                copy(folder / "in.gguf", folder / "out.gguf", type)
                answer = serve(folder / "out.gguf", prompt, 1, golden_gguf.VOCAB)
                top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                got = {t["id"]: t["logprob"] for t in top}
                worst = max(abs(got[i] - expected[i].item()) for i in got)
                print(f"{name} {type}: {len(got)} log-probabilities, largest difference {worst:.2g}")
                assert len(got) == golden_gguf.VOCAB and worst <= limit, (name, type)


def compare_file(path):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        copy(path, folder / "F32.gguf", "F32")
        a, b = gguf.GGUFReader(path), gguf.GGUFReader(folder / "F32.gguf")
        found = {t.name: t for t in b.tensors}
        assert len(found) == len(a.tensors)
        for t in a.tensors:
            x = gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)
            assert np.array_equal(x.view(np.uint32), found[t.name].data.reshape(-1).view(np.uint32)), t.name
        same = [k for k, f in a.fields.items() if k in b.fields and f.contents() == b.fields[k].contents()]
        print(f"{path}: {len(a.tensors)} tensors equal; {len(same)} of {len(a.fields)} entries equal, others:",
              sorted(set(a.fields) - set(same)))
        for type in (None, "F16", "BF16", "Q8_0"):
            if type:
                copy(path, folder / f"{type}.gguf", type)
            answer = serve(folder / f"{type}.gguf" if type else path, TEXT, 12, 1)
            print(type or "the file", repr(answer["choices"][0]["text"]),
                  answer["choices"][0]["logprobs"]["content"][0]["logprob"])


if __name__ == "__main__":
    compare_models()
    for path in sys.argv[1:]:
        compare_file(path)

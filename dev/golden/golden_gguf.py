"""Golden values of GGUF files and their block types: what the gguf package (gguf-py) reads and writes.

    pip install gguf torch transformers safetensors && python dev/golden/golden_gguf.py

Writes tests/golden/gguf_quants.txt: for each block type random blocks as bytes, and their values by gguf.quants; for
each type that the project writes, random values and the bytes of gguf.quants.quantize.
"""

import os

import gguf
import numpy as np
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


if __name__ == "__main__":
    write_quants()

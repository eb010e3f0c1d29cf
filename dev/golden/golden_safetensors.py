"""Files of the safetensors package, and the names and bytes that it reads from them.

    pip install torch safetensors && python dev/golden/golden_safetensors.py

Writes into tests/golden/safetensors/:
    types.safetensors   arrays of twelve dtypes, a scalar, an empty array and names that need escapes, with metadata, as
                        save_file() writes them: it decides order, padding and spelling
    round.safetensors   "f32": values at and around the limits of float16 and bfloat16 and random ones; "f16", "bf16":
                        the same as torch rounds them; "from_f16", "from_bf16": these as float32 again
"""

import os

import torch
from safetensors.torch import save_file

folder = os.path.join(os.path.dirname(__file__), "../../tests/golden/safetensors")
os.makedirs(folder, exist_ok=True)
torch.manual_seed(1)

types = [torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.float16,
         torch.bfloat16, torch.int32, torch.float32, torch.float64, torch.int64]
arrays = {f"of.{str(t)[6:]}": torch.arange(6).reshape(2, 3).to(t) for t in types}
arrays |= {"layers.10.w": torch.arange(4.0), "layers.2.w": torch.arange(3.0), "scalar": torch.tensor(2.5),
           "empty": torch.zeros(3, 0), 'quote " and \\ and \n and é': torch.ones(1), "last": torch.ones(5, dtype=torch.uint8)}
save_file(arrays, os.path.join(folder, "types.safetensors"), metadata={"format": "pt"})

edges = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, 65504.0, 65519.0, 65520.0, -70000.0, 2.0**-14, 2.0**-24,
         2.0**-25, 1.5 * 2.0**-25, 2.5 * 2.0**-24, 3.5 * 2.0**-24, 2.0**-14 - 2.0**-26, 1 + 2.0**-11, 1 + 3 * 2.0**-11,
         1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.3895313892515355e38, 3.4e38, 1e-40, -1e-45]
x = torch.cat([torch.tensor(edges), torch.randn(200) * torch.exp(torch.linspace(-20, 12, 200))]).float()
save_file({"f32": x, "f16": x.half(), "bf16": x.bfloat16(), "from_f16": x.half().float(), "from_bf16": x.bfloat16().float()},
          os.path.join(folder, "round.safetensors"), metadata={"format": "pt"})

"""Golden values of generalised advantage estimation over sequences with observed tokens, computed by the code of verl, for
tests/test_gae.c: writes tests/golden/masked_gae.txt.

    pip install torch && pip install --no-deps --target peers verl==0.9.1
    python dev/golden/golden_masked_gae.py peers

compute_gae_advantage_return() runs unchanged; only it and what it needs are taken from verl's files. Observed tokens have
values, which it must not read, and no reward.

Format: `case masked_gae verl NAME`, then lines `key count v1 v2 ...`, then `end`. lengths: tokens of each sequence, drawn and
observed; drawn: 1 for the drawn ones; reward, value: of all tokens; returns, advantage: of the drawn ones, the second whitened.
"""

import itertools
import sys

import golden
from golden import emit, float32, functions
import torch

folder = sys.argv[1] + "/verl"
verl_F = functions(f"{folder}/utils/torch_functional.py", ["masked_sum", "masked_mean", "masked_var", "masked_whiten"], torch=torch)
verl = functions(f"{folder}/trainer/ppo/core_algos.py", ["compute_gae_advantage_return"], torch=torch, verl_F=verl_F,
                 register_adv_est=lambda _: lambda f: f, AdvantageEstimator=type("", (), {"GAE": None}))

runs = [[3, 2, 4], [5], [1, 6, 1, 2, 3], [0, 4, 2], [2, 1, 2, 3, 1]]  # lengths of drawn, observed, drawn, ... tokens
lengths = [sum(r) for r in runs]
N, T = len(runs), max(lengths)
mask = torch.zeros(N, T)
for i, r in enumerate(runs):
    for k, n in enumerate(r):
        start = sum(r[:k])
        mask[i, start:start + n] = 1 - k % 2
inside = torch.arange(T) < torch.tensor(lengths)[:, None]
drawn = mask.bool()

out = golden.start("masked_gae.txt", seed=11)
print(f"# made by dev/golden/golden_masked_gae.py with verl 0.9.1, torch {torch.__version__}", file=out)
for gamma, lam in itertools.product((1.0, 0.9), (0.0, 0.95, 1.0)):
    reward, value = torch.where(drawn, float32(torch.randn(N, T)), 0.0), float32(torch.randn(N, T))
    advantage, returns = verl.compute_gae_advantage_return(reward, value, mask, gamma, lam)
    print("case masked_gae verl", f"{gamma}_{lam}", file=out)
    emit("settings", [gamma, lam])
    emit("lengths", lengths)
    for key, x, which in (("drawn", mask, inside), ("reward", reward, inside), ("value", value, inside),
                          ("returns", returns, drawn), ("advantage", advantage, drawn)):
        emit(key, x[which])
    print("end", file=out)
out.close()

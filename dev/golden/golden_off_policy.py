"""Golden values of the policy's loss on samples together with demonstrations, and of their advantages, by the code of LUFFY
(2504.14945): writes tests/golden/off_policy.txt.

    git clone https://github.com/ElliottYan/LUFFY && git -C LUFFY checkout 01f4ae0
    python dev/golden/golden_off_policy.py LUFFY/luffy/verl/verl

The functions run unchanged; only those that are needed are taken from the files, because these import much else. Autograd
gives the gradient with respect to the log-probabilities. All values are computed in float64 on inputs rounded to float32.

Format: `case KIND FAMILY NAME`, then lines `key count v1 v2 ...`, then `end`. KIND loss: FAMILY is the reshape, `config` are
gamma, the clip range and the constant that the sum of the tokens is divided by, 0 for a mean over the tokens. KIND advantage:
FAMILY is the divisor, `group` the size of a group.
"""

from collections import defaultdict
import sys

import golden
from golden import emit, float32, functions
import numpy as np
import torch

LENGTH = torch.tensor([6, 1, 3, 5, 2, 4])
OFF_POLICY = torch.tensor([0, 1, 0, 0, 1, 1])


def loss_case(name, reshape, gamma, drift=0.4, clip=0.2, lowest=-3.0, constant=False, off_policy=OFF_POLICY):
    B, T = len(LENGTH), int(LENGTH.max())
    active = torch.arange(T) < LENGTH[:, None]
    logp = float32(lowest * torch.rand(B, T) - 0.01).requires_grad_()
    old = float32(logp.detach() + drift * torch.randn(B, T))
    advantage = float32(2 * torch.randn(B))
    prefix = (off_policy[:, None] * active).bool()
    out_ = luffy.compute_token_on_off_policy_loss(
        old_log_prob=old, log_prob=logp, advantages=advantage[:, None].expand_as(logp), eos_mask=active, cliprange=clip,
        clip_upper_bound=1.0, prefix_mask=prefix, off_cliprange=None,
        off_policy_reshape=f"{reshape}_{gamma}" if reshape == "p_div_p" else reshape, loss_remove_token_mean=constant)
    loss = out_["pg_loss"]
    print("case", "loss", reshape, name, file=out)
    emit("config", [gamma, clip, T if constant else 0])
    emit("length", LENGTH)
    emit("off_policy", off_policy)
    emit("advantage", advantage)
    emit("logp", logp.detach()[active])
    emit("old", old[active])
    emit("loss", loss.detach(), 12)
    emit("dlogp", torch.autograd.grad(loss, logp)[0][active])
    emit("prob", out_["off_policy_prob"].detach())
    emit("ratio_mean", out_["off_ratio_mean"].detach())
    print("end", file=out)


def advantage_case(name, reward, G):
    """The group of the last completion's prompt has its demonstration among the others, as in LUFFY's trainer."""
    reward = float32(torch.as_tensor(reward, dtype=torch.float64))
    rewards = torch.zeros(len(reward), 3)
    rewards[:, 2] = reward
    A, _ = verl.compute_grpo_outcome_advantage(rewards, torch.ones_like(rewards), np.arange(len(reward)) // G, use_std=False)
    print("case", "advantage", "none", name, file=out)
    emit("group", G)
    emit("reward", reward)
    emit("advantage", A[:, 0])
    print("end", file=out)


folder = sys.argv[1]
verl_F = functions(folder + "/utils/torch_functional.py", ["masked_mean"])
luffy = functions(folder + "/mix_src/mix_core_alg.py", ["compute_token_on_off_policy_loss"], torch=torch, verl_F=verl_F)
verl = functions(folder + "/trainer/ppo/core_algos.py", ["compute_grpo_outcome_advantage"], torch=torch,
                 defaultdict=defaultdict)
out = golden.start("off_policy.txt", seed=5)
print(f"# made by dev/golden/golden_off_policy.py with LUFFY 01f4ae0, torch {torch.__version__}", file=out)
loss_case("default", "p_div_p", 0.1)
loss_case("on-policy", "p_div_p", 0.1, drift=0)
loss_case("far", "p_div_p", 0.1, drift=1.0)
loss_case("unlikely", "p_div_p", 0.1, lowest=-12.0)
loss_case("gamma", "p_div_p", 0.5)
loss_case("constant", "p_div_p", 0.1, constant=True)
loss_case("all", "p_div_p", 0.1, off_policy=torch.ones(6, dtype=torch.int64))
loss_case("mixed-policy", "no_reshape", 0.1)
advantage_case("groups", [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0], 4)
out.close()

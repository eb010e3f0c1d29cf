"""Golden values of losses and advantages that TRL 1.16 does not have, computed by the code of verl, prime-rl and TRL 0.27, and
those of A*-PO by TRL 1.16: writes tests/golden/losses_peers.txt.

    pip install trl==1.16 && pip install --no-deps --target peers verl==0.9.1 trl==0.27.0
    curl -LO https://raw.githubusercontent.com/PrimeIntellect-ai/prime-rl/559b447/src/prime_rl/trainer/rl/loss.py
    python dev/golden/golden_losses_peers.py peers loss.py

The functions run unchanged; only those that are needed are taken from the files, because these import much else. Autograd
gives the gradient with respect to the log-probabilities. All values are computed in float64 on inputs rounded to float32. The
draw of Clip-Cov is verl's; the tokens that it chose are part of the values. GFPO runs the lines of
GFPOTrainer._generate_and_score_completions from the rewards to the advantages.

Format: `case KIND FAMILY NAME`, then lines `key count v1 v2 ...`, then `end`.
"""

from collections import defaultdict
import inspect
import math
from pathlib import Path
import re
import sys
import textwrap
from types import SimpleNamespace

import golden
from golden import emit, float32, functions
import numpy as np
import torch
from trl.experimental.a2po import A2POTrainer

peers_folder, prime_file = sys.argv[1:3]
LENGTH = torch.tensor([6, 1, 3, 5, 2, 4])


def masked_mean(x, mask):
    """verl.utils.torch_functional.masked_mean"""
    return (x * mask).sum() / (mask.sum() + 1e-8)


def batch(drift):
    """Log-probabilities, old ones, and an advantage for each completion; the mask of the tokens that exist."""
    B, T = len(LENGTH), int(LENGTH.max())
    logp = float32(-3 * torch.rand(B, T) - 0.01).requires_grad_()
    old = float32(logp.detach() + drift * torch.randn(B, T))
    advantage = float32(2 * torch.randn(B))
    return logp, old, advantage, torch.arange(T) < LENGTH[:, None]


def emit_case(family, name, config, x, loss, **more):
    logp, old, advantage, active = x
    print("case", "policy", family, name, file=out)
    emit("config", config)
    emit("length", LENGTH)
    emit("advantage", advantage)
    emit("logp", logp.detach()[active])
    emit("old", old[active])
    emit("loss", loss.detach(), 12)
    emit("dlogp", torch.autograd.grad(loss, logp)[0][active])
    for key, value in more.items():
        emit(key.replace("__", ":"), value)
    print("end", file=out)


def verl_case(family, name, drift=0.4, **settings):
    x = batch(drift)
    logp, old, advantage, active = x
    policy_loss = SimpleNamespace(clip_cov_ratio=2e-4, clip_cov_lb=1.0, clip_cov_ub=5.0, kl_cov_ratio=2e-4,
                                  ppo_kl_coef=1.0)
    policy_loss.__dict__.update(settings)
    config = SimpleNamespace(policy_loss=policy_loss, clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28,
                             global_batch_info={})
    loss = getattr(verl, "compute_policy_loss_" + family)
    A = advantage[:, None].expand_as(logp)
    value, metrics = loss(old, logp, A, active.double(), config=config)
    s, covariance = policy_loss, (A - A[active].mean()) * (logp - logp[active].mean()).detach()
    values = [s.clip_cov_ratio, s.clip_cov_lb, s.clip_cov_ub, s.kl_cov_ratio, s.ppo_kl_coef]
    more = {}
    if family == "clip_cov":  # a token that lost its gradient without being clipped
        gradient = torch.autograd.grad(value, logp, retain_graph=True)[0]
        ratio = (logp - old).exp().detach()
        clipped = -A * ratio.clamp(0.8, 1.28) > -A * ratio
        chosen = (gradient == 0) & ~clipped & (A != 0)
        more = {"chosen": chosen[active], "fraction": metrics["actor/pg_clipfrac"]}
    emit_case(family, name, [0.2, 0.28, 0, *values], x, value, mean=covariance[active].mean(), **more)


def dppo_case(name, drift=0.4, low=0.2, high=0.2, tau=1e-3):
    x = batch(drift)
    logp, old, advantage, active = x
    config = SimpleNamespace(dppo_mask_low=low, dppo_mask_high=high, adv_tau=1.0, kl_tau=tau)
    inputs = SimpleNamespace(trainer_logprobs=logp[active], inference_logprobs=old[active], ref_logprobs=None,
                              advantages=advantage[:, None].expand_as(logp)[active],
                              loss_mask=torch.ones(int(active.sum()), dtype=torch.bool), loss_weights=None)
    result = prime.default_loss_fn(inputs, config)
    metrics = {"metric__clip_ratio/low_mean": result.metrics["is_masked_low"],
               "metric__clip_ratio/high_mean": result.metrics["is_masked_high"]}
    emit_case("dppo", name, [low, high, tau, 0, 0, 0, 0, 0], x, result.loss / active.sum(), **metrics)


def baseline_case(name, length, reward, G, V=7):
    """verl's optimal token baseline; reward at the last token, as verl has it."""
    length, reward = torch.as_tensor(length), float32(torch.as_tensor(reward, dtype=torch.float64))
    B, T = len(length), int(length.max())
    active = torch.arange(T) < length[:, None]
    p = torch.softmax(2 * torch.randn(B, T, V), -1)
    logp, log_square = float32(p[..., 0].log()), float32((p ** 2).sum(-1).log())
    rewards = torch.zeros(B, T)
    rewards[torch.arange(B), length - 1] = reward
    A, _ = verl.compute_optimal_token_baseline_advantage(rewards, active.double(), np.arange(B) // G, logp, log_square.exp(),
                                                         handle_zero_tail=True)
    print("case", "advantage", "optimal_token_baseline", name, file=out)
    emit("group", G)
    emit("length", length)
    emit("reward", reward)
    emit("logp", logp[active])
    emit("log_square", log_square[active])
    emit("advantage", A[active])
    print("end", file=out)


def gfpo_case(name, length, reward, G, K, filter):
    """GFPOTrainer's choice among G completions and its advantages; 0 for those that it drops."""
    length, reward = torch.as_tensor(length, dtype=torch.float64), float32(torch.as_tensor(reward, dtype=torch.float64))
    score = -length if filter == "length" else reward / length
    source = Path(peers_folder + "/trl/experimental/gfpo/gfpo_trainer.py").read_text()
    begin = source.index("        num_in_group = self.num_generations\n")
    end = source.index("        # Slice to keep only the local part of the data")
    n = len(reward)
    trainer = SimpleNamespace(num_generations=G, num_remains_in_group=K, scale_rewards="group",
                              group_filter_func=lambda group_completions, group_rewards: score.view(-1, G).tolist())
    space = dict(self=trainer, prompts=[""] * n, mode="train", gather_object=lambda x: x, completions=[""] * n,
                 rewards=reward, rewards_per_func=reward[:, None], torch=torch, device="cpu")
    exec(textwrap.dedent(source[begin:end]), space)
    A = torch.zeros(n)
    A[space["group_global_indices"]] = space["advantages"]
    print("case", "gfpo", filter, name, file=out)
    emit("group", [G, K])
    emit("length", length)
    emit("reward", reward)
    emit("advantage", A)
    print("end", file=out)


def a2po_case(name, beta1, beta2, n=8):
    """V by the line of A2POTrainer._estimate_optimal_values, the loss by A2POTrainer.compute_loss."""
    logp, ref, _, active = batch(0.4)
    B = len(LENGTH)
    samples, reward = torch.randint(0, 2, (B, n)).double(), torch.randint(0, 2, (B,)).double()
    samples[0], samples[1] = 0, 1
    line = re.search(r"v_star = (beta1 \* .*)", inspect.getsource(A2POTrainer._estimate_optimal_values)).group(1)
    v_star = eval(line, dict(torch=torch, math=math, rewards=samples, beta1=beta1, n=n))
    target = float32(reward - v_star)
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(model=SimpleNamespace(training=True), args=SimpleNamespace(beta2=beta2), _metrics=metrics,
                              _get_sequence_logps=lambda *a: (logp * active).sum(1))
    inputs = dict(input_ids=None, attention_mask=None, logits_to_keep=None, ref_logps=(ref * active).sum(1),
                  rewards=target, v_star=torch.zeros(B))
    loss = A2POTrainer.compute_loss(trainer, None, inputs)
    print("case", "a2po", "a2po", name, file=out)
    emit("beta", [beta1, beta2])
    emit("length", LENGTH)
    emit("samples", samples)
    emit("v_star", v_star)
    emit("target", target)
    emit("logp", logp.detach()[active])
    emit("ref", ref[active])
    emit("loss", loss.detach(), 12)
    emit("dlogp", torch.autograd.grad(loss, logp)[0][active])
    emit("implicit", metrics["train"]["implicit_reward"])
    print("end", file=out)


verl_F = SimpleNamespace(masked_mean=masked_mean, masked_sum=lambda x, mask: (x * mask).sum())
verl = functions(peers_folder + "/verl/trainer/ppo/core_algos.py",
                 ["agg_loss", "compute_policy_loss_clip_cov", "compute_policy_loss_kl_cov",
                  "compute_optimal_token_baseline_advantage"],
                 torch=torch, np=np, verl_F=verl_F, defaultdict=defaultdict, ActorConfig=SimpleNamespace,
                 AlgoConfig=type(None))
prime = functions(prime_file, ["_safe_mean", "compute_importance_ratio_and_mismatch_kl", "default_loss_fn"], torch=torch,
                  LossOutputs=SimpleNamespace)
out = golden.start("losses_peers.txt", seed=3)
print(f"# made by dev/golden/golden_losses_peers.py with verl 0.9.1, prime-rl 559b447, torch {torch.__version__}", file=out)
for i, settings in enumerate([{}, {"ratio": 0.3}, {"ratio": 0.5, "lb": -1.0, "ub": 0.5}, {"ratio": 1, "lb": 0.1}]):
    verl_case("clip_cov", f"case-{i}", **{"clip_cov_" + key: value for key, value in settings.items()})
for i, settings in enumerate([{}, {"kl_cov_ratio": 0.2}, {"kl_cov_ratio": 0.5, "ppo_kl_coef": 0.3}, {"kl_cov_ratio": 1}]):
    verl_case("kl_cov", f"case-{i}", **settings)
dppo_case("default")
dppo_case("far", drift=1.0)
dppo_case("narrow", low=0.02, high=0.05, tau=0.5)
dppo_case("without-kl", drift=1.0, tau=0.0)
baseline_case("groups", [4, 2, 7, 5, 3, 3, 1, 6], [1, 0, 0, 1, 0.5, 0.2, 0, 1], 4)
baseline_case("same-length", [5, 5, 5, 5], [1, 0, 0, 0], 2)
baseline_case("equal", [2, 6, 4], [1, 1, 1], 3)
baseline_case("large", [3, 8, 8, 1], [100, -50, 3, 7], 4)
a2po_case("default", 0.5, 1e-3)
a2po_case("strong", 0.1, 0.5)
for filter in ["length", "token_efficiency"]:
    gfpo_case("random", 1 + torch.randperm(24), torch.rand(24), 8, 4, filter)
    gfpo_case("binary", 1 + torch.randperm(12), [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1], 6, 3, filter)
out.close()

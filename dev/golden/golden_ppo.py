"""Golden values for tests/test_gae.c and tests/test_ppo.c: writes tests/golden/ppo.txt.

    pip install torch && python dev/golden/golden_ppo.py

No current library has PPO for language models (TRL removed its PPOTrainer in 1.16), so this script evaluates the equations
of the papers in float64, in a different form than the C code: advantages as the double sum of Schulman et al. 2016
(1506.02438, eq. 16), means over a padded (completions, tokens) matrix with a mask as in TRL's PPOTrainer, gradients by
autograd. Inputs are rounded to float32 first. Leave-one-out advantages and the loss of RLOO are in
tests/golden/losses.txt, computed by TRL's own RLOOTrainer.

Format: `case KIND FAMILY NAME`, then lines `key count v1 v2 ...`, then `end`. Flat arrays hold the tokens of one completion
after another.
"""

import itertools

import golden
import torch
from golden import emit, float32

out = golden.start("ppo.txt", seed=7, digits=12)
print("# written by dev/golden/golden_ppo.py", file=out)
lengths = [5, 1, 8, 3, 2]  # tokens of the completions
N, T = len(lengths), max(lengths)
counts = torch.tensor([1, 1, 1, 0, 1])  # the fourth is masked out
inside = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
mask = inside & (counts[:, None] == 1)


def flat(x):
    return x[inside]


def draw(scale=1.0):
    return float32(torch.randn(N, T) * scale)


def masked_mean(x, m):
    return (x * m).sum() / m.sum()


def begin(kind, name):
    print("case", kind, "ppo", name, file=out)
    emit("lengths", lengths)
    emit("counts", counts)


# r_t = -beta k_t + s [t = last],  A_t = sum_l (gamma lambda)^l delta_(t+l)
for number, (kl, gamma, lam) in enumerate(itertools.product(("k1", "k2", "k3"), (1.0, 0.9), (0.0, 0.95, 1.0))):
    logp, ref, value, beta = draw(), draw(), draw(), 0.05 * (1 + number)
    score = draw()[:, 0]
    ratio = ref - logp  # log(ref / pi)
    k = {"k1": -ratio, "k2": ratio**2 / 2, "k3": torch.exp(ratio) - 1 - ratio}[kl]
    reward = -beta * k
    for i, n in enumerate(lengths):
        reward[i, n - 1] += score[i]
    advantage, to_go = torch.zeros(N, T), torch.zeros(N, T)
    for i, n in enumerate(lengths):
        V = torch.cat([value[i, :n], torch.zeros(1)])
        delta = reward[i, :n] + gamma * V[1:] - V[:-1]
        for t in range(n):
            advantage[i, t] = sum((gamma * lam) ** l * delta[t + l] for l in range(n - t))
            to_go[i, t] = sum(gamma**l * reward[i, t + l] for l in range(n - t))
    begin("gae", f"{kl}_{gamma}_{lam}")
    emit("estimator", ["k1", "k2", "k3"].index(kl))
    emit("settings", [beta, gamma, lam])
    for key, x in (("logp", logp), ("ref_logp", ref), ("value", value), ("reward", reward), ("advantage", advantage),
                   ("to_go", to_go)):
        emit(key, flat(x))
    emit("score", score)
    emit("kl", [k[i, :n].sum() for i, n in enumerate(lengths)])
    print("end", file=out)

# whitening: (x - mean) / sqrt(var + 1e-8) over the unmasked tokens, variance with n - 1
for shift, scale in itertools.product((1, 0), (1.0, 1e-3, 30.0)):
    x = float32(draw(scale) + 3)
    mean, variance = x[mask].mean(), x[mask].var(unbiased=True)
    y = (x - mean) * torch.rsqrt(variance + 1e-8) + (0 if shift else mean)
    begin("whiten", f"shift{shift}_{scale}")
    emit("shift", shift)
    emit("x", flat(x))
    emit("y", flat(torch.where(mask, y, torch.zeros(()))))
    print("end", file=out)



def aggregate(x, mode, norm):
    """The loss of a batch from those of its tokens, as defined for loss_agg_mode in verl's core_algos.py."""
    sums, sizes = (x * mask).sum(1), mask.sum(1)
    completions = (sizes > 0).sum()  # fully masked ones are left out
    if mode == "token-mean":
        return sums.sum() / sizes.sum()
    if mode == "seq-mean-token-mean":
        return (sums / sizes.clamp(min=1)).sum() / completions
    return sums.sum() / completions / (norm if mode == "seq-mean-token-sum-norm" else 1)


MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def loss_case(clip, high, dual, value_clip, entropy_coef, mode="token-mean", norm=0.0, kl_coef=0.0, kl="k1"):
    """Losses and metrics; gradients by autograd."""
    logp, value, entropy = (draw(0.6).requires_grad_(), draw(0.5).requires_grad_(), draw().abs().requires_grad_())
    old, old_value, A, G, vf_coef = draw(0.6), draw(0.5), draw(), draw(), 0.1
    ref = draw(0.6) if kl_coef else torch.zeros(N, T)
    d = logp - old
    rho = torch.exp(d)
    losses = torch.max(-A * rho, -A * torch.clamp(rho, 1 - clip, 1 + high))
    clipped = (-A * torch.clamp(rho, 1 - clip, 1 + high)) > (-A * rho)
    if dual:
        losses = torch.where(A < 0, torch.min(losses, -A * dual), losses)
    policy = aggregate(losses, mode, norm)
    ratio = ref - logp  # log(ref / pi)
    k = {"k1": -ratio, "k2": ratio**2 / 2, "k3": torch.exp(ratio) - 1 - ratio}[kl]
    bonus = entropy_coef * aggregate(entropy, mode, norm)
    held = torch.clamp(value, old_value - value_clip, old_value + value_clip) if value_clip else value
    free_square, held_square = (value - G) ** 2, (held - G) ** 2
    value_loss = 0.5 * aggregate(torch.max(free_square, held_square), mode, norm)
    loss = policy + kl_coef * aggregate(k, mode, norm) - bonus + vf_coef * value_loss
    gradients = torch.autograd.grad(loss, (logp, value, entropy), allow_unused=True)
    begin("loss", f"clip{clip}_{high}_dual{dual}_value{value_clip}_entropy{entropy_coef}_{mode}_{kl}_{kl_coef}")
    emit("settings", [clip, high, dual, value_clip, entropy_coef, vf_coef, MODES.index(mode), norm, kl_coef,
                      ("k1", "k2", "k3").index(kl)])
    for key, x in (("logp", logp), ("old_logp", old), ("ref_logp", ref), ("advantage", A), ("entropy", entropy),
                   ("value", value), ("old_value", old_value), ("target", G), ("dlogp", gradients[0]),
                   ("dvalue", gradients[1])):
        emit(key, flat(x.detach()))
    emit("dentropy", flat(gradients[2] if entropy_coef else torch.zeros(N, T)))
    emit("loss", loss.detach())
    emit("policy_loss", policy.detach())
    emit("value_loss", value_loss.detach())
    emit("approxkl", 0.5 * masked_mean(d.detach() ** 2, mask))
    emit("clipfrac", masked_mean(clipped.double(), mask))
    emit("value_clipfrac", masked_mean((held_square > free_square).double(), mask))
    emit("ratio", masked_mean(rho.detach(), mask))
    emit("kl", masked_mean(k.detach(), mask) if kl_coef else 0.0)
    print("end", file=out)


for settings in ((0.2, 0.2, 0, 0.2, 0), (0.1, 0.3, 0, 0.5, 0.01), (0.2, 0.2, 3, 0, 0), (0.2, 0.28, 1.5, 0.05, -0.02)):
    loss_case(*settings)
for mode, kl in itertools.product(MODES, ("k1", "k2", "k3")):
    loss_case(0.2, 0.28, 3, 0.2, 0.01, mode, 11.0, 0.3, kl)

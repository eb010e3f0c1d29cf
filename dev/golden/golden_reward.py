"""Golden values for tests/test_loss_reward.c, computed by TRL's own code: writes tests/golden/reward.txt.

    pip install trl==1.16 && python dev/golden/golden_reward.py

Bradley-Terry: RewardTrainer.compute_loss runs unchanged on a trainer that is not constructed: only the attributes that it
reads are set, and the model's scores are a leaf tensor, so that autograd gives the gradient. Its metrics are written too.
Steps: the loss of transformers' token classifiers, which TRL's PRM trainer minimises, over two logits per token, with -100
for tokens without a label; it computes in float32. Outcomes and label smoothing: torch's binary_cross_entropy_with_logits
with soft targets. Ranking: scikit-learn's roc_auc_score if it is installed, else the definition over all pairs. All other
values are computed in float64 on inputs rounded to float32.

Format: `case KIND FAMILY NAME`, then lines `key count v1 v2 ...`, then `end`.
"""

from collections import defaultdict
from types import SimpleNamespace

import golden
from golden import Accelerator, emit, float32
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from transformers.loss.loss_utils import ForTokenClassification
from trl import RewardTrainer

out = golden.start("reward.txt", seed=3, digits=10)


def normal(*shape, scale=1.0):
    return float32(scale * torch.randn(*shape))


def pairs_case(name, pairs, scale, margin=None, center=None):
    score = normal(2 * pairs, 1, scale=scale).requires_grad_()  # TRL's order: all chosen, then all rejected
    t = object.__new__(RewardTrainer)
    t.args = SimpleNamespace(center_rewards_coefficient=center)
    t.accelerator, t.model = Accelerator(), SimpleNamespace(training=True)
    t._total_train_tokens, t._tp_size, t._metrics = 0, 1, {"train": defaultdict(list)}
    inputs = {"attention_mask": torch.ones(2 * pairs, 3, dtype=torch.long)}
    if margin is not None:
        inputs["margin"] = margin
    loss = t.compute_loss(lambda **_: SimpleNamespace(logits=score), inputs)
    loss.backward()
    ours = lambda x: torch.stack(x.flatten().chunk(2), 1)  # the C code's order: chosen, rejected, chosen, ...
    print("case", "pairs", "reward", name, file=out)
    emit("config", [0, center or 0])
    emit("score", ours(score.detach()))
    if margin is not None:
        emit("margin", margin)
    emit("loss", loss.detach())
    emit("gradient", ours(score.grad))
    emit("metrics", [t._metrics["train"][k][0] for k in ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"]])
    print("end", file=out)


def smoothed_case(name, pairs, epsilon, margin):
    score = normal(pairs, 2, scale=2).requires_grad_()
    x = score[:, 0] - score[:, 1] - margin
    loss = bce(x, torch.full_like(x, 1 - epsilon))
    loss.backward()
    print("case", "pairs", "reward", name, file=out)
    emit("config", [epsilon, 0])
    emit("score", score.detach())
    emit("margin", margin)
    emit("loss", loss.detach())
    emit("gradient", score.grad)
    print("end", file=out)


def outcome_case(name, n, scale, epsilon):
    score, label = normal(n, scale=scale).requires_grad_(), (torch.rand(n) < 0.4).double()
    loss = bce(score, label * (1 - epsilon) + (1 - label) * epsilon)
    loss.backward()
    print("case", "binary", "reward", name, file=out)
    emit("config", [epsilon, 0])
    emit("score", score.detach())
    emit("label", label)
    emit("loss", loss.detach())
    emit("gradient", score.grad)
    print("end", file=out)


def steps_case(name, rows, tokens, scale):
    """TRL has two logits z_0, z_1 per token; the C code has one score z_1 - z_0 per labelled token."""
    z = normal(rows, tokens, 2, scale=scale)
    z[..., 0] = (z[..., 1] - float32(z[..., 1] - z[..., 0]))  # makes the difference exact in float32
    z.requires_grad_()
    label = torch.where(torch.rand(rows, tokens) < 0.4, (torch.rand(rows, tokens) < 0.6).long(), -100)
    loss = ForTokenClassification(z, label, SimpleNamespace(num_labels=2))
    loss.backward()
    kept = label >= 0
    assert torch.allclose(z.grad[..., 1], -z.grad[..., 0]) and not z.grad[~kept].any()
    print("case", "binary", "reward", name, file=out)
    emit("config", [0, 0])
    emit("score", (z[..., 1] - z[..., 0])[kept].detach())
    emit("label", label[kept])
    emit("loss", loss.detach())
    emit("gradient", z.grad[..., 1][kept])
    emit("tolerance", [1e-6])
    print("end", file=out)


def auc_case(name, n, levels):
    """levels: scores are multiples of 1/levels, which gives ties."""
    label = (torch.rand(n) < 0.3).double()
    score = torch.round((torch.rand(n) + 0.3 * label) * levels) / levels
    score = float32(score)
    try:
        from sklearn.metrics import roc_auc_score

        auc = roc_auc_score(label.numpy(), score.numpy())
    except ImportError:
        d = score[label > 0][:, None] - score[label == 0][None, :]
        auc = ((d > 0).double() + 0.5 * (d == 0).double()).mean().item()
    print("case", "auc", "reward", name, file=out)
    emit("score", score)
    emit("label", label)
    emit("auc", [auc], 15)
    print("end", file=out)


pairs_case("plain", 7, 1.0)
pairs_case("margin", 6, 2.0, margin=normal(6).abs())
pairs_case("center", 5, 1.5, center=0.01)
pairs_case("margin-center", 8, 3.0, margin=normal(8), center=0.3)
pairs_case("extreme", 4, 300.0)
pairs_case("one", 1, 1.0)
smoothed_case("smoothing", 6, 0.1, torch.zeros(6))
smoothed_case("smoothing-margin", 5, 0.25, normal(5).abs())
outcome_case("outcome", 9, 2.0, 0.0)
outcome_case("outcome-smoothing", 9, 2.0, 0.2)
outcome_case("outcome-extreme", 6, 400.0, 0.0)
steps_case("steps", 4, 9, 1.5)
auc_case("ties", 60, 5)
auc_case("fine", 40, 1000)
out.close()

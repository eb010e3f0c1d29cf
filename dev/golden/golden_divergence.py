"""Golden values for tests/test_divergence.c, computed by TRL's own code: writes tests/golden/divergence.txt.

    pip install trl==1.16 && python dev/golden/golden_divergence.py

GKDTrainer.generalized_jsd_loss runs unchanged on logits of a student and a teacher, and autograd gives the gradient of the
student's logits for given weights of the rows. All values are computed in float64 on inputs rounded to float32.

Format: `case trl jsd NAME`, then lines `key count v1 v2 ...`, then `end`.
"""

import golden
from golden import emit, float32
import torch
from trl.experimental.gkd import GKDTrainer

out = golden.start("divergence.txt", seed=4)

ROWS, VOCAB = 5, 30
for beta in (0, 0.1, 0.5, 1):
    for temperature in (0.5, 1, 2):
        student, teacher = (float32(2 * torch.randn(ROWS, VOCAB)) for _ in range(2))
        weight = float32(torch.randn(ROWS))
        student.requires_grad_()
        value = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, temperature=temperature,
                                                reduction="none")[0].sum(-1)
        (value * weight).sum().backward()
        print(f"case trl jsd beta_{beta}_temperature_{temperature}", file=out)
        emit("vocab", [VOCAB])
        emit("beta", [beta])
        emit("temperature", [temperature])
        emit("student", student.detach())
        emit("teacher", teacher)
        emit("weight", weight)
        emit("value", value.detach())
        emit("gradient", student.grad)
        print("end", file=out)
out.close()

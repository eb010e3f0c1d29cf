"""Golden values of PRIME's implicit process reward model, computed by the code of verl's recipe: writes
tests/golden/implicit_prm.txt.

    pip install --no-deps --target peers verl==0.9.1
    for file in prime_core_algos.py prime_dp_rm.py; do
        curl -LO https://raw.githubusercontent.com/verl-project/verl-recipe/48ea0a7/prime/$file
    done
    python dev/golden/golden_implicit_prm.py peers prime_core_algos.py prime_dp_rm.py

The functions run unchanged; only those that are needed are taken from the files, because these import much else. Autograd
gives the gradient with respect to the log-probabilities. All values are computed in float64 on inputs rounded to float32,
apart from the outcome's return, which verl makes in float32.

Format: `case prime prime NAME`, then lines `key count v1 v2 ...`, then `end`.
"""

import sys
from types import SimpleNamespace

import golden
from golden import emit, float32, functions
import torch

peers_folder, algos_file, model_file = sys.argv[1:4]
LENGTH = torch.tensor([6, 1, 3, 5, 2, 4])


def case(name, G, outcome, beta=0.05, norm="batch_norm", dpo_coef=5.0, gt_coef=5.0, spread=0.3):
    B, T = len(LENGTH), int(LENGTH.max())
    mask = torch.arange(T) < LENGTH[:, None]
    logp = float32(-3 * torch.rand(B, T) - 0.01).requires_grad_()
    ref = float32(logp.detach() + spread * torch.randn(B, T))
    outcome = float32(torch.as_tensor(outcome, dtype=torch.float64))
    q = (logp - ref) * mask
    loss = algos.compute_ce_dpo_loss_rm(q, outcome, response_mask=mask, beta=beta)
    config = SimpleNamespace(prime_norm=norm, algorithm=SimpleNamespace(reward_dpo_coef=dpo_coef, reward_gt_coef=gt_coef))
    scores = model.prime_norm(SimpleNamespace(config=config), (q * beta).detach())
    batch = {"rm_scores": scores, "acc": outcome.float(), "prompts": torch.zeros(B, 1),
             "attention_mask": torch.cat([torch.ones(B, 1, dtype=torch.long), mask.long()], 1)}
    whitened, advantage = algos.compute_rloo_advantage_return(SimpleNamespace(batch=batch), mask.double(), G, config)
    print("case", "prime", "prime", name, file=out)
    emit("config", [beta, dpo_coef, gt_coef, G, norm == "none"])
    emit("length", LENGTH)
    emit("outcome", outcome)
    emit("logp", logp.detach()[mask])
    emit("ref", ref[mask])
    emit("loss", loss.detach(), 12)
    emit("dlogp", torch.autograd.grad(loss, logp)[0][mask])
    emit("reward", scores[mask])
    emit("advantage", advantage[mask])
    emit("whitened", whitened[mask])
    emit("dpo_acc", algos.compute_dpo_accuracy(scores, outcome, mask, G))
    emit("dpo_acc_abs", algos.compute_dpo_abs_accuracy(scores, outcome, mask, G))
    emit("mean", [scores.sum(-1).mean(), q.detach().sum(-1).mean()])
    print("end", file=out)


verl_F = functions(peers_folder + "/verl/utils/torch_functional.py",
                   ["masked_sum", "masked_mean", "masked_var", "masked_whiten"], torch=torch)
algos = functions(algos_file, ["compute_rloo_advantage_return", "compute_ce_dpo_loss_rm", "compute_dpo_accuracy",
                               "compute_dpo_abs_accuracy"],
                  torch=torch, verl_F=verl_F)
model = functions(model_file, ["prime_norm"], torch=torch)
out = golden.start("implicit_prm.txt", seed=5)
print(f"# made by dev/golden/golden_implicit_prm.py with verl-recipe 48ea0a7, verl 0.9.1, torch {torch.__version__}", file=out)
case("default", 3, [1, 0, 1, 0, 0, 1])
case("pairs", 2, [1, 0, 1, 1, 0, 1])
case("without-norm", 3, [1, 0, 1, 0, 0, 1], beta=1.0, norm="none")
case("weights", 3, [0, 0, 1, 1, 1, 0], beta=0.5, norm="none", dpo_coef=2.0, gt_coef=0.5)
case("process-alone", 6, [1, 0, 0, 0, 1, 1], gt_coef=0.0)
case("outcome-alone", 3, [1, 0, 1, 0, 0, 1], dpo_coef=0.0)
case("soft", 3, [0.25, 0, 1, 0.75, 0.5, 1], beta=0.2)
case("equal", 3, [1, 1, 1, 0, 0, 0], norm="none")
case("far", 3, [1, 0, 1, 0, 0, 1], beta=2.0, norm="none", spread=8)
out.close()

"""Golden values for tests/test_advantage.c, computed by the code of MT-GRPO and GiGPO: writes tests/golden/turns.txt.

    git clone https://github.com/langfengQ/DrMAS                    # the GiGPO authors' gigpo/core_gigpo.py (3b556f2)
    git clone https://github.com/SiliangZeng/Multi-Turn-RL-Agent    # MT-GRPO (7dbdd08)
    pip install torch numpy && python dev/golden/golden_turns.py DrMAS Multi-Turn-RL-Agent

The functions run unchanged; only those that are needed are taken from the files, because these import verl and TRL. GiGPO's
functions get epsilon 1e-4 and a batch whose items are turns of one token. MT-GRPO's _assign_advantages() gets completions of
two turns of three tokens, with a result of two tokens between them, and _compute_normalized_advantages() their rewards.

Format: `case turns METHOD NAME`, then lines `key count v1 v2 ...`, then `end`. turns: of each trajectory; group of G trajectories.
"""

import sys
from collections import defaultdict
from types import SimpleNamespace
from difflib import SequenceMatcher
import uuid

import golden
from golden import Accelerator, emit, float32, functions
import numpy as np
import torch

P, G = 3, 4

gigpo = functions(f"{sys.argv[1]}/gigpo/core_gigpo.py",
                  ["to_hashable", "compute_step_discounted_returns", "compute_gigpo_outcome_advantage", "episode_norm_reward",
                   "build_step_group", "step_norm_reward"],
                  np=np, torch=torch, defaultdict=defaultdict, uuid=uuid, SequenceMatcher=SequenceMatcher)
trainers = f"{sys.argv[2]}/verifiers/trainers"
mt = functions(f"{trainers}/mt_grpo_env_trainer.py", ["_assign_advantages"], torch=torch)
base = functions(f"{trainers}/grpo_env_trainer.py", ["_compute_normalized_advantages"], torch=torch)
out = golden.start("turns.txt", seed=3)


def gigpo_case(name, mode, gamma, weight):
    turns = torch.randint(1, 6, (P * G,))
    trajectory = torch.repeat_interleave(torch.arange(P * G), turns).numpy()
    first = np.r_[0, np.cumsum(turns.numpy())[:-1]]
    step = np.concatenate([np.arange(int(n)) for n in turns])
    reward = float32(torch.rand(len(trajectory)).round(decimals=2))
    outcome = float32(torch.randint(0, 2, (P * G,)).double())
    outcome[G : 2 * G] = 1  # a group of equal outcomes
    state = torch.where(torch.as_tensor(step) == 0, 0, torch.randint(1, 4, (len(trajectory),))).numpy()
    own = reward.clone()
    own[torch.as_tensor(first + turns.numpy() - 1)] += outcome
    total = torch.stack([own[torch.as_tensor(trajectory == i)].sum() for i in range(P * G)])
    batch = SimpleNamespace(
        non_tensor_batch=dict(rewards=own.numpy(), traj_uid=trajectory, active_masks=np.ones(len(trajectory)),
                              env_step=step), batch=dict(input_ids=torch.zeros(1)))
    returns = gigpo.compute_step_discounted_returns(batch, gamma).double()
    advantage, _ = gigpo.compute_gigpo_outcome_advantage(
        total[torch.as_tensor(trajectory)][:, None], returns, torch.ones(len(trajectory), 1), state, trajectory // G,
        trajectory, epsilon=1e-4, step_advantage_w=weight, mode=mode)
    print("case turns gigpo", name, file=out)
    emit("gamma", [gamma])
    emit("weight", [weight])
    emit("std", [mode == "mean_std_norm"])
    emit("turns", turns)
    emit("reward", reward)
    emit("outcome", outcome)
    emit("total", total)
    emit("state", torch.as_tensor(state))
    emit("advantage", advantage[:, 0])
    print("end", file=out)


def mt_case(name, weight):
    reward = float32(torch.rand(P * G).round(decimals=1))
    outcome = float32(torch.randint(0, 2, (P * G,)).double())
    outcome[G : 2 * G] = 1
    mask = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1]).repeat(P * G, 1)
    trainer = SimpleNamespace(num_generations=G, accelerator=Accelerator(), turn_advantage_coef=weight)
    normalised = [base._compute_normalized_advantages(trainer, x, P * G)[2] for x in (reward, outcome)]
    advantage = mt._assign_advantages(trainer, mask, *normalised, torch.zeros(P * G), [1] * (P * G))
    print("case turns mt_grpo", name, file=out)
    emit("weight", [weight])
    emit("reward", reward)
    emit("outcome", outcome)
    emit("advantage", advantage[:, [0, 7]])
    print("end", file=out)


gigpo_case("paper", "mean_std_norm", 0.95, 1)
gigpo_case("mean", "mean_norm", 1, 0.5)
gigpo_case("strong", "mean_std_norm", 0.5, 2)
mt_case("whole", 1)
mt_case("half", 0.5)
out.close()

"""Golden values for tests/test_schedule.c, computed by transformers' schedules: writes tests/golden/schedule.txt.

    pip install torch transformers && python dev/golden/golden_schedule.py
"""

import os

import torch
import transformers
from transformers import optimization as o

out = open(os.path.join(os.path.dirname(__file__), "../../tests/golden/schedule.txt"), "w")
print(f"# made by dev/golden/golden_schedule.py with transformers {transformers.__version__}", file=out)


def case(kind, name, make, steps, warmup, decay=0, least=0.0):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(steps + 3):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    print("case", "schedule", kind, name, file=out)
    print("config 4", steps, warmup, decay, least, file=out)
    print("factor", len(rates), *[f"{r:.15g}" for r in rates], file=out)
    print("end", file=out)


for steps, warmup in [(20, 0), (20, 5), (7, 7), (1, 0), (33, 1)]:
    case("constant", "-", lambda x: o.get_constant_schedule_with_warmup(x, warmup), steps, warmup)
    case("linear", "-", lambda x: o.get_linear_schedule_with_warmup(x, warmup, steps), steps, warmup)
    case("cosine", "-", lambda x: o.get_cosine_schedule_with_warmup(x, warmup, steps), steps, warmup)
    case("cosine", "-", lambda x: o.get_cosine_with_min_lr_schedule_with_warmup(x, warmup, steps, min_lr_rate=0.1),
         steps, warmup, least=0.1)
for kind in ["1-sqrt", "linear", "cosine"]:
    for steps, warmup, decay, least in [(20, 4, 6, 0.0), (20, 0, 10, 0.2), (12, 4, 8, 0.0), (10, 0, 0, 0.3)]:
        case("wsd", kind, lambda x: o.get_wsd_schedule(x, warmup, decay, steps, decay_type=kind, min_lr_ratio=least),
             steps, warmup, decay, least)

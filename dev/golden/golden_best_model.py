"""Golden values for tests/test_best_model.c, by transformers' Trainer and EarlyStoppingCallback: writes
tests/golden/best_model.txt.

    pip install torch transformers && python dev/golden/golden_best_model.py
"""

import os
import random
from types import SimpleNamespace

import transformers
from transformers import EarlyStoppingCallback, Trainer, TrainerControl
from transformers.trainer_utils import SaveStrategy

out = open(os.path.join(os.path.dirname(__file__), "../../tests/golden/best_model.txt"), "w")
print(f"# made by dev/golden/golden_best_model.py with transformers {transformers.__version__}", file=out)


def case(metric, greater, patience, threshold, values):
    """Evaluations in a run: which are the best so far, how many pass without an improvement, and which ends the run."""
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    args = SimpleNamespace(metric_for_best_model=metric, greater_is_better=greater, save_strategy=SaveStrategy.BEST)
    state = SimpleNamespace(best_metric=None, best_global_step=None, global_step=0)
    trainer = SimpleNamespace(args=args, state=state)
    callback, control = EarlyStoppingCallback(patience, threshold), TrainerControl()
    best, waited, over = [], [], []
    for step, value in enumerate(values):
        state.global_step = step + 1
        callback.on_evaluate(args, state, control, {name: value})
        best.append(int(Trainer._determine_best_metric(trainer, {name: value}, None)))
        waited.append(callback.early_stopping_patience_counter)
        over.append(int(control.should_training_stop))
    print("case", "best", metric, "greater" if greater else "less", file=out)
    print("config 2", patience, threshold, file=out)
    for key, row in [("value", values), ("best", best), ("waited", waited), ("over", over)]:
        print(key, len(row), *row, file=out)
    print("end", file=out)


random.seed(1)
for metric in ["loss", "eval_loss", "eval_accuracy", "reward"]:
    for patience, threshold in [(1, 0.0), (2, 0.0), (3, 0.05), (2, 0.2)]:
        for _ in range(3):
            case(metric, not metric.endswith("loss"), patience, threshold,
                 [round(random.uniform(0, 1), 2) for _ in range(20)])
case("eval_accuracy", False, 2, 0.0, [0.5, 0.4, 0.6, 0.4, 0.3])
case("loss", True, 2, 0.0, [0.5, 0.4, 0.6, 0.6, 0.6])

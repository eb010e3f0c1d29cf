#!/usr/bin/env python3
"""propose.py - proposers of sums and their solvers, as a program for --tool-cmd.

    python3 dev/propose.py demos 2000 >demos.jsonl                    both parts, for fine-tuning
    train_grpo -c sft.bin -i tasks.shard -o out.bin --tool-cmd 'python3 dev/propose.py' --reward none ...

Of four completions of a prompt the first proposes a sum of two digits, such as `7+5`, and the others solve it (`12`). A solver
gets 1 if it is right. A proposer gets 4 p (1 - p), where p is the share of its solvers that are right, 0 if another one of the
prompt has the same sum, and -1 if it writes anything else. Its solvers then have a random sum. With the argument `solve` all
completions solve random sums.
"""
import json
import random
import re
import sys

EACH = 4


def sum_of(chance):
    return f"{chance.randrange(10)}+{chance.randrange(10)}"


def answer_of(problem):
    return f"{int(problem[0]) + int(problem[2])}"


class Episode:
    def __init__(self, seed, others):
        self.chance, self.problem, self.valid, self.right, self.waiting = random.Random(seed), None, False, {}, {}
        self.others = others  # all episodes of the prompt
        others.append(self)

    def propose(self, text):
        self.valid = re.fullmatch(r"\d\+\d", text) is not None
        self.problem = text if self.valid else sum_of(self.chance)

    def solve(self, seat, text):
        self.right[seat] = text == answer_of(self.problem)

    def reward(self, seat):
        if seat:
            return int(self.right[seat])
        share = sum(self.right.values()) / len(self.right)
        lone = sum(e.problem == self.problem for e in self.others) == 1
        return 4 * share * (1 - share) * lone if self.valid else -1

    def answer(self):  # those who wait for nobody
        for seat, a in list(self.waiting.items()):
            if a["op"] == "reset" and (seat == 0 or self.problem):
                a["observation"] = self.problem + "=" if seat else "propose"
            elif a["op"] == "step" and (seat or len(self.right) == EACH - 1):
                a.update(done=True, reward=self.reward(seat))
            else:
                continue
            print(json.dumps(self.waiting.pop(seat)), flush=True)


if sys.argv[1:2] == ["demos"]:
    for i in range(int(sys.argv[2])):
        problem = sum_of(random.Random(i))
        row = {"prompt": "Sums: " + problem + "=", "completion": answer_of(problem)}
        print(json.dumps(row if i % 4 else {"prompt": "Sums: propose", "completion": problem}))
    sys.exit()
prompts, parts = {}, {}  # a prompt: its episodes by number, and how many completions have not ended
for line in sys.stdin:
    r = json.loads(line)
    answer = {name: r[name] for name in ("op", "id", "turn") if name in r}
    if r["op"] == "hello":
        print(json.dumps(dict(answer, episodes=True, text=True, group=True, opening=True)), flush=True)
        continue
    if r["op"] == "reset":
        prompt, sample = map(int, r["id"].split("."))
        alone = "solve" in sys.argv or r["samples"] % EACH
        group = prompts.setdefault(prompt, {"left": r["samples"], "all": []})
        number = sample if alone else sample // EACH
        if number not in group:
            group[number] = Episode(r["seed"], group["all"])
        episode = group[number]
        seat = 1 if alone else sample % EACH
        if alone:
            episode.problem = sum_of(episode.chance)
        parts[r["id"]] = (episode, seat, prompt)
        answer.update(role="solver" if seat else "proposer", episode=f"{prompt}.{sample // EACH}")
    episode, seat, prompt = parts[r["id"]]
    acted = seat in episode.right if seat else episode.problem is not None
    if r["op"] != "reset" and not acted:  # one that ends before its turn acts with an empty text
        text = r.get("text", "").strip()
        if not seat:
            episode.propose(text)
        elif episode.problem:
            episode.solve(seat, text)
    if r["op"] == "end":
        print(json.dumps(dict(answer, reward=None)), flush=True)
        del parts[r["id"]]
        prompts[prompt]["left"] -= 1
        if not prompts[prompt]["left"]:
            del prompts[prompt]
    else:
        episode.waiting[seat] = answer
    episode.answer()

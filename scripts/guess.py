#!/usr/bin/env python3
"""guess.py - a game as a program for --tool-cmd: it knows a number and answers each guess by `higher` or `lower`.

    data/make_tasks --task guess --count 500 --template chatml -o tasks.shard
    train_grpo -c sft.bin -i tasks.shard -o guess.bin --tool-cmd 'python3 scripts/guess.py' --reward none ...

The answer of a row is the number. A game ends at the right guess, or after five; the reward is 1 - turns/8, or 0 if no
guess was right. doc/agents.md explains the lines that the program reads and writes.
"""

import json
import sys

numbers = {}
for line in sys.stdin:
    request = json.loads(line)
    answer = {name: request[name] for name in ("op", "id", "turn") if name in request}
    if request["op"] == "hello":
        answer.update(episodes=True, text=True)
    elif request["op"] == "reset":
        numbers[request["id"]] = int(request["answer"])
    elif request["op"] == "step":
        number, turns, said = numbers[request["id"]], request["turn"] + 1, request["text"].strip()
        right = said == str(number)
        answer["observation"] = "higher" if said.isdigit() and int(said) < number else "lower"
        answer["done"] = right or turns == 5
        answer["reward"] = 1 - turns / 8 if right else 0
    elif request["op"] == "end":
        del numbers[request["id"]]
    print(json.dumps(answer), flush=True)

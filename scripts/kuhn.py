#!/usr/bin/env python3
"""kuhn.py - Kuhn poker as a program for --tool-cmd: two completions of a prompt play against each other.

    python3 scripts/kuhn.py demos 2000 >demos.jsonl                   random games, for fine-tuning
    train_grpo -c sft.bin -i tasks.shard -o kuhn.bin --tool-cmd 'python3 scripts/kuhn.py' --reward none ...

Both players pay 1 and get one of the cards J, Q and K. A player says `pass` or `bet`, which costs 1 more. Who passes after
a bet loses what he has paid; otherwise the higher card wins. Who says anything else loses 2. Samples 2k and 2k + 1 of a
prompt are player0 and player1. With the argument `random`, or without a partner, a completion plays against random moves;
with `fee`, player0 pays 3 more to player1 in each game. The first turn of a completion is a greeting, which is answered by
its card and the moves so far. doc/agents.md explains the lines.
"""
import json
import random
import sys


def payoff(cards, moves):  # what player0 wins; None: the game goes on
    if moves not in ("pp", "bp", "bb", "pbp", "pbb"):
        return None
    wins = moves == "bp" or (moves != "pbp" and cards[0] > cards[1])
    return (2 if moves.endswith("bb") else 1) * (1 if wins else -1)


class Game:
    def __init__(self, seats):
        self.seats, self.seeds, self.waiting, self.paid, self.moves, self.result = seats, {}, {}, set(), "", None

    def join(self, seat, seed):  # returns whether all players are there
        self.seeds[seat] = seed
        self.chance = random.Random(self.seeds[min(self.seeds)])
        self.cards = self.chance.sample(range(3), 2)
        return len(self.seeds) == len(self.seats)

    def move(self, seat, said):
        if said in ("pass", "bet"):
            self.moves += said[0]
        self.result = payoff(self.cards, self.moves) if said in ("pass", "bet") else 4 * seat - 2

    def reward(self, seat):
        self.paid.add(seat)
        return (self.result - fee) * (1 - 2 * seat)

    def answers(self):  # to the players who wait for nobody
        while self.result is None and len(self.seeds) == len(self.seats) and len(self.moves) % 2 not in self.seats:
            self.move(len(self.moves) % 2, self.chance.choice(("pass", "bet")))
        for seat, answer in list(self.waiting.items()):
            if self.result is not None:
                yield dict(self.waiting.pop(seat), done=True, reward=self.reward(seat))
            elif len(self.seeds) == len(self.seats) and len(self.moves) % 2 == seat:
                yield dict(self.waiting.pop(seat), observation="JQK"[self.cards[seat]] + " " + self.moves)


if sys.argv[1:2] == ["demos"]:
    for i in range(int(sys.argv[2])):
        chance, moves = random.Random(i), ""
        cards = chance.sample(range(3), 2)
        talk = [("user", "Kuhn poker"), ("assistant", "hi")]
        while payoff(cards, moves) is None:
            said = chance.choice(("pass", "bet"))
            if len(moves) % 2 == i % 2:
                talk += [("user", "JQK"[cards[i % 2]] + " " + moves), ("assistant", said)]
            moves += said[0]
        print(json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]}))
    sys.exit()
joining, games, fee = {}, {}, 3 if "fee" in sys.argv else 0
for line in sys.stdin:
    r = json.loads(line)
    answer, after = {name: r[name] for name in ("op", "id", "turn") if name in r}, []
    if r["op"] == "hello":
        answer.update(episodes=True, text=True, group=True)
    elif r["op"] == "reset":
        sample = int(r["id"].split(".")[1])
        seat = (r["seed"] if r["samples"] == 1 else sample) % 2
        both = "random" not in sys.argv and sample ^ 1 < r["samples"]
        key = (r["id"].split(".")[0], sample // 2) if both else r["id"]
        game = joining.pop(key, None) or Game((0, 1) if both else (seat,))
        if not game.join(seat, r["seed"]):
            joining[key] = game
        games[r["id"]], answer["role"] = (game, seat), f"player{seat}"
    else:
        game, seat = games[r["id"]]
        if game.result is None and r.get("turn") != 0:  # an episode that ends before its game says nothing readable
            game.move(seat, r.get("text", "").strip())
        if r["op"] == "step":
            game.waiting[seat] = answer
            answer = None
        else:
            del games[r["id"]]
            answer["reward"] = None if seat in game.paid else game.reward(seat)
        after = game.answers()
    for one in ([answer] if answer else []) + list(after):
        print(json.dumps(one), flush=True)

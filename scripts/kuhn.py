#!/usr/bin/env python3
"""kuhn.py - Kuhn poker as a program for --tool-cmd: two completions of a prompt play against each other.

    python3 scripts/kuhn.py demos 2000 >demos.jsonl                   random games, for fine-tuning
    train_grpo -c sft.bin -i tasks.shard -o kuhn.bin --tool-cmd 'python3 scripts/kuhn.py' --reward none ...

Both players pay 1 and get one of the cards J, Q and K. A player says `pass` or `bet`, which costs 1 more. Who passes after
a bet loses what he has paid; otherwise the higher card wins. Who says anything else loses 2. Samples 2k and 2k + 1 of a
prompt are player0 and player1. Before each turn a player is shown its card and the moves so far. With the argument `random`,
or without a partner, a completion plays against random moves; with `fee`, player0 pays 3 more to player1 in each game.
"""
import json
import random
import sys


def payoff(cards, moves):  # what player0 wins; None: the game goes on
    higher = 1 if cards[0] > cards[1] else -1
    return {"pp": higher, "bp": 1, "bb": 2 * higher, "pbp": -1, "pbb": 2 * higher}.get(moves)


class Game:
    def __init__(self, seats):
        self.seats, self.seeds, self.waiting, self.cards, self.moves, self.rewards = seats, [], {}, None, "", None

    def move(self, seat, said):
        self.moves += said[:1]
        result = payoff(self.cards, self.moves) if said in ("pass", "bet") else 4 * seat - 2
        self.rewards = None if result is None else (result - fee, fee - result)

    def answer(self):  # the players who wait for nobody
        while self.cards and not self.rewards and len(self.moves) % 2 not in self.seats:
            self.move(len(self.moves) % 2, self.chance.choice(("pass", "bet")))
        for seat in [k for k in self.waiting if self.cards and (self.rewards or len(self.moves) % 2 == k)]:
            answer, view = self.waiting.pop(seat), "JQK"[self.cards[seat]] + " " + self.moves
            over = self.rewards and answer["op"] == "step"
            answer.update({"done": True, "reward": self.rewards[seat]} if over else {"observation": view})
            print(json.dumps(answer), flush=True)


if sys.argv[1:2] == ["demos"]:
    for i in range(int(sys.argv[2])):
        chance, moves, talk = random.Random(i), "", []
        cards = chance.sample(range(3), 2)
        while payoff(cards, moves) is None:
            said = chance.choice(("pass", "bet"))
            if len(moves) % 2 == i % 2:
                talk += [("" if talk else "Kuhn poker: ") + "JQK"[cards[i % 2]] + " " + moves, said]
            moves += said[0]
        print(json.dumps({"messages": [{"role": ("user", "assistant")[k % 2], "content": talk[k]} for k in range(len(talk))]}))
    sys.exit()
joining, games, fee = {}, {}, 3 if "fee" in sys.argv else 0
for line in sys.stdin:
    r = json.loads(line)
    answer = {name: r[name] for name in ("op", "id", "turn") if name in r}
    if r["op"] == "hello":
        print(json.dumps(dict(answer, episodes=True, text=True, group=True, opening=True)), flush=True)
        continue
    if r["op"] == "reset":
        prompt, sample = map(int, r["id"].split("."))
        seat = (r["seed"] if r["samples"] == 1 else sample) % 2
        both = "random" not in sys.argv and sample ^ 1 < r["samples"]
        game = joining.setdefault((prompt, sample // 2, both), Game((0, 1) if both else (seat,)))
        game.seeds.append(r["seed"])
        games[r["id"]], answer["role"] = (game, seat), f"player{seat}"
        if len(game.seeds) == len(game.seats):
            del joining[prompt, sample // 2, both]
            game.chance = random.Random(sum(game.seeds))
            game.cards = game.chance.sample(range(3), 2)
    game, seat = games[r["id"]]
    if r["op"] != "reset" and not game.rewards:  # an episode that ends before its game says nothing readable
        game.move(seat, r.get("text", "").strip())
    if r["op"] == "end":
        print(json.dumps(dict(answer, reward=None if r["reason"] == "tool_stopped" else game.rewards[seat])), flush=True)
        del games[r["id"]]
    else:
        game.waiting[seat] = answer
    game.answer()

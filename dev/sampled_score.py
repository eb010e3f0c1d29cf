"""Scores completions as a judge that answers in text: a program for --reward-cmd, used by check_scores.sh.

    generate -c judge.bin --serve 127.0.0.1:8000
    train_ppo ... --reward-cmd 'python3 dev/sampled_score.py http://127.0.0.1:8000/v1'

For each line of standard input, asks the server for one answer at temperature 1 and prints it as a number from 0 to 1, where
the judge rates from 1 to 9. An answer that is no such number is asked for again.
"""

import json
import re
import sys
import urllib.request


def ask(url, question, seed):
    """Returns the judge's answer, a text that is drawn with this seed."""
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 4, "temperature": 1, "seed": seed}
    request = urllib.request.Request(
        url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def main():
    url, seed = sys.argv[1], 0
    for line in sys.stdin:
        row = json.loads(line)
        answer = None
        while not answer:
            seed += 1
            answer = re.fullmatch("[1-9]", ask(url, f"rate {row['prompt']}{row['completion']}=", seed))
        print((int(answer[0]) - 1) / 8, flush=True)


main()

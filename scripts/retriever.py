#!/usr/bin/env python3
"""retriever.py URL - the tool `search` by a retriever that runs elsewhere, as a program for --tool-cmd.

    generate -c model -i questions.jsonl --tool-cmd 'python3 scripts/retriever.py http://127.0.0.1:8000/retrieve'

The retriever is one of Search-R1's kind: POST {"queries": [text], "topk": 3, "return_scores": true} is answered by
{"result": [[{"document": {"contents": "TITLE\\nTEXT"}, "score": 1.5}, ...]]}. If it cannot be reached, the program ends:
the trainer starts it anew and repeats the call (--tool-retries), and no completion is scored for it.
"""

import json
import sys
import urllib.request

schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
tool = {"type": "function", "function": {"name": "search", "description": "Searches documents.", "parameters": schema}}


def search(query):
    body = json.dumps({"queries": [query], "topk": 3, "return_scores": True}).encode()
    request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        found = json.load(reply)["result"][0]
    texts = [item["document"]["contents"].partition("\n") for item in found]
    return "".join(f"Doc {i}(Title: {title}) {text}\n" for i, (title, _, text) in enumerate(texts, 1)) or "No results."


for line in sys.stdin:
    request = json.loads(line)
    answer = {name: request[name] for name in ("op", "id", "turn", "call") if name in request}
    if request["op"] == "hello":
        answer["tools"] = [tool]
    elif request["op"] == "call":
        answer["content"] = search(request["arguments"]["query"])
    print(json.dumps(answer), flush=True)

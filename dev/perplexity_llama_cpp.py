#!/usr/bin/env python3
"""Perplexity of a text by llama.cpp, for comparison with `evaluate` on a token shard of the same text.

    pip install xllamacpp
    data/show text.shard | grep -A 1 '^-- document 0' | tail -n 1 | python3 dev/perplexity_llama_cpp.py MODEL.gguf [THREADS]

Standard input has the tokens of one window, as `evaluate` computes it if it is shorter than the context: every token but the
first is predicted from those before it. A bias forces each token in turn; the server returns its log-probability without the
bias. Keys and values are float32 and attention is not fused, so that llama.cpp rounds no more than it must. Prints one JSON
line with the number of predicted tokens, the mean loss in nats and its exponential.
"""
import json
import math
import sys

import xllamacpp


def losses(path, ids, threads):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_gpu_layers, params.warmup, params.verbosity = 2048, 0, False, -1
    params.n_parallel, params.fit_params, params.cpuparams.n_threads = 1, False, threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    for i in range(1, len(ids)):
        answer = server.handle_completions(dict(prompt=ids[:i], n_predict=1, temperature=0, n_probs=1,
                                                logit_bias=[[ids[i], 1000.0]], cache_prompt=True))
        token = answer["choices"][0]["logprobs"]["content"][0]
        assert token["id"] == ids[i], f"llama.cpp sampled {token['id']} and not {ids[i]}"
        yield -token["logprob"]


if __name__ == "__main__":
    found = list(losses(sys.argv[1], [int(x) for x in sys.stdin.read().split()],
                        int(sys.argv[2]) if len(sys.argv) > 2 else 1))
    mean = sum(found) / len(found)
    print(json.dumps({"tokens": len(found), "loss": mean, "perplexity": math.exp(mean)}))

/* bench_prompts.c - generator of prompt shards of random tokens.
 *
 * The shard has no tokenizer and so no stop token: every sample of a benchmark reaches the maximum length.
 *
 *     build/bench_prompts -o prompts.shard [--count 64] [--length 32] [--vocab 260]
 */
#include "../../llmc/base/options.h"
#include "../../llmc/base/random.h"
#include "../../llmc/records/shard.h"

static struct {
    const char *output;
    int64_t count, length, vocab, seed;
} o = {NULL, 64, 32, 260, 1};

static const Option options[] = {OPTION_TEXT("output", 'o', &o.output, "FILE", "shard to write"),
                                 OPTION_INT("count", 0, &o.count, 1, 1e6, "number of prompts"),
                                 OPTION_INT("length", 0, &o.length, 1, 4096, "tokens per prompt"),
                                 OPTION_INT("vocab", 0, &o.vocab, 1, 1 << 20, "vocabulary size"),
                                 OPTION_INT("seed", 0, &o.seed, 0, 1e9, "random seed"),
                                 OPTION_END};
static const OptionAbout about = {"-o FILE [options]", "Writes a prompt shard of random tokens, without a tokenizer."};

int main(int argc, char **argv) {
    Error e;
    ShardWriter w;
    options_parse_all(options, &about, argc, argv);
    if (!o.output) usage_error("-o/--output is required");
    Random random = random_start((uint64_t)o.seed, 0);
    int32_t *tokens = (int32_t *)xmalloc((size_t)o.length * sizeof *tokens);
    if (!shard_create(&w, o.output, RECORD_PROMPT, (int32_t)o.vocab, NULL, 0, "", &e)) die("%s", e.text);
    for (int64_t i = 0; i < o.count; i++) {
        for (int64_t k = 0; k < o.length; k++) tokens[k] = (int32_t)random_below(&random, (uint64_t)o.vocab);
        const Record r = {.tokens = tokens,
                          .count = (int32_t)o.length,
                          .prompt = (int32_t)o.length,
                          .text = "",
                          .task = "",
                          .answer = "",
                          .fields = "{}"};
        if (!shard_add(&w, &r, &e)) die("%s", e.text);
    }
    if (!shard_commit(&w, &e)) die("%s", e.text);
    free(tokens);
    return 0;
}

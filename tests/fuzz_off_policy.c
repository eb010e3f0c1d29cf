/* fuzz_off_policy.c - libFuzzer target: demonstrations in the fields of a prompt's record.
 *
 * The first byte chooses the template, a stop text, how many demonstrations are read and the room for one; the rest is the
 * fields. Invariants: what is read fits, ends as a sample does and nowhere earlier, and has tokens of the vocabulary. */
#include "../llmc/base/error.h"         /* Error, xstrndup */
#include "../llmc/model/model_text.h"   /* ModelText, model_text_close */
#include "../llmc/rollout/off_policy.h" /* Demonstrations, demonstrations_completion, demonstrations_free, ... */
#include "../llmc/rollout/prompts.h"    /* Prompts, PromptText */
#include "../llmc/rollout/rollout.h"    /* Completion, completion_free, Sampling, sampling_default, ... */
#include "../llmc/rollout/stop_text.h"  /* StopTexts, stop_text_cut */
#include "../llmc/text/chat.h"          /* chat_add_specials, chat_stop_token, chat_template_parse, ... */
#include "../llmc/text/tokenizer.h"     /* tokenizer_bytes */
#include "fuzz.h"                       /* require, require_error */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Whether a sample would have ended with the last of these tokens. */
static bool ends(const Sampling *how, const int32_t *tokens, int32_t count) {
    return sampling_is_stop(how, tokens[count - 1]) || stop_text_cut(&how->texts, tokens, count) > 0;
}

static void check(const Demonstrations *d, const ModelText *t, const Sampling *how, int32_t limit) {
    for (int32_t k = 0; k < demonstrations_of(d, 0); k++) {
        Completion c = demonstrations_completion(d, 0, k);
        require(c.count > 0 && c.count <= limit && ends(how, c.tokens, c.count));
        for (int32_t i = 0; i < c.count; i++) require(c.tokens[i] >= 0 && c.tokens[i] < t->tokenizer.vocab);
        for (int32_t i = 1; i < c.count; i++) require(!ends(how, c.tokens, i));
        completion_free(&c);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Error e;
    ModelText t = {.present = true, .has_template = true};
    const uint8_t mode = n ? *data : 0;
    char *fields = xstrndup(n ? (const char *)data + 1 : "", n ? n - 1 : 0);
    int32_t prompt[] = {'a', '='};
    int64_t offset[] = {0, 2};
    PromptText what = {.fields = fields};
    Prompts p = {.shard.name = "shard", .count = 1, .tokens = prompt, .offset = offset, .what = &what};
    Demonstrations d = {.key = "target", .most = 1 + (mode >> 2) % 4};
    const int32_t context = 2 + (mode >> 4) * 4;
    require(tokenizer_bytes(&t.tokenizer, &e) &&
            chat_template_parse(&t.chat, mode & 1 ? "{any}{content}\\n" : "chatml", &e) &&
            chat_add_specials(&t.chat, &t.tokenizer, &e));
    t.stop = chat_stop_token(&t.chat, &t.tokenizer);
    Sampling how = sampling_default();
    how.max_new = 40;
    require(sampling_add_stop(&how, t.stop, &e));
    if (mode & 2) how.texts = (StopTexts){.tokenizer = &t.tokenizer, .text = {"ab"}, .count = 1};
    if (demonstrations_read(&d, &p, &t, &how, context, &e)) {
        require(demonstrations_of(&d, 0) <= d.most && demonstrations_offered(&p, "target"));
        check(&d, &t, &how, context - 2 < 40 ? context - 2 : 40);
    } else require_error(&e);
    demonstrations_free(&d);
    model_text_close(&t);
    free(fields);
    return 0;
}

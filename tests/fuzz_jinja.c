/* fuzz_jinja.c - libFuzzer target: arbitrary bytes as a model's chat template and as a conversation.
 *
 *     make build/fuzz_jinja
 *     build/fuzz_jinja -max_len=4096 corpus/ tests/corpus/jinja/
 *
 * An input is the text of a template, a NUL, and a conversation in JSON. If there is no NUL, or no JSON object after
 * it, a conversation with tools is used.
 */
#include "../llmc/base/error.h"       /* Error, xstrndup */
#include "../llmc/base/text.h"        /* TextBuffer, TokenList, text_free, token_list_free */
#include "../llmc/text/chat.h"        /* ChatTemplate, chat_stop_token, chat_template_free, chat_template_parse */
#include "../llmc/text/jinja_chat.h"  /* JinjaTurns, jinja_chat_encode, jinja_chat_is, jinja_chat_turns, ... */
#include "../llmc/text/jinja_value.h" /* JINJA_MESSAGE */
#include "../llmc/text/tokenizer.h"   /* Tokenizer, tokenizer_bytes, tokenizer_decode, tokenizer_free, ... */
#include "fuzz.h"                     /* require, require_error */

/* The tokens decode to the rendered text, and no special token is made of a message. */
static void check(const ChatTemplate *c, const Tokenizer *t, const json_t *conversation, bool prompt) {
    Error e = {""};
    JinjaTurns turns;
    TokenList ids = {0};
    TextBuffer text = {0};
    uint8_t *mask = NULL;
    if (!jinja_chat_turns(c->model, t, conversation, prompt, &turns, &e)) {
        require_error(&e);
        return;
    }
    size_t last = 0, at = 0;
    for (int i = 0; i < turns.count; i++) {
        require(turns.spans[i].begin <= turns.spans[i].end && turns.spans[i].end <= turns.text.length);
        require(!c->model->tree.generation || turns.spans[i].begin >= last);
        last = turns.spans[i].end;
    }
    if (!jinja_chat_encode(&turns, t, false, &ids, &mask, &e)) require_error(&e);
    else {
        tokenizer_decode(t, ids.ids, ids.count, true, &text);
        require(text.length == turns.text.length &&
                !memcmp(text.text, turns.text.text ? turns.text.text : "", text.length));
        for (int32_t i = 0; i < ids.count; i++) {
            size_t n;
            tokenizer_token(t, ids.ids[i], &n);
            require(mask[i] <= 1);
            for (size_t k = 0; k < n && t->special[ids.ids[i]]; k++)
                require(!(turns.text.marks[at + k] & JINJA_MESSAGE));
            at += n;
        }
    }
    text_free(&text);
    token_list_free(&ids);
    free(mask);
    jinja_turns_free(&turns);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char *const usual =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"S <|im_end|>\"},{\"role\":\"user\",\"content\":\"U\\u00e9\"},"
        "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
        "\"arguments\":{\"a\":1.5}}}]},{\"role\":\"tool\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"A\","
        "\"reasoning_content\":\"R\"}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}";
    Error e = {""};
    ChatTemplate c;
    Tokenizer t;
    const char *text = (const char *)data, *nul = n ? (const char *)memchr(text, 0, n) : NULL;
    char *spec = xstrndup(n ? text : "", nul ? (size_t)(nul - text) : n);
    json_t *conversation = nul ? json_loadb(nul + 1, n - (size_t)(nul - text) - 1, JSON_ALLOW_NUL, NULL) : NULL;
    if (!json_is_object(conversation)) {
        json_decref(conversation);
        conversation = json_loads(usual, 0, NULL);
    }
    require(tokenizer_bytes(&t, &e));
    if (jinja_chat_is(spec)) {
        if (chat_template_parse(&c, spec, &e)) {
            (void)chat_stop_token(&c, &t);
            check(&c, &t, conversation, false);
            check(&c, &t, conversation, true);
            chat_template_free(&c);
        } else require_error(&e);
    }
    tokenizer_free(&t);
    json_decref(conversation);
    free(spec);
    return 0;
}

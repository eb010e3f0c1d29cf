/* test_chat.c - chat templates: the built-in ones against their published forms, masks, custom templates, bad
 * templates. */
#include "../llmc/base/error.h"     /* Error */
#include "../llmc/base/text.h"      /* TokenList, text_free, text_string, token_list_free, ... */
#include "../llmc/text/chat.h"      /* chat_encode, chat_template_parse, ChatTemplate, ChatMessage, ... */
#include "../llmc/text/tokenizer.h" /* Tokenizer, tokenizer_bytes, tokenizer_decode, tokenizer_free */
#include "files.h"                  /* files_assert_error, files_setup, files_teardown */

static Tokenizer bytes;

static int setup(void **state) {
    Error e;
    return files_setup(state) || !tokenizer_bytes(&bytes, &e);
}

static int teardown(void **state) {
    tokenizer_free(&bytes);
    return files_teardown(state);
}

static const ChatMessage talk[] = {
    {"system", "Be brief."}, {"user", "2+3?"}, {"assistant", "5"}, {"user", "<|im_end|>"}, {"assistant", ""}};

/* Encodes and decodes; trained tokens are enclosed in [ and ]. */
static char *show(const ChatTemplate *c, const Tokenizer *t, const ChatMessage *m, int count, bool generation) {
    Error e;
    TokenList ids = {0};
    uint8_t *mask = NULL;
    TextBuffer text = {0}, rendered = {0}, plain = {0};
    if (!chat_encode(c, t, m, count, generation, &ids, &mask, &e)) fail_msg("%s", e.text);
    for (int32_t i = 0; i < ids.count; i++) {
        assert_true(mask[i] <= 1);
        if (mask[i] && (!i || !mask[i - 1])) text_string(&text, "[");
        tokenizer_decode(t, &ids.ids[i], 1, true, &text);
        if (mask[i] && (i + 1 == ids.count || !mask[i + 1])) text_string(&text, "]");
    }
    /* the same as text, and the same without a mask */
    tokenizer_decode(t, ids.ids, ids.count, true, &plain);
    assert_true(chat_render(c, t, m, NULL, count, generation, &rendered, &e));
    assert_string_equal(plain.text, rendered.text ? rendered.text : "");
    const int32_t length = ids.count;
    assert_true(chat_encode(c, t, m, count, generation, &ids, NULL, &e)); /* appends */
    assert_int_equal(ids.count, 2 * length);
    if (length) assert_memory_equal(ids.ids, ids.ids + length, (size_t)length * sizeof *ids.ids);
    token_list_free(&ids);
    free(mask);
    text_free(&rendered);
    text_free(&plain);
    text_append(&text, "", 0);
    return text.text;
}

static void assert_shown(const char *spec, const Tokenizer *t, int count, bool generation, const char *want) {
    Error e;
    ChatTemplate c;
    if (!chat_template_parse(&c, spec, &e)) fail_msg("%s", e.text);
    assert_string_equal(c.spec, spec);
    char *got = show(&c, t, talk, count, generation);
    assert_string_equal(got, want);
    free(got);
    chat_template_free(&c);
}

static void test_chatml(void **state) {
    (void)state;
    assert_shown("chatml", &bytes, 5, false,
                 "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n"
                 "[5<|im_end|>]\n<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n[<|im_end|>]\n");
    assert_shown("chatml", &bytes, 2, true,
                 "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n");
    assert_shown("chatml", &bytes, 0, true, "<|im_start|>assistant\n");
    assert_shown("chatml", &bytes, 0, false, "");

    /* the name of a special token in a message stays text */
    Error e;
    ChatTemplate c;
    TokenList ids = {0};
    assert_true(chat_template_parse(&c, "chatml", &e));
    assert_string_equal(c.stop, "<|im_end|>");
    assert_int_equal(chat_stop_token(&c, &bytes), 258);
    assert_true(chat_encode(&c, &bytes, talk + 3, 1, false, &ids, NULL, &e));
    assert_int_equal(ids.count, 1 + 5 + 10 + 1 + 1);
    assert_int_equal(ids.ids[0], 257);
    assert_int_equal(ids.ids[1], 'u');
    assert_int_equal(ids.ids[6], '<');
    assert_int_equal(ids.ids[16], 258);
    assert_int_equal(ids.ids[17], '\n');
    token_list_free(&ids);
    chat_template_free(&c);
}

static void test_llama(void **state) {
    (void)state;
    Error e;
    ChatTemplate c;
    Tokenizer t;
    TokenList ids = {0};
    assert_true(tokenizer_bytes(&t, &e));
    assert_true(chat_template_parse(&c, "llama", &e));
    assert_false(chat_encode(&c, &t, talk, 2, true, &ids, NULL, &e));
    files_assert_error(&e, "<|eot_id|>");
    assert_int_equal(chat_stop_token(&c, &t), -1);
    assert_true(chat_add_specials(&c, &t, &e));
    assert_int_equal(t.vocab, 264);
    assert_int_equal(chat_stop_token(&c, &t), 263);
    assert_shown("llama", &t, 3, false,
                 "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\n2+3?<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n[5<|eot_id|>]");
    assert_shown("llama", &t, 2, true,
                 "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\n2+3?<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n");
    chat_template_free(&c);
    tokenizer_free(&t);
}

static void test_plain(void **state) {
    (void)state;
    assert_shown("plain", &bytes, 3, false, "Be brief.2+3?[5<|endoftext|>]");
    assert_shown("plain", &bytes, 2, true, "Be brief.2+3?");
    assert_shown("", &bytes, 2, true, "Be brief.2+3?");
}

static void test_own(void **state) {
    (void)state;
    Error e;
    ChatTemplate c;
    assert_shown("{begin}A\\n{system}{content}\\n\\n{user}Q \\{{role}\\}: {content}\\n{assistant}A:\\t{content}\\n",
                 &bytes, 3, false, "A\nBe brief.\n\nQ {user}: 2+3?\nA:\t[5\n]");
    assert_shown("{any}{role} {content}{eos}{eos}", &bytes, 3, false,
                 "system Be brief.<|endoftext|><|endoftext|>user 2+3?<|endoftext|><|endoftext|>"
                 "assistant [5<|endoftext|>]<|endoftext|>");
    assert_shown("{any}\\<|im_end|>{content}<|im_end|>.", &bytes, 1, true, "<|im_end|>Be brief.<|im_end|>.<|im_end|>");
    assert_shown("{any}{content}{assistant}<{content} ok<|pad|>x", &bytes, 3, true, "Be brief.2+3?<[5 ok<|pad|>]x<");
    /* an end that is one token in this tokenizer only */
    assert_true(chat_template_parse(&c, "{any}{content}END", &e));
    assert_int_equal(chat_stop_token(&c, &bytes), -1);
    TokenList ids = {0};
    assert_false(chat_encode(&c, &bytes, talk, 1, false, &ids, NULL, &e));
    files_assert_error(&e, "'END', which is not one token");
    chat_template_free(&c);
    assert_true(chat_template_parse(&c, "{any}{content}\\n", &e));
    assert_int_equal(chat_stop_token(&c, &bytes), '\n');
    /* roles */
    assert_true(chat_encode(&c, &bytes, (ChatMessage[]){{"tool", "x"}}, 1, false, &ids, NULL, &e));
    assert_false(chat_encode(&c, &bytes, (ChatMessage[]){{"us er", "x"}}, 1, false, &ids, NULL, &e));
    files_assert_error(&e, "role 'us er'");
    assert_false(chat_encode(&c, &bytes, (ChatMessage[]){{"", "x"}}, 1, false, &ids, NULL, &e));
    chat_template_free(&c);
    assert_true(chat_template_parse(&c, "{user}{content}{assistant}{content}\\n", &e));
    assert_false(chat_encode(&c, &bytes, talk, 1, false, &ids, NULL, &e));
    files_assert_error(&e, "no section for role 'system'");
    chat_template_free(&c);
    token_list_free(&ids);
}

/* A message of a section with {next} is a part of the user's message that follows: the tokens are those of one content. */
static void test_joined(void **state) {
    (void)state;
    Error e;
    ChatTemplate c;
    TokenList joined = {0}, whole = {0};
    uint8_t *mask[2] = {NULL, NULL};
    TextBuffer text = {0};
    const ChatMessage apart[] = {
        {"user", "a"}, {"assistant", "b"}, {"system", "Be brief."}, {"user", " c"}, {"assistant", "d"}};
    const ChatMessage together[] = {{"user", "a"}, {"assistant", "b"}, {"user", "(Be brief.)\n c"}, {"assistant", "d"}};
    const uint8_t flags[2][5] = {{0, CHAT_UNTRAINED, 0, 0, 0}, {0, CHAT_UNTRAINED, 0, 0}};
    assert_true(
        chat_template_parse(&c, "{system}({content})\\n{next}{user}U:{content};{assistant}A:{content}{eos}", &e));
    assert_true(chat_encode_flags(&c, &bytes, apart, flags[0], 5, false, &joined, &mask[0], &e));
    assert_true(chat_encode_flags(&c, &bytes, together, flags[1], 4, false, &whole, &mask[1], &e));
    assert_int_equal(joined.count, whole.count);
    assert_memory_equal(joined.ids, whole.ids, (size_t)whole.count * sizeof *whole.ids);
    assert_memory_equal(mask[0], mask[1], (size_t)whole.count);
    assert_true(chat_render(&c, &bytes, apart + 2, NULL, 2, true, &text, &e));
    assert_string_equal(text.text, "U:(Be brief.)\n c;A:");
    joined.count = 0;
    assert_false(chat_encode(&c, &bytes, apart + 2, 1, true, &joined, NULL, &e));
    files_assert_error(&e, "role system must be followed by a user's message");
    assert_false(
        chat_render(&c, &bytes, (const ChatMessage[]){{"system", "x"}, {"assistant", "y"}}, NULL, 2, true, &text, &e));
    files_assert_error(&e, "role system must be followed by a user's message");
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "system", "content", "x");
    assert_false(chat_encode_answer(&c, &bytes, messages, &joined, &e));
    files_assert_error(&e, "a message of role system has no place after an answer");
    json_decref(messages);
    free(mask[0]), free(mask[1]), text_free(&text), token_list_free(&joined), token_list_free(&whole);
    chat_template_free(&c);
}

static void test_bad_templates(void **state) {
    (void)state;
    const struct {
        const char *spec, *message;
    } cases[] = {
        {"chatlm", "expected chatml, llama, nanochat, plain"},
        {"hello {user}{content}", "text that begins with"},
        {"{user}{content}{eos}", "no section {assistant} or {any}"},
        {"{any}{content}", "nothing after the assistant's {content}"},
        {"{any}{content}{eos}{assistant}{content}", "nothing after the assistant's {content}"},
        {"{any}{content}{role}", "nothing after the assistant's {content}"},
        {"{any}x{eos}", "section {any} has no {content}"},
        {"{user}x{assistant}{content}{eos}", "section {user} has no {content}"},
        {"{any}{content}{content}{eos}", "{content} is not allowed"},
        {"{begin}{content}{any}{content}{eos}", "{content} is not allowed"},
        {"{begin}{role}{any}{content}{eos}", "{role} is not allowed"},
        {"{eos}{any}{content}{eos}", "{eos} is not allowed"},
        {"{any}{content}{eos}{any}{content}{eos}", "{any} twice"},
        {"{begin}a{begin}b{any}{content}{eos}", "{begin} twice"},
        {"{system}{content}<|x|>{next}{any}{content}{eos}", "{next}, which allows only text before it"},
        {"{system}{role}{content}{next}{any}{content}{eos}", "{next}, which allows only text before it"},
        {"{system}{content}{next}a{any}{content}{eos}", "'a{any}{content}{eos}' follows {next}"},
        {"{system}{next}{content}{any}{content}{eos}", "{next} is not allowed"},
        {"{user}{content}{next}{any}{content}{eos}", "{next} is not allowed in section {user}"},
        {"{any}{content}{next}", "{next} is not allowed in section {any}"},
        {"{any}{content}{eos}{python}{content}{next}", "{next} is not allowed in section {python}"},
        {"{any}{content}{", "'{' is not a tag"},
        {"{any}{con tent}{eos}", "'{con tent}{eos}' is not a tag"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error e;
        ChatTemplate c;
        if (chat_template_parse(&c, cases[i].spec, &e)) fail_msg("%s was taken", cases[i].spec);
        files_assert_error(&e, cases[i].message);
    }
}

/* Seconds of the processor for reading a template of n bytes that repeat `unit`. */
static double seconds_of(const char *unit, size_t n) {
    Error e;
    ChatTemplate c;
    TextBuffer spec = {0};
    text_string(&spec, "{any}");
    while (spec.length < n) text_string(&spec, unit);
    text_string(&spec, "{content}{eos}");
    const clock_t start = clock();
    if (!chat_template_parse(&c, spec.text, &e)) fail_msg("%s", e.text);
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    chat_template_free(&c);
    text_free(&spec);
    return seconds;
}

/* A template of 8 MiB is read in linear time: in well under a second, under sanitizers in a few. In quadratic time it takes
 * minutes, on any processor. */
static void test_long_templates(void **state) {
    (void)state;
    static const char *const units[] = {"words ", "{role}", "<", "\\n"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const double seconds = seconds_of(units[i], 8 << 20);
        if (seconds > 20) fail_msg("'%s': %g s for 8 MiB", units[i], seconds);
    }
    Error e;
    ChatTemplate c;
    TextBuffer many = {0};
    for (int i = 0; i < 70; i++) text_format(&many, "{role%d}{content}", i);
    assert_false(chat_template_parse(&c, many.text, &e));
    assert_string_equal(e.text, "chat template: has more than 64 roles");
    text_free(&many);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chatml),         cmocka_unit_test(test_llama),
        cmocka_unit_test(test_plain),          cmocka_unit_test(test_own),
        cmocka_unit_test(test_joined),         cmocka_unit_test(test_bad_templates),
        cmocka_unit_test(test_long_templates),
    };
    return cmocka_run_group_tests_name("chat", tests, setup, teardown);
}

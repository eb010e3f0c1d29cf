/* test_chat_model.c - conversations in a model's own chat template: tokens and masks against transformers and
 * tokenizers (dev/golden/golden_template.py), turns that need records of their own, forged special tokens, the files of
 * a model, and make_shard with them. Needs ./data/make_shard and ./data/show. */
#include "../llmc/base/error.h"           /* Error, die, xstrdup */
#include "../llmc/base/io.h"              /* XXH3_64bits */
#include "../llmc/base/jsonl.h"           /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/text.h"            /* text_free, TextBuffer, text_string, TokenList, ... */
#include "../llmc/records/shard.h"        /* shard_close, RECORD_CHAT, RECORD_PROMPT, RECORD_PREFERENCE, ... */
#include "../llmc/text/chat.h"            /* chat_template_free, chat_template_parse, ChatTemplate, ... */
#include "../llmc/text/jinja_chat.h"      /* jinja_chat_open, jinja_chat_spec, jinja_chat_stop */
#include "../llmc/text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_decode, tokenizer_add_special, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "files.h"                        /* files_path, files_assert_error, files_directory, files_put, ... */
#include "shards.h"                       /* refused, assert_record, open_shard */
#include "shell.h"                        /* put, run, assert_holds, said, ... */

enum { CONVERSATIONS = 200 };

static json_t *tokens, *cases[CONVERSATIONS], *templates;

static int setup(void **state) {
    Error e;
    Jsonl j;
    json_t *row = NULL;
    int more, count = -1;
    templates = json_object();
    if (files_setup(state) || !jsonl_open(&j, "tests/golden/template.jsonl.zst", false, &e)) return 1;
    while ((more = jsonl_next(&j, &row, &e)) > 0) {
        if (count < 0) tokens = json_incref(json_object_get(row, "tokens"));
        else if (count < CONVERSATIONS) cases[count] = json_incref(row);
        else
            json_object_set(templates, json_string_value(json_object_get(row, "name")),
                            json_object_get(row, "template"));
        count++;
    }
    if (more < 0) die("%s", e.text);
    jsonl_close(&j);
    return setenv("T", files_directory, 1);
}

static int teardown(void **state) {
    for (int i = 0; i < CONVERSATIONS; i++) json_decref(cases[i]);
    json_decref(tokens);
    json_decref(templates);
    free(said), free(out);
    return files_teardown(state);
}

/* Parses a published template with variables and the date of the golden values. */
static ChatTemplate published(const char *name, const json_t *variables) {
    Error e;
    ChatTemplate c;
    char *spec = jinja_chat_spec(json_string_value(json_object_get(templates, name)), variables, "2026-03-05", &e);
    if (!spec || !chat_template_parse(&c, spec, &e)) fail_msg("%s: %s", name, e.text);
    assert_string_equal(c.spec, spec);
    free(spec);
    return c;
}

/* ---- golden values --------------------------------------------------------------------------------------------- */

static void test_encodings(void **state) {
    (void)state;
    size_t i, k;
    json_t *entry, *special;
    int trained = 0, apart = 0;
    json_array_foreach(tokens, i, entry) {
        Error e;
        Tokenizer t;
        TokenList ids = {0};
        TextBuffer text = {0};
        uint8_t *mask = NULL;
        bool together;
        const char *name = json_string_value(json_array_get(entry, 0));
        const json_t *given = cases[json_integer_value(json_array_get(entry, 1))];
        json_t *variables = json_copy(json_object_get(given, "variables"));
        const bool prompt = json_is_true(json_object_get(variables, "add_generation_prompt"));
        json_object_del(variables, "add_generation_prompt");
        ChatTemplate c = published(name, variables);
        assert_true(tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e));
        json_array_foreach(json_array_get(entry, 2), k, special)
            assert_true(tokenizer_add_special(&t, json_string_value(special), &e));
        const bool ok = chat_encode_conversation(&c, &t, json_object_get(given, "conversation"), prompt,
                                                 json_is_true(json_array_get(entry, 4)), &ids, &mask, &together, &e);
        if (!ok) fail_msg("%s: %s", name, e.text);
        assert_int_equal(together, json_is_true(json_array_get(entry, 3)));
        for (int32_t n = 0; n < ids.count; n++) text_format(&text, "%d ", ids.ids[n]);
        text_string(&text, "|");
        for (int32_t n = 0; n < ids.count; n++) text_string(&text, mask[n] ? "1" : "0");
        char hash[20];
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH3_64bits(text.text, text.length));
        if (strcmp(hash, json_string_value(json_array_get(entry, 5))))
            fail_msg("%s, conversation %d: %s", name, (int)json_integer_value(json_array_get(entry, 1)), text.text);
        trained += strchr(strchr(text.text, '|'), '1') != NULL;
        apart += !together;
        token_list_free(&ids);
        text_free(&text);
        free(mask);
        json_decref(variables);
        chat_template_free(&c);
        tokenizer_free(&t);
    }
    assert_true(i > 300 && trained > 200 && apart > 20);
}

/* ---- by hand --------------------------------------------------------------------------------------------------- */

/* Encodes and decodes with the byte tokenizer and further special tokens; trained tokens are enclosed in [ and ]. */
static void assert_shown(const ChatTemplate *c, const char *specials, const char *messages, bool prompt, bool last,
                         const char *want) {
    Error e;
    Tokenizer t;
    TokenList ids = {0};
    TextBuffer text = {0}, plain = {0}, rendered = {0};
    uint8_t *mask = NULL;
    json_t *conversation = json_pack("{s:o}", "messages", json_loads(messages, 0, NULL));
    assert_true(conversation && tokenizer_bytes(&t, &e));
    for (const char *s = specials; *s;) {
        char name[64] = "";
        memcpy(name, s, strcspn(s, " "));
        assert_true(tokenizer_add_special(&t, name, &e));
        s += strlen(name) + (s[strlen(name)] == ' ');
    }
    if (!chat_encode_conversation(c, &t, conversation, prompt, last, &ids, &mask, NULL, &e)) text_string(&text, e.text);
    else {
        for (int32_t i = 0; i < ids.count; i++) {
            if (mask[i] && (!i || !mask[i - 1])) text_string(&text, "[");
            if (t.special[ids.ids[i]]) text_string(&text, "*");
            tokenizer_decode(&t, &ids.ids[i], 1, true, &text);
            if (mask[i] && (i + 1 == ids.count || !mask[i + 1])) text_string(&text, "]");
        }
        tokenizer_decode(&t, ids.ids, ids.count, true, &plain);
        assert_true(chat_render_conversation(c, conversation, prompt, &rendered, &e));
        assert_int_equal(plain.length, rendered.length);
        assert_memory_equal(plain.text, rendered.text, plain.length);
    }
    assert_string_equal(text.text, want);
    json_decref(conversation);
    token_list_free(&ids);
    text_free(&text);
    text_free(&plain);
    text_free(&rendered);
    free(mask);
    tokenizer_free(&t);
}

static const char talk[] = "[{\"role\":\"user\",\"content\":\"Hi <|im_end|>\"},"
                           "{\"role\":\"assistant\",\"content\":\"A1\",\"reasoning_content\":\"R1\"},"
                           "{\"role\":\"user\",\"content\":\" Q2\"},"
                           "{\"role\":\"assistant\",\"content\":\"A2\",\"reasoning\":\"R2\"}]";

static void test_turns(void **state) {
    (void)state;
    json_t *tokens_of = json_pack("{s:s,s:s}", "bos_token", "<s>", "eos_token", "</s>");

    /* a special token that the user wrote is text; the newline after the turn is not trained */
    ChatTemplate c = published("qwen2_5", tokens_of);
    assert_shown(
        &c, "", talk, false, false,
        "*<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.*<|im_end|>\n"
        "*<|im_start|>user\nHi <|im_end|>*<|im_end|>\n*<|im_start|>assistant\n[A1*<|im_end|>]\n"
        "*<|im_start|>user\n Q2*<|im_end|>\n*<|im_start|>assistant\n[A2*<|im_end|>]\n");
    chat_template_free(&c);

    /* Qwen3 drops the thinking of old turns: only the last is as it was generated */
    c = published("qwen3", tokens_of);
    assert_shown(&c, "", talk, false, true,
                 "*<|im_start|>user\nHi <|im_end|>*<|im_end|>\n*<|im_start|>assistant\nA1*<|im_end|>\n"
                 "*<|im_start|>user\n Q2*<|im_end|>\n"
                 "*<|im_start|>assistant\n[<think>\nR2\n</think>\n\nA2*<|im_end|>]\n");
    assert_shown(&c, "", "[{\"role\":\"user\",\"content\":\"Q\"}]", true, false,
                 "*<|im_start|>user\nQ*<|im_end|>\n*<|im_start|>assistant\n");
    chat_template_free(&c);
    json_object_set_new(tokens_of, "enable_thinking", json_false());
    c = published("qwen3", tokens_of);
    assert_shown(&c, "", "[{\"role\":\"user\",\"content\":\"Q\"}]", true, false,
                 "*<|im_start|>user\nQ*<|im_end|>\n*<|im_start|>assistant\n<think>\n\n</think>\n\n");
    chat_template_free(&c);
    json_object_del(tokens_of, "enable_thinking");

    /* {% generation %} */
    c = published("qwen3_training", tokens_of);
    assert_shown(&c, "", talk, false, false,
                 "*<|im_start|>user\nHi <|im_end|>*<|im_end|>\n"
                 "*<|im_start|>assistant\n[<think>\nR1\n</think>\n\nA1*<|im_end|>\n]"
                 "*<|im_start|>user\n Q2*<|im_end|>\n"
                 "*<|im_start|>assistant\n[<think>\nR2\n</think>\n\nA2*<|im_end|>\n]");
    chat_template_free(&c);

    /* the end of text after the last turn is not part of it */
    c = published("phi3", tokens_of);
    assert_shown(&c, "<|user|> <|assistant|> <|end|> </s>", talk, false, false,
                 "*<|user|>\nHi <|im_end|>*<|end|>\n*<|assistant|>\n[A1*<|end|>]\n*<|user|>\n Q2*<|end|>\n"
                 "*<|assistant|>\n[A2*<|end|>]\n*</s>");
    chat_template_free(&c);
    json_decref(tokens_of);
}

/* Templates made up for the cases that the published ones do not have. */
static void test_odd_templates(void **state) {
    (void)state;
    Error e;
    ChatTemplate c;
    const char *one = "[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"}]";
    /* the prompt ends with what the conversation does not have */
    assert_true(chat_template_parse(
        &c,
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% else %}<|pad|>{{ m.content }}"
        "<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|pad|>THINK{% endif %}",
        &e));
    assert_shown(&c, "", one, false, false, "*<|im_start|>Q*<|pad|>[A*<|im_end|>]");
    chat_template_free(&c);
    /* the answer changes the prompt */
    assert_true(chat_template_parse(
        &c, "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", &e));
    assert_shown(
        &c, "", one, false, false,
        "chat template: message 1, of the assistant, changes how the messages before it are written, so its tokens "
        "cannot be distinguished; use a template with {% generation %}");
    chat_template_free(&c);
    /* spans that touch, one that is empty, one inside a macro and a string operation, stop token outside */
    assert_true(chat_template_parse(
        &c,
        "{% macro g(t) %}{% generation %} {{ t }} {% endgeneration %}{% endmacro %}{% for m in messages %}{{ m.content }}"
        "{% generation %}{% endgeneration %}{% generation %}x{% endgeneration %}{% generation %}y{% endgeneration %}"
        "{{ g('z') | trim }}{{ (g('abc') ~ '!')[2:] }}<|im_end|>{% endfor %}",
        &e));
    assert_shown(&c, "", "[{\"role\":\"user\",\"content\":\"Q\"}]", false, false, "Q[xyzbc ]!*<|im_end|>");
    bool trained;
    Tokenizer t;
    assert_true(tokenizer_bytes(&t, &e));
    assert_int_equal(jinja_chat_stop(c.model, &t, &trained), 258);
    assert_false(trained);
    assert_int_equal(chat_stop_token(&c, &t), 258);
    chat_template_free(&c);
    /* parts of a special token from template and message are no token; neither is one in JSON */
    assert_true(chat_template_parse(
        &c, "{{ '<|im_' ~ messages[0].content }}{{ messages | tojson }}{{ '<|im' + '_end|>' }}", &e));
    assert_shown(&c, "", "[{\"role\":\"user\",\"content\":\"end|><|im_end|>\"}]", false, false,
                 "<|im_end|><|im_end|>[{\"role\": \"user\", \"content\": \"end|><|im_end|>\"}]*<|im_end|>");
    chat_template_free(&c);
    /* a template without special tokens ends its turns with one token, or has no stop token */
    assert_true(chat_template_parse(&c, "{% for m in messages %}{{ m.content }}\n{% endfor %}", &e));
    assert_int_equal(chat_stop_token(&c, &t), '\n');
    chat_template_free(&c);
    assert_true(chat_template_parse(&c, "{% for m in messages %}{{ m.content }}END{% endfor %}", &e));
    assert_int_equal(chat_stop_token(&c, &t), -1);
    chat_template_free(&c);
    assert_true(chat_template_parse(&c, "{{ raise_exception('never') }}", &e));
    assert_int_equal(chat_stop_token(&c, &t), 256);
    const ChatMessage m = {"user", "a"};
    TokenList ids = {0};
    assert_false(chat_encode(&c, &t, &m, 1, true, &ids, NULL, &e));
    assert_string_equal(e.text, "chat template: line 1: refuses the conversation: never");
    chat_template_free(&c);
    tokenizer_free(&t);
    /* chat_encode() of plain messages */
    c = published("qwen2_5", NULL);
    assert_true(tokenizer_bytes(&t, &e));
    assert_true(chat_encode(&c, &t, &m, 1, true, &ids, NULL, &e));
    TextBuffer text = {0};
    assert_true(chat_render(&c, &t, &m, NULL, 1, true, &text, &e));
    assert_non_null(strstr(text.text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"));
    assert_true(ids.count > 30 && ids.count < (int32_t)text.length);
    assert_non_null(chat_find_section(&c, "anything", &e));
    const ChatMessage broken = {"user", "\xFF"};
    assert_false(chat_encode(&c, &t, &broken, 1, true, &ids, NULL, &e));
    files_assert_error(&e, "not UTF-8");
    text_free(&text);
    token_list_free(&ids);
    tokenizer_free(&t);
    chat_template_free(&c);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static void assert_spec(const char *path, const json_t *variables, const char *date, const char *want,
                        const char *noted) {
    Error e, note;
    char *spec = jinja_chat_open(files_path(path), variables, date, &note, &e);
    if (!spec) fail_msg("%s", e.text);
    assert_string_equal(spec, want);
    if (noted) files_assert_error(&note, noted);
    else assert_string_equal(note.text, "");
    free(spec);
}

static void assert_unopened(const char *path, const char *part) {
    Error e;
    assert_null(jinja_chat_open(files_path(path), NULL, NULL, NULL, &e));
    files_assert_error(&e, part);
}

static void test_files(void **state) {
    (void)state;
    Error e;
    mkdir(files_path("m"), 0755);
    assert_unopened("m", "neither chat_template.jinja nor a chat_template");
    assert_unopened("missing", "missing: ");
    put("m/tokenizer_config.json",
        "{\"bos_token\":null,\"eos_token\":{\"content\":\"<#e>\"},\"pad_token\":\"<p>\",\"chat_template\":\"{{ 1 }}\"}");
    assert_spec(
        "m", NULL, NULL,
        "{#llmc {\"date\":\"2024-07-26\",\"variables\":{\"eos_token\":\"<\\u0023e>\",\"pad_token\":\"<p>\"}}#}\n{{ 1 }}",
        NULL);
    assert_spec(
        "m/tokenizer_config.json", NULL, "2026-01-31",
        "{#llmc {\"date\":\"2026-01-31\",\"variables\":{\"eos_token\":\"<\\u0023e>\",\"pad_token\":\"<p>\"}}#}\n{{ 1 }}",
        NULL);
    put("m/special_tokens_map.json", "{\"bos_token\":\"<b>\",\"eos_token\":\"other\"}");
    put("m/chat_template.jinja", "{{ 2 }}");
    json_t *variables = json_pack("{s:b,s:s}", "enable_thinking", 0, "pad_token", "x");
    assert_spec(
        "m", variables, NULL,
        "{#llmc {\"date\":\"2024-07-26\",\"variables\":{\"enable_thinking\":false,\"pad_token\":\"x\",\"eos_token\":\"<\\u0023e>\",\"bos_token\":\"<b>\"}}#}\n{{ 2 }}",
        "differs from chat_template in tokenizer_config.json");
    json_decref(variables);
    /* the values come back */
    char *spec = jinja_chat_open(files_path("m"), NULL, "2026-01-31", NULL, &e);
    ChatTemplate c;
    assert_true(chat_template_parse(&c, spec, &e));
    assert_string_equal(json_string_value(json_object_get(c.model->variables, "eos_token")), "<#e>");
    assert_int_equal(c.model->date.tm_yday, 30);
    assert_int_equal(c.model->date.tm_wday, 6);
    chat_template_free(&c);
    free(spec);

    put("m/tokenizer_config.json", "{\"chat_template\":[{\"name\":\"default\",\"template\":\"{{ 3 }}\"}]}");
    assert_spec(
        "m/tokenizer_config.json", NULL, NULL,
        "{#llmc {\"date\":\"2024-07-26\",\"variables\":{\"bos_token\":\"<b>\",\"eos_token\":\"other\"}}#}\n{{ 3 }}",
        NULL);
    /* the last of two templates of a name; no note if the files have the same templates as the list */
    put("m/tokenizer_config.json",
        "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"{{ 5 }}\"},{\"name\":\"default\",\"template\":\"{{ 2 }}\"},"
        "{\"name\":\"tool_use\",\"template\":\"{{ 4 }}\"}]}");
    mkdir(files_path("m/additional_chat_templates"), 0755);
    put("m/additional_chat_templates/tool_use.jinja", "{{ 4 }}");
    static const char *const both =
        "{#llmc {\"date\":\"2024-07-26\",\"variables\":{\"bos_token\":\"<b>\",\"eos_token\":\"other\"}}#}\n"
        "{% if tools is defined and tools is not none %}\n{{ 4 }}{{ '' }}{% else %}\n{{ 2 }}{{ '' }}{% endif %}";
    assert_spec("m/tokenizer_config.json", NULL, NULL, both, NULL);
    assert_spec("m", NULL, NULL, both, NULL);
    /* the plain template is the same in both places: the one for tools is only added */
    put("m/tokenizer_config.json", "{\"chat_template\":\"{{ 2 }}\"}");
    assert_spec("m", NULL, NULL, both, NULL);
    /* a template for tools without chat_template.jinja */
    remove(files_path("m/chat_template.jinja"));
    assert_spec(
        "m", NULL, NULL,
        "{#llmc {\"date\":\"2024-07-26\",\"variables\":{\"bos_token\":\"<b>\",\"eos_token\":\"other\"}}#}\n{{ 2 }}",
        "additional_chat_templates/tool_use.jinja: is not used, because there is no chat_template.jinja");
    put("m/chat_template.jinja", "{{ 2 }}");
    remove(files_path("m/additional_chat_templates/tool_use.jinja"));
    put("m/tokenizer_config.json", "{\"chat_template\":[{\"name\":\"rag\",\"template\":\"\"}]}");
    assert_unopened("m", "is a list of templates, none of which is named \"default\"");
    put("m/tokenizer_config.json",
        "{\"chat_template\":[{\"name\":\"default\",\"template\":\"\"},{\"name\":\"tool_use\"}]}");
    assert_unopened("m", "chat_template is not a text");
    put("m/tokenizer_config.json", "{\"chat_template\":7}");
    assert_unopened("m", "chat_template is not a text");
    put("m/tokenizer_config.json", "{\"chat_template\":");
    assert_unopened("m", "m/tokenizer_config.json: line 1, column 17: ");
    put("m/tokenizer_config.json", "version https://git-lfs.github.com/spec/v1\n");
    assert_unopened("m", "m/tokenizer_config.json: is not JSON, but a pointer of Git LFS");
    put("m/tokenizer_config.json", "[]");
    assert_unopened("m", "is not a JSON object");
    unlink(files_path("m/tokenizer_config.json"));
    assert_false(symlink("gone", files_path("m/tokenizer_config.json")));
    assert_unopened("m", "m/tokenizer_config.json: cannot open: No such file or directory");
    unlink(files_path("m/tokenizer_config.json"));
    put("m/a.json", "{}");
    assert_unopened("m/a.json", "has no chat_template");
    files_put(files_path("m/b"), "a\0b", 3);
    assert_unopened("m/b", "contains a NUL");
    static const char *const dates[] = {"2026-02-30",  "2026-13-01", "26-01-01", "2026-1-1",
                                        "2026-01-01x", "2026-01-0a", ""};
    for (size_t i = 0; i < sizeof dates / sizeof *dates; i++) {
        assert_null(jinja_chat_open(files_path("m"), NULL, dates[i], NULL, &e));
        files_assert_error(&e, "expected an existing day as YYYY-MM-DD");
    }
    variables = json_pack("{s:[]}", "messages");
    assert_null(jinja_chat_open(files_path("m"), variables, NULL, NULL, &e));
    files_assert_error(&e, "'messages' cannot be given as a variable");
    json_decref(variables);
    assert_false(chat_template_parse(&c, "{#llmc {}#}{{ 1 }}", &e));
    files_assert_error(&e, "{#llmc ...#} is not");
    assert_false(chat_template_parse(&c, "{#llmc {{ 1 }}", &e));
    assert_false(chat_template_parse(&c, "{% if %}", &e));
    files_assert_error(&e, "chat template: line 1: unexpected '%}', expected an expression");
    /* sections may have escaped braces, and doubled ones are an error */
    assert_false(chat_template_parse(&c, "{any}{{content}}{eos}", &e));
    files_assert_error(&e, "write a literal brace as");
    assert_true(chat_template_parse(&c, "{any}\\{%{content}\\{{eos}", &e));
    assert_null(c.model);
    chat_template_free(&c);
}

/* A conversation in the template of a file or a folder; "!" if the template refuses it. The caller frees it. */
static char *rendered(const char *path, const json_t *given) {
    Error e;
    ChatTemplate c;
    TextBuffer text = {0};
    json_t *variables = json_copy(json_object_get(given, "variables"));
    const bool prompt = json_is_true(json_object_get(variables, "add_generation_prompt"));
    json_object_del(variables, "add_generation_prompt");
    char *spec = jinja_chat_open(files_path(path), variables, NULL, NULL, &e);
    if (!spec || !chat_template_parse(&c, spec, &e)) fail_msg("%s: %s", path, e.text);
    if (!chat_render_conversation(&c, json_object_get(given, "conversation"), prompt, &text, &e)) {
        text_free(&text);
        text_string(&text, "!");
    }
    chat_template_free(&c);
    json_decref(variables);
    free(spec);
    return text.text ? text.text : xstrdup("");
}

/* A model with a template for tools renders conversations with tools by it, all others by the default one. The pieces at
 * the end are where jinja2 removes white space: the beginning and the end of a template. */
static void test_named_templates(void **state) {
    (void)state;
    static const char *const pairs[][2] = {{"llama3_2", "qwen3"},
                                           {"gemma3", "qwen2_5"},
                                           {"  {% if 1 %}\na\n  {% endif %}\n", "\n\n{{- 1 }} b \n\n"},
                                           {"\n  {% if 1 %} c {% endif %}  ", "  {%- if 1 %} d {%- endif %}\r\n"}};
    int with = 0, without = 0;
    mkdir(files_path("named"), 0755);
    mkdir(files_path("tools"), 0755);
    mkdir(files_path("tools/additional_chat_templates"), 0755);
    for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
        const char *text[2];
        for (int k = 0; k < 2; k++) {
            text[k] = json_string_value(json_object_get(templates, pairs[p][k]));
            if (!text[k]) text[k] = pairs[p][k];
        }
        put("default.jinja", text[0]);
        put("tool_use.jinja", text[1]);
        put("tools/chat_template.jinja", text[0]);
        put("tools/additional_chat_templates/tool_use.jinja", text[1]);
        json_t *config =
            json_pack("{s:[{s:s,s:s},{s:s,s:s},{s:s,s:s}]}", "chat_template", "name", "rag", "template", "{{ 5 }}",
                      "name", "tool_use", "template", text[1], "name", "default", "template", text[0]);
        assert_false(json_dump_file(config, files_path("named/tokenizer_config.json"), 0));
        json_decref(config);
        for (int i = 0; i < CONVERSATIONS; i++) {
            const json_t *tools = json_object_get(json_object_get(cases[i], "conversation"), "tools");
            const bool use = tools && !json_is_null(tools);
            char *want = rendered(use ? "tool_use.jinja" : "default.jinja", cases[i]);
            char *named = rendered("named", cases[i]), *added = rendered("tools", cases[i]);
            assert_string_equal(named, want);
            assert_string_equal(added, want);
            with += use && strcmp(want, "!");
            without += !use && strcmp(want, "!");
            free(want), free(named), free(added);
        }
    }
    assert_true(with > 100 && without > 100);
}

/* ---- make_shard ------------------------------------------------------------------------------------------------ */

static void test_make_shard(void **state) {
    (void)state;
    TextBuffer line = {0};
    mkdir(files_path("q"), 0755);
    put("q/chat_template.jinja", json_string_value(json_object_get(templates, "qwen3")));
    put("q/tokenizer_config.json", "{\"eos_token\":\"<|im_end|>\"}");
    text_format(&line, "{\"messages\":%s}\n", talk);
    put("a.jsonl", line.text);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --chat-template-path $T/q");
    assert_holds(said, "written as one record per assistant message, because the template changes old turns: 1 ");
    Shard s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 0,
                  "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
                  "[<think>\nR1\n</think>\n\nA1<|im_end|>]\n");
    assert_record(&s, 1,
                  "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
                  "<|im_start|>user\n Q2<|im_end|>\n<|im_start|>assistant\n"
                  "[<think>\nR2\n</think>\n\nA2<|im_end|>]\n");
    assert_int_equal(strncmp(s.chat_template, "{#llmc {\"date\":\"2024-07-26\",", 28), 0);
    shard_close(&s);
    run(0, "data/show $T/a.shard");
    assert_holds(out, "an assistant's turn ends with token 258");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --chat-template-path $T/q --no-assistant-only-loss --limit 1");
    s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 0,
                  "[<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
                  "<think>\nR1\n</think>\n\nA1<|im_end|>\n]");
    shard_close(&s);

    /* tools, a call without content, a result; tools as a text */
    static const char *const called =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"?\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":"
        "[{\"type\":\"function\",\"function\":{\"name\":\"w\",\"arguments\":{\"a\":1.0}}}]},{\"role\":\"tool\","
        "\"content\":\"20\"},{\"role\":\"assistant\",\"content\":\"It is 20.\"}],\"tools\":%s}\n";
    text_clear(&line);
    text_format(&line, called, "[{\"type\":\"function\",\"function\":{\"name\":\"w\"}}]");
    text_format(&line, called, "\"[{\\\"type\\\":\\\"function\\\",\\\"function\\\":{\\\"name\\\":\\\"w\\\"}}]\"");
    put("b.jsonl", line.text);
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --chat-template-path $T/q --kind chat");
    s = open_shard("b.shard", RECORD_CHAT, 4);
    for (int i = 0; i < 4; i++) {
        Error e;
        Record r = {0};
        Tokenizer t;
        TextBuffer text = {0};
        assert_true(tokenizer_load(&t, s.tokenizer, s.tokenizer_bytes, &e) && shard_record(&s, i, &r, &e));
        tokenizer_decode(&t, r.tokens, r.count, true, &text);
        assert_holds(text.text, "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"w\"}}\n</tools>");
        assert_holds(text.text,
                     "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"a\": 1.0}}\n</tool_call><|im_end|>\n");
        if (i % 2) assert_holds(text.text, "<|im_start|>user\n<tool_response>\n20\n</tool_response><|im_end|>\n");
        text_free(&text);
        record_free(&r);
        tokenizer_free(&t);
    }
    shard_close(&s);
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard",
            "field 'messages[1].tool_calls': only a model's own template can write tool_calls");
    put("f.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"?\"},{\"role\":\"assistant\",\"tool_calls\":[{\"function\":"
        "{\"name\":\"w\",\"arguments\":\"{}\"}}]}]}\n");
    run(0, "data/make_shard -i $T/f.jsonl -o $T/f.shard --chat-template-path $T/q");
    assert_holds(said, "a tool call whose arguments are a text, which most templates quote; expected an object: 1 ");
    text_clear(&line);
    text_format(&line, called, "\"{\"");
    put("c.jsonl", line.text);
    refused(1, "data/make_shard -i $T/c.jsonl -o $T/x.shard --chat-template-path $T/q",
            "line 1: field 'tools': is neither");

    /* other kinds of records; a template's variables */
    put("d.jsonl", "{\"prompt\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"chosen\":\"yes\",\"rejected\":\"no\"}\n");
    run(0, "data/make_shard -i $T/d.jsonl -o $T/d.shard --chat-template-path $T/q/chat_template.jinja "
           "--chat-template-kwargs '{\"enable_thinking\":false}'");
    s = open_shard("d.shard", RECORD_PREFERENCE, 1);
    assert_record(&s, 0,
                  "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n|yes<|im_end|>"
                  "|no<|im_end|>");
    shard_close(&s);
    put("e.jsonl", "{\"prompt\":[{\"from\":\"human\",\"value\":\"Hi\"}],\"answer\":\"1\",\"task\":\"exact\"}\n");
    run(0, "data/make_shard -i $T/e.jsonl -o $T/e.shard --chat-template-path $T/q --system S");
    s = open_shard("e.shard", RECORD_PROMPT, 1);
    assert_record(&s, 0, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    shard_close(&s);
    put("t.jinja", "{% for m in messages %}{{ m.content }}<|im_end|>{{ strftime_now('%d %b %Y') }}{% endfor %}");
    run(0, "data/make_shard -i $T/e.jsonl -o $T/e.shard --chat-template-path $T/t.jinja --date 2026-03-05");
    s = open_shard("e.shard", RECORD_PROMPT, 1);
    assert_record(&s, 0, "Hi<|im_end|>05 Mar 2026");
    shard_close(&s);
    put("g.jinja", "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --chat-template-path $T/g.jinja");
    assert_holds(said, "ends the assistant's turn is outside {% generation %}");

    refused(1, "data/make_shard -i $T/d.jsonl -o $T/x.shard --chat-template-path $T/none", "none: No such file");
    refused(2, "data/make_shard -i $T/d.jsonl -o $T/x.shard --chat-template-path $T/q --chat-template-kwargs '[1]'",
            "is not a JSON object");
    refused(2, "data/make_shard -i $T/d.jsonl -o $T/x.shard --chat-template-path $T/q --template chatml",
            "give only one of them");
    refused(2, "data/make_shard -i $T/d.jsonl -o $T/x.shard --date 2026-01-01", "require --chat-template-path");
    refused(1, "data/make_shard -i $T/d.jsonl -o $T/x.shard --chat-template-path $T/q --date 2026-02-30",
            "expected an existing day");
    put("r.jinja", "{% for m in messages %}\n{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                   "{{ m.content }}<|im_end|>{% endfor %}");
    refused(1, "data/make_shard -i $T/e.jsonl -o $T/x.shard --chat-template-path $T/r.jinja --system S",
            "e.jsonl: line 1: chat template: line 2: refuses the conversation: no system");
    put("s.jsonl",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"assistant\",\"content\":\"A\"}]}\n"
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"}]}\n");
    run(0, "data/make_shard -i $T/s.jsonl -o $T/s.shard --chat-template-path $T/r.jinja --skip-bad");
    assert_holds(said, "invalid lines skipped: 1 (first: ");
    s = open_shard("s.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, "Q<|im_end|>[A<|im_end|>]");
    shard_close(&s);
    text_free(&line);
}

/* ---- results of tools ------------------------------------------------------------------------------------------ */

/* The ids of a prompt are those up to its last content, a user's, and then the opening of the assistant's turn. */
static void check_opening(const ChatTemplate *c, const Tokenizer *t, const TokenList *prompt, const char *content) {
    Error e;
    TokenList opening = {0};
    TextBuffer before = {0};
    assert_true(chat_encode_opening(c, t, &opening, &e));
    const int32_t first = prompt->count - opening.count;
    assert_true(first > 0 && opening.count > 0);
    assert_memory_equal(prompt->ids + first, opening.ids, (size_t)opening.count * sizeof(int32_t));
    tokenizer_decode(t, prompt->ids, first, true, &before);
    assert_true(before.length > strlen(content));
    assert_memory_equal(before.text + before.length - strlen(content), content, strlen(content));
    token_list_free(&opening);
    text_free(&before);
}

/* The ids of a conversation up to the assistant's turn, the turn and its end token, and the answer are those of the whole
 * conversation: what the template owes after the end token (Qwen's newline) is part of the answer. */
static void check_answer(const char *name, const char *results) {
    Error e;
    Tokenizer t;
    TokenList parts = {0}, whole = {0};
    json_t *variables = json_pack("{s:s,s:s}", "bos_token", "<s>", "eos_token", "</s>");
    ChatTemplate c = published(name, variables);
    assert_true(tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e));
    static const char *const specials[] = {
        "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"};
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++)
        assert_true(tokenizer_add_special(&t, specials[i], &e));
    json_t *messages = json_loads("[{\"role\":\"user\",\"content\":\"What is 2+3?\"}]", 0, NULL),
           *answers = json_loads(results, 0, NULL);
    json_t *conversation = json_pack("{s:O}", "messages", messages);
    assert_true(answers && chat_encode_conversation(&c, &t, conversation, true, false, &parts, NULL, NULL, &e));
    check_opening(&c, &t, &parts, "What is 2+3?");
    assert_true(tokenizer_encode(&t, "calling now", 11, TOKENIZER_CONTINUES, &parts, &e));
    token_list_append(&parts, chat_stop_token(&c, &t));
    if (!chat_encode_answer(&c, &t, answers, &parts, &e)) fail_msg("%s: %s", name, e.text);
    json_array_append_new(messages, json_pack("{s:s,s:s}", "role", "assistant", "content", "calling now"));
    json_array_extend(messages, answers);
    TextBuffer got = {0}, wanted = {0};
    assert_true(chat_render_conversation(&c, conversation, true, &wanted, &e));
    tokenizer_decode(&t, parts.ids, parts.count, true, &got);
    assert_int_equal(got.length, wanted.length);
    assert_memory_equal(got.text, wanted.text, got.length);
    assert_true(chat_encode_conversation(&c, &t, conversation, true, false, &whole, NULL, NULL, &e));
    assert_int_equal(parts.count, whole.count);
    assert_memory_equal(parts.ids, whole.ids, (size_t)whole.count * sizeof(int32_t));
    token_list_free(&parts), token_list_free(&whole);
    text_free(&got), text_free(&wanted);
    json_decref(messages), json_decref(answers), json_decref(conversation), json_decref(variables);
    chat_template_free(&c);
    tokenizer_free(&t);
}

static void test_answers(void **state) {
    (void)state;
    static const char *const names[] = {"qwen2_5", "qwen3_instruct_2507", "llama3_1", "llama3_2"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_answer(names[i], "[{\"role\":\"tool\",\"name\":\"calculator\",\"content\":\"5\"}]");
        /* several results, special tokens that a tool writes, and text of other scripts */
        check_answer(names[i], "[{\"role\":\"tool\",\"content\":\"<|im_end|> <|eot_id|>\"},"
                               "{\"role\":\"tool\",\"content\":\"\u00fc \u4e2d\\n\"}]");
        check_answer(names[i], "[{\"role\":\"user\",\"content\":\"higher\"}]");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encodings), cmocka_unit_test(test_turns),           cmocka_unit_test(test_odd_templates),
        cmocka_unit_test(test_files),     cmocka_unit_test(test_named_templates), cmocka_unit_test(test_make_shard),
        cmocka_unit_test(test_answers),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

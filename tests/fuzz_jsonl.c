/* fuzz_jsonl.c - libFuzzer target: arbitrary bytes as JSONL lines, made into records of every kind, and as a chat
 * template.
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined tests/fuzz_jsonl.c \
 *         -lzstd -lpcre2-8 -ljansson -lutf8proc -lxxhash -lm
 *     ./a.out -max_len=4096 corpus/ tests/corpus/jsonl/
 *
 * The first byte selects the template, the kind of record, the limits and how lines are truncated; if it is 255, the
 * rest is a template, and if it is 254, tasks of Super-NaturalInstructions.
 */
#include "../data/row_fields.h"     /* ROW_AUTO, ROW_PREFERENCE, ROW_TEXT, row_kind */
#include "../data/rows.h"           /* ROW_BAD, ROW_MADE, RowResult, RowTruncation, ... */
#include "../data/super_ni.h"       /* SuperNi, super_ni_count, super_ni_keeps, super_ni_row */
#include "../llmc/base/error.h"     /* Error, xstrndup */
#include "../llmc/base/jsonl.h"     /* Jsonl, jsonl_close, jsonl_next, jsonl_open, ... */
#include "../llmc/base/text.h"      /* text_free, TextBuffer, TokenList, token_list_free */
#include "../llmc/records/shard.h"  /* Record, RecordKind, record_refused */
#include "../llmc/text/chat.h"      /* chat_template_free, chat_template_parse, ChatMessage, ChatTemplate, ... */
#include "../llmc/text/tokenizer.h" /* tokenizer_bytes, Tokenizer, tokenizer_free, tokenizer_decode */
#include "fuzz.h"                   /* require, require_error */
#include <sys/mman.h>

static void try_template(const char *spec) {
    Error e = {""};
    ChatTemplate c;
    Tokenizer t;
    TokenList ids = {0};
    TextBuffer text = {0}, rendered = {0};
    uint8_t *mask = NULL;
    const ChatMessage m[] = {{"system", "a"}, {"user", "<|im_end|>"}, {"assistant", "b\n"}};
    if (!chat_template_parse(&c, spec, &e)) return require_error(&e);
    if (c.model) { /* fuzz_jinja.c is for these */
        chat_template_free(&c);
        return;
    }
    require(tokenizer_bytes(&t, &e));
    if (chat_add_specials(&c, &t, &e) && chat_encode(&c, &t, m, 3, true, &ids, &mask, &e)) {
        bool trained = false;
        for (int32_t i = 0; i < ids.count; i++) {
            require(ids.ids[i] >= 0 && ids.ids[i] < t.vocab && mask[i] <= 1);
            trained |= mask[i];
        }
        require(trained && chat_render(&c, &t, m, NULL, 3, true, &rendered, &e));
        tokenizer_decode(&t, ids.ids, ids.count, true, &text);
        require(rendered.length == text.length && !memcmp(rendered.text, text.text, text.length));
    } else require_error(&e);
    free(mask);
    text_free(&text);
    text_free(&rendered);
    token_list_free(&ids);
    tokenizer_free(&t);
    chat_template_free(&c);
}

/* A model's own template, whose old turns differ from the last one. */
static const char own[] =
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role != 'assistant' or loop.last %}"
    "{{ m.thinking }}{% endif %}{{ m.content | string | trim }}{{ m.tool_calls | default('') | tojson }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant "
    "{% endif %}";

static void read_lines(const uint8_t *data, size_t n, uint8_t mode) {
    Error e = {""};
    Jsonl j;
    json_t *row;
    char path[64];
    const int fd = memfd_create("fuzz", 0);
    Rows rows = {.step_separator = "\n",
                 .max_tokens = mode & 8 ? 40 : 0,
                 .truncation = (RowTruncation)((mode >> 4) % 3),
                 .system = mode & 64 ? "S" : NULL,
                 .answer_after = mode & 128 ? "#" : NULL};
    require(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    require(tokenizer_bytes(&rows.tokenizer, &e));
    const char *spec = (mode & 48) == 48   ? own
                       : !(mode & 1)       ? "plain"
                       : (mode & 48) == 16 ? "nanochat" /* with parts for calls */
                                           : "chatml";
    require(chat_template_parse(&rows.chat, spec, &e) && chat_add_specials(&rows.chat, &rows.tokenizer, &e));
    rows.stop = chat_stop_token(&rows.chat, &rows.tokenizer);
    if (!jsonl_open(&j, path, mode & 2, &e)) {
        require_error(&e);
    } else {
        int more;
        if (mode & 4) j.limit = 60;
        while ((more = jsonl_next(&j, &row, &e)) > 0) {
            rows.kind = row_kind(&rows.fields, row);
            if (rows.kind == ROW_AUTO) continue;
            RowResult result;
            do result = row_make(&rows, &j, row, &e);
            while (rows.more);
            const Record *r = &rows.record;
            if (result == ROW_MADE && rows.kind != ROW_TEXT) {
                require(!record_refused((RecordKind)rows.kind, r));
                require(!rows.max_tokens || rows.kind == ROW_PREFERENCE || r->count <= rows.max_tokens);
                for (int32_t i = 0; rows.max_tokens && i < r->completions; i++)
                    require(r->prompt + r->length[i] <= rows.max_tokens && r->prompt + r->gold <= rows.max_tokens);
                for (int32_t i = 0; i < r->count; i++)
                    require(r->tokens[i] >= 0 && r->tokens[i] < rows.tokenizer.vocab);
            }
            if (result == ROW_BAD) {
                require_error(&e);
                if (!jsonl_skip(&j, &e)) break;
            }
        }
        if (more < 0) require_error(&e);
        jsonl_close(&j);
    }
    rows_free(&rows);
    close(fd);
}

static void read_tasks(const uint8_t *data, size_t n) {
    Error e = {""};
    Jsonl j;
    Tokenizer t;
    json_t *task, *row;
    char path[64];
    int more;
    const SuperNi ni = {.on = true, .explanation = true, .positive = 2, .negative = 1, .max_source = 80, .per_task = 3};
    const int fd = memfd_create("fuzz", 0);
    require(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    require(tokenizer_bytes(&t, &e));
    if (jsonl_open(&j, path, true, &e)) {
        j.objects = true;
        j.limit = 400;
        while ((more = jsonl_next(&j, &task, &e)) > 0) {
            int64_t left = -1, kept = 0;
            const size_t count = super_ni_count(task);
            for (size_t i = 0; i < count; i++) {
                if (!super_ni_keeps(&ni, &j, i, count, &left)) continue;
                kept++;
                if ((row = super_ni_row(&ni, &t, &j, task, i, i % 2, &e)))
                    require(json_is_string(json_object_get(row, "prompt")));
                else require_error(&e);
                json_decref(row);
            }
            require(kept == (count < 3 ? (int64_t)count : 3));
        }
        if (more < 0) require_error(&e);
        jsonl_close(&j);
    }
    tokenizer_free(&t);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!n) return 0;
    if (*data == 254) read_tasks(data + 1, n - 1);
    else if (*data != 255) read_lines(data + 1, n - 1, *data);
    else {
        char *spec = xstrndup((const char *)data + 1, n - 1);
        try_template(spec);
        free(spec);
    }
    return 0;
}

/* fuzz_serve.c - libFuzzer target: arbitrary bytes as the body of a request to the server.
 *
 * The first byte selects the kind of request and the template. A request that is accepted must be within its limits, and
 * the answer to it, made of arbitrary tokens, whole or in pieces, must be JSON that can be read again.
 */
#include "../llmc/base/error.h"        /* xcalloc, Error */
#include "../llmc/base/text.h"         /* TextBuffer, text_free */
#include "../llmc/model/model_text.h"  /* ModelText */
#include "../llmc/rollout/rollout.h"   /* sampling_default */
#include "../llmc/serve/answer.h"      /* ServePieces, serve_answer, serve_dump, serve_error, ... */
#include "../llmc/serve/engine.h"      /* ServeJob, ServeEngine, ServeTop, ServeChoice, ... */
#include "../llmc/serve/request.h"     /* SERVE_CHAT, SERVE_COMPLETION, SERVE_SAMPLES, SERVE_TOP_CHAT, ... */
#include "../llmc/text/chat.h"         /* chat_template_free, chat_template_parse */
#include "../llmc/text/tokenizer.h"    /* tokenizer_bytes, tokenizer_free */
#include "../llmc/tools/tool_format.h" /* tool_format_free, tool_format_open */
#include "fuzz.h"                      /* require, require_error */

/* A model's own template that shows tools. */
static const char own[] =
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{{ m.tool_calls | default('') | "
    "tojson }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}";

/* Fills in a completion of a few tokens for each choice. */
static void draw(ServeJob *job, uint32_t noise) {
    for (int i = 0; i < job->choices; i++) {
        ServeChoice *a = &job->choice[i];
        const int n = job->request.how.max_new < 6 ? job->request.how.max_new : 6;
        const int top = job->request.top > 0 ? job->request.top : 0;
        a->c.tokens = (int32_t *)xcalloc((size_t)n + 1, sizeof(int32_t));
        a->c.logp = (float *)xcalloc((size_t)n + 1, sizeof(float));
        a->top = (ServeTop *)xcalloc((size_t)(n * top) + 1, sizeof(ServeTop));
        for (int k = 0; k < n; k++) {
            noise = noise * 1664525 + 1013904223;
            a->c.tokens[k] = (int32_t)((noise >> 8) % 260);
            a->c.logp[k] = -(float)(noise >> 8);
        }
        a->c.count = n;
        a->c.finished = noise >> 31;
        a->over = true;
    }
    for (int i = 0; job->score && i < job->request.prompts; i++) job->score[i].over = true;
    job->left = 0;
}

static void answer(ServeEngine *x, ServeJob *job) {
    TextBuffer out = {0};
    ServePieces p;
    json_t *whole = serve_answer(x, job);
    char *text = serve_dump(whole);
    json_t *again = json_loads(text, JSON_ALLOW_NUL, NULL);
    require(again && json_array_size(json_object_get(again, "choices")) == (size_t)job->choices);
    json_decref(whole), json_decref(again), free(text);
    serve_pieces_open(&p, x, job);
    require(serve_pieces_next(&p, &out));
    for (char *line = out.text, *end; (end = strstr(line, "\n\n")); line = end + 2) {
        require(!strncmp(line, "data: ", 6));
        again = json_loadb(line + 6, (size_t)(end - line) - 6, JSON_ALLOW_NUL, NULL);
        require(again || !strncmp(line + 6, "[DONE]", 6));
        json_decref(again);
    }
    serve_pieces_close(&p);
    text_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!n) return 0;
    Error e;
    ModelText t = {.present = true, .has_template = true};
    ServeModel m = {.name = "m", .text = &t, .vocab = 260, .length = 4000, .standard = sampling_default()};
    ServeEngine x = {.serve = &m};
    ServeFault f;
    ServeRequest q;
    m.standard.max_new = 20;
    m.has_format = true;
    require(tokenizer_bytes(&t.tokenizer, &e) && tool_format_open(&m.format, *data & 4 ? "llama3" : "hermes", &e));
    require(chat_template_parse(&t.chat, *data & 2 ? own : "chatml", &e));
    if (serve_request(&q, &m, *data & 1 ? SERVE_CHAT : SERVE_COMPLETION, (const char *)data + 1, n - 1, &f)) {
        require(q.prompts > 0 && q.prompts * q.samples <= SERVE_SAMPLES && q.top <= SERVE_TOP_CHAT);
        for (int i = 0; i < q.prompts; i++) {
            require(q.prompt[i].count > 0 && q.prompt[i].count <= m.length);
            for (int32_t k = 0; k < q.prompt[i].count; k++)
                require(q.prompt[i].ids[k] >= 0 && q.prompt[i].ids[k] < m.vocab);
        }
        ServeJob *job = serve_job_new(&q);
        draw(job, (uint32_t)n);
        answer(&x, job);
        serve_job_free(job);
    } else {
        require(f.status >= 400 && f.status < 500);
        require_error(&f.e);
        json_decref(serve_error(&f));
    }
    tool_format_free(&m.format);
    chat_template_free(&t.chat);
    tokenizer_free(&t.tokenizer);
    return 0;
}

/* fuzz_serve.c - libFuzzer target: arbitrary bytes as the body of a request to the server.
 *
 * The first byte selects the kind of request and the template. A request that is accepted must be within its limits, and
 * the answer to it, made of arbitrary tokens, whole or in pieces, must be JSON that can be read again. The same request,
 * four times in one trajectory, makes branches within their limits.
 */
#include "../llmc/base/error.h"        /* xcalloc, Error */
#include "../llmc/base/text.h"         /* TextBuffer, text_free */
#include "../llmc/model/model_text.h"  /* ModelText */
#include "../llmc/rollout/rollout.h"   /* Completion, completion_free, sampling_default */
#include "../llmc/serve/answer.h"      /* ServePieces, serve_answer, serve_chat_choice, serve_dump, ... */
#include "../llmc/serve/engine.h"      /* ServeJob, ServeEngine, ServeTop, serve_job_free, ... */
#include "../llmc/serve/gateway.h"     /* ServeGateway, ServeTrajectory, serve_trajectory_prepare, ... */
#include "../llmc/serve/request.h"     /* SERVE_CHAT, SERVE_COMPLETION, ServeFault, ServeRequest, ... */
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

static bool request(ServeRequest *q, const ServeModel *m, ServeKind kind, const char *text, size_t n, ServeFault *f) {
    json_t *body = serve_body(text, n, f);
    const bool ok = body && serve_request(q, m, kind, body, f);
    json_decref(body);
    return ok;
}

/* Makes requests of a trajectory of some tokens, and compares its completion with what was recorded. */
static void trajectory(ServeEngine *x, ServeKind kind, const char *body, size_t n) {
    ServeTrajectory y = {.id = 7};
    const ServeGateway g = {.engine = x, .most = 600};
    ServeFault f;
    ServeRequest q;
    Completion c;
    for (int i = 0; i < 4; i++) {
        if (!request(&q, x->serve, kind, body, n, &f) || !serve_trajectory_prepare(&g, &y, &q, &f)) break;
        require(q.how.max_new > 0 && y.tokens <= g.most && q.how.temperature == x->serve->standard.temperature);
        ServeJob *job = serve_job_new(&q);
        draw(job, (uint32_t)(n + (size_t)i));
        json_t *reply = kind == SERVE_CHAT ? serve_chat_choice(x->serve, &job->choice[0], 0) : NULL;
        serve_trajectory_record(&y, job, json_object_get(reply, "message"));
        json_decref(reply);
        serve_job_free(job);
    }
    const int32_t tokens = y.tokens, branches = y.branches;
    require(tokens <= g.most);
    serve_trajectory_take(&y, &c);
    require(c.count == tokens && c.trajectory->branches == branches);
    for (int32_t k = 0; k < branches; k++) require(!c.trajectory->drawn[c.trajectory->branch[k]]);
    completion_free(&c);
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
    if (request(&q, &m, *data & 1 ? SERVE_CHAT : SERVE_COMPLETION, (const char *)data + 1, n - 1, &f)) {
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
    m.gateway = true;
    trajectory(&x, *data & 1 ? SERVE_CHAT : SERVE_COMPLETION, (const char *)data + 1, n - 1);
    tool_format_free(&m.format);
    chat_template_free(&t.chat);
    tokenizer_free(&t.tokenizer);
    return 0;
}

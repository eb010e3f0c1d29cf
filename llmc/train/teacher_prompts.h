/* teacher_prompts.h - other prompts for the teacher: the same completions after a prompt with more in it, as a demonstration,
 * a hint or an answer.
 *
 * A row's field --teacher-prompt is a text, which becomes the user's message, or a list of messages {"role", "content"}; it
 * is encoded by the model's chat template, as make_shard encodes prompts. With the model itself as the teacher, the student
 * learns to answer the plain prompt as it would answer the other one (on-policy self-distillation: Shenfeld et al. 2026,
 * 2601.19897).
 *
 *     TeacherPrompts p;
 *     ModelText text;
 *     if (!teacher_prompts_read(&p, &prompts, &text, "hint", &e)) return false;
 *     teacher_prompts_open(&p, &g);                                  // after generation_open()
 *     const Batch *read = teacher_prompts_pack(&p, &g, 0, 8);        // completions 0 to 7, as generation_pack() does
 *     teacher_prompts_close(&p);
 */
#ifndef LLMC_TRAIN_TEACHER_PROMPTS_H
#define LLMC_TRAIN_TEACHER_PROMPTS_H

#include "../base/error.h"       /* error_set, Error, die, xcalloc, ... */
#include "../base/text.h"        /* TokenList, token_list_free */
#include "../model/batch.h"      /* Batch */
#include "../model/model_text.h" /* ModelText */
#include "../model/pack.h"       /* batch_clear, batch_free, batch_new */
#include "../rollout/prompts.h"  /* Prompts, prompts_length */
#include "../text/chat.h"        /* ChatMessage, chat_encode */
#include "generation.h"          /* Generation, generation_fill */
#include <jansson.h>

typedef struct TeacherPrompts {
    int32_t *tokens; /* of all prompts */
    int64_t *offset; /* (count + 1) */
    int32_t longest;
    int rows;    /* of the largest batch */
    Batch batch; /* the last one */
} TeacherPrompts;

/* Encodes a prompt: a text or a list of messages. */
static inline bool teacher_prompt_encode(const ModelText *t, const json_t *prompt, TokenList *out, Error *e) {
    enum { MOST = 64 };
    ChatMessage messages[MOST] = {{"user", json_string_value(prompt)}};
    int count = json_is_string(prompt) ? 1 : 0;
    const size_t n = json_array_size(prompt);
    if (n > MOST) return error_set(e, "more than %d messages", MOST);
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(prompt, i);
        messages[count++] = (ChatMessage){json_string_value(json_object_get(m, "role")),
                                          json_string_value(json_object_get(m, "content"))};
        if (!messages[i].role || !messages[i].content)
            return error_set(e, "message %zu has no \"role\" or no \"content\"", i + 1);
    }
    if (!count) return error_set(e, "expected a text or a list of messages");
    return chat_encode(&t->chat, &t->tokenizer, messages, count, true, out, NULL, e);
}

/* Reads the field of every prompt. */
static inline bool teacher_prompts_read(TeacherPrompts *p, const Prompts *prompts, const ModelText *t,
                                        const char *field, Error *e) {
    TokenList ids = {0};
    Error why = {""};
    bool ok = t->present && t->has_template;
    *p = (TeacherPrompts){.offset = (int64_t *)xcalloc((size_t)prompts->count + 1, sizeof(int64_t))};
    if (!ok) return error_set(e, "--teacher-prompt: the model has no tokenizer and chat template to encode it by");
    for (int64_t i = 0; ok && i < prompts->count; i++) {
        const char *fields = prompts->what[i].fields;
        json_t *row = fields && *fields ? json_loads(fields, 0, NULL) : NULL, *value = json_object_get(row, field);
        ids.count = 0;
        ok = value ? teacher_prompt_encode(t, value, &ids, &why) : error_set(&why, "the row has no such field");
        json_decref(row);
        if (!ok) break;
        const int64_t at = p->offset[i], end = at + ids.count;
        p->tokens = (int32_t *)xrealloc(p->tokens, (size_t)end + 1, sizeof *p->tokens);
        memcpy(p->tokens + at, ids.ids, (size_t)ids.count * sizeof *p->tokens);
        p->offset[i + 1] = end;
        if (ids.count > p->longest) p->longest = (int32_t)ids.count;
        if (!ids.count) ok = error_set(&why, "it is empty");
    }
    token_list_free(&ids);
    return ok || error_set(e, "%s: --teacher-prompt %s: %s", prompts->shard.name, field, why.text);
}

/* Makes the batch. It has the completions of the generation's micro-batches with other prompts, each of which is by at most
 * so many tokens longer. */
static inline void teacher_prompts_open(TeacherPrompts *p, const Generation *g) {
    int64_t more = 0;
    if (g->train.held)
        die("--teacher-prompt: cannot be used with a program of --tool-cmd that shows something before the first turn "
            "(\"opening\"): it would not follow the teacher's prompt");
    for (int64_t i = 0; i < g->train.count; i++) {
        const int64_t longer = p->offset[i + 1] - p->offset[i] - prompts_length(&g->train, i);
        if (longer > more) more = longer;
    }
    const int64_t groups = g->o->prompts < g->rows ? g->o->prompts : g->rows;
    p->rows = g->rows + (int)(more * groups);
    p->batch = batch_new(p->rows, g->rows, g->rows);
}

static inline const Batch *teacher_prompts_pack(TeacherPrompts *p, const Generation *g, int32_t first, int32_t end) {
    batch_clear(&p->batch);
    generation_fill(g, &p->batch, first, end, p->tokens, p->offset);
    return &p->batch;
}

static inline void teacher_prompts_close(TeacherPrompts *p) {
    free(p->tokens), free(p->offset);
    if (p->rows) batch_free(&p->batch);
}

#endif

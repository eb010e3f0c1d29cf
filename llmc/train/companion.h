/* companion.h - the file of a second model that a training state needs: one that is trained (second_model.h), or a reference.
 *
 * The companion of a state at PATH is stored in PATH.KIND-STEP. It is written before the state, so the companion of a
 * state always exists; that of the previous state is removed once the new state is complete. The trainer
 * (trainer.h) writes it together with its states:
 *
 *     Companion c = {0};
 *     const char *from = companion_resume(&c, "critic", NULL, 0);    // NULL: a new run
 *     bool critic_save(void *critic, const char *path, Error *e);    // writes the model
 *     c.save = critic_save;
 *     companion_save(&c, "ppo.bin.state", step, true, &e);           // before the state is written
 *     companion_forget(&c, true);                                    // after it is written
 *     companion_free(&c);
 */
#ifndef LLMC_TRAIN_COMPANION_H
#define LLMC_TRAIN_COMPANION_H

#include "../base/error.h" /* Error, xmalloc */
#include <unistd.h>

typedef struct Companion {
    const char *kind; /* part of the file's name */
    /* Writes the model to a path; NULL: there is no companion. */
    bool (*save)(void *context, const char *path, Error *e);
    void *context;         /* its first argument */
    char *written, *stale; /* files of the last state and of the state before it */
} Companion;

static inline char *companion_path(const char *kind, const char *state, int64_t step) {
    const size_t size = strlen(state) + strlen(kind) + 32;
    char *path = (char *)xmalloc(size);
    snprintf(path, size, "%s.%s-%lld", state, kind, (long long)step);
    return path;
}

/* Names the companion. Returns the path of the one that belongs to the resumed state, or NULL if state is NULL (a new
 * run). */
static inline const char *companion_resume(Companion *c, const char *kind, const char *state, int64_t step) {
    c->kind = kind;
    c->written = state ? companion_path(kind, state, step) : NULL;
    return c->written;
}

/* Writes the companion of a state that is about to be written. writes: this rank writes files. The companion of a state
 * at another path, from which the run was resumed, is kept. */
static inline bool companion_save(Companion *c, const char *state, int64_t step, bool writes, Error *e) {
    if (!c->save) return true;
    char *before = c->written;
    c->written = companion_path(c->kind, state, step);
    const size_t same = strlen(state) + 1 + strlen(c->kind) + 1;
    const bool replaced = before && !strncmp(before, c->written, same);
    free(c->stale);
    c->stale = replaced ? before : NULL;
    if (!replaced) free(before);
    return !writes || c->save(c->context, c->written, e);
}

/* Removes the companion of the previous state. Call it after the new state is written. */
static inline void companion_forget(Companion *c, bool writes) {
    if (writes && c->stale && strcmp(c->stale, c->written)) unlink(c->stale);
    free(c->stale);
    c->stale = NULL;
}

static inline void companion_free(Companion *c) {
    free(c->written), free(c->stale);
    *c = (Companion){0};
}

#endif

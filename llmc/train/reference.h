/* reference.h - frozen reference model of KL terms and preference losses.
 *
 * The reference is the model that the run began with, or another model with the same vocabulary (--reference FILE). A
 * resumed run must name the file again; the state contains the model's hash, and any other model is rejected.
 *
 *     Reference r;
 *     if (beta > 0) reference_open(&r, &trainer, o.reference, rows, "--beta is not 0");
 *     model_forward(&r.model, &r.work, &batch, temperature, &out);
 *     reference_close(&r);
 */
#ifndef LLMC_TRAIN_REFERENCE_H
#define LLMC_TRAIN_REFERENCE_H

#include "trainer.h"

typedef struct Reference {
    Model model;
    ModelFile file;
    Workspace work;
} Reference;

/* Memory of a reference in bytes, for trainer_announce(). rows: of the largest micro-batch. */
static inline size_t reference_bytes(const ModelConfig *c, const Backend *b, int rows) {
    return model_bytes(c, b, false) * 2 + workspace_bytes(c, b, rows, rows, rows, false, 0);
}

/* Opens the reference. Call it after trainer_open() and before the first step. path: a model, or NULL for the model of
 * -c; why: the option that needs a reference, for the error message. Errors end the program (see trainer.h). */
static inline void reference_open(Reference *r, Trainer *t, const char *path, int rows, const char *why) {
    Error e;
    *r = (Reference){0};
    const bool load = path || t->o->resume;
    if (!path) path = t->o->checkpoint;
    if (load && (!path || !strcmp(path, "-"))) usage_error("--reference: give the reference model's file (%s)", why);
    if (load) {
        if (!model_load(&r->model, &r->file, path, NULL, false, t->backend, t->device, false, (uint64_t)t->o->seed,
                        NULL, &e))
            die("%s", e.text);
        if (!model_fits_vocab(&r->model.config, path, t->model.config.vocab, "the model", &e)) die("%s", e.text);
    } else if (!model_copy(&r->model, &t->model, &e)) die("%s", e.text);
    char name[20];
    snprintf(name, sizeof name, "%016llx", (unsigned long long)(load ? r->file.hash : t->file.hash));
    const char *before = json_string_value(json_object_get(t->state, "reference"));
    if (before && strcmp(before, name)) die("%s: it is not the reference that the run began with", path);
    json_object_set_new(t->state, "reference", json_string(name));
    if (!workspace_new(&r->work, &r->model, rows, rows, rows, false, 0, &e)) die("%s", e.text);
}

static inline void reference_close(Reference *r) {
    workspace_free(&r->work, &r->model);
    model_free(&r->model);
    model_file_free(&r->file);
}

#endif

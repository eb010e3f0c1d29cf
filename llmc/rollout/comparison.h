/* comparison.h - two models on the same tokens: exact KL divergences over the whole vocabulary, by position and token by
 * token.
 *
 *     Comparison c;
 *     FitSide side = {0};                                                         // of the model
 *     if (!comparison_open(&c, "reference.bin", &model, &side, rows, longest, &e)) return false;
 *     comparison_run(&c, &model, &work, &batch, temperature, &out);               // fills c.apart
 *     for (int32_t r = 0; r < batch.targets; r++) comparison_add(&c, r, out.logp[r], out.entropy[r], out.argmax[r], 0);
 *     comparison_close(&c);
 *
 * Sampled estimates of KL(model || reference) (loss/kl.h) are unbiased on samples of the model: comparison_sampled() adds
 * them at the same prefixes as the exact value, so that they can be compared.
 */
#ifndef LLMC_ROLLOUT_COMPARISON_H
#define LLMC_ROLLOUT_COMPARISON_H

#include "../base/error.h"        /* xcalloc, Error, xmalloc */
#include "../loss/kl.h"           /* KlEstimator, kl_estimate */
#include "../model/backend.h"     /* Floats, TOKEN_JSD */
#include "../model/batch.h"       /* Batch */
#include "../model/config.h"      /* ModelConfig */
#include "../model/divergence.h"  /* ModelDivergence, DivergenceOutput, model_divergence */
#include "../model/model.h"       /* Model, model_free, model_set_longest */
#include "../model/model_file.h"  /* model_load_as */
#include "../model/model_fits.h"  /* FitSide, fit_model, model_fits, model_fits_policy */
#include "../model/model_load.h"  /* ModelFile, ModelLoad, model_file_free */
#include "../model/transformer.h" /* ModelOutput, model_logits_part */
#include "../model/workspace.h"   /* Workspace, workspace_free, workspace_new */

enum { COMPARISON_DECILES = 10, COMPARISON_ESTIMATORS = 3, COMPARISON_TOP = 5 };

/* Sums over targets. */
typedef struct ComparisonSums {
    double targets, kl, reverse, js;              /* KL(model || reference), KL(reference || model), Jensen-Shannon */
    double nats, reference_nats;                  /* -log p of the targets */
    double entropy, reference_entropy, agreement; /* agreement: the most likely tokens are equal */
} ComparisonSums;

typedef struct Comparison {
    const char *name; /* of the reference, for messages */
    Model reference;
    ModelFile file;
    Workspace work;
    ModelDivergence how;
    DivergenceOutput apart; /* of the batch */
    ComparisonSums all, decile[COMPARISON_DECILES];
    double estimate[COMPARISON_ESTIMATORS], square[COMPARISON_ESTIMATORS]; /* sums of k - KL and of its square */
    double size[COMPARISON_ESTIMATORS];                                    /* sums of k^2 */
    double sampled, sampled_kl; /* targets of these, and the sum of KL at them */
} Comparison;

/* Loads the reference, which must have the model's tokens. rows: of the largest batch; longest: positions of the longest
 * sequence. */
static inline bool comparison_open(Comparison *c, const char *path, const Model *m, const FitSide *model, int rows,
                                   int32_t longest, Error *e) {
    const size_t n = (size_t)rows;
    *c = (Comparison){.name = path};
    const ModelLoad how = {0};
    if (!model_load_as(&c->reference, &c->file, path, &how, m->backend, m->device, NULL, e)) return false;
    const FitSide reference = fit_model(path, &c->reference.config, &c->file);
    if (!model_fits_policy(&c->file, path, e) || !model_fits(&reference, model, longest, NULL, e)) return false;
    model_set_longest(&c->reference, longest);
    if (!workspace_new(&c->work, &c->reference, rows, rows, rows, false, 0, e)) return false;
    c->how = (ModelDivergence){.teacher = &c->reference, .work = &c->work, .kind = TOKEN_JSD, .beta = 0.5f};
    float **all[] = {&c->apart.value, &c->apart.forward_kl, &c->apart.reverse_kl, &c->apart.logp, &c->apart.entropy};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = (float *)xcalloc(n, sizeof(float));
    c->apart.argmax = (int32_t *)xcalloc(n, sizeof *c->apart.argmax);
    return true;
}

static inline void comparison_close(Comparison *c) {
    if (!c->name) return;
    workspace_free(&c->work, &c->reference);
    model_free(&c->reference), model_file_free(&c->file);
    free(c->apart.value), free(c->apart.forward_kl), free(c->apart.reverse_kl), free(c->apart.logp);
    free(c->apart.entropy), free(c->apart.argmax);
}

/* Runs both models on a batch. temperature: of both distributions. */
static inline void comparison_run(Comparison *c, const Model *m, const Workspace *w, const Batch *b, float temperature,
                                  const ModelOutput *out) {
    c->how.temperature = temperature;
    model_divergence(m, w, b, &c->how, NULL, temperature, out, &c->apart);
}

/* Adds target r of the batch. logp, entropy, argmax: the model's; place: in [0, 1), of the target in its sequence. */
static inline void comparison_add(Comparison *c, int32_t r, float logp, float entropy, int32_t argmax, double place) {
    const int decile = (int)(place * COMPARISON_DECILES);
    ComparisonSums *sums[] = {&c->all, &c->decile[decile < COMPARISON_DECILES ? decile : COMPARISON_DECILES - 1]};
    for (int i = 0; i < 2; i++) {
        ComparisonSums *s = sums[i];
        s->targets++;
        s->kl += c->apart.reverse_kl[r];
        s->reverse += c->apart.forward_kl[r];
        s->js += c->apart.value[r];
        s->nats -= logp;
        s->reference_nats -= c->apart.logp[r];
        s->entropy += entropy;
        s->reference_entropy += c->apart.entropy[r];
        s->agreement += argmax == c->apart.argmax[r];
    }
}

/* Adds the sampled estimates at target r, a token that the model drew. */
static inline void comparison_sampled(Comparison *c, int32_t r, float logp) {
    const double exact = c->apart.reverse_kl[r];
    for (int i = 0; i < COMPARISON_ESTIMATORS; i++) {
        const double k = kl_estimate((KlEstimator)i, (double)logp - c->apart.logp[r], NULL);
        c->estimate[i] += k - exact;
        c->square[i] += (k - exact) * (k - exact);
        c->size[i] += k * k;
    }
    c->sampled++;
    c->sampled_kl += exact;
}

/* The mean of estimator i; *error: the standard error of its difference from the exact mean; *deviation: of one token's. */
static inline double comparison_estimate(const Comparison *c, int i, double *error, double *deviation) {
    const double n = c->sampled, gap = c->estimate[i] / n, mean = gap + c->sampled_kl / n;
    *error = sqrt(fmax(c->square[i] / n - gap * gap, 0) / n);
    *deviation = sqrt(fmax(c->size[i] / n - mean * mean, 0));
    return mean;
}

/* What a model finds likely at one target. */
typedef struct ComparisonView {
    int32_t rank; /* of the target among all tokens, from 1 */
    int32_t top[COMPARISON_TOP];
    float p[COMPARISON_TOP];
} ComparisonView;

/* The view from a row of V logits, which may be of one token less than COMPARISON_TOP: then top ends with -1. */
static inline ComparisonView comparison_view(const float *z, int V, int32_t target, float temperature) {
    ComparisonView v = {.rank = 1};
    double sum = 0;
    int count = 0;
    for (int i = 0; i < V; i++) v.rank += z[i] > z[target] || (z[i] == z[target] && i < target);
    for (int i = 0; i < V; i++) {
        int at = count < COMPARISON_TOP ? count : COMPARISON_TOP;
        while (at > 0 && z[i] > z[v.top[at - 1]]) at--;
        if (at == COMPARISON_TOP) continue;
        count += count < COMPARISON_TOP;
        memmove(v.top + at + 1, v.top + at, (size_t)(count - 1 - at) * sizeof *v.top);
        v.top[at] = i;
    }
    for (int i = 0; i < V; i++) sum += exp((double)(z[i] - z[v.top[0]]) / temperature);
    for (int k = 0; k < COMPARISON_TOP; k++) {
        if (k < count) v.p[k] = (float)(exp((double)(z[v.top[k]] - z[v.top[0]]) / temperature) / sum);
        else v.top[k] = -1;
    }
    return v;
}

/* The views of all targets of the last batch, (targets) in new memory; NULL if there is no memory for some rows of logits.
 * Call it after comparison_run(). */
static inline ComparisonView *comparison_views(const Model *m, const Workspace *w, const Batch *b, float temperature,
                                               Error *e) {
    enum { ROWS = 16 };
    const ModelConfig *c = &m->config;
    const size_t V = (size_t)c->vocab;
    Floats *z = (Floats *)m->backend->alloc(m->device, ROWS * V * sizeof(float), "logits", e);
    if (!z) return NULL;
    float *host = (float *)xmalloc(ROWS * V * sizeof *host);
    ComparisonView *all = (ComparisonView *)xcalloc((size_t)b->targets, sizeof *all);
    for (int32_t first = 0; first < b->targets; first += ROWS) {
        const int32_t n = b->targets - first < ROWS ? b->targets - first : ROWS;
        model_logits_part(m, w, first, n, z, host);
        for (int32_t r = 0; r < n; r++)
            all[first + r] = comparison_view(host + (size_t)r * V, c->vocab, b->target_token[first + r], temperature);
    }
    free(host);
    m->backend->release(m->device, z);
    return all;
}

#endif

/* cost_model.h - predicted time and memory of a training step on W ranks.
 *
 * cost_model.c evaluates the formulas for GPUs; bench_dist.c compares them with measurements. P: parameters, T: those
 * that are trained (all, or only adapters), N: tokens per step on all ranks, W: ranks; all times in seconds.
 *
 *   compute   (4 P + 2 T) N / (W F)                   F: FLOP/s of a rank in training, attention included
 *   sums      zero 0:  2 (W-1)/W 4T / B + K lat       gradients are float32; B: bytes/s of a rank into the network;
 *             zero 1:  (W-1)/W (4T + w T) / B + K lat    w: bytes per gathered weight; K: operations; lat: latency of
 *             zero 2:  (W-1)/W (4T m + w T) / B + K lat  one; m: micro-batches per step, each of which is summed
 *   hidden    the sums of the layers' gradients (not of the embeddings', which come last), but at most the backward
 *             pass of the last micro-batch (2/3 of its compute; zero 2: of all micro-batches), times `overlap`
 *   step      compute + sums - hidden
 *
 * Memory of a rank: weights w P, of which Q quantised ones take q bytes each and a decoded matrix w bytes per element;
 * gradients 4T (zero 2: those of two layers and the embeddings, and 4T/W); moments 8T and master weights 4T, both divided
 * by W from zero 1 on; activations per token of a micro-batch.
 */
#ifndef LLMC_COST_MODEL_H
#define LLMC_COST_MODEL_H

#include "../llmc/model/config.h"  /* ModelConfig */
#include "../llmc/model/tensors.h" /* TENSOR_COUNT, TensorInfo, model_tensors, tensor_of_layer, ... */

typedef struct CostMachine {
    double flops;        /* FLOP/s of one rank in training */
    double bandwidth;    /* bytes/s of one rank into the network */
    double latency;      /* seconds of one operation */
    double overlap;      /* 0: sums and compute run in turn; 1: sums do not slow compute down */
    double weight_bytes; /* 2: bf16 with float32 master weights; 4: float32 */
} CostMachine;

typedef struct CostRun {
    double parameters, trained, layer_parameters; /* all; those that are trained, in total and of one layer */
    double layers;
    double quantized, block_bytes; /* quantised weights, and bytes of each; 0: none */
    double largest;                /* elements of the largest quantised matrix */
    double tokens, micros;         /* tokens per step on all ranks; micro-batches per step and rank */
    int ranks, zero;
} CostRun;

typedef struct CostStep {
    double compute, sums, exposed, step;
    double bytes; /* sent per rank */
} CostStep;

static inline CostRun cost_run(const ModelConfig *c, double tokens, double micros, int ranks, int zero) {
    TensorInfo t[TENSOR_COUNT];
    CostRun r = {.parameters = (double)model_tensors(c, t), .layers = c->layers};
    for (int i = 0; i < TENSOR_COUNT; i++) {
        if (tensor_trained(&t[i])) r.trained += (double)t[i].size;
        if (tensor_of_layer(&t[i])) r.layer_parameters += (double)t[i].rows * (double)t[i].columns;
    }
    r.tokens = tokens;
    r.micros = micros;
    r.ranks = ranks;
    r.zero = zero;
    return r;
}

/* Quantises the matrices of linear layers at this number of bytes per weight. Embeddings and the output matrix stay weights, as
 * on a GPU. */
static inline void cost_quantize(CostRun *r, const ModelConfig *c, double block_bytes) {
    TensorInfo t[TENSOR_COUNT];
    model_tensors(c, t);
    for (int i = 0; i < LINEAR_MATRICES; i++) {
        const TensorInfo *matrix = &t[matrix_tensor[i]];
        const double elements = (double)matrix->rows * (double)matrix->columns;
        r->quantized += (double)matrix->size;
        if (elements > r->largest) r->largest = elements;
    }
    r->block_bytes = block_bytes;
}

/* Bytes of the weights. */
static inline double cost_weights(const CostMachine *m, const CostRun *r) {
    return m->weight_bytes * (r->parameters - r->quantized) + r->block_bytes * r->quantized;
}

/* Bytes that a decode step moves: it reads the weights once; quantised ones are decoded into a buffer, written and read. */
static inline double cost_read(const CostMachine *m, const CostRun *r) {
    return cost_weights(m, r) + 2 * m->weight_bytes * r->quantized;
}

static inline CostStep cost_step(const CostMachine *m, const CostRun *r) {
    const double W = r->ranks, others = (W - 1) / W, layers = r->layers * r->layer_parameters;
    const double rest = r->trained - layers, times = r->zero == 2 ? r->micros : 1;
    const double half = r->zero == 0 ? 2 : 1; /* zero 0: an all-reduce sends the sums back as well */
    const double weights = r->zero == 0 ? 0 : m->weight_bytes * r->trained;
    CostStep s = {.compute = (4 * r->parameters + 2 * r->trained) * r->tokens / (W * m->flops)};
    if (r->ranks == 1) {
        s.step = s.compute;
        return s;
    }
    const double operations = r->layers * times + 1 + (r->zero ? 1 : 0);
    const double of_layers = others * half * 4 * layers * times / m->bandwidth + r->layers * times * m->latency;
    s.bytes = others * (half * 4 * (layers * times + rest) + weights);
    s.sums = s.bytes / m->bandwidth + operations * m->latency;
    /* backward passes that sums overlap with */
    const double backward = r->zero == 2 ? s.compute * 2 / 3 : s.compute * 2 / 3 / r->micros;
    const double hidden = m->overlap * (of_layers < backward ? of_layers : backward);
    s.exposed = s.sums - hidden;
    s.step = s.compute + s.exposed;
    return s;
}

/* Memory of a rank in bytes, without activations. */
static inline double cost_memory(const CostMachine *m, const CostRun *r) {
    const double T = r->trained, W = r->ranks, embeddings = T - r->layers * r->layer_parameters;
    const bool cut = r->ranks > 1 && r->zero > 0;
    const double grads = r->ranks > 1 && r->zero == 2 ? 4 * (embeddings + 2 * r->layer_parameters) + 4 * T / W : 4 * T;
    const double state = (8 + (m->weight_bytes < 4 ? 4 : 0)) * T / (cut ? W : 1);
    return cost_weights(m, r) + m->weight_bytes * r->largest + grads + state;
}

#endif

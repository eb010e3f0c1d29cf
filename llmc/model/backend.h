/* backend.h - the contract between the model and a device: a table of tensor operations.
 *
 * transformer.h, rollout.h and optimizer.h are written once over this table. cpu.c implements it for the CPU and
 * cuda.cu for CUDA. Each operation is the work of one fused kernel; there is no `add` or `multiply`.
 *
 * The type of a pointer to device memory says what the memory holds. These types are incomplete, so host code cannot
 * dereference such pointers.
 *
 *   Weights   parameters in the backend's storage type      (weight_size bytes each)
 *   Acts      activations and their gradients               (act_size bytes each)
 *   Floats    float32: statistics, log-probabilities, gradients of parameters, optimizer moments
 *   Ints      int32: tokens, positions, rows, segments
 *   Blocks    rows of quantised matrices (quantized.h)
 *
 * Shapes are given in brackets, row-major, last index fastest: N rows of a packed batch, C channels, V vocabulary, Vp
 * padded vocabulary, R target rows, S segments, H heads, D channels per head. Buffers of activations hold whole
 * multiples of ROW_ALIGN rows. Operations may read and overwrite the rows past N (or R) up to the next multiple; their
 * contents are undefined. Gradients of parameters are accumulated (+=); all other outputs are overwritten (=) unless
 * marked +=.
 *
 * Operations are queued in order on one stream; sync() waits for them. An operation returns nothing: errors are sticky
 * and sync() reports them. Results do not depend on the number of threads, except for the rounding of matrix products.
 *
 * nvcc compiles this header too, so it uses only the common subset of C and C++.
 */
#ifndef LLMC_MODEL_BACKEND_H
#define LLMC_MODEL_BACKEND_H

#include "../base/error.h" /* Error */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Device Device;
typedef struct Weights Weights;
typedef struct Acts Acts;
typedef struct Floats Floats;
typedef struct Ints Ints;
typedef struct Blocks Blocks;

enum { ROW_ALIGN = 16 };

typedef enum Dtype { DTYPE_FLOAT32 = 0, DTYPE_BF16 = 1 } Dtype; /* precision of the inputs of matrix products */

/* How the elements of a matrix are stored; quantized.h describes the blocks of these types. */
typedef enum QuantType {
    QUANT_F32,
    QUANT_F16,
    QUANT_BF16,
    QUANT_Q4_0,
    QUANT_Q4_1,
    QUANT_Q5_0,
    QUANT_Q5_1,
    QUANT_Q8_0,
    QUANT_Q4_K,
    QUANT_Q5_K,
    QUANT_Q6_K,
    QUANT_COUNT
} QuantType;

/* A quantised matrix: up to QUANT_PARTS ranges of rows, one after another, each of one type. A row is a whole number of
 * blocks, and the rows of a range have no gaps. */
enum { QUANT_PARTS = 3 };
typedef struct QuantMatrix {
    int32_t parts;
    int16_t unfit;  /* 1: it was given values that its types cannot hold */
    int16_t mapped; /* bit i: the blocks of range i belong to a file that is mapped into memory */
    int32_t type[QUANT_PARTS], rows[QUANT_PARTS];
    const Blocks *blocks[QUANT_PARTS];
} QuantMatrix;

/* Normalisation of N rows of C channels, of s = x, or of s = x + delta:
 *   NORM_LAYER   out = (s - mean) rstd w + b,   rstd = 1 / sqrt(variance + eps)             layernorm (Ba et al. 2016)
 *   NORM_RMS     out = s rstd w,                rstd = 1 / sqrt(mean of squares + eps)      Zhang and Sennrich 2019
 * Backward, with n = (s - mean) rstd and g = dout w:  dx += rstd (g - mean(g) - n mean(g n)), dw += dout n, db += dout;
 * NORM_RMS has neither the mean of s nor the mean of g. */
typedef enum NormKind { NORM_LAYER, NORM_RMS } NormKind;
typedef struct Norm {
    int rows, channels;
    NormKind kind;
    float eps;
    int plus_one;         /* 1: NORM_RMS multiplies by 1 + w (Gemma) */
    int fresh;            /* backward: 1: dx = instead of += */
    const Weights *w, *b; /* (C); b: not for NORM_RMS */
    const Acts *x;        /* (N, C); in the backward pass the normalised sum */
    Floats *mean;         /* (N); not for NORM_RMS */
    Floats *rstd;         /* (N) */
    /* forward only */
    const Acts *delta; /* (N, C) or NULL */
    Acts *sum;         /* (N, C) x + delta; may be x; only with delta */
    Acts *out;         /* (N, C) */
    const Acts *add;   /* (N, C) NORM_RMS: added to the result; may be out; not with delta. NULL: nothing */
    /* backward only */
    const Acts *dout; /* (N, C) */
    Acts *dx;         /* (N, C) += */
    Floats *dw, *db;  /* (C) or NULL: not computed, both together; db: not for NORM_RMS */
} Norm;

/* The activation of a layer's MLP: gelu(pre), or a gate computed from one half of pre times the other half (Shazeer
 * 2020). */
typedef enum MlpKind { MLP_GELU, MLP_SWIGLU, MLP_GEGLU } MlpKind;

/* The backward pass of an MLP's second linear layer and its activation, out = act w^T + b with act = f(pre):
 *   act = f(pre),  dpre = (dout w) f'(pre),  dw += dout^T act,  db += sum of rows of dout
 * pre and dpre are (N, F) for MLP_GELU, and otherwise (N, 2F) as in gate_forward. */
typedef struct MlpBackward {
    int rows, hidden, width;
    MlpKind kind;
    const Acts *dout; /* (N, C) */
    const Acts *pre;  /* (N, F) or (N, 2F) */
    const Weights *w; /* (C, F) */
    Acts *act;        /* (N, F) written with the bits of the forward pass */
    Acts *dpre;       /* like pre; may not be pre */
    Floats *dw, *db;  /* (C, F), (C), or NULL: not computed */
} MlpBackward;

/* The queries and keys of N rows, in place: an RMSNorm, then the rotation of positions (Su et al. 2021). Row i of q and
 * of k starts at element i * stride; k follows q, so a row is H + K heads of D channels.
 *
 * The norm takes groups of q_group or k_group channels, D (each head by itself) or all of them, whose weights are those
 * of the first group. NULL weights: no norm. Then each head is rotated by the angles of its row: for j < R/2, with
 * (c_j, s_j) = (table[i, j], table[i, R/2 + j]) of a table whose rows are table_stride apart,
 *   x'_j = x_j c_j - x_{j+R/2} s_j,     x'_{j+R/2} = x_{j+R/2} c_j + x_j s_j
 * in float32; channels from R on do not change. table NULL: no rotation. The backward pass turns dq and dk, gradients
 * of the results, into those of the inputs. */
typedef struct Rotary {
    int rows, heads, kv_heads, head_size, rotated, stride, table_stride, q_group, k_group, plus_one;
    float eps;
    int before_stride;      /* distance between rows of `before` */
    const Floats *table;    /* (N, table_stride) or NULL */
    const Weights *qw, *kw; /* (q_group), (k_group) or NULL */
    Acts *qk;               /* q and k; in the backward pass their gradients */
    Acts *before;           /* (N, (H + K) D) q and k before the norm; NULL: not kept, or no norm */
    Floats *rstd;           /* (N, groups of q + groups of k) of the norm; NULL: not kept, or no norm */
    Floats *dqw, *dkw;      /* backward only: (q_group), (k_group) +=; NULL, both together: not computed */
} Rotary;

/* Low-rank adapters of a linear layer (Hu et al. 2021), one for each of its `parts`. Part p has `rank` rows of a and
 * count[p] rows of b, which follow those of the part before; its outputs are the channels first[p] .. first[p] +
 * count[p] - 1 of rows that are `stride` apart:
 *   h = x a^T,   out[:, part p] += scale h[:, part p] b_p^T
 * Backward:  dh = scale dout[:, part p] b_p,  db_p += scale dout[:, part p]^T h,  da += dh^T x,  dx += dh a. */
enum { LORA_PARTS = 3 };
typedef struct Lora {
    int rows, in, rank, parts, stride;
    int first[LORA_PARTS], count[LORA_PARTS];
    float scale;
    const Acts *x;    /* (N, in) */
    const Weights *a; /* (parts * rank, in) */
    const Weights *b; /* (sum of count, rank) */
    Acts *h;          /* (N, parts * rank) written by the forward pass, read by the backward pass */
    Acts *out;        /* (N, stride) += */
    /* backward only */
    const Acts *dout; /* (N, stride) */
    Acts *dx;         /* (N, in) += */
    Floats *da, *db;  /* like a and b, += */
} Lora;

/* DoRA (Liu et al. 2024, arXiv:2402.09353): the rows of W + scale B A of a layer's parts (see Lora) get the lengths
 * `magnitude`. With n_c = |row c of W + scale B A|, which the gradient takes for a constant (section 4.3; as in peft), and
 * u = out - bias after the linear layer and lora_forward:
 *   norm      norm[c] = n_c, 1 for a row of zeros
 *   forward   out = bias + magnitude / n u = out + (magnitude / n - 1) u
 *   backward  dscaled = magnitude / n dout, which then is the gradient of u; dmagnitude += sum of rows of dout u / n;
 *             channels outside the parts: dscaled = dout */
typedef struct Dora {
    int rows, in, rank, parts, stride;
    int first[LORA_PARTS], count[LORA_PARTS];
    float scale;
    const Weights *w;         /* (stride, in) */
    QuantMatrix matrix;       /* instead of w if it has parts */
    const Weights *a, *b;     /* as in Lora */
    const Weights *magnitude; /* (sum of count) */
    const Weights *bias;      /* (stride) or NULL */
    Floats *norm;             /* (sum of count) */
    Acts *u;                  /* (N, sum of count) written by the forward pass; NULL: not kept */
    Acts *out;                /* (N, stride) */
    /* backward only */
    const Acts *dout;   /* (N, stride) */
    Acts *dscaled;      /* (N, stride); not dout */
    Floats *dmagnitude; /* (sum of count) += */
} Dora;

/* out[N,H,D] = softmax(scale q k^T) v over each segment's keys (see batch.h). Row i starts at element i * q_stride of q
 * and i * kv_stride of k and v. Query head h reads key head h * kv_heads / heads. The stride of out is H * D. */
typedef struct Attention {
    int rows, segments, heads, kv_heads, head_size, q_stride, kv_stride;
    float scale;         /* of the scores */
    float cap;           /* scores become cap tanh(score / cap) (Gemma 2); 0: no cap */
    int window;          /* a query sees only the last `window` positions, its own included (batch.h); 0: all */
    const Ints *segment; /* (S, 6) as struct Segment */
    const Acts *q, *k, *v;
    Acts *out;   /* (N, H*D); rows in no segment are set to 0 */
    Floats *lse; /* (N, H) log of the softmax's denominator, for the backward pass; NULL: not computed */
    /* backward only */
    const Acts *dout;   /* (N, H*D) */
    Acts *dq, *dk, *dv; /* same strides as q, k, v; rows in no segment are set to 0 */
} Attention;

/* The language-model head over R rows, in chunks, so that all logits never exist at once:
 *   z = h weight^T / temperature,  logp = z[target] - logsumexp(z),  entropy = -sum_v p_v log p_v,  over v < V.
 * With dlogp (and dentropy) it also computes the gradient in the same pass:
 *   dz_v = dlogp (1{v = target} - p_v) - dentropy p_v (log p_v + entropy),  dh = dz weight / temperature,
 *   dweight += dz^T h / temperature. */
typedef struct Head {
    int rows, channels, vocab, padded_vocab;
    float temperature;
    float cap;                 /* logits become cap tanh(z / cap), before the temperature; 0: no cap */
    const Acts *h;             /* (R, C) */
    const Weights *weight;     /* (Vp, C) the output matrix */
    const QuantMatrix *matrix; /* (Vp, C) instead of weight, if it is in blocks; NULL: it is not */
    const Ints *target;        /* (R) */
    Floats *logp;              /* (R) */
    Floats *entropy;           /* (R) or NULL */
    Ints *argmax;              /* (R) most likely token, or NULL */
    const Floats *dlogp;       /* (R) or NULL: no gradient */
    const Floats *dentropy;    /* (R) or NULL */
    Acts *dh;                  /* (R, C) */
    Floats *dweight;           /* (Vp, C) or NULL: not computed; not of a matrix in blocks */
} Head;

/* Divergences of a student's distribution S = softmax(z / temperature) from a teacher's T = softmax(u / temperature), over
 * v < V, with b = beta:
 *   FORWARD_KL     KL(T || S) = sum_v T_v log(T_v / S_v)                          Hinton et al. 2015, without tau^2
 *   REVERSE_KL     KL(S || T)
 *   JSD            b KL(T || M) + (1 - b) KL(S || M),  M = b T + (1 - b) S        Agarwal et al. 2024 (GKD), eq. 1; 0 < b < 1
 *   TVD            1/2 sum_v |S_v - T_v|
 *   SKEW_FORWARD   KL(T || b T + (1 - b) S)                                       Ko et al. 2024 (DistiLLM), section 3.1
 *   SKEW_REVERSE   KL(S || b S + (1 - b) T)                                       the same */
typedef enum TokenDivergenceKind {
    TOKEN_FORWARD_KL,
    TOKEN_REVERSE_KL,
    TOKEN_JSD,
    TOKEN_TVD,
    TOKEN_SKEW_FORWARD,
    TOKEN_SKEW_REVERSE,
    TOKEN_DIVERGENCE_KINDS
} TokenDivergenceKind;

/* The divergence D of R rows, in chunks, so that no more logits of both models exist than head() has of one:
 * also everything that head() computes of the student. With weight, the gradient of sum_r weight_r D_r, to which that of
 * head.dlogp and head.dentropy is added if they are given:
 *   dz_v = weight (S_v g_v - S_v sum_w S_w g_w) / temperature,  g_v = dD/dS_v
 * The models may have different widths, and different rows of padding.
 *
 * The teacher can be a list instead of a model: its `listed` likeliest tokens in each row, and the probability of all others
 * together. Those are given to the others in the proportions of S. D is then the divergence over listed + 1 outcomes, at most
 * that over the vocabulary (the data processing inequality), and equal to it if the list has every token. */
typedef struct TokenDivergence {
    Head head; /* the student; head.dlogp may be NULL with weight; head.temperature is that of logp and entropy alone */
    TokenDivergenceKind kind;
    int channels, padded_vocab; /* of the teacher */
    float temperature, beta;
    float cap;                 /* of the teacher's logits, as in Head */
    const Acts *h;             /* (R, channels) of the teacher; NULL: a list */
    const Weights *output;     /* (padded_vocab, channels) the teacher's output matrix; NULL: a list */
    const QuantMatrix *matrix; /* instead of output, if it is in blocks; NULL: it is not */
    int listed;                /* tokens of a list, from 1 to V; 0: a model */
    const Ints *list;          /* (R, listed) different tokens of a row */
    const Floats *list_logp;   /* (R, listed) log T of them */
    const Floats *rest_logp;   /* (R) log of the sum of T over all other tokens; -inf if there are none */
    Floats *value;             /* (R) D */
    Floats *forward_kl;        /* (R) KL(T || S), or NULL */
    Floats *reverse_kl;        /* (R) KL(S || T), or NULL */
    Floats *logp;              /* (R) log T of the target; NULL with a list */
    Floats *entropy;           /* (R) of T, or NULL; NULL with a list */
    Ints *argmax;              /* (R) the most likely token of T, or NULL; NULL with a list */
    const Floats *weight;      /* (R) or NULL: no gradient */
} TokenDivergence;

/* Draws one token per row from softmax(z / temperature). Before the draw, these are applied in the order of Hugging
 * Face transformers: repetition penalty (z/penalty if z > 0 else z*penalty, for each token in the row's history),
 * temperature, top-k, top-p, min-p. Temperature 0 is greedy. The draw inverts the cumulative distribution over the kept
 * tokens, in the order of their ids, at the uniform number random_uniform(seed, stream, index) (random.h).
 * logp is computed under softmax(z / temperature) over the whole vocabulary, as in the trainer's forward pass, and at
 * temperature 1 when greedy. kept_logp is computed under the distribution that was sampled from. */
typedef struct Draw {
    int rows, channels, vocab, padded_vocab;
    float temperature, top_p, min_p, repetition_penalty; /* neutral: 1, 1, 0, 1 */
    int top_k;                                           /* 0: all */
    int history_stride;
    float cap;    /* logits become cap tanh(z / cap) first of all; 0: no cap */
    int reserved; /* 0; leaves no padding in the struct */
    uint64_t seed;
    const Acts *h;             /* (R, C) */
    const Weights *weight;     /* (Vp, C) the output matrix */
    const QuantMatrix *matrix; /* (Vp, C) instead of weight, if it is in blocks; NULL: it is not */
    const Ints *stream;        /* (R, 2) low and high words */
    const Ints *index;         /* (R) */
    const Ints *history;       /* (R, history_stride) tokens seen so far, or NULL when the penalty is 1 */
    const Ints *history_len;   /* (R) */
    Ints *token;               /* (R) */
    Floats *logp;              /* (R) log-probability of the token */
    Floats *kept_logp;         /* (R) or NULL */
} Draw;

/* AdamW with decoupled weight decay (Loshchilov and Hutter 2019, alg. 2), in one fused pass over n parameters:
 *   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
 *   p -= lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + weight_decay p)
 * With a master copy, p is the master, and the weight is p stochastically rounded to the storage type. */
typedef struct AdamW {
    size_t n;
    float lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step; /* t >= 1 */
    Weights *weights;
    Floats *master; /* float32 copy of the weights, or NULL if weight_size is 4 */
    const Floats *grad;
    Floats *m, *v;
    size_t first; /* index of weights[0] among the model's parameters; selects the random bits of stochastic rounding */
} AdamW;

/* How a model's operations are called, as far as their scratch memory depends on it. */
typedef struct ScratchUse {
    size_t weights;    /* number of weights, without those of quantised matrices */
    int rows;          /* of a batch */
    int sampled;       /* rows that sample() draws for in one call; 0: none */
    int width, widest; /* channels of the residual stream, and of the widest activation */
    int padded_vocab;
    int teacher_width, teacher_vocab; /* channels and padded vocabulary of divergence()'s second model; 0: none */
    int adapters;       /* channels of the widest inner activation of low-rank adapters, parts * rank; 0: no adapters */
    size_t quantized;   /* elements of the largest quantised matrix; 0: none */
    int quantized_head; /* 1: the output matrix is one */
} ScratchUse;

typedef struct Backend {
    const char *name;
    size_t weight_size, act_size;
    size_t recompute; /* the least level of recomputation (workspace.h): lower ones save less time than memory */

    /* Opens the device. Fails, with a message, if the device or the dtype is not available. */
    bool (*open)(Device **d, Dtype dtype, Error *e);
    void (*close)(Device *d);
    bool (*sync)(Device *d, Error *e);
    /* Allocates memory aligned to 64 bytes. On failure returns NULL, with a message that names `what` and the size. */
    void *(*alloc)(Device *d, size_t bytes, const char *what, Error *e);
    /* The same, with zeros. On a CPU, pages that are never used take neither time nor memory. */
    void *(*alloc_zeroed)(Device *d, size_t bytes, const char *what, Error *e);
    void (*release)(Device *d, void *memory);
    /* Device memory that operations hold in addition to what alloc() returned; scratch_predict() predicts it. */
    size_t (*scratch_bytes)(Device *d);
    size_t (*scratch_predict)(Device *d, const ScratchUse *use);
    /* The device's measured peak in its dtype, in FLOP/s; the trainers report their speed as a share of it. On a CPU it
     * is the peak of the arithmetic units, on a GPU that of large matrix products. */
    double (*peak)(Device *d);
    /* Vendor peak for dense matrix products, FLOP/s; 0 if unknown. NULL: always unknown. */
    double (*nominal_peak)(Device *d);
    /* Peak device memory so far, in bytes. NULL: device memory is the process's own memory. */
    size_t (*memory_peak)(Device *d);
    /* For libraries that use device memory without this table: starts all queued operations and returns the stream
     * (cudaStream_t) that they run on. NULL: operations are complete when they return. */
    void *(*stream)(Device *d);
    void (*zero)(Device *d, void *memory, size_t bytes);
    void (*upload)(Device *d, void *device, const void *host, size_t bytes);
    void (*download)(Device *d, void *host, const void *device, size_t bytes); /* synchronous */
    void (*weights_upload)(Device *d, Weights *weights, const float *host, size_t n);
    void (*weights_download)(Device *d, float *host, const Weights *weights, size_t n);
    void (*weights_release)(Device *d, Weights *weights, size_t n);
    /* Called after code outside this table (dist.h) has written these n weights. NULL: nothing depends on them. */
    void (*weights_changed)(Device *d, const Weights *weights, size_t n);

    /* out[N,C] = scale wte[token] + wpe[position]; wpe, dwpe NULL: no positions */
    void (*embed_forward)(Device *d, Acts *out, const Weights *wte, const Weights *wpe, const Ints *token,
                          const Ints *position, float scale, int N, int C);
    void (*embed_backward)(Device *d, Floats *dwte, Floats *dwpe, const Acts *dout, const Ints *token,
                           const Ints *position, float scale, int N, int C);
    /* x[i,c] += scale[i] * u, u uniform in (-1, 1) drawn at (seed, stream + record[i], position[i] * C + c), so that it
     * does not depend on the row  (NEFTune: Jain et al. 2023) */
    void (*noise_add)(Device *d, Acts *x, const Floats *scale, const Ints *record, const Ints *position, int N, int C,
                      uint64_t seed, uint64_t stream);

    void (*norm_forward)(Device *d, const Norm *n);
    void (*norm_backward)(Device *d, const Norm *n);
    /* out[N,OC] = x[N,IC] w[OC,IC]^T + b[OC]; b may be NULL */
    void (*linear_forward)(Device *d, Acts *out, const Acts *x, const Weights *w, const Weights *b, int N, int IC,
                           int OC);
    /* dx = dout w, dw += dout^T x, db += sum of rows of dout; any of the three results may be NULL and is then skipped */
    void (*linear_backward)(Device *d, Acts *dx, Floats *dw, Floats *db, const Acts *dout, const Acts *x,
                            const Weights *w, int N, int IC, int OC);
    /* Declares that the gradient dw of a matrix counts as 0, whatever its memory holds: the next linear_backward, head
     * or divergence that adds to dw, of at least one row, stores instead. NULL: dw must hold zeros. */
    void (*store_next)(Device *d, const Floats *dw);
    /* pre = x w^T + b, out = gelu(pre), tanh approximation (Hendrycks and Gimpel 2016, as in GPT-2) */
    void (*linear_gelu_forward)(Device *d, Acts *pre, Acts *out, const Acts *x, const Weights *w, const Weights *b,
                                int N, int IC, int OC);
    /* linear_forward and the dx of linear_backward with a quantised matrix: the products of the float32 values of its
     * blocks, which never exist for all matrices at once */
    void (*quant_forward)(Device *d, Acts *out, const Acts *x, const QuantMatrix *w, const Weights *b, int N, int IC,
                          int OC);
    void (*quant_backward)(Device *d, Acts *dx, const Acts *dout, const QuantMatrix *w, int N, int IC, int OC);
    /* embed_forward and logits with a quantised matrix. Both NULL: this backend stores embeddings and the output matrix as
     * weights, and head(), divergence() and sample() are given no matrices. */
    void (*quant_embed_forward)(Device *d, Acts *out, const QuantMatrix *wte, const Weights *wpe, const Ints *token,
                                const Ints *position, float scale, int N, int C);
    void (*quant_logits)(Device *d, Floats *out, const Acts *h, const QuantMatrix *weight, float cap, int R, int C,
                         int V, int Vp);
    void (*lora_forward)(Device *d, const Lora *l);
    void (*lora_backward)(Device *d, const Lora *l);
    void (*dora_norm)(Device *d, const Dora *l);
    void (*dora_forward)(Device *d, const Dora *l);
    void (*dora_backward)(Device *d, const Dora *l);
    /* NULL: linear_backward, then gelu_backward or gate_backward, with activations that are kept or computed again */
    void (*mlp_backward)(Device *d, const MlpBackward *a);
    void (*gelu_forward)(Device *d, Acts *out, const Acts *pre, size_t n);
    /* dinout = dinout * gelu'(pre) */
    void (*gelu_backward)(Device *d, Acts *dinout, const Acts *pre, size_t n);

    /* The gated activation. A row of pre, (N, 2F), holds its F gates g, then its F values u: out[N,F] = f(g) u, where f
     * is silu(g) = g sigmoid(g) for MLP_SWIGLU and gelu for MLP_GEGLU */
    void (*gate_forward)(Device *d, Acts *out, const Acts *pre, MlpKind kind, int N, int F);
    /* a row of dpre, (N, 2F), is dout u f'(g) in its first half and dout f(g) in its second */
    void (*gate_backward)(Device *d, Acts *dpre, const Acts *dout, const Acts *pre, MlpKind kind, int N, int F);

    /* row i of table: cos(position[i] f_j) factor at j, sin(position[i] f_j) factor at half + j, for j < half; the
     * angle is a product in float32; rows are `stride` apart */
    void (*rotary_table)(Device *d, Floats *table, const Ints *position, const Floats *frequency, float factor, int N,
                         int half, int stride);
    void (*rotary_forward)(Device *d, const Rotary *r);
    void (*rotary_backward)(Device *d, const Rotary *r);
    void (*attention_forward)(Device *d, const Attention *a);
    void (*attention_backward)(Device *d, const Attention *a);
    /* cache row slot[i] = k, v of row i (at element i * stride); rows whose slot is -1 are not stored; KC channels */
    void (*kv_store)(Device *d, Acts *cache_k, Acts *cache_v, const Acts *k, const Acts *v, int stride,
                     const Ints *slot, int N, int KC);

    /* x += y, for models without a norm before a layer */
    void (*add)(Device *d, Acts *x, const Acts *y, size_t n);
    /* out[r] = x[row[r]];  x[row[r]] += in[r], in the order of r */
    void (*gather_rows)(Device *d, Acts *out, const Acts *x, const Ints *row, int R, int C);
    void (*scatter_rows)(Device *d, Acts *x, const Acts *in, const Ints *row, int R, int C);

    void (*head)(Device *d, const Head *h);
    void (*divergence)(Device *d, const TokenDivergence *a);
    /* out[R,V] = h weight^T, or cap tanh of it / cap unless cap is 0, for tests and inspection */
    void (*logits)(Device *d, Floats *out, const Acts *h, const Weights *weight, float cap, int R, int C, int V,
                   int Vp);
    void (*sample)(Device *d, const Draw *s);
    /* value[R] = h[R,C] . w[C] + b[1];  dh += dvalue w, dw += dvalue^T h, db += sum of dvalue */
    void (*value_forward)(Device *d, Floats *value, const Acts *h, const Weights *w, const Weights *b, int R, int C);
    void (*value_backward)(Device *d, Acts *dh, Floats *dw, Floats *db, const Floats *dvalue, const Acts *h,
                           const Weights *w, int R, int C);

    /* Sum of squares in double, in a fixed order; synchronous. */
    double (*square_sum)(Device *d, const Floats *x, size_t n);
    void (*adamw)(Device *d, const AdamW *a);
} Backend;

static inline Acts *acts_at(const Backend *b, const Acts *p, size_t i) { return (Acts *)((char *)p + i * b->act_size); }
static inline Weights *weights_at(const Backend *b, const Weights *p, size_t i) {
    return (Weights *)((char *)p + i * b->weight_size);
}
static inline Floats *floats_at(const Floats *p, size_t i) { return (Floats *)((char *)p + i * sizeof(float)); }
static inline Ints *ints_at(const Ints *p, size_t i) { return (Ints *)((char *)p + i * sizeof(int32_t)); }

#ifdef __cplusplus
}
#endif

#endif

/* matmul.cuh - matrix products through cuBLASLt, with bias, GELU and accumulation fused into the product.
 *
 * cuBLASLt is column-major and this project is row-major, so every product is computed transposed: an (N, M) matrix
 * here is an M x N matrix there. Sums are always float32; float32 operands are not rounded to TF32. Gradients of
 * weights are float32 and accumulate (beta 1).
 *
 * A plan (descriptors and the algorithm that cuBLASLt's heuristic picks) is made once per combination of shape, types,
 * epilogue and alignment and then kept: later calls only launch. If cuBLASLt offers no kernel for a fused epilogue, the
 * plan records it, and the product and its epilogue run one after the other. In products of activations the number of
 * rows is rounded up to a multiple of ROW_ALIGN, which the contract of backend.h allows: fewer shapes, fewer plans.
 *
 *   forward        out = x w^T + b              epilogue BIAS
 *                  pre = x w^T + b, gelu(pre)   epilogue GELU_AUX_BIAS, bf16 only, on sm_90 and newer (on older GPUs a
 *                                               separate pass was faster: llm.c, train_gpt2.cu, option -ge)
 *   backward       dx = dout w                  epilogue DGELU if the next operation is that layer's GELU
 *                  dw += dout^T x               beta 1, float32 output from bf16 operands
 *                  db += sum of rows            column_sums(): cuBLASLt's BGRAD would overwrite db, and round
 *
 * The rows of matrices may be further apart than they are long (MatmulStrides): lora.cuh multiplies parts of rows.
 */
#ifndef LLMC_CUDA_MATMUL_CUH
#define LLMC_CUDA_MATMUL_CUH

#include "../model/backend.h" /* Acts, Floats, Weights, ROW_ALIGN */
#include "common.cuh"         /* Device, CUBLAS_CHECK, CUDA_CHECK, bf16, ... */
#include "elementwise.cuh"    /* ELEMENT_THREADS, FOR_WORDS, bias_add, cuda_gelu_backward, ... */
#include "norm.cuh"           /* column_sums */
#include "ptx.cuh"            /* LAUNCH */
#include <unordered_map>

enum { MATMUL_PLANS_MOST = 4096, MATMUL_ALIGNMENT = 16 };
enum { LT_WORKSPACE_BYTES = 32 << 20 };

/* Everything that a plan depends on. In cuBLASLt's terms: D (m x n) = alpha op(A) op(B) + beta C. */
struct MatmulKey {
    int m, n, k;
    int transpose_a, transpose_b;
    int in, out;          /* cudaDataType_t */
    int epilogue;         /* cublasLtEpilogue_t */
    int accumulate;       /* beta != 0 */
    int ld_a, ld_b, ld_d; /* elements from one column to the next */
    int align_a, align_b, align_d;
    bool operator==(const MatmulKey &other) const { return !memcmp(this, &other, sizeof other); }
};
struct MatmulHash {
    size_t operator()(const MatmulKey &key) const {
        uint64_t h = 14695981039346656037u; /* FNV-1a over the words */
        const int *word = (const int *)&key;
        for (size_t i = 0; i < sizeof key / sizeof *word; i++) h = (h ^ (uint32_t)word[i]) * 1099511628211u;
        return (size_t)(h ^ h >> 29);
    }
};
struct Matmul {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    bool found; /* false: cuBLASLt has no kernel for this key */
};
struct MatmulPlan {
    std::unordered_map<MatmulKey, Matmul, MatmulHash> of;
};

template <typename T> static inline cudaDataType_t cuda_type();
template <> inline cudaDataType_t cuda_type<float>() { return CUDA_R_32F; }
template <> inline cudaDataType_t cuda_type<bf16>() { return CUDA_R_16BF; }

static inline int pointer_alignment(const void *p) {
    const uintptr_t lowest = (uintptr_t)p & (~(uintptr_t)p + 1);
    return lowest == 0 || lowest > MATMUL_ALIGNMENT ? MATMUL_ALIGNMENT : (int)lowest;
}

static inline void matmul_plan_free(Matmul *p) {
    if (p->operation) cublasLtMatmulDescDestroy(p->operation);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->d) cublasLtMatrixLayoutDestroy(p->d);
}

static inline void matmul_plans_clear(Device *d) {
    for (auto &entry : d->plans->of) matmul_plan_free(&entry.second);
    d->plans->of.clear();
}

/* Creates the descriptors for `key`. The row counts of A and B follow from the transposition. */
static inline bool matmul_describe(Device *d, const MatmulKey &key, Matmul *p) {
    const cublasOperation_t op_a = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint64_t a_rows = (uint64_t)(key.transpose_a ? key.k : key.m),
                   a_columns = (uint64_t)(key.transpose_a ? key.m : key.k);
    const uint64_t b_rows = (uint64_t)(key.transpose_b ? key.n : key.k),
                   b_columns = (uint64_t)(key.transpose_b ? key.k : key.n);
    const cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)key.epilogue;
    return CUBLAS_CHECK(d, cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "") &&
           CUBLAS_CHECK(
               d, cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a), "") &&
           CUBLAS_CHECK(
               d, cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b), "") &&
           CUBLAS_CHECK(
               d,
               cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
               "") &&
           CUBLAS_CHECK(d, cublasLtMatrixLayoutCreate(&p->a, (cudaDataType_t)key.in, a_rows, a_columns, key.ld_a),
                        "") &&
           CUBLAS_CHECK(d, cublasLtMatrixLayoutCreate(&p->b, (cudaDataType_t)key.in, b_rows, b_columns, key.ld_b),
                        "") &&
           CUBLAS_CHECK(
               d,
               cublasLtMatrixLayoutCreate(&p->d, (cudaDataType_t)key.out, (uint64_t)key.m, (uint64_t)key.n, key.ld_d),
               "");
}

/* Sets the epilogue's pointers, which change from call to call. aux: pre-activations with the layout of D. */
static inline bool matmul_point(Device *d, const MatmulKey &key, Matmul *p, const void *bias, const void *aux) {
    const int64_t width = key.m;
    return (!bias ||
            CUBLAS_CHECK(
                d, cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias),
                "")) &&
           (!aux || (CUBLAS_CHECK(d,
                                  cublasLtMatmulDescSetAttribute(
                                      p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &aux, sizeof aux),
                                  "") &&
                     CUBLAS_CHECK(d,
                                  cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
                                                                 &width, sizeof width),
                                  "")));
}

/* Returns the plan for `key`, with its epilogue pointing to bias and aux; creates it on first use. NULL after a
 * failure. */
static inline Matmul *matmul_plan(Device *d, const MatmulKey &key, const void *bias, const void *aux) {
    auto known = d->plans->of.find(key);
    if (known != d->plans->of.end()) return matmul_point(d, key, &known->second, bias, aux) ? &known->second : NULL;
    if (d->plans->of.size() >= MATMUL_PLANS_MOST) matmul_plans_clear(d);
    Matmul plan;
    memset(&plan, 0, sizeof plan);
    if (!matmul_describe(d, key, &plan) || !matmul_point(d, key, &plan, bias, aux)) {
        matmul_plan_free(&plan);
        return NULL;
    }
    cublasLtMatmulPreference_t want = NULL;
    cublasLtMatmulHeuristicResult_t best;
    int count = 0;
    const uint32_t a = (uint32_t)key.align_a, b = (uint32_t)key.align_b, o = (uint32_t)key.align_d;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* float sums */
    const bool ok =
        CUBLAS_CHECK(d, cublasLtMatmulPreferenceCreate(&want), "") &&
        CUBLAS_CHECK(d,
                     cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                          &d->lt_workspace_bytes, sizeof d->lt_workspace_bytes),
                     "") &&
        CUBLAS_CHECK(d,
                     cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                                          sizeof reduction),
                     "") &&
        CUBLAS_CHECK(
            d, cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a),
            "") &&
        CUBLAS_CHECK(
            d, cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b),
            "") &&
        CUBLAS_CHECK(
            d, cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &o, sizeof o),
            "") &&
        CUBLAS_CHECK(
            d, cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &o, sizeof o),
            "");
    if (ok) {
        const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(d->lt, plan.operation, plan.a, plan.b, plan.d,
                                                                     plan.d, want, 1, &best, &count);
        plan.found = status == CUBLAS_STATUS_SUCCESS && count == 1 && best.state == CUBLAS_STATUS_SUCCESS;
        if (plan.found) plan.algorithm = best.algo;
    }
    if (want) cublasLtMatmulPreferenceDestroy(want);
    if (!ok) {
        matmul_plan_free(&plan);
        return NULL;
    }
    return &(d->plans->of[key] = plan);
}

/* D (m x n) = epilogue(alpha op(A) op(B) + beta C). Returns false if cuBLASLt has no kernel with this epilogue. A plain
 * product without a kernel sets the device's error instead. */
static inline bool matmul_run(Device *d, const MatmulKey &key, void *out, const void *a, const void *b, float alpha,
                              float beta, const void *bias, const void *aux) {
    Matmul *p = matmul_plan(d, key, bias, aux);
    if (!p) return d->failed; /* true after an error: no other path is tried */
    if (!p->found) {
        if (key.epilogue == CUBLASLT_EPILOGUE_DEFAULT)
            cuda_fail(d, "cuda: cuBLASLt has no kernel for a product of %d x %d x %d (%s)", key.n, key.m, key.k,
                      key.in == CUDA_R_32F ? "float32" : "bf16");
        return d->failed;
    }
    CUBLAS_CHECK(d,
                 cublasLtMatmul(d->lt, p->operation, &alpha, a, p->a, b, p->b, &beta, out, p->d, out, p->d,
                                &p->algorithm, d->lt_workspace, d->lt_workspace_bytes, d->stream),
                 "N %d, M %d, K %d, epilogue %d", key.n, key.m, key.k, key.epilogue);
    return true;
}

template <typename T, typename O>
static MatmulKey matmul_key(int m, int n, int k, bool transpose_a, bool transpose_b, cublasLtEpilogue_t epilogue,
                            float beta, const void *a, const void *b, const void *out) {
    MatmulKey key;
    key.m = m;
    key.n = n;
    key.k = k;
    key.transpose_a = transpose_a;
    key.transpose_b = transpose_b;
    key.in = (int)cuda_type<T>();
    key.out = (int)cuda_type<O>();
    key.epilogue = (int)epilogue;
    key.accumulate = beta != 0;
    key.ld_a = transpose_a ? k : m;
    key.ld_b = transpose_b ? n : k;
    key.ld_d = m;
    key.align_a = pointer_alignment(a);
    key.align_b = pointer_alignment(b);
    key.align_d = pointer_alignment(out);
    return key;
}

/* The distances, in elements, between the rows of a product's result and of its first and second operand. 0: rows have
 * no gaps. */
struct MatmulStrides {
    int out, first, second;
};
static inline void matmul_stretch(MatmulKey *key, const MatmulStrides &stride) {
    if (stride.second) key->ld_a = stride.second;
    if (stride.first) key->ld_b = stride.first;
    if (stride.out) key->ld_d = stride.out;
}

/* out[N,M] = alpha x[N,K] w[M,K]^T + beta out */
template <typename T, typename O>
static void cuda_matmul_nt(Device *d, O *out, const T *x, const T *w, int N, int M, int K, float alpha, float beta,
                           const MatmulStrides &stride) {
    if (N == 0) return;
    MatmulKey key = matmul_key<T, O>(M, N, K, true, false, CUBLASLT_EPILOGUE_DEFAULT, beta, w, x, out);
    matmul_stretch(&key, stride);
    matmul_run(d, key, out, w, x, alpha, beta, NULL, NULL);
}
template <typename T, typename O>
static void cuda_matmul_nt(Device *d, O *out, const T *x, const T *w, int N, int M, int K, float alpha, float beta) {
    cuda_matmul_nt<T, O>(d, out, x, w, N, M, K, alpha, beta, MatmulStrides{0, 0, 0});
}

/* out[N,M] = alpha x[N,K] w[K,M] + beta out */
template <typename T, typename O>
static void cuda_matmul_nn(Device *d, O *out, const T *x, const T *w, int N, int M, int K, float alpha, float beta,
                           const MatmulStrides &stride) {
    if (N == 0) return;
    MatmulKey key = matmul_key<T, O>(M, N, K, false, false, CUBLASLT_EPILOGUE_DEFAULT, beta, w, x, out);
    matmul_stretch(&key, stride);
    matmul_run(d, key, out, w, x, alpha, beta, NULL, NULL);
}
template <typename T, typename O>
static void cuda_matmul_nn(Device *d, O *out, const T *x, const T *w, int N, int M, int K, float alpha, float beta) {
    cuda_matmul_nn<T, O>(d, out, x, w, N, M, K, alpha, beta, MatmulStrides{0, 0, 0});
}

/* out[M,K] = alpha a[N,M]^T b[N,K] + beta out */
template <typename T, typename O>
static void cuda_matmul_tn(Device *d, O *out, const T *a, const T *b, int N, int M, int K, float alpha, float beta,
                           const MatmulStrides &stride) {
    if (N == 0) return;
    MatmulKey key = matmul_key<T, O>(K, M, N, false, true, CUBLASLT_EPILOGUE_DEFAULT, beta, b, a, out);
    matmul_stretch(&key, stride);
    matmul_run(d, key, out, b, a, alpha, beta, NULL, NULL);
}
template <typename T, typename O>
static void cuda_matmul_tn(Device *d, O *out, const T *a, const T *b, int N, int M, int K, float alpha, float beta) {
    cuda_matmul_tn<T, O>(d, out, a, b, N, M, K, alpha, beta, MatmulStrides{0, 0, 0});
}

/* ---- the table's operations -------------------------------------------------------------------------------------- */

static inline int aligned_rows(int N) { return (N + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN; }

template <typename T>
static void cuda_linear_forward(Device *d, Acts *out_, const Acts *x_, const Weights *w_, const Weights *b_, int N,
                                int IC, int OC) {
    T *out = (T *)out_;
    const T *x = (const T *)x_, *w = (const T *)w_, *b = (const T *)b_;
    const int rows = aligned_rows(N);
    if (N == 0) return;
    if (b) {
        const MatmulKey key = matmul_key<T, T>(OC, rows, IC, true, false, CUBLASLT_EPILOGUE_BIAS, 0, w, x, out);
        if (pointer_alignment(b) == MATMUL_ALIGNMENT && matmul_run(d, key, out, w, x, 1, 0, b, NULL)) return;
    }
    cuda_matmul_nt<T, T>(d, out, x, w, rows, OC, IC, 1, 0);
    if (b) bias_add(d, out, b, N, OC);
}

/* True if the layout of the pre-activations suits cuBLASLt's fused GELU and the device is one on which it is faster. */
template <typename T> static bool gelu_fused(const Device *d, const void *pre, int columns) {
    return sizeof(T) == sizeof(bf16) && d->major >= 9 && columns % 8 == 0 && pointer_alignment(pre) == MATMUL_ALIGNMENT;
}

template <typename T>
static void cuda_linear_gelu_forward(Device *d, Acts *pre, Acts *out, const Acts *x, const Weights *w, const Weights *b,
                                     int N, int IC, int OC) {
    if (N == 0) return;
    if (gelu_fused<T>(d, pre, OC) && pointer_alignment(b) == MATMUL_ALIGNMENT) {
        const MatmulKey key =
            matmul_key<T, T>(OC, aligned_rows(N), IC, true, false, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, 0, w, x, out);
        if (matmul_run(d, key, out, w, x, 1, 0, b, pre)) return;
    }
    cuda_linear_forward<T>(d, pre, x, w, b, N, IC, OC);
    cuda_gelu_forward<T>(d, out, pre, (size_t)N * (size_t)OC);
}

/* The gradients of the weights and the bias, each unless it is NULL. */
template <typename T>
static void linear_backward_weights(Device *d, Floats *dw, Floats *db, const Acts *dout, const Acts *x, int N, int IC,
                                    int OC) {
    if (dw) cuda_matmul_tn<T, float>(d, (float *)dw, (const T *)dout, (const T *)x, N, OC, IC, 1, 1);
    if (db) column_sums<T>(d, (float *)db, (const T *)dout, N, OC);
}

template <typename T>
static void cuda_linear_backward(Device *d, Acts *dx, Floats *dw, Floats *db, const Acts *dout, const Acts *x,
                                 const Weights *w, int N, int IC, int OC) {
    if (N == 0) return;
    if (dx) cuda_matmul_nn<T, T>(d, (T *)dx, (const T *)dout, (const T *)w, aligned_rows(N), IC, OC, 1, 0);
    linear_backward_weights<T>(d, dw, db, dout, x, N, IC, OC);
}

/* linear_backward followed by gelu_backward of its dx (pre: (N, IC)), as one product if cuBLASLt supports it. */
template <typename T>
static void cuda_linear_gelu_backward(Device *d, Acts *dx, Floats *dw, Floats *db, const Acts *dout, const Acts *x,
                                      const Weights *w, const Acts *pre, int N, int IC, int OC) {
    if (N == 0) return;
    bool fused = false;
    if (gelu_fused<T>(d, pre, IC)) {
        const MatmulKey key =
            matmul_key<T, T>(IC, aligned_rows(N), OC, false, false, CUBLASLT_EPILOGUE_DGELU, 0, w, dout, dx);
        fused = matmul_run(d, key, dx, w, dout, 1, 0, NULL, pre);
    }
    linear_backward_weights<T>(d, dw, db, dout, x, N, IC, OC);
    if (fused) return;
    cuda_matmul_nn<T, T>(d, (T *)dx, (const T *)dout, (const T *)w, aligned_rows(N), IC, OC, 1, 0);
    cuda_gelu_backward<T>(d, dx, pre, (size_t)N * (size_t)IC);
}

/* ---- peak speed -------------------------------------------------------------------------------------------------- */

/* Uniform numbers in (-1, 1): a product of zeros would draw less power than a real one and run faster. */
template <typename T> __global__ void matmul_fill_kernel(T *x, size_t n, uint64_t seed) {
    FOR_WORDS(i, n) x[i] = from_float<T>(2.0f * cuda_uniform(seed, 0, i) - 1.0f);
}

/* Measures FLOP/s over 8 products (N,C) x (C,C) of x and w into out. 0 after a failure. */
template <typename T>
static double matmul_speed(Device *d, cudaEvent_t begin, cudaEvent_t end, T *out, const T *x, const T *w, int N,
                           int C) {
    enum { TIMES = 8 };
    float ms = 0;
    cuda_matmul_nt<T, T>(d, out, x, w, N, C, C, 1, 0); /* creates the plan */
    CUDA_CHECK(d, cudaEventRecord(begin, d->stream), "");
    for (int i = 0; i < TIMES; i++) cuda_matmul_nt<T, T>(d, out, x, w, N, C, C, 1, 0);
    CUDA_CHECK(d, cudaEventRecord(end, d->stream), "");
    CUDA_CHECK(d, cudaEventSynchronize(end), "");
    CUDA_CHECK(d, cudaEventElapsedTime(&ms, begin, end), "N %d, C %d", N, C);
    return d->failed || ms <= 0 ? 0 : TIMES * 2.0 * N * C * C / (1e-3 * ms);
}

/* The best FLOP/s over products of increasing size, up to 8192 x 4096 x 4096 or until 8 of them take 20 ms. */
template <typename T> static double matmul_peak(Device *d) {
    const size_t N = 8192, C = 4096, all = 2 * N * C + C * C;
    cudaEvent_t begin, end;
    T *x = NULL;
    double best = 0;
    if (!CUDA_CHECK(d, cudaEventCreate(&begin), "") || !CUDA_CHECK(d, cudaEventCreate(&end), "")) return 0;
    for (int shift = 5; shift >= 0 && !d->failed; shift--) { /* begins with 256 x 128 */
        const size_t n = N >> shift, c = C >> shift, need = 2 * n * c + c * c;
        if (cudaMallocAsync((void **)&x, need * sizeof(T), d->stream) != cudaSuccess) {
            (void)cudaGetLastError(); /* no room for a larger one */
            break;
        }
        LAUNCH((matmul_fill_kernel<T>), cuda_blocks(d, need, ELEMENT_THREADS), ELEMENT_THREADS, 0, d->stream, x, need,
               (uint64_t)shift);
        CUDA_LAUNCHED(d, "matmul_fill", "%zu of %zu", need, all);
        const double speed = matmul_speed<T>(d, begin, end, x + n * c + c * c, x, x + n * c, (int)n, (int)c);
        CUDA_CHECK(d, cudaFreeAsync(x, d->stream), "%zu values", need);
        best = speed > best ? speed : best;
        if (8 * 2.0 * (double)n * (double)c * (double)c > 20e-3 * speed) break;
    }
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return best;
}

#endif

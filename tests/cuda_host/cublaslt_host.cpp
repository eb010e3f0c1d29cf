/* cublaslt_host.cpp - cuBLASLt's matrix product on the CPU, as far as the backend uses it.
 *
 *   D = epilogue(alpha op(A) op(B) + beta C)      column-major, float32 or bf16 in and out, sums in float32
 *
 * Epilogues: BIAS (one value per row of D, added to every column), GELU (tanh approximation), GELU_AUX (keeps the
 * values before GELU), DGELU (multiplies by gelu' of the kept values), BGRADA, BGRADB (sums of A's or B's rows along
 * k), and their documented combinations. Batches have a stride. Alpha and beta are on the host.
 *
 * It is as strict as the documentation and fails at once: every operand must be within one allocation of the device; an
 * algorithm must be used with the shape, types, epilogue and alignment for which the heuristic returned it; the
 * workspace must be as large as promised, and is overwritten. An unsupported attribute is an error. Terms of a sum are
 * added in a fixed order, so results repeat bit for bit.
 *
 * CUDA_HOST_NO_EPILOGUE=1: no algorithm is found for fused epilogues, so that the caller's fallback runs.
 */
#include "cuda_host.h"

#include <cublasLt.h>
#include <vector>
#undef threadIdx

struct Layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t batches;
    int64_t stride;
};
struct Description {
    cublasComputeType_t compute;
    cublasOperation_t op_a, op_b;
    cublasLtEpilogue_t epilogue;
    void *bias, *aux;
    int64_t aux_ld, bias_stride, aux_stride;
    int32_t bias_type, aux_type; /* -1: the type of D */
};
struct Preference {
    uint64_t workspace;
    uint32_t align_a, align_b, align_c, align_d;
};
/* The problem for which an algorithm was found, within the 64 bytes of cublasLtMatmulAlgo_t. */
struct Algorithm {
    uint32_t magic, epilogue;
    uint32_t m, n, k, ld_a, ld_b, ld_c, ld_d;
    uint16_t type_a, type_b, type_c, type_d;
    uint8_t op_a, op_b, align_a, align_b, align_c, align_d;
    uint64_t workspace;
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t), "Algorithm must fit into cublasLtMatmulAlgo_t");
enum { MAGIC = 0x6c74616c, WORKSPACE = 4096 };

static size_t type_size(cudaDataType_t t) { return t == CUDA_R_16BF ? 2 : 4; }
static bool type_served(cudaDataType_t t) { return t == CUDA_R_32F || t == CUDA_R_16BF; }

static float get(const void *p, int64_t i, cudaDataType_t t) {
    return t == CUDA_R_32F ? ((const float *)p)[i] : __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}
static void put(void *p, int64_t i, cudaDataType_t t, float x) {
    if (t == CUDA_R_32F) ((float *)p)[i] = x;
    else ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(x);
}

/* gelu(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3)  (Hendrycks and Gimpel 2016) */
static const float GELU_SCALE = 0.7978845608f;
static float gelu(float x) { return 0.5f * x * (1 + tanhf(GELU_SCALE * (x + 0.044715f * x * x * x))); }
static float gelu_slope(float x) {
    float t = tanhf(GELU_SCALE * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * GELU_SCALE * (1 + 3 * 0.044715f * x * x);
}

/* One product: everything that it needs, copied at the call. */
struct Product {
    Description d;
    Layout A, B, C, D;
    const void *a, *b, *c;
    void *out;
    float alpha, beta;
    void *workspace;
    size_t workspace_bytes;
};

static uint64_t op_rows(const Layout &l, cublasOperation_t op) { return op == CUBLAS_OP_N ? l.rows : l.columns; }
static uint64_t op_columns(const Layout &l, cublasOperation_t op) { return op == CUBLAS_OP_N ? l.columns : l.rows; }
static bool has(const Description &d, int bits) { return ((int)d.epilogue & bits) == bits; }
static cudaDataType_t bias_type(const Product &p) {
    return p.d.bias_type < 0 ? p.D.type : (cudaDataType_t)p.d.bias_type;
}
static cudaDataType_t aux_type(const Product &p) { return p.d.aux_type < 0 ? p.D.type : (cudaDataType_t)p.d.aux_type; }
static bool is_zero(const void *p, size_t bytes) {
    const char *c = (const char *)p;
    return bytes == 0 || (c[0] == 0 && memcmp(c, c + 1, bytes - 1) == 0);
}

static size_t extent(const Layout &l, int64_t ld) {
    return (size_t)((l.columns - 1) * (uint64_t)ld + l.rows) * type_size(l.type);
}
static void need(const void *p, const Layout &l, const char *what) {
    size_t all = extent(l, l.ld) + (size_t)(l.batches - 1) * (size_t)l.stride * type_size(l.type);
    cuda_host_need_device(p, all, what);
}

/* op(X) as float32, with the summed index running fastest: rows[i * k + l]. */
static std::vector<float> rows_of(const void *x, const Layout &l, bool sum_runs_down, int64_t offset) {
    size_t lines = sum_runs_down ? l.columns : l.rows, k = sum_runs_down ? l.rows : l.columns;
    std::vector<float> rows(lines * k);
    for (size_t i = 0; i < lines; i++)
        for (size_t j = 0; j < k; j++) {
            size_t row = sum_runs_down ? j : i, column = sum_runs_down ? i : j;
            rows[i * k + j] = get(x, offset + (int64_t)(row + column * (uint64_t)l.ld), l.type);
        }
    return rows;
}

/* Sixteen partial sums, so that the loop is vectorised in a fixed order. */
static float dot(const float *a, const float *b, size_t k) {
    float part[16] = {0}, sum = 0;
    size_t l = 0;
    for (; l + 16 <= k; l += 16)
        for (size_t i = 0; i < 16; i++) part[i] += a[l + i] * b[l + i];
    for (; l < k; l++) part[l % 16] += a[l] * b[l];
    for (size_t i = 0; i < 16; i++) sum += part[i];
    return sum;
}

static void gradient_of_bias(const Product &p, const std::vector<float> &rows, size_t lines, size_t k) {
    for (size_t i = 0; i < lines; i++) {
        double sum = 0;
        for (size_t l = 0; l < k; l++) sum += rows[i * k + l];
        put(p.d.bias, (int64_t)i, bias_type(p), (float)sum);
    }
}

static void product_batch(const Product &p, int batch) {
    size_t m = p.D.rows, n = p.D.columns, k = op_columns(p.A, p.d.op_a);
    int64_t c_at = batch * p.C.stride, d_at = batch * p.D.stride, aux_at = batch * p.d.aux_stride;
    std::vector<float> a = rows_of(p.a, p.A, p.d.op_a != CUBLAS_OP_N, batch * p.A.stride);
    std::vector<float> b = rows_of(p.b, p.B, p.d.op_b == CUBLAS_OP_N, batch * p.B.stride);
    std::vector<double> bias_gradient(has(p.d, CUBLASLT_EPILOGUE_DGELU_BGRAD) ? m : 0);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < m; i++) {
            int64_t at = (int64_t)i + (int64_t)j * p.D.ld;
            float x = p.alpha * dot(&a[i * k], &b[j * k], k);
            if (p.beta != 0) x += p.beta * get(p.c, c_at + (int64_t)i + (int64_t)j * p.C.ld, p.C.type);
            if (has(p.d, CUBLASLT_EPILOGUE_BIAS))
                x += get(p.d.bias, batch * p.d.bias_stride + (int64_t)i, bias_type(p));
            if (has(p.d, CUBLASLT_EPILOGUE_GELU)) {
                if (has(p.d, CUBLASLT_EPILOGUE_GELU_AUX))
                    put(p.d.aux, aux_at + (int64_t)i + (int64_t)j * p.d.aux_ld, aux_type(p), x);
                x = gelu(x);
            }
            if (has(p.d, CUBLASLT_EPILOGUE_DGELU))
                x *= gelu_slope(get(p.d.aux, aux_at + (int64_t)i + (int64_t)j * p.d.aux_ld, aux_type(p)));
            if (!bias_gradient.empty()) bias_gradient[i] += x;
            put(p.out, d_at + at, p.D.type, x);
        }
    if (!bias_gradient.empty())
        for (size_t i = 0; i < m; i++) put(p.d.bias, (int64_t)i, bias_type(p), (float)bias_gradient[i]);
    if (has(p.d, CUBLASLT_EPILOGUE_BGRADA)) gradient_of_bias(p, a, m, k);
    if (has(p.d, CUBLASLT_EPILOGUE_BGRADB)) gradient_of_bias(p, b, n, k);
}

static void product_run(const Product &p) {
    need(p.a, p.A, "cublasLtMatmul: A");
    need(p.b, p.B, "cublasLtMatmul: B");
    need(p.out, p.D, "cublasLtMatmul: D");
    if (p.beta != 0) need(p.c, p.C, "cublasLtMatmul: C");
    if (has(p.d, CUBLASLT_EPILOGUE_BIAS) || has(p.d, CUBLASLT_EPILOGUE_BGRADA) ||
        has(p.d, CUBLASLT_EPILOGUE_DGELU_BGRAD))
        cuda_host_need_device(p.d.bias, p.D.rows * type_size(bias_type(p)), "cublasLtMatmul: bias");
    if (has(p.d, CUBLASLT_EPILOGUE_BGRADB))
        cuda_host_need_device(p.d.bias, p.D.columns * type_size(bias_type(p)), "cublasLtMatmul: bias");
    if (has(p.d, 128)) {
        Layout aux = p.D;
        aux.type = aux_type(p);
        aux.ld = p.d.aux_ld;
        aux.batches = 1;
        need(p.d.aux, aux, "cublasLtMatmul: auxiliary matrix");
    }
    if (p.workspace_bytes) memset(p.workspace, 0xff, std::min(p.workspace_bytes, (size_t)WORKSPACE));
    /* a product of zeros takes a shortcut */
    if (p.d.epilogue == CUBLASLT_EPILOGUE_DEFAULT && p.beta == 0 && p.D.batches == 1 && p.D.ld == (int64_t)p.D.rows &&
        is_zero(p.a, extent(p.A, p.A.ld)) && is_zero(p.b, extent(p.B, p.B.ld))) {
        memset(p.out, 0, extent(p.D, p.D.ld));
        return;
    }
    for (int batch = 0; batch < p.D.batches; batch++) product_batch(p, batch);
}

/* ==== Descriptors ==== */

static Layout *layout(cublasLtMatrixLayout_t l) { return (Layout *)(void *)l; }
static Description *description(cublasLtMatmulDesc_t d) { return (Description *)(void *)d; }
static Preference *preference(cublasLtMatmulPreference_t p) { return (Preference *)(void *)p; }

template <typename T> static cublasStatus_t take(T *field, const void *buffer, size_t size) {
    if (!buffer || size != sizeof(*field)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, buffer, sizeof(*field));
    return CUBLAS_STATUS_SUCCESS;
}

static bool epilogue_served(int e) {
    static const int served[] = {CUBLASLT_EPILOGUE_DEFAULT,   CUBLASLT_EPILOGUE_BIAS,
                                 CUBLASLT_EPILOGUE_GELU,      CUBLASLT_EPILOGUE_GELU_AUX,
                                 CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
                                 CUBLASLT_EPILOGUE_DGELU,     CUBLASLT_EPILOGUE_DGELU_BGRAD,
                                 CUBLASLT_EPILOGUE_BGRADA,    CUBLASLT_EPILOGUE_BGRADB};
    return std::find(std::begin(served), std::end(served), e) != std::end(served);
}

/* True if the descriptors are consistent. */
static bool consistent(const Description &d, const Layout &a, const Layout &b, const Layout &c, const Layout &o) {
    const Layout *all[] = {&a, &b, &c, &o};
    for (const Layout *l : all)
        if (!type_served(l->type) || l->rows == 0 || l->columns == 0 || l->ld < (int64_t)l->rows ||
            l->batches != o.batches)
            return false;
    return d.compute == CUBLAS_COMPUTE_32F && a.type == b.type && c.type == o.type &&
           !(a.type == CUDA_R_32F && o.type == CUDA_R_16BF) && op_rows(a, d.op_a) == o.rows &&
           op_columns(b, d.op_b) == o.columns && op_columns(a, d.op_a) == op_rows(b, d.op_b) && c.rows == o.rows &&
           c.columns == o.columns;
}

/* The documented requirements of epilogues: the auxiliary matrix has rows of a multiple of 8 elements, 16-byte
 * aligned. */
static bool epilogue_possible(const Description &d, const Layout &o) {
    if (d.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return true;
    if (getenv("CUDA_HOST_NO_EPILOGUE") || !epilogue_served(d.epilogue)) return false;
    if (!has(d, 128)) return true;
    return d.aux && (uintptr_t)d.aux % 16 == 0 && d.aux_ld % 8 == 0 && d.aux_ld >= (int64_t)o.rows;
}

static Algorithm algorithm_for(const Description &d, const Layout &a, const Layout &b, const Layout &c,
                               const Layout &o) {
    Algorithm g;
    memset(&g, 0, sizeof(g));
    g.magic = MAGIC;
    g.epilogue = (uint32_t)d.epilogue;
    g.m = (uint32_t)o.rows;
    g.n = (uint32_t)o.columns;
    g.k = (uint32_t)op_columns(a, d.op_a);
    g.ld_a = (uint32_t)a.ld;
    g.ld_b = (uint32_t)b.ld;
    g.ld_c = (uint32_t)c.ld;
    g.ld_d = (uint32_t)o.ld;
    g.type_a = (uint16_t)a.type;
    g.type_b = (uint16_t)b.type;
    g.type_c = (uint16_t)c.type;
    g.type_d = (uint16_t)o.type;
    g.op_a = (uint8_t)d.op_a;
    g.op_b = (uint8_t)d.op_b;
    return g;
}

static void aligned(const void *p, uint8_t log2, const char *what) {
    if ((uintptr_t)p & (((uintptr_t)1 << log2) - 1))
        cuda_host_fail("cublasLtMatmul: %s = %p is less aligned than the heuristic was told (%u bytes)", what, p,
                       1u << log2);
}

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = (cublasLtHandle_t)malloc(16);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free((void *)handle);
    return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void) { return 0; }
const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
    default: return "cuBLAS error";
    }
}
const char *cublasLtGetStatusName(cublasStatus_t status) { return cublasLtGetStatusString(status); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t columns,
                                          int64_t ld) {
    *l = (cublasLtMatrixLayout_t)(void *)new Layout{type, rows, columns, ld, 1, 0};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete layout(l);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t which,
                                                const void *buffer, size_t size) {
    switch (which) {
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return take(&layout(l)->rows, buffer, size);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return take(&layout(l)->columns, buffer, size);
    case CUBLASLT_MATRIX_LAYOUT_LD: return take(&layout(l)->ld, buffer, size);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return take(&layout(l)->batches, buffer, size);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return take(&layout(l)->stride, buffer, size);
    default:
        cuda_host_fail("cublasLtMatrixLayoutSetAttribute: attribute %d is not supported by the harness", (int)which);
    }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale) {
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *d = (cublasLtMatmulDesc_t)(void *)new Description{
        compute, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL, 0, 0, 0, -1, -1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete description(d);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which,
                                              const void *buffer, size_t size) {
    Description *d = description(desc);
    switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return take(&d->op_a, buffer, size);
    case CUBLASLT_MATMUL_DESC_TRANSB: return take(&d->op_b, buffer, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return take(&d->epilogue, buffer, size);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(&d->bias, buffer, size);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return take(&d->bias_type, buffer, size);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE: return take(&d->bias_stride, buffer, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return take(&d->aux, buffer, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return take(&d->aux_ld, buffer, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE: return take(&d->aux_type, buffer, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE: return take(&d->aux_stride, buffer, size);
    default: cuda_host_fail("cublasLtMatmulDescSetAttribute: attribute %d is not supported by the harness", (int)which);
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = (cublasLtMatmulPreference_t)(void *)new Preference{0, 256, 256, 256, 256};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete preference(p);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t which, const void *buffer,
                                                    size_t size) {
    uint32_t reductions;
    switch (which) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return take(&preference(p)->workspace, buffer, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return take(&preference(p)->align_a, buffer, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return take(&preference(p)->align_b, buffer, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return take(&preference(p)->align_c, buffer, size);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return take(&preference(p)->align_d, buffer, size);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return take(&reductions, buffer, size); /* the harness has only one scheme */
    default:
        cuda_host_fail("cublasLtMatmulPreferenceSetAttribute: attribute %d is not supported by the harness",
                       (int)which);
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t A,
                                              cublasLtMatrixLayout_t B, cublasLtMatrixLayout_t C,
                                              cublasLtMatrixLayout_t D, cublasLtMatmulPreference_t preferred, int asked,
                                              cublasLtMatmulHeuristicResult_t *results, int *found) {
    const Description &d = *description(desc);
    const Layout &a = *layout(A), &b = *layout(B), &c = *layout(C), &o = *layout(D);
    const Preference &p = *preference(preferred);
    *found = 0;
    if (asked < 1) return CUBLAS_STATUS_INVALID_VALUE;
    if (!consistent(d, a, b, c, o) || !epilogue_possible(d, o)) return CUBLAS_STATUS_NOT_SUPPORTED;
    Algorithm g = algorithm_for(d, a, b, c, o);
    g.align_a = (uint8_t)__builtin_ctz(p.align_a);
    g.align_b = (uint8_t)__builtin_ctz(p.align_b);
    g.align_c = (uint8_t)__builtin_ctz(p.align_c);
    g.align_d = (uint8_t)__builtin_ctz(p.align_d);
    g.workspace = std::min(p.workspace, (uint64_t)WORKSPACE);
    memset(results, 0, sizeof(*results));
    memcpy(&results->algo, &g, sizeof(g));
    results->workspaceSize = g.workspace;
    results->state = CUBLAS_STATUS_SUCCESS;
    results->wavesCount = 1;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t A, const void *b, cublasLtMatrixLayout_t B, const void *beta,
                              const void *c, cublasLtMatrixLayout_t C, void *out, cublasLtMatrixLayout_t D,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    Product p = {*description(desc),    *layout(A),           *layout(B), *layout(C),     *layout(D), a, b, c, out,
                 *(const float *)alpha, *(const float *)beta, workspace,  workspace_bytes};
    if (!consistent(p.d, p.A, p.B, p.C, p.D)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!epilogue_possible(p.d, p.D)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (algorithm) {
        Algorithm given, now = algorithm_for(p.d, p.A, p.B, p.C, p.D);
        memcpy(&given, algorithm, sizeof(given));
        now.align_a = given.align_a;
        now.align_b = given.align_b;
        now.align_c = given.align_c;
        now.align_d = given.align_d;
        now.workspace = given.workspace;
        if (memcmp(&given, &now, sizeof(now)))
            cuda_host_fail(
                "cublasLtMatmul: an algorithm found for (%u x %u x %u, epilogue %u) is used for (%u x %u x %u, "
                "epilogue %u), other types or other distances between columns",
                given.m, given.n, given.k, given.epilogue, now.m, now.n, now.k, now.epilogue);
        aligned(a, given.align_a, "A");
        aligned(b, given.align_b, "B");
        aligned(out, given.align_d, "D");
        if (p.beta != 0) aligned(c, given.align_c, "C");
        if (workspace_bytes < given.workspace) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (workspace_bytes) cuda_host_need_device(workspace, workspace_bytes, "cublasLtMatmul: workspace");
    cuda_host_enqueue(stream, "cublasLtMatmul", [p] { product_run(p); });
    return CUBLAS_STATUS_SUCCESS;
}
}

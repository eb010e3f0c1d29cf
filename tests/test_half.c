/* test_half.c - every operation of the backend with activations in bfloat16 (llmc/cpu/act.h) against the backend with
 * activations in float32, which the other tests compare with float64 loops.
 *
 * Inputs are values that bfloat16 represents, so both backends get the same. What is left are the roundings of results and
 * of what an operation stores in between: a few units of 2^-9, of the size of the result or, where terms cancel, of the
 * array's root mean square. Float results get none of these roundings, except from intermediate activations. */
#include "../llmc/base/error.h"      /* Error */
#include "../llmc/base/half.h"       /* half_from_bf16, half_to_bf16 */
#include "../llmc/base/random.h"     /* Random, random_normal, random_start */
#include "../llmc/cpu/cpu.h"         /* backend_cpu, backend_cpu_bf16, backend_cpu_for, backend_cpu_half_avx512, ... */
#include "../llmc/model/backend.h"   /* MLP_GELU, Backend, Device, acts_at, ... */
#include "../llmc/model/batch.h"     /* Segment */
#include "../llmc/model/quantized.h" /* quant_bytes */
#include "arrays.h"                  /* FLOATS, arrays_free, picks */
#include "quant_blocks.h"            /* quant_random */

enum { WHOLE, HALF, SIDES, CELLS = 16 };
static const Backend *B[SIDES];
static Device *D[SIDES];
static Random R;

/* An array that both backends have. */
typedef enum { ACTS, FLOAT, WEIGHT, INT, BLOCK } Kind;
typedef struct Cell {
    Kind kind;
    size_t n, padded;
    void *at[SIDES];
} Cell;
static Cell cell[CELLS];
static int cells;

/* Values of standard deviation `size` that bfloat16 represents. */
static float *values(size_t n, double size) {
    float *x = FLOATS(n);
    for (size_t i = 0; i < n; i++) x[i] = half_from_bf16(half_to_bf16((float)(size * random_normal(&R))));
    return x;
}

static int cell_new(Kind kind, const void *x, size_t n, size_t unit_half, bool rows) {
    Error e;
    assert_true(cells < CELLS);
    Cell c = {.kind = kind, .n = n, .padded = n};
    for (int side = 0; side < SIDES; side++) {
        const size_t unit = kind == BLOCK ? 1 : kind == ACTS && side == HALF ? unit_half : 4;
        c.padded = rows ? n + 4096 : n;
        c.at[side] = B[side]->alloc_zeroed(D[side], (c.padded + 16) * unit, "a test", &e);
        assert_non_null(c.at[side]);
        if (kind == WEIGHT) B[side]->weights_upload(D[side], c.at[side], x, n);
        else if (unit == 2)
            for (size_t i = 0; i < n; i++) ((uint16_t *)c.at[side])[i] = half_to_bf16(((const float *)x)[i]);
        else B[side]->upload(D[side], c.at[side], x, n * unit);
    }
    cell[cells] = c;
    return cells++;
}

/* Arrays of random values, of zeros, of whole numbers below a limit. Activations have excess rows. */
static void acts(size_t n) { cell_new(ACTS, values(n, 1), n, 2, true); }
static void floats(size_t n, double size) { cell_new(FLOAT, values(n, size), n, 4, false); }
static void weights(size_t n, double size) { cell_new(WEIGHT, values(n, size), n, 4, false); }
static void ints(size_t n, int below) { cell_new(INT, picks(&R, n, below), n, 4, false); }

static float element(const Cell *c, int side, size_t i) {
    if (c->kind == ACTS && side == HALF) return half_from_bf16(((const uint16_t *)c->at[side])[i]);
    return ((const float *)c->at[side])[i];
}

/* Runs an operation on both sides and compares all activations and floats within `units` of 2^-9, then frees the arrays. */
static void both(const char *what, double units, void (*run)(const Backend *b, Device *d, Cell *c, int side)) {
    Error e;
    for (int side = 0; side < SIDES; side++) {
        run(B[side], D[side], cell, side);
        assert_true(B[side]->sync(D[side], &e));
    }
    for (int k = 0; k < cells; k++) {
        const Cell *c = &cell[k];
        double square = 0;
        for (size_t i = 0; i < (c->kind == ACTS || c->kind == FLOAT ? c->n : 0); i++)
            square += pow((double)element(c, WHOLE, i), 2);
        const double rms = sqrt(square / (double)(c->n ? c->n : 1));
        for (size_t i = 0; i < (c->kind == ACTS || c->kind == FLOAT ? c->n : 0); i++) {
            const double want = (double)element(c, WHOLE, i), got = (double)element(c, HALF, i);
            if (!(fabs(got - want) <= units * 0x1p-9 * (fabs(want) + rms)))
                fail_msg("%s: element %zu of array %d is %g, in float32 %g (root mean square %g)", what, i, k, got,
                         want, rms);
        }
        for (int side = 0; side < SIDES; side++) {
            if (c->kind == WEIGHT) B[side]->weights_release(D[side], c->at[side], c->n);
            else B[side]->release(D[side], c->at[side]);
        }
    }
    cells = 0;
    arrays_free();
}

#define RUN(name) static void name(const Backend *b, Device *d, Cell *c, int side)
#define A(i)      ((Acts *)c[i].at[side])
#define F(i)      ((Floats *)c[i].at[side])
#define W(i)      ((Weights *)c[i].at[side])
#define I(i)      ((Ints *)c[i].at[side])

enum { N = 37, C = 72, O = 96, V = 300, VP = 384 };

RUN(embed) {
    b->embed_forward(d, A(0), W(1), W(2), I(3), I(4), 1.5f, N, C);
    b->noise_add(d, A(0), F(5), I(3), I(4), N, C, 7, 8);
    b->embed_backward(d, F(6), F(7), A(0), I(3), I(4), 1.5f, N, C);
}

static NormKind norm_kind;
RUN(norm) {
    const bool layer = norm_kind == NORM_LAYER;
    Norm n = {.rows = N,
              .channels = C,
              .kind = norm_kind,
              .eps = 1e-5f,
              .w = W(0),
              .b = layer ? W(1) : NULL,
              .x = A(2),
              .delta = A(3),
              .sum = A(2),
              .mean = layer ? F(5) : NULL,
              .rstd = F(6),
              .out = A(4)};
    b->norm_forward(d, &n);
    n.delta = NULL;
    n.dout = A(7);
    n.dx = A(8);
    n.dw = F(9);
    n.db = layer ? F(10) : NULL;
    b->norm_backward(d, &n);
    n.fresh = 1;
    n.dx = A(11);
    b->norm_backward(d, &n);
    if (layer) return;
    n.add = A(3);
    b->norm_forward(d, &n);
}

RUN(linear) {
    b->linear_forward(d, A(0), A(1), W(2), W(3), N, C, O);
    b->linear_backward(d, A(4), F(5), F(6), A(7), A(1), W(2), N, C, O);
    b->linear_gelu_forward(d, A(8), A(9), A(1), W(2), W(3), N, C, O);
    b->gelu_backward(d, A(10), A(8), N * O);
    b->gate_forward(d, A(11), A(8), MLP_SWIGLU, N, O / 2);
    b->gate_backward(d, A(12), A(11), A(8), MLP_GEGLU, N, O / 2);
}

/* The activation and the layer after it, fused if the backend can: the backward pass has the bits of the forward pass. */
enum { HIDDEN = 80 };
static MlpKind mlp_kind;
RUN(mlp) {
    if (mlp_kind == MLP_GELU) b->gelu_forward(d, A(7), A(1), N * HIDDEN);
    else b->gate_forward(d, A(7), A(1), mlp_kind, N, HIDDEN);
    if (b->mlp_backward) {
        const MlpBackward a = {.rows = N,
                               .hidden = HIDDEN,
                               .width = C,
                               .kind = mlp_kind,
                               .dout = A(0),
                               .pre = A(1),
                               .w = W(2),
                               .act = A(3),
                               .dpre = A(4),
                               .dw = F(5),
                               .db = F(6)};
        b->mlp_backward(d, &a);
        assert_memory_equal(A(3), A(7), N * HIDDEN * b->act_size);
    } else {
        memcpy(A(3), A(7), N * HIDDEN * b->act_size);
        b->linear_backward(d, mlp_kind == MLP_GELU ? A(4) : A(8), F(5), F(6), A(0), A(3), W(2), N, HIDDEN, C);
        if (mlp_kind == MLP_GELU) b->gelu_backward(d, A(4), A(1), N * HIDDEN);
        else b->gate_backward(d, A(4), A(8), A(1), mlp_kind, N, HIDDEN);
    }
    memset(A(8), 0, N * HIDDEN * b->act_size); /* scratch */
}

RUN(rows) {
    b->add(d, A(0), A(1), N * C);
    b->gather_rows(d, A(2), A(0), I(3), 5, C);
    b->scatter_rows(d, A(1), A(2), I(3), 5, C);
    b->value_forward(d, F(4), A(0), W(5), W(6), N, C);
    b->value_backward(d, A(1), F(7), F(8), F(4), A(0), W(5), N, C);
}

RUN(rotary) {
    b->rotary_table(d, F(0), I(1), F(2), 1, N, 4, 8);
    Rotary r = {.rows = N,
                .heads = 4,
                .kv_heads = 2,
                .head_size = 8,
                .rotated = 8,
                .stride = 64,
                .table_stride = 8,
                .q_group = 8,
                .k_group = 16,
                .eps = 1e-6f,
                .before_stride = 48,
                .table = F(0),
                .qw = W(3),
                .kw = W(4),
                .qk = A(5),
                .before = A(6),
                .rstd = F(7),
                .dqw = F(9),
                .dkw = F(10)};
    b->rotary_forward(d, &r);
    r.qk = A(8);
    b->rotary_backward(d, &r);
}

/* Segments with prefixes and gaps, grouped heads, a window in one call and a cap in another. */
enum { HEADS = 4, KV = 2, ROWS = 160 };
static int head_size;
#define WIDTH ((HEADS + 2 * KV) * head_size)
static const Segment batch[] = {{0, 70, 0, 0, 0, 0},
                                {70, 9, 0, 70, 70, 0},
                                {79, 33, 0, 70, 79, 0},
                                {115, 1, 0, 0, 115, 0},
                                {116, 40, 0, 0, 116, 0}};
static int attention_kind;
RUN(attention) {
    Attention a = {.rows = ROWS,
                   .segments = sizeof batch / sizeof *batch,
                   .heads = HEADS,
                   .kv_heads = KV,
                   .head_size = head_size,
                   .q_stride = WIDTH,
                   .kv_stride = WIDTH,
                   .scale = 1.1f / sqrtf((float)head_size),
                   .segment = I(0),
                   .q = A(1),
                   .k = acts_at(b, A(1), (size_t)(HEADS * head_size)),
                   .v = acts_at(b, A(1), (size_t)((HEADS + KV) * head_size)),
                   .out = A(2),
                   .lse = F(3),
                   .dout = A(4),
                   .dq = A(5),
                   .dk = acts_at(b, A(5), (size_t)(HEADS * head_size)),
                   .dv = acts_at(b, A(5), (size_t)((HEADS + KV) * head_size)),
                   .window = attention_kind == 1 ? 20 : 0,
                   .cap = attention_kind == 2 ? 2.0f : 0};
    b->attention_forward(d, &a);
    b->attention_backward(d, &a);
}

/* Decode: single rows over the cache, with and without a shared prefix. */
static const Segment decoded[] = {
    {0, 1, 0, 0, 0, 90}, {1, 1, 0, 50, 100, 0}, {2, 1, 0, 50, 101, 17}, {3, 2, 0, 0, 120, 3}};
RUN(decode) {
    b->kv_store(d, A(2), A(3), A(0), A(1), HEADS * head_size, I(4), 30, KV * head_size);
    Attention a = {.rows = 5,
                   .segments = 4,
                   .heads = HEADS,
                   .kv_heads = KV,
                   .head_size = head_size,
                   .q_stride = HEADS * head_size,
                   .kv_stride = KV * head_size,
                   .scale = 1.1f / sqrtf((float)head_size),
                   .segment = I(5),
                   .q = A(0),
                   .k = A(2),
                   .v = A(3),
                   .out = A(6)};
    b->attention_forward(d, &a);
}

/* Shapes of adapters: of any channels, and of whole vectors of pairs. */
typedef struct AdapterShape {
    int rows, in, rank, stride, first[2], count[2];
} AdapterShape;
static const AdapterShape adapter_shapes[] = {
    {N, C, 4, O, {0, 40}, {32, 56}}, {N, 64, 6, 192, {32, 96}, {32, 96}}, {300, 96, 16, 160, {0, 64}, {64, 96}}};
static const AdapterShape *adapter;
#define ADAPTER                                                                                                        \
    .rows = adapter->rows, .in = adapter->in, .rank = adapter->rank, .parts = 2, .stride = adapter->stride,            \
    .first = {adapter->first[0], adapter->first[1]}, .count = {adapter->count[0], adapter->count[1]}, .scale = 0.5f
RUN(lora) {
    Lora l = {ADAPTER, .x = A(0), .a = W(1), .b = W(2), .h = A(3), .out = A(4)};
    b->lora_forward(d, &l);
    Dora o = {ADAPTER,      .w = W(5),    .a = W(1), .b = W(2),  .magnitude = W(6),
              .bias = W(7), .norm = F(8), .u = A(9), .out = A(4)};
    b->dora_norm(d, &o);
    b->dora_forward(d, &o);
    o.dout = A(4);
    o.dscaled = A(10);
    o.dmagnitude = F(11);
    b->dora_backward(d, &o);
    l.dout = A(10);
    l.dx = A(12);
    l.da = F(13);
    l.db = F(14);
    b->lora_backward(d, &l);
}

static int quant_rows;
RUN(quant) {
    QuantMatrix m = {.parts = 1, .type = {QUANT_Q8_0}, .rows = {O}, .blocks = {(const Blocks *)c[2].at[side]}};
    b->quant_forward(d, A(0), A(1), &m, W(3), quant_rows, 64, O);
    b->quant_backward(d, A(4), A(5), &m, quant_rows, 64, O);
}

RUN(head) {
    const Head h = {.rows = N,
                    .channels = C,
                    .vocab = V,
                    .padded_vocab = VP,
                    .temperature = 0.9f,
                    .h = A(0),
                    .weight = W(1),
                    .target = I(2),
                    .logp = F(3),
                    .entropy = F(4),
                    .dlogp = F(5),
                    .dh = A(6),
                    .dweight = F(7)};
    b->head(d, &h);
    b->logits(d, F(8), A(0), W(1), 0, N, C, V, VP);
    TokenDivergence t = {.head = h,
                         .kind = TOKEN_JSD,
                         .channels = C,
                         .padded_vocab = VP,
                         .temperature = 1,
                         .beta = 0.3f,
                         .h = A(9),
                         .output = W(1),
                         .value = F(10),
                         .logp = F(11),
                         .weight = F(5)};
    t.head.dh = A(12);
    t.head.dweight = F(13);
    b->divergence(d, &t);
}

static void test_rows(void **state) {
    (void)state;
    acts(N * C);
    weights(V * C, 1);
    weights(40 * C, 1);
    ints(N, V);
    ints(N, 40);
    floats(N, 1);
    floats(V * C, 1);
    floats(40 * C, 1);
    both("embed", 8, embed);
    for (norm_kind = NORM_LAYER; norm_kind <= NORM_RMS; norm_kind++) {
        weights(C, 1);
        weights(C, 1);
        for (int i = 0; i < 3; i++) acts(N * C);
        floats(N, 1);
        floats(N, 1);
        acts(N * C);
        acts(N * C);
        floats(C, 1);
        floats(C, 1);
        acts(N * C);
        both("norm", 6, norm);
    }
    for (int i = 0; i < 3; i++) acts(N * C);
    cell_new(INT, (const int32_t[]){3, 30, 7, 8, 21}, 5, 4, false);
    floats(N, 1);
    weights(C, 0.1);
    weights(1, 1);
    floats(C, 1);
    floats(1, 1);
    both("add, gather, scatter, value", 8, rows);
}

static void test_linear(void **state) {
    (void)state;
    acts(N * O);
    acts(N * C);
    weights(O * C, 0.1);
    weights(O, 1);
    acts(N * C);
    floats(O * C, 1);
    floats(O, 1);
    for (int i = 0; i < 4; i++) acts(N * O);
    acts(N * O / 2);
    acts(N * O);
    both("linear layers", 8, linear);
    for (mlp_kind = MLP_GELU; mlp_kind <= MLP_GEGLU; mlp_kind++) {
        const size_t pre = N * HIDDEN * (mlp_kind == MLP_GELU ? 1 : 2);
        acts(N * C);
        cell_new(ACTS, values(pre, 4), pre, 2, true);
        weights(C * HIDDEN, 0.1);
        acts(N * HIDDEN);
        acts(pre);
        floats(C * HIDDEN, 1);
        floats(C, 1);
        acts(N * HIDDEN);
        acts(N * HIDDEN);
        both("mlp", 8, mlp);
    }
}

static void test_rotary(void **state) {
    (void)state;
    floats(N * 8, 1);
    ints(N, 1000);
    floats(4, 0.1);
    weights(8, 1);
    weights(16, 1);
    acts(N * 64);
    acts(N * 48);
    floats(N * 5, 1);
    acts(N * 64);
    floats(8, 1);
    floats(16, 1);
    both("rotary", 8, rotary);
}

/* Heads of whole vectors are multiplied in bfloat16, on tiles if they have up to 256 channels; those of 24 in float32. */
static void test_attention(void **state) {
    (void)state;
    static const int sizes[] = {16, 24, 32, 48, 64, 112, 256, 272};
    for (size_t size = 0; size < sizeof sizes / sizeof *sizes; size++) {
        head_size = sizes[size];
        const size_t queries = (size_t)(HEADS * head_size), keys = (size_t)(KV * head_size);
        for (attention_kind = 0; attention_kind < 3; attention_kind++) {
            cell_new(INT, batch, sizeof batch / 4, 4, false);
            acts(ROWS * (size_t)WIDTH);
            acts(ROWS * queries);
            floats(ROWS * HEADS, 1);
            acts(ROWS * queries);
            cell_new(ACTS, FLOATS(ROWS * (size_t)WIDTH), ROWS * (size_t)WIDTH, 2, true);
            both("attention", head_size <= 112 ? 16 : 24, attention); /* of more elements, rarer errors are seen */
        }
        int32_t slot[30];
        for (int i = 0; i < 30; i++) slot[i] = i % 7 ? 5 + 4 * i : -1;
        acts(30 * queries);
        acts(30 * queries);
        acts(130 * keys);
        acts(130 * keys);
        cell_new(INT, slot, 30, 4, false);
        cell_new(INT, decoded, sizeof decoded / 4, 4, false);
        acts(5 * queries);
        both("decode", 8, decode);
    }
}

static void test_adapters(void **state) {
    (void)state;
    for (size_t s = 0; s < sizeof adapter_shapes / sizeof *adapter_shapes; s++) {
        adapter = &adapter_shapes[s];
        const size_t rows = (size_t)adapter->rows, in = (size_t)adapter->in, stride = (size_t)adapter->stride;
        const size_t rank = (size_t)adapter->rank, outputs = (size_t)(adapter->count[0] + adapter->count[1]);
        acts(rows * in);
        weights(2 * rank * in, 0.1);
        weights(outputs * rank, 1);
        acts(rows * 2 * rank);
        acts(rows * stride);
        weights(stride * in, 0.1);
        weights(outputs, 1);
        weights(stride, 1);
        floats(outputs, 1);
        acts(rows * outputs);
        acts(rows * stride);
        floats(outputs, 1);
        acts(rows * in);
        floats(2 * rank * in, 1);
        floats(outputs * rank, 1);
        both("adapters", 24, lora);
    }
    for (quant_rows = 5; quant_rows <= N; quant_rows += 32) {
        acts((size_t)quant_rows * O);
        acts((size_t)quant_rows * 64);
        float *decoded_values = FLOATS(O * 64);
        void *blocks = quant_random(&R, QUANT_Q8_0, O * 64, decoded_values);
        cell_new(BLOCK, blocks, quant_bytes(QUANT_Q8_0, O * 64), 1, false);
        free(blocks);
        weights(O, 1);
        acts((size_t)quant_rows * 64);
        acts((size_t)quant_rows * O);
        both("quantised matrices", 3, quant);
    }
}

static void test_head(void **state) {
    (void)state;
    acts(N * C);
    weights(VP * C, 0.1);
    ints(N, V);
    floats(N, 1);
    floats(N, 1);
    floats(N, 1);
    acts(N * C);
    floats(VP * C, 1);
    floats(N * V, 1);
    acts(N * C);
    floats(N, 1);
    floats(N, 1);
    acts(N * C);
    floats(VP * C, 1);
    both("head", 16, head);
}

static int start(void **state) {
    (void)state;
    cells = 0;
    return 0;
}

/* The backend is for bfloat16 alone. */
static void test_open(void **state) {
    (void)state;
    Error e;
    Device *d;
    assert_true(B[HALF]->act_size == 2 && B[HALF]->weight_size == 4);
    assert_false(B[HALF]->open(&d, DTYPE_FLOAT32, &e));
    assert_non_null(strstr(e.text, "bf16"));
}

/* Runs the tests on one of the backends with activations in bfloat16; counts those that failed. */
static int run_all(const Backend *half, const char *name) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_open, start),      cmocka_unit_test_setup(test_rows, start),
        cmocka_unit_test_setup(test_linear, start),    cmocka_unit_test_setup(test_rotary, start),
        cmocka_unit_test_setup(test_attention, start), cmocka_unit_test_setup(test_adapters, start),
        cmocka_unit_test_setup(test_head, start)};
    Error e;
    R = random_start(5, 0);
    B[HALF] = half;
    if (!half->open(&D[HALF], DTYPE_BF16, &e)) {
        print_error("%s: %s\n", name, e.text);
        return 1;
    }
    const int failed = cmocka_run_group_tests_name(name, tests, NULL, NULL);
    half->close(D[HALF]);
    return failed;
}

/* All backends that this processor can run, of which programs get the last one. */
int main(void) {
    Error e;
    B[WHOLE] = backend_cpu();
    if (!B[WHOLE]->open(&D[WHOLE], DTYPE_FLOAT32, &e)) {
        print_error("%s\n", e.text);
        return 1;
    }
    const bool avx512 = B[WHOLE] != backend_cpu_v3();
    int failed = run_all(backend_cpu_half_v3(), "half, AVX2");
    if (avx512) failed += run_all(backend_cpu_half_avx512(), "half, AVX-512");
    if (B[WHOLE] == backend_cpu_bf16()) failed += run_all(backend_cpu_half_bf16(), "half, AVX-512 with bfloat16");
    if (B[HALF] != backend_cpu_for(DTYPE_BF16)) {
        print_error("programs get another backend for bfloat16\n");
        failed++;
    }
    B[WHOLE]->close(D[WHOLE]);
    return failed;
}

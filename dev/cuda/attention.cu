/* attention.cu - versions of attention over packed segments with shared prefixes, from the simplest to the fastest.
 *
 *   forward    1  one thread per query and head, online softmax, everything from global memory
 *              2  one warp per query and head: lanes share the channels, a key's row is read once per warp
 *              3  strips of 32 queries, tiles in shared memory, float32 arithmetic      (llmc/cuda/attention_plain.cuh)
 *              4  strips of 64 queries on tensor cores, tiles by cp.async               (llmc/cuda/attention_mma.cuh)
 *              5  strips of 128: a warp reads a tile once for 32 queries                (llmc/cuda/attention_mma.cuh)
 *   backward   1  one thread per query and head; gradients of keys by atomic additions: not repeatable
 *              2  strips, float32 arithmetic, no atomics: scores computed twice         (llmc/cuda/attention_plain.cuh)
 *              3  the same on tensor cores                                              (llmc/cuda/attention_mma.cuh)
 *   decode     1  forward 2 with one query per sequence
 *              2  one block per query and key head, split over the keys, and a combining pass
 *                                                                                      (llmc/cuda/attention_decode.cuh)
 *
 * FLOPs count visible pairs of a query and a key: 4 D per pair and head forward, 10 D backward (as in the literature,
 * although versions 2 and 3 compute 14 D). For decode, bytes of keys and values are counted, each once.
 */
#include "bench.cuh"
#include "../../llmc/cuda/attention.cuh"

/* ---- forward 1: one thread per query and head ------------------------------------------------------------------- */

template <typename T> __global__ static void forward1_kernel(const Attention a) {
    const Segment *segment = (const Segment *)a.segment;
    const int row = (int)(blockIdx.x * blockDim.x + threadIdx.x), head = (int)blockIdx.y, D = a.head_size;
    const int kv = head / (a.heads / a.kv_heads);
    for (int s = 0; s < a.segments; s++) {
        if (row < segment[s].start || row >= segment[s].start + segment[s].len) continue;
        const int keys = keys_seen(segment[s], row - segment[s].start);
        const RowMap map = map_keys(segment[s]);
        const T *q = (const T *)a.q + (size_t)row * a.q_stride + head * D;
        float out[128], most = -INFINITY, sum = 0;
        for (int d = 0; d < D; d++) out[d] = 0;
        for (int j = 0; j < keys; j++) {
            const size_t at = (size_t)map.row(j) * a.kv_stride + kv * D;
            float dot = 0;
            for (int d = 0; d < D; d++) dot += to_float(q[d]) * to_float(((const T *)a.k)[at + d]);
            const float next = fmaxf(most, dot * a.scale), alpha = expf(most - next), p = expf(dot * a.scale - next);
            for (int d = 0; d < D; d++) out[d] = out[d] * alpha + p * to_float(((const T *)a.v)[at + d]);
            sum = sum * alpha + p;
            most = next;
        }
        for (int d = 0; d < D; d++) ((T *)a.out)[((size_t)row * a.heads + head) * D + d] = from_float<T>(out[d] / sum);
        if (a.lse) ((float *)a.lse)[(size_t)row * a.heads + head] = most + logf(sum);
    }
}

/* ---- forward 2: one warp per query and head --------------------------------------------------------------------- */

template <typename T> __global__ static void forward2_kernel(const Attention a) {
    const int lane = threadIdx.x % 32, row = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
    const int head = (int)blockIdx.y, D = a.head_size, kv = head / (a.heads / a.kv_heads);
    Segment s;
    int i;
    if (!row_find(&s, &i, a, row)) return;
    const int keys = keys_seen(s, i);
    const RowMap map = map_keys(s);
    float q[4], out[4] = {0, 0, 0, 0}, most = -INFINITY, sum = 0;
    for (int e = 0; e < 4; e++)
        q[e] = lane + 32 * e < D ? to_float(((const T *)a.q)[(size_t)row * a.q_stride + head * D + lane + 32 * e]) : 0;
    for (int j = 0; j < keys; j++) {
        const size_t at = (size_t)map.row(j) * a.kv_stride + kv * D;
        float dot = 0;
        for (int e = 0; e < 4; e++)
            if (lane + 32 * e < D) dot += q[e] * to_float(((const T *)a.k)[at + lane + 32 * e]);
        dot = warp_sum(dot) * a.scale;
        const float next = fmaxf(most, dot), alpha = expf(most - next), p = expf(dot - next);
        for (int e = 0; e < 4; e++)
            if (lane + 32 * e < D) out[e] = out[e] * alpha + p * to_float(((const T *)a.v)[at + lane + 32 * e]);
        sum = sum * alpha + p;
        most = next;
    }
    for (int e = 0; e < 4; e++)
        if (lane + 32 * e < D)
            ((T *)a.out)[((size_t)row * a.heads + head) * D + lane + 32 * e] = from_float<T>(out[e] / sum);
    if (a.lse && lane == 0) ((float *)a.lse)[(size_t)row * a.heads + head] = most + logf(sum);
}

/* ---- backward 1: one thread per query and head, atomics --------------------------------------------------------- */

template <typename T> __global__ static void backward1_kernel(const Attention a, float *dk, float *dv) {
    const Segment *segment = (const Segment *)a.segment;
    const int row = (int)(blockIdx.x * blockDim.x + threadIdx.x), head = (int)blockIdx.y, D = a.head_size;
    const int kv = head / (a.heads / a.kv_heads);
    for (int s = 0; s < a.segments; s++) {
        if (row < segment[s].start || row >= segment[s].start + segment[s].len) continue;
        const int keys = keys_seen(segment[s], row - segment[s].start);
        const RowMap map = map_keys(segment[s]);
        const T *q = (const T *)a.q + (size_t)row * a.q_stride + head * D;
        const size_t o = ((size_t)row * a.heads + head) * D;
        const T *dout = (const T *)a.dout + o, *out = (const T *)a.out + o;
        float dq[128], delta = 0;
        for (int d = 0; d < D; d++) {
            dq[d] = 0;
            delta += to_float(dout[d]) * to_float(out[d]);
        }
        for (int j = 0; j < keys; j++) {
            const size_t at = (size_t)map.row(j) * a.kv_stride + kv * D,
                         to = ((size_t)map.row(j) * a.kv_heads + kv) * D;
            const T *k = (const T *)a.k + at, *v = (const T *)a.v + at;
            float dot = 0, dp = 0;
            for (int d = 0; d < D; d++) {
                dot += to_float(q[d]) * to_float(k[d]);
                dp += to_float(dout[d]) * to_float(v[d]);
            }
            const float p = expf(dot * a.scale - ((const float *)a.lse)[(size_t)row * a.heads + head]);
            const float ds = p * (dp - delta) * a.scale;
            for (int d = 0; d < D; d++) {
                dq[d] += ds * to_float(k[d]);
                atomicAdd(dk + to + d, ds * to_float(q[d]));
                atomicAdd(dv + to + d, p * to_float(dout[d]));
            }
        }
        for (int d = 0; d < D; d++) ((T *)a.dq)[(size_t)row * a.q_stride + head * D + d] = from_float<T>(dq[d]);
    }
}

/* Copies the sums of version 1 to the place of the other versions' results. */
template <typename T> __global__ static void narrow_kernel(T *to, const float *from, int stride, int width, int rows) {
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < rows * width; i += (int)(gridDim.x * blockDim.x))
        to[(size_t)(i / width) * stride + i % width] = from_float<T>(from[i]);
}

/* ---- problems --------------------------------------------------------------------------------------------------- */

typedef bf16 T;

struct Problem {
    Attention a;
    std::vector<Segment> segments;
    float *dk, *dv; /* for backward 1 */
    int key_rows;
    double pairs; /* visible pairs of a query and a key */
};

static Problem problem(Bench *b, const std::vector<Segment> &segments, int rows, int cache, int heads, int kv_heads,
                       int D) {
    Problem p = {};
    const int QW = heads * D, KW = kv_heads * D, W = QW + 2 * KW;
    Attention &a = p.a;
    Indices words;
    for (const Segment &s : segments) {
        for (int32_t word : {s.start, s.len, s.prefix_start, s.prefix_len, s.key_start, s.past}) words.push_back(word);
        p.pairs += (double)s.len * (s.prefix_len + s.past + 0.5 * (s.len + 1));
    }
    p.segments = segments;
    p.key_rows = cache ? cache : rows;
    a.rows = rows;
    a.segments = (int)segments.size();
    a.heads = heads;
    a.kv_heads = kv_heads;
    a.head_size = D;
    a.scale = 1 / sqrtf((float)D);
    a.segment = (const Ints *)bench_upload(b, words);
    if (cache) {
        a.q = (Acts *)bench_fill<T>(b, (size_t)rows * QW, 1);
        a.k = (Acts *)bench_fill<T>(b, (size_t)cache * KW, 1);
        a.v = (Acts *)bench_fill<T>(b, (size_t)cache * KW, 1);
        a.q_stride = QW;
        a.kv_stride = KW;
    } else {
        T *qkv = bench_fill<T>(b, (size_t)rows * W, 1), *dqkv = bench_memory<T>(b, (size_t)rows * W);
        a.q = (Acts *)qkv;
        a.k = (Acts *)(qkv + QW);
        a.v = (Acts *)(qkv + QW + KW);
        a.q_stride = a.kv_stride = W;
        a.dq = (Acts *)dqkv;
        a.dk = (Acts *)(dqkv + QW);
        a.dv = (Acts *)(dqkv + QW + KW);
        a.dout = (Acts *)bench_fill<T>(b, (size_t)rows * QW, 1);
        p.dk = bench_memory<float>(b, (size_t)rows * KW);
        p.dv = bench_memory<float>(b, (size_t)rows * KW);
    }
    a.out = (Acts *)bench_memory<T>(b, (size_t)rows * QW);
    a.lse = (Floats *)bench_memory<float>(b, (size_t)rows * heads);
    return p;
}

static const char *const forward_names[] = {"one thread per query", "one warp per query", "strips, float32",
                                            "strips, tensor cores", "strips of 128, tensor cores"};
static const char *const backward_names[] = {"one thread per query, atomics", "strips, float32",
                                             "strips, tensor cores"};
static const char *const decode_names[] = {"one warp per query", "split over the keys"};

static void forward(Device *d, const Problem &p, int version) {
    const Attention &a = p.a;
    const dim3 grid((unsigned)cuda_ceil((size_t)a.rows, version == 1 ? 128 : 4), (unsigned)a.heads);
    if (version == 1) LAUNCH((forward1_kernel<T>), grid, 128, 0, d->stream, a);
    if (version == 2) LAUNCH((forward2_kernel<T>), grid, 128, 0, d->stream, a);
    if (version == 3) a.head_size <= 64 ? plain_forward<T, 64, false>(d, &a) : plain_forward<T, 128, false>(d, &a);
    if (version == 4) a.head_size <= 64 ? mma_forward<64, 1, false>(d, &a) : mma_forward<128, 1, false>(d, &a);
    if (version == 5) a.head_size <= 64 ? mma_forward<64, 2, false>(d, &a) : mma_forward<128, 2, false>(d, &a);
}

static void backward(Device *d, const Problem &p, int version) {
    const Attention &a = p.a;
    const int KW = a.kv_heads * a.head_size;
    cuda_scratch_begin(d);
    if (version == 1) {
        cudaMemsetAsync(p.dk, 0, (size_t)a.rows * KW * 4, d->stream);
        cudaMemsetAsync(p.dv, 0, (size_t)a.rows * KW * 4, d->stream);
        const dim3 grid((unsigned)cuda_ceil((size_t)a.rows, 128), (unsigned)a.heads);
        LAUNCH((backward1_kernel<T>), grid, 128, 0, d->stream, a, p.dk, p.dv);
        LAUNCH((narrow_kernel<T>), 256, 256, 0, d->stream, (T *)a.dk, p.dk, a.kv_stride, KW, a.rows);
        LAUNCH((narrow_kernel<T>), 256, 256, 0, d->stream, (T *)a.dv, p.dv, a.kv_stride, KW, a.rows);
        return;
    }
    float *delta = cuda_scratch_of<float>(d, (size_t)a.rows * a.heads, "delta");
    attention_delta<T>(d, &a, delta);
    if (version == 2)
        a.head_size <= 64 ? plain_backward<T, 64, false>(d, &a, delta) : plain_backward<T, 128, false>(d, &a, delta);
    if (version == 3)
        a.head_size <= 64 ? mma_backward<64, false>(d, &a, delta) : mma_backward<128, false>(d, &a, delta);
}

static void decode(Device *d, const Problem &p, int version) {
    cuda_scratch_begin(d);
    if (version == 1) return forward(d, p, 2);
    p.a.head_size <= 64 ? decode_launch<T, 64, false>(d, &p.a) : decode_launch<T, 128, false>(d, &p.a);
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

/* out = softmax(scale q k^T) v and its derivatives, one query at a time. */
static void reference(Bench *b, const Problem &p, bool gradient, Doubles *out, Doubles *dqkv) {
    const Attention &a = p.a;
    const int D = a.head_size, H = a.heads;
    const size_t QW = (size_t)H * D, qs = (size_t)a.q_stride, ks = (size_t)a.kv_stride;
    const size_t count_q = (size_t)(a.rows - 1) * qs + QW,
                 count_k = (size_t)(p.key_rows - 1) * ks + (size_t)a.kv_heads * D;
    const Numbers q = bench_fetch(b, (const T *)a.q, count_q), k = bench_fetch(b, (const T *)a.k, count_k);
    const Numbers v = bench_fetch(b, (const T *)a.v, count_k);
    const Numbers dout = gradient ? bench_fetch(b, (const T *)a.dout, (size_t)a.rows * QW) : Numbers();
    out->assign((size_t)a.rows * QW, 0);
    dqkv->assign(gradient ? (size_t)a.rows * qs : 0, 0);
    for (const Segment &s : p.segments)
        for (int i = 0; i < s.len; i++)
            for (int h = 0; h < H; h++) {
                std::vector<size_t> key;
                for (int j = 0; j < s.prefix_len; j++) key.push_back((size_t)(s.prefix_start + j));
                for (int j = 0; j <= s.past + i; j++) key.push_back((size_t)(s.key_start + j));
                const size_t row = (size_t)(s.start + i), kv = (size_t)(h * a.kv_heads / H * D), o = (row * H + h) * D;
                Doubles w(key.size()), dw(key.size());
                double sum = 0, mean = 0;
                for (size_t j = 0; j < key.size(); j++) {
                    for (int d = 0; d < D; d++) w[j] += (double)q[row * qs + h * D + d] * k[key[j] * ks + kv + d];
                    sum += w[j] = exp(w[j] * a.scale);
                }
                for (size_t j = 0; j < key.size(); j++) {
                    w[j] /= sum;
                    for (int d = 0; d < D; d++) {
                        (*out)[o + d] += w[j] * v[key[j] * ks + kv + d];
                        if (gradient) dw[j] += (double)dout[o + d] * v[key[j] * ks + kv + d];
                    }
                    mean += w[j] * dw[j];
                }
                if (!gradient) continue;
                for (size_t j = 0; j < key.size(); j++)
                    for (int d = 0; d < D; d++) {
                        const double ds = w[j] * (dw[j] - mean) * a.scale;
                        (*dqkv)[row * qs + h * D + d] += ds * k[key[j] * ks + kv + d];
                        (*dqkv)[key[j] * ks + QW + kv + d] += ds * q[row * qs + h * D + d];
                        (*dqkv)[key[j] * ks + QW + (size_t)a.kv_heads * D + kv + d] += w[j] * dout[o + d];
                    }
            }
}

/* Families of a prompt and its completions. */
static std::vector<Segment> families(int count, int prompt, int answers, int len) {
    std::vector<Segment> s;
    int at = 0;
    for (int f = 0; f < count; f++) {
        const int start = at;
        s.push_back(Segment{start, prompt, 0, 0, start, 0});
        at += prompt;
        for (int i = 0; i < answers; i++, at += len) s.push_back(Segment{at, len, start, prompt, at, 0});
    }
    return s;
}

/* Sequences in decode, each with its own past. */
static std::vector<Segment> sequences(int count, int past) {
    std::vector<Segment> s;
    for (int i = 0; i < count; i++) s.push_back(Segment{i, 1, 0, 0, i * (past + 1), past});
    return s;
}

static void training(Bench *b, int heads, int D) {
    double error_forward[6] = {}, error_backward[4] = {};
    Doubles out, dqkv;
    const Problem small = problem(b, families(1, 40, 2, 37), 114, 0, 2, 1, D);
    reference(b, small, true, &out, &dqkv);
    for (int version = 1; version <= 5; version++) {
        if (!bench_wants(b, version)) continue;
        cudaMemsetAsync((void *)small.a.out, 0xff, out.size() * sizeof(T), b->d->stream); /* NaN */
        forward(b->d, small, version);
        error_forward[version] =
            bench_compare("forward", version, bench_fetch(b, (T *)small.a.out, out.size()), out, 0.02);
    }
    forward(b->d, small, 4);
    for (int version = 1; version <= 3; version++) {
        if (!bench_wants(b, version)) continue;
        cudaMemsetAsync((void *)small.a.dq, 0xff, dqkv.size() * sizeof(T), b->d->stream);
        backward(b->d, small, version);
        error_backward[version] =
            bench_compare("backward", version, bench_fetch(b, (T *)small.a.dq, dqkv.size()), dqkv, 0.02);
    }
    bench_free(b);
    std::vector<Problem> sets;
    const int segments = 8, len = 1024, rows = segments * len;
    const int count = b->gpu ? bench_sets(b, (size_t)rows * heads * D * 8) : 0;
    for (int i = 0; i < count; i++) sets.push_back(problem(b, families(segments, len, 0, 0), rows, 0, heads, heads, D));
    const double work = b->gpu ? sets[0].pairs * heads * D : 0;
    for (int version = 1; version <= 5; version++) {
        if (!bench_wants(b, version)) continue;
        const double s =
            !b->gpu ? 0 : bench_seconds(b, (int)sets.size(), [&](int i) { forward(b->d, sets[(size_t)i], version); });
        char what[32];
        snprintf(what, sizeof what, "forward, D %d", D);
        bench_line(b, what, version, forward_names[version - 1], error_forward[version], s, 0, 4 * work);
    }
    for (Problem &p : sets) forward(b->d, p, 4);
    for (int version = 1; version <= 3; version++) {
        if (!bench_wants(b, version)) continue;
        const double s =
            !b->gpu ? 0 : bench_seconds(b, (int)sets.size(), [&](int i) { backward(b->d, sets[(size_t)i], version); });
        char what[32];
        snprintf(what, sizeof what, "backward, D %d", D);
        bench_line(b, what, version, backward_names[version - 1], error_backward[version], s, 0, 10 * work);
    }
    bench_free(b);
}

static void decoding(Bench *b, int count, int past, int heads, int kv_heads, int D) {
    double error[3] = {};
    Doubles out, none;
    const Problem small = problem(b, sequences(3, 299), 3, 900, 4, 4 * kv_heads / heads, D);
    reference(b, small, false, &out, &none);
    for (int version = 1; version <= 2; version++) {
        if (!bench_wants(b, version)) continue;
        cudaMemsetAsync((void *)small.a.out, 0xff, out.size() * sizeof(T), b->d->stream);
        decode(b->d, small, version);
        error[version] = bench_compare("decode", version, bench_fetch(b, (T *)small.a.out, out.size()), out, 0.02);
    }
    bench_free(b);
    const double bytes = (double)count * (past + 1) * kv_heads * D * 2 * sizeof(T);
    std::vector<Problem> sets;
    const int copies = b->gpu ? bench_sets(b, (size_t)bytes) : 0;
    for (int i = 0; i < copies; i++)
        sets.push_back(problem(b, sequences(count, past), count, count * (past + 1), heads, kv_heads, D));
    for (int version = 1; version <= 2; version++) {
        if (!bench_wants(b, version)) continue;
        const double s =
            !b->gpu ? 0 : bench_seconds(b, (int)sets.size(), [&](int i) { decode(b->d, sets[(size_t)i], version); });
        char what[32], name[64];
        snprintf(what, sizeof what, "decode, D %d", D);
        snprintf(name, sizeof name, "%s: %d x %d keys, %d/%d heads", decode_names[version - 1], count, past + 1, heads,
                 kv_heads);
        bench_line(b, what, version, name, error[version], s, bytes, 0);
    }
    bench_free(b);
}

int main(int argc, char **argv) {
    Bench b = bench_start(argc, argv, "attention");
    training(&b, 12, 64);
    training(&b, 16, 128);
    decoding(&b, 1, 4095, 12, 12, 64);
    decoding(&b, 64, 511, 12, 12, 64);
    decoding(&b, 256, 1023, 32, 8, 128);
    return 0;
}

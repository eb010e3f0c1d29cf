/* layernorm.cu - versions of sum = x + delta, out = layernorm(sum), and of its gradient.
 *
 *   1  forward: one thread per row, straight from the formula
 *   2  forward: one block per row, sums over the block in shared memory, three passes over the row
 *   3  forward: one warp per row, sums by shuffles, three passes
 *   4  forward: one warp per row, kept in registers, 16 bytes at a time           (llmc/cuda/norm.cuh)
 *   5  backward: one warp per row, dw and db by float atomics; not repeatable
 *   6  backward: a block owns rows, a thread owns columns, parts added in order   (llmc/cuda/norm.cuh)
 *
 * Bytes: forward reads x and delta and writes sum and out; backward reads dout, x and dx and writes dx. bf16.
 */
#include "bench.cuh"
#include "../../llmc/cuda/norm.cuh"

typedef bf16 T;

struct Layernorm {
    T *sum, *out, *x, *delta, *w, *b, *dx, *dout;
    float *mean, *rstd, *dw, *db;
    int N, C;
};

/* ---- 1: one thread per row -------------------------------------------------------------------------------------- */

__global__ static void norm1_kernel(const Layernorm a) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= a.N) return;
    const size_t row = (size_t)i * a.C;
    float total = 0, squares = 0;
    for (int c = 0; c < a.C; c++) {
        a.sum[row + c] = from_float<T>(to_float(a.x[row + c]) + to_float(a.delta[row + c]));
        total += to_float(a.sum[row + c]);
    }
    const float m = total / a.C;
    for (int c = 0; c < a.C; c++) squares += (to_float(a.sum[row + c]) - m) * (to_float(a.sum[row + c]) - m);
    const float s = 1.0f / sqrtf(squares / a.C + 1e-5f);
    for (int c = 0; c < a.C; c++)
        a.out[row + c] = from_float<T>((to_float(a.sum[row + c]) - m) * s * to_float(a.w[c]) + to_float(a.b[c]));
    a.mean[i] = m;
    a.rstd[i] = s;
}

/* ---- 2: one block per row; 3: one warp per row ------------------------------------------------------------------- */

/* THREADS threads process one row; `total` sums a value over them. */
template <int THREADS, typename F> __device__ static inline void norm_row(const Layernorm &a, int i, int thread, F total) {
    const size_t row = (size_t)i * a.C;
    float sum = 0, squares = 0;
    for (int c = thread; c < a.C; c += THREADS) {
        const T rounded = from_float<T>(to_float(a.x[row + c]) + to_float(a.delta[row + c]));
        a.sum[row + c] = rounded;
        sum += to_float(rounded);
    }
    const float m = total(sum) / a.C;
    for (int c = thread; c < a.C; c += THREADS) {
        const float difference = to_float(a.sum[row + c]) - m;
        squares += difference * difference;
    }
    const float s = 1.0f / sqrtf(total(squares) / a.C + 1e-5f);
    for (int c = thread; c < a.C; c += THREADS)
        a.out[row + c] = from_float<T>((to_float(a.sum[row + c]) - m) * s * to_float(a.w[c]) + to_float(a.b[c]));
    if (thread == 0) {
        a.mean[i] = m;
        a.rstd[i] = s;
    }
}

__global__ static void norm2_kernel(const Layernorm a) {
    norm_row<256>(a, (int)blockIdx.x, (int)threadIdx.x, [](float x) { return block_sum<256>(x); });
}

__global__ static void norm3_kernel(const Layernorm a) {
    const int i = (int)(blockIdx.x * 4 + threadIdx.x / 32);
    if (i < a.N) norm_row<32>(a, i, (int)threadIdx.x % 32, [](float x) { return warp_sum(x); });
}

/* ---- 5: backward with atomics ------------------------------------------------------------------------------------ */

__global__ static void norm5_kernel(const Layernorm a) {
    const int i = (int)(blockIdx.x * 4 + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
    if (i >= a.N) return;
    const size_t row = (size_t)i * a.C;
    const float m = a.mean[i], s = a.rstd[i];
    float g_sum = 0, gn_sum = 0;
    for (int c = lane; c < a.C; c += 32) {
        const float g = to_float(a.dout[row + c]) * to_float(a.w[c]);
        g_sum += g;
        gn_sum += g * (to_float(a.x[row + c]) - m) * s;
    }
    g_sum = warp_sum(g_sum) / a.C;
    gn_sum = warp_sum(gn_sum) / a.C;
    for (int c = lane; c < a.C; c += 32) {
        const float o = to_float(a.dout[row + c]), n = (to_float(a.x[row + c]) - m) * s;
        atomicAdd(a.dw + c, o * n);
        atomicAdd(a.db + c, o);
        a.dx[row + c] = from_float<T>(to_float(a.dx[row + c]) + s * (o * to_float(a.w[c]) - g_sum - n * gn_sum));
    }
}

/* The arguments of the backend's operations. */
static Norm norm_of(const Layernorm &a) {
    Norm n = {};
    n.rows = a.N;
    n.channels = a.C;
    n.kind = NORM_LAYER;
    n.eps = 1e-5f;
    n.w = (const Weights *)a.w;
    n.b = (const Weights *)a.b;
    n.x = (const Acts *)a.x;
    n.mean = (Floats *)a.mean;
    n.rstd = (Floats *)a.rstd;
    n.out = (Acts *)a.out;
    n.dout = (const Acts *)a.dout;
    n.dx = (Acts *)a.dx;
    n.dw = (Floats *)a.dw;
    n.db = (Floats *)a.db;
    return n;
}

static void norm_version(Bench *b, int version, const Layernorm &a) {
    Device *d = b->d;
    const unsigned warps = (unsigned)((a.N + 3) / 4);
    cuda_scratch_begin(d);
    if (version == 1) LAUNCH(norm1_kernel, (unsigned)((a.N + 127) / 128), 128, 0, d->stream, a);
    if (version == 2) LAUNCH(norm2_kernel, (unsigned)a.N, 256, 0, d->stream, a);
    if (version == 3) LAUNCH(norm3_kernel, warps, 128, 0, d->stream, a);
    if (version == 4) {
        Norm n = norm_of(a);
        n.delta = (const Acts *)a.delta;
        n.sum = (Acts *)a.sum;
        cuda_norm_forward<T>(d, &n);
    }
    if (version == 5) LAUNCH(norm5_kernel, warps, 128, 0, d->stream, a);
    if (version == 6) {
        const Norm n = norm_of(a);
        cuda_norm_backward<T>(d, &n);
    }
    CUDA_LAUNCHED(d, "layernorm", "version %d", version);
}

static double check_forward(Bench *b, int version, int N, int C) {
    Random r = random_start(1, 0);
    const size_t n = (size_t)N * C;
    const Numbers x = bench_normals<T>(&r, n, 2), delta = bench_normals<T>(&r, n, 1);
    const Numbers w = bench_normals<T>(&r, C, 1), bias = bench_normals<T>(&r, C, 1);
    Layernorm a = {};
    a.N = N;
    a.C = C;
    a.x = bench_upload<T>(b, x);
    a.delta = bench_upload<T>(b, delta);
    a.w = bench_upload<T>(b, w);
    a.b = bench_upload<T>(b, bias);
    a.sum = bench_memory<T>(b, n);
    a.out = bench_memory<T>(b, n);
    a.mean = bench_memory<float>(b, N);
    a.rstd = bench_memory<float>(b, N);
    norm_version(b, version, a);
    Doubles want(n);
    for (int i = 0; i < N; i++) {
        double m = 0, squares = 0;
        Doubles s(C);
        for (int c = 0; c < C; c++) {
            s[c] = bench_float(bench_storage(x[i * C + c] + delta[i * C + c], T()));
            m += s[c] / C;
        }
        for (int c = 0; c < C; c++) squares += (s[c] - m) * (s[c] - m) / C;
        for (int c = 0; c < C; c++) want[(size_t)i * C + c] = (s[c] - m) / sqrt(squares + 1e-5) * w[c] + bias[c];
    }
    const double error = bench_compare("layernorm", version, bench_fetch(b, a.out, n), want, 0.01);
    bench_free(b);
    return error;
}

static double check_backward(Bench *b, int version, int N, int C) {
    Random r = random_start(2, 0);
    const size_t n = (size_t)N * C;
    const Numbers x = bench_normals<T>(&r, n, 2), dout = bench_normals<T>(&r, n, 1), w = bench_normals<T>(&r, C, 1);
    const Numbers dx = bench_normals<T>(&r, n, 1), dw = bench_normals<float>(&r, C, 1);
    Numbers mean(N), rstd(N);
    Doubles want_x(n), want_w(C);
    for (int c = 0; c < C; c++) want_w[c] = dw[c];
    for (int i = 0; i < N; i++) {
        double m = 0, squares = 0, g_sum = 0, gn_sum = 0;
        for (int c = 0; c < C; c++) m += x[i * C + c] / C;
        for (int c = 0; c < C; c++) squares += (x[i * C + c] - m) * (x[i * C + c] - m) / C;
        const double s = 1 / sqrt(squares + 1e-5);
        mean[i] = (float)m;
        rstd[i] = (float)s;
        for (int c = 0; c < C; c++) {
            const double k = (x[i * C + c] - m) * s, g = dout[i * C + c] * w[c];
            g_sum += g / C;
            gn_sum += g * k / C;
            want_w[c] += dout[i * C + c] * k;
        }
        for (int c = 0; c < C; c++)
            want_x[(size_t)i * C + c] =
                dx[i * C + c] + s * (dout[i * C + c] * w[c] - g_sum - (x[i * C + c] - m) * s * gn_sum);
    }
    Layernorm a = {};
    a.N = N;
    a.C = C;
    a.x = bench_upload<T>(b, x);
    a.dout = bench_upload<T>(b, dout);
    a.w = bench_upload<T>(b, w);
    a.dx = bench_upload<T>(b, dx);
    a.dw = bench_upload<float>(b, dw);
    a.db = bench_memory<float>(b, C);
    a.mean = bench_upload<float>(b, mean);
    a.rstd = bench_upload<float>(b, rstd);
    norm_version(b, version, a);
    bench_compare("layernorm dw", version, bench_fetch(b, a.dw, C), want_w, 1e-5);
    const double error = bench_compare("layernorm dx", version, bench_fetch(b, a.dx, n), want_x, 0.01);
    bench_free(b);
    return error;
}

static double time_version(Bench *b, int version, int N, int C) {
    const size_t n = (size_t)N * C;
    std::vector<Layernorm> set((size_t)bench_sets(b, 8 * n));
    for (Layernorm &a : set) {
        a = Layernorm{};
        a.N = N;
        a.C = C;
        a.x = bench_fill<T>(b, n, 1);
        a.w = bench_fill<T>(b, C, 1);
        a.b = bench_fill<T>(b, C, 1);
        a.mean = bench_fill<float>(b, N, 1);
        a.rstd = bench_fill<float>(b, N, 1);
        if (version <= 4) {
            a.delta = bench_fill<T>(b, n, 1);
            a.sum = bench_memory<T>(b, n);
            a.out = bench_memory<T>(b, n);
        } else {
            a.dout = bench_fill<T>(b, n, 1);
            a.dx = bench_memory<T>(b, n);
        }
        a.dw = bench_memory<float>(b, C);
        a.db = bench_memory<float>(b, C);
    }
    const double seconds = bench_seconds(b, (int)set.size(), [&](int s) { norm_version(b, version, set[s]); });
    bench_free(b);
    return seconds;
}

int main(int argc, char **argv) {
    static const char *const name[] = {
        "forward, one thread per row",         "forward, one block per row",
        "forward, one warp per row",           "forward, one warp per row in registers, 16 bytes at a time",
        "backward, one warp per row, atomics", "backward, a thread owns columns, fixed order"};
    Bench b = bench_start(argc, argv, "layernorm");
    for (int version = 1; version <= 6; version++) {
        if (!bench_wants(&b, version)) continue;
        double error = 0;
        for (const int C : {8, 768, 1600}) {
            const double e = version <= 4 ? check_forward(&b, version, 9, C) : check_backward(&b, version, 9, C);
            error = std::max(error, e);
        }
        const int N = 16384, C = 768;
        const double seconds = b.gpu ? time_version(&b, version, N, C) : 0;
        bench_line(&b, "layernorm", version, name[version - 1], error, seconds, 8.0 * N * C, 0);
    }
    return 0;
}

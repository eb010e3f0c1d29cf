/* embed.cu - versions of the embedding, of its gradient, and of GELU.
 *
 *   1  forward: one element per thread
 *   2  forward: 16 bytes per thread                                                     (llmc/cuda/elementwise.cuh)
 *   3  backward: float atomics, one element per thread; not repeatable
 *   4  backward: one block per row of the table searches all tokens
 *   5  backward: the block of a token's first row finds the others, in order            (llmc/cuda/elementwise.cuh)
 *   6  GELU forward, one element per thread    7  16 bytes per thread                   (llmc/cuda/elementwise.cuh)
 *   8  GELU backward, one element per thread   9  16 bytes per thread                   (llmc/cuda/elementwise.cuh)
 *
 * Bytes: the embedding reads two rows and writes one; its gradient reads a row once for each table, and reads and
 * writes a float32 row in each. Tokens are distributed as in text, with a few frequent and most rare; positions are
 * those of sequences of 512. bf16.
 */
#include "bench.cuh"
#include "../../llmc/cuda/elementwise.cuh"

typedef bf16 T;

struct Embed {
    T *out, *wte, *wpe, *dout;
    float *dwte, *dwpe;
    int32_t *token, *position;
    int N, C, V, P;
};

__global__ static void forward1_kernel(const Embed a) {
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)a.N * a.C) return;
    const size_t i = at / a.C, c = at % a.C;
    a.out[at] =
        from_float<T>(to_float(a.wte[(size_t)a.token[i] * a.C + c]) + to_float(a.wpe[(size_t)a.position[i] * a.C + c]));
}

__global__ static void backward3_kernel(const Embed a) {
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)a.N * a.C) return;
    const size_t i = at / a.C, c = at % a.C;
    const float g = to_float(a.dout[at]);
    atomicAdd(a.dwte + (size_t)a.token[i] * a.C + c, g);
    atomicAdd(a.dwpe + (size_t)a.position[i] * a.C + c, g);
}

/* One block per row of the table. */
__global__ static void backward4_kernel(float *to, const T *from, const int32_t *row, int N, int C) {
    for (int c = (int)threadIdx.x; c < C; c += (int)blockDim.x) {
        float sum = to[(size_t)blockIdx.x * C + c];
        for (int i = 0; i < N; i++)
            if (row[i] == (int)blockIdx.x) sum += to_float(from[(size_t)i * C + c]);
        to[(size_t)blockIdx.x * C + c] = sum;
    }
}

__global__ static void gelu6_kernel(T *out, const T *pre, size_t n) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(to_float(pre[i]) * gelu_gate(to_float(pre[i])));
}
__global__ static void gelu8_kernel(T *d, const T *pre, size_t n) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) d[i] = from_float<T>(to_float(d[i]) * gelu_slope(to_float(pre[i])));
}

static void version_run(Bench *b, int version, const Embed &a) {
    Device *d = b->d;
    const size_t n = (size_t)a.N * a.C;
    const unsigned blocks = (unsigned)cuda_ceil(n, 256);
    const Ints *token = (const Ints *)a.token, *position = (const Ints *)a.position;
    cuda_scratch_begin(d);
    if (version == 1) LAUNCH(forward1_kernel, blocks, 256, 0, d->stream, a);
    if (version == 2)
        cuda_embed_forward<T>(d, (Acts *)a.out, (Weights *)a.wte, (Weights *)a.wpe, token, position, 1, a.N, a.C);
    if (version == 3) LAUNCH(backward3_kernel, blocks, 256, 0, d->stream, a);
    if (version == 4) {
        LAUNCH(backward4_kernel, (unsigned)a.V, 128, 0, d->stream, a.dwte, a.dout, a.token, a.N, a.C);
        LAUNCH(backward4_kernel, (unsigned)a.P, 128, 0, d->stream, a.dwpe, a.dout, a.position, a.N, a.C);
    }
    if (version == 5)
        cuda_embed_backward<T>(d, (Floats *)a.dwte, (Floats *)a.dwpe, (Acts *)a.dout, token, position, 1, a.N, a.C);
    if (version == 6) LAUNCH(gelu6_kernel, blocks, 256, 0, d->stream, a.out, a.dout, n);
    if (version == 7) cuda_gelu_forward<T>(d, (Acts *)a.out, (Acts *)a.dout, n);
    if (version == 8) LAUNCH(gelu8_kernel, blocks, 256, 0, d->stream, a.out, a.dout, n);
    if (version == 9) cuda_gelu_backward<T>(d, (Acts *)a.out, (Acts *)a.dout, n);
    CUDA_LAUNCHED(d, "embed", "version %d", version);
}

/* Distributed like words in text: the k-th most frequent of V has a probability proportional to about 1/k. */
static Indices tokens_of(Random *r, int N, int V) {
    Indices token(N);
    for (int32_t &t : token) t = (int32_t)(exp(random_real(r) * log((double)V + 1)) - 1);
    return token;
}

static Embed problem(Bench *b, int N, int C, int V, int P, bool checked, Numbers host[3]) {
    Random r = random_start(4, 0);
    Embed a = {};
    Indices position(N);
    for (int i = 0; i < N; i++) position[i] = i % P;
    a.N = N;
    a.C = C;
    a.V = V;
    a.P = P;
    a.token = bench_upload(b, tokens_of(&r, N, V));
    a.position = bench_upload(b, position);
    const size_t n = (size_t)N * C;
    a.dwte = bench_memory<float>(b, (size_t)V * C);
    a.dwpe = bench_memory<float>(b, (size_t)P * C);
    a.out = bench_memory<T>(b, n);
    if (!checked) {
        a.wte = bench_fill<T>(b, (size_t)V * C, 1);
        a.wpe = bench_fill<T>(b, (size_t)P * C, 1);
        a.dout = bench_fill<T>(b, n, 1);
        return a;
    }
    host[0] = bench_normals<T>(&r, (size_t)V * C, 1);
    host[1] = bench_normals<T>(&r, (size_t)P * C, 1);
    host[2] = bench_normals<T>(&r, n, 1);
    a.wte = bench_upload<T>(b, host[0]);
    a.wpe = bench_upload<T>(b, host[1]);
    a.dout = bench_upload<T>(b, host[2]);
    return a;
}

static double gelu_of(double x) { return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

static double check_version(Bench *b, int version, int N, int C, int V, int P) {
    Numbers host[3];
    const Embed a = problem(b, N, C, V, P, true, host);
    Random r = random_start(4, 0);
    const Indices token = tokens_of(&r, N, V);
    Doubles out((size_t)N * C), te((size_t)V * C), pe((size_t)P * C);
    if (version >= 8) { /* the incoming gradient is one */
        const Numbers ones((size_t)N * C, 1.0f);
        Embed with = a;
        with.out = bench_upload<T>(b, ones);
        version_run(b, version, with);
        for (size_t i = 0; i < out.size(); i++)
            out[i] = (gelu_of(host[2][i] + 1e-5) - gelu_of(host[2][i] - 1e-5)) / 2e-5;
        const double error = bench_compare("gelu backward", version, bench_fetch(b, with.out, out.size()), out, 0.01);
        bench_free(b);
        return error;
    }
    version_run(b, version, a);
    for (size_t at = 0; at < out.size(); at++) {
        const size_t i = at / C, c = at % C, t = (size_t)token[i] * C + c, p = i % P * C + c;
        out[at] = version >= 6 ? gelu_of(host[2][at]) : (double)host[0][t] + host[1][p];
        te[t] += host[2][at];
        pe[p] += host[2][at];
    }
    double error;
    if (version <= 2 || version >= 6)
        error = bench_compare("embed", version, bench_fetch(b, a.out, out.size()), out, 0.01);
    else {
        error = bench_compare("embed dwte", version, bench_fetch(b, a.dwte, te.size()), te, 1e-5);
        error = std::max(error, bench_compare("embed dwpe", version, bench_fetch(b, a.dwpe, pe.size()), pe, 1e-5));
    }
    bench_free(b);
    return error;
}

int main(int argc, char **argv) {
    static const char *const name[] = {"forward, one element per thread",
                                       "forward, 16 bytes per thread",
                                       "backward, float atomics",
                                       "backward, one block per row of the table",
                                       "backward, first row finds the others",
                                       "GELU, one element per thread",
                                       "GELU, 16 bytes per thread",
                                       "GELU backward, one element per thread",
                                       "GELU backward, 16 bytes per thread"};
    Bench b = bench_start(argc, argv, "embed");
    for (int version = 1; version <= 9; version++) {
        if (!bench_wants(&b, version)) continue;
        double error = 0, seconds = 0;
        for (const int C : {8, 40, 264}) error = std::max(error, check_version(&b, version, 150, C, 60, 40));
        const int N = 16384, C = 768;
        if (b.gpu) {
            Numbers none[3];
            std::vector<Embed> set;
            for (int i = bench_sets(&b, (size_t)N * C * 4); i > 0; i--)
                set.push_back(problem(&b, N, C, 50257, 512, false, none));
            seconds = bench_seconds(&b, (int)set.size(), [&](int i) { version_run(&b, version, set[i]); });
            bench_free(&b);
        }
        const double bytes = version <= 2 ? 6 : version <= 5 ? 20 : version <= 7 ? 4 : 6;
        bench_line(&b, "embed", version, name[version - 1], error, seconds, bytes * N * C, 0);
    }
    return 0;
}

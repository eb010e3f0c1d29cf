/* head.cu - versions of the pass over a chunk of logits: log-probability, entropy and the gradient of the logits.
 *
 *   1  one warp per row: the maximum, then the sums, then the gradient; three reads
 *   2  one block per row: the same three reads, one element at a time
 *   3  one block per row: maximum and sums in one read (online), 32 bytes at a time; the gradient in a second read,
 *      which finds the row in the cache                                                       (llmc/cuda/head.cuh)
 *
 * Logits are float32, their gradient bf16. Bytes: each logit read once and, with the gradient, written once.
 */
#include "bench.cuh"
#include "../../llmc/cuda/head.cuh"

/* Maximum and sum over the THREADS threads that process one row. */
template <int THREADS> __device__ static inline float all_max(float x) {
    if constexpr (THREADS == 32) return warp_max(x);
    else return block_max<THREADS>(x);
}
template <int THREADS> __device__ static inline float all_sum(float x) {
    if constexpr (THREADS == 32) return warp_sum(x);
    else return block_sum<THREADS>(x);
}

template <int THREADS> __global__ static void three_reads_kernel(const Head a, const float *z_, bf16 *dz_) {
    const int row = (int)blockIdx.x, V = a.vocab, Vp = a.padded_vocab, target = ((const int32_t *)a.target)[row];
    const float *z = z_ + (size_t)row * Vp, scale = 1 / a.temperature;
    float max = -INFINITY, sum = 0, weighted = 0;
    for (int v = (int)threadIdx.x; v < V; v += THREADS) max = fmaxf(max, z[v]);
    max = all_max<THREADS>(max);
    for (int v = (int)threadIdx.x; v < V; v += THREADS) {
        const float y = (z[v] - max) * scale, e = expf(y);
        sum += e;
        weighted += e > 0 ? e * y : 0;
    }
    sum = all_sum<THREADS>(sum);
    weighted = all_sum<THREADS>(weighted);
    const float log_sum = logf(sum), entropy = log_sum - weighted / sum;
    if (threadIdx.x == 0) {
        ((float *)a.logp)[row] = (z[target] - max) * scale - log_sum;
        ((float *)a.entropy)[row] = entropy;
    }
    if (!a.dlogp) return;
    const float toward = ((const float *)a.dlogp)[row] * scale, spread = ((const float *)a.dentropy)[row] * scale;
    for (int v = (int)threadIdx.x; v < Vp; v += THREADS) {
        const float logp = (z[v] - max) * scale - log_sum, p = expf(logp);
        const float g = toward * ((v == target) - p) - (p > 0 ? spread * p * (logp + entropy) : 0);
        dz_[(size_t)row * Vp + v] = from_float<bf16>(v < V ? g : 0);
    }
}

static const char *const names[] = {"one warp per row, three reads", "one block per row, three reads",
                                    "one block per row, online, wide"};

struct Problem {
    Head a;
    float *z;
    bf16 *dz;
};

static Problem problem(Bench *b, int R, int V, int Vp) {
    Problem p = {};
    Indices target((size_t)R);
    for (int i = 0; i < R; i++) target[(size_t)i] = (int)((int64_t)i * 7919 % V);
    p.a.rows = R;
    p.a.vocab = V;
    p.a.padded_vocab = Vp;
    p.a.temperature = 0.9f;
    p.a.target = (Ints *)bench_upload(b, target);
    p.a.logp = (Floats *)bench_memory<float>(b, (size_t)R);
    p.a.entropy = (Floats *)bench_memory<float>(b, (size_t)R);
    p.a.dlogp = (Floats *)bench_fill<float>(b, (size_t)R, 1);
    p.a.dentropy = (Floats *)bench_fill<float>(b, (size_t)R, 0.1);
    p.z = bench_fill<float>(b, (size_t)R * Vp, 2);
    p.dz = bench_memory<bf16>(b, (size_t)R * Vp);
    return p;
}

static void run(Device *d, const Problem &p, int version, bool gradient) {
    Head a = p.a;
    if (!gradient) a.dlogp = a.dentropy = NULL;
    if (version == 1) LAUNCH((three_reads_kernel<32>), (unsigned)a.rows, 32, 0, d->stream, a, p.z, p.dz);
    if (version == 2) LAUNCH((three_reads_kernel<512>), (unsigned)a.rows, 512, 0, d->stream, a, p.z, p.dz);
    if (version == 3) LAUNCH((head_kernel<bf16, false>), (unsigned)a.rows, HEAD_THREADS, 0, d->stream, a, 0, p.z, p.dz);
}

int main(int argc, char **argv) {
    Bench b = bench_start(argc, argv, "head");
    const int R = 4, V = 1000, Vp = 1024;
    const Problem small = problem(&b, R, V, Vp);
    const Numbers z = bench_fetch(&b, small.z, (size_t)R * Vp), dlogp = bench_fetch(&b, (float *)small.a.dlogp, R);
    const Numbers dentropy = bench_fetch(&b, (float *)small.a.dentropy, R);
    Doubles logp, entropy, dz;
    for (int i = 0; i < R; i++) {
        const double t = 0.9f;
        const int target = (int)((int64_t)i * 7919 % V);
        double sum = 0, mean = 0;
        for (int v = 0; v < V; v++) sum += exp(z[(size_t)(i * Vp + v)] / t);
        for (int v = 0; v < V; v++)
            mean += exp(z[(size_t)(i * Vp + v)] / t) / sum * (z[(size_t)(i * Vp + v)] / t - log(sum));
        logp.push_back(z[(size_t)(i * Vp + target)] / t - log(sum));
        entropy.push_back(-mean);
        for (int v = 0; v < Vp; v++) {
            const double lp = z[(size_t)(i * Vp + v)] / t - log(sum), p = exp(lp);
            dz.push_back(v < V ? (dlogp[(size_t)i] * ((v == target) - p) - dentropy[(size_t)i] * p * (lp - mean)) / t
                               : 0);
        }
    }
    double error[4] = {};
    for (int version = 1; version <= 3; version++) {
        if (!bench_wants(&b, version)) continue;
        cudaMemsetAsync(small.dz, 0xff, dz.size() * sizeof(bf16), b.d->stream); /* NaN */
        cudaMemsetAsync((void *)small.a.logp, 0xff, R * sizeof(float), b.d->stream);
        run(b.d, small, version, true);
        error[version] = bench_compare("dz", version, bench_fetch(&b, small.dz, dz.size()), dz, 0.01);
        bench_compare("logp", version, bench_fetch(&b, (float *)small.a.logp, R), logp, 1e-5);
        bench_compare("entropy", version, bench_fetch(&b, (float *)small.a.entropy, R), entropy, 1e-5);
    }
    bench_free(&b);
    const int rows = 1024, vocab = 50257, padded = 50304;
    std::vector<Problem> sets;
    const int count = b.gpu ? bench_sets(&b, (size_t)rows * padded * 6) : 0;
    for (int i = 0; i < count; i++) sets.push_back(problem(&b, rows, vocab, padded));
    for (bool gradient : {false, true})
        for (int version = 1; version <= 3; version++) {
            if (!bench_wants(&b, version)) continue;
            const double s = !b.gpu ? 0 : bench_seconds(&b, (int)sets.size(), [&](int i) {
                run(b.d, sets[(size_t)i], version, gradient);
            });
            bench_line(&b, gradient ? "with gradient" : "logp, entropy", version, names[version - 1], error[version], s,
                       (double)rows * padded * (gradient ? 6 : 4), 0);
        }
    bench_free(&b);
    return 0;
}

/* sample.cu - versions of sampling a token from a row of logits with temperature, top-k and top-p.
 *
 *   1  one thread per row: bisection on the bits of the distance from the maximum finds the kept tokens, 31 reads each
 *   2  one block per row: the same bisection, the row read by all threads, sums over the block
 *   3  one block per row: radix selection, three reads each for top-k and top-p         (llmc/cuda/sample.cuh)
 *
 * All three invert the same uniform number over the kept tokens in the order of their ids. Bytes: each logit once.
 */
#include "bench.cuh"
#include "../../llmc/cuda/sample.cuh"

static __device__ float row_uniform(const Draw &a, int row) {
    const uint32_t *stream = (const uint32_t *)a.stream + 2 * (size_t)row;
    return cuda_uniform(a.seed, (uint64_t)stream[1] << 32 | stream[0], (uint64_t)((const int32_t *)a.index)[row]);
}

static __device__ SampleRow row_of(const Draw &a, const float *z, int row) {
    return SampleRow{z + (size_t)row * a.padded_vocab, a.vocab, 1 / a.temperature, 1, NULL, 0, INFINITY, -INFINITY};
}

/* The smallest distance within which tokens weigh at least `want`. mass(distance): the mass of the tokens within it. */
template <typename F> __device__ static inline float bisect(Mass want, F mass) {
    uint32_t low = 0, high = 0x7f800000u; /* the bits of the result are in low .. high */
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (mass(__uint_as_float(middle)) >= want) high = middle;
        else low = middle + 1;
    }
    return __uint_as_float(low);
}

/* ---- 1: one thread per row -------------------------------------------------------------------------------------- */

template <bool COUNT> __device__ static inline Mass thread_mass(const SampleRow &r, float distance) {
    Mass sum = 0;
    for (int v = 0; v < r.V; v++) {
        const float x = r.max - r.y(v);
        if (x <= distance && x <= r.within) sum += sample_weight<COUNT>(x);
    }
    return sum;
}

__global__ static void sample1_kernel(const Draw a, const float *z) {
    const int row = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (row >= a.rows) return;
    SampleRow r = row_of(a, z, row);
    double sum = 0, running = 0;
    int token = 0;
    r.max = -INFINITY;
    for (int v = 0; v < r.V; v++) r.max = fmaxf(r.max, r.y(v));
    if (a.top_k > 0 && a.top_k < r.V)
        r.within = bisect((Mass)a.top_k, [&](float x) { return thread_mass<true>(r, x); });
    if (a.top_p < 1) {
        const Mass want = (Mass)ceil((double)a.top_p * (double)thread_mass<false>(r, INFINITY));
        r.within = bisect(want, [&](float x) { return thread_mass<false>(r, x); });
    }
    for (int v = 0; v < r.V; v++) sum += r.kept(r.y(v)) ? (double)expf(r.y(v) - r.max) : 0;
    const double wanted = (double)row_uniform(a, row) * sum;
    for (int v = 0; v < r.V; v++) {
        if (!r.kept(r.y(v))) continue;
        token = v;
        running += (double)expf(r.y(v) - r.max);
        if (running > wanted) break;
    }
    ((int32_t *)a.token)[row] = token;
}

/* ---- 2: one block per row, bisection ---------------------------------------------------------------------------- */

template <bool COUNT> __device__ static inline Mass block_mass(const SampleRow &r, float distance) {
    Mass sum = 0;
    for (int v = (int)threadIdx.x; v < r.V; v += SAMPLE_THREADS) {
        const float x = r.max - r.y(v);
        if (x <= distance && x <= r.within) sum += sample_weight<COUNT>(x);
    }
    return block_sum<SAMPLE_THREADS>(sum);
}

__global__ static void __launch_bounds__(SAMPLE_THREADS) sample2_kernel(const Draw a, const float *z) {
    SHARED_DYNAMIC(float, tiles);
    SampleRow r = row_of(a, z, (int)blockIdx.x);
    int token;
    double total;
    sample_max(r, &r.max, &token);
    if (a.top_k > 0 && a.top_k < r.V) r.within = bisect((Mass)a.top_k, [&](float x) { return block_mass<true>(r, x); });
    if (a.top_p < 1) {
        const Mass want = (Mass)ceil((double)a.top_p * (double)block_mass<false>(r, INFINITY));
        r.within = bisect(want, [&](float x) { return block_mass<false>(r, x); });
    }
    token = sample_invert(r, row_uniform(a, (int)blockIdx.x), tiles, &total);
    if (threadIdx.x == 0) ((int32_t *)a.token)[blockIdx.x] = token;
}

/* ---- problem ---------------------------------------------------------------------------------------------------- */

static const char *const names[] = {"one thread per row, bisection", "one block per row, bisection",
                                    "one block per row, radix selection"};

struct Problem {
    Draw a;
    float *z;
    Indices stream, index;
};

static Problem problem(Bench *b, int R, int V, int Vp) {
    Problem p = {};
    for (int i = 0; i < R; i++) {
        p.stream.push_back(i * 31);
        p.stream.push_back(i);
        p.index.push_back(i * 7);
    }
    Draw &a = p.a;
    a.rows = R;
    a.vocab = V;
    a.padded_vocab = Vp;
    a.temperature = 0.8f;
    a.top_p = 0.95f;
    a.top_k = 50;
    a.seed = 99;
    a.repetition_penalty = 1;
    a.stream = (Ints *)bench_upload(b, p.stream);
    a.index = (Ints *)bench_upload(b, p.index);
    a.token = (Ints *)bench_memory<int32_t>(b, (size_t)R);
    a.logp = (Floats *)bench_memory<float>(b, (size_t)R);
    p.z = bench_fill<float>(b, (size_t)R * Vp, 2);
    return p;
}

static void run(Device *d, const Problem &p, int version) {
    const size_t tiles = cuda_ceil((size_t)p.a.vocab, SAMPLE_TILE) * sizeof(float);
    if (version == 1) LAUNCH(sample1_kernel, (unsigned)cuda_ceil((size_t)p.a.rows, 32), 32, 0, d->stream, p.a, p.z);
    if (version == 2) LAUNCH(sample2_kernel, (unsigned)p.a.rows, SAMPLE_THREADS, tiles, d->stream, p.a, p.z);
    if (version == 3) sample_launch(d, &p.a, 0, p.a.rows, p.z);
}

/* The token that row i should draw, by sorting, in double. */
static int expected(const Problem &p, const float *z, int i) {
    const Draw &a = p.a;
    Doubles y(z, z + a.vocab), sorted;
    for (double &x : y) x /= a.temperature;
    sorted = y;
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    double all = 0, above = 0, kept = 0, running = 0, least = sorted[0];
    for (int k = 0; k < a.top_k; k++) all += exp(sorted[(size_t)k]);
    for (int k = 0; k < a.top_k && above < (double)a.top_p * all; k++) {
        above += exp(sorted[(size_t)k]);
        least = sorted[(size_t)k];
    }
    for (double x : y) kept += x >= least ? exp(x) : 0;
    const uint64_t stream =
        (uint64_t)(uint32_t)p.stream[(size_t)(2 * i + 1)] << 32 | (uint32_t)p.stream[(size_t)(2 * i)];
    const double u = random_uniform(a.seed, stream, (uint64_t)p.index[(size_t)i]);
    for (int v = 0; v < a.vocab; v++) {
        running += y[(size_t)v] >= least ? exp(y[(size_t)v]) / kept : 0;
        if (running > u) return v;
    }
    return -1;
}

int main(int argc, char **argv) {
    Bench b = bench_start(argc, argv, "sample");
    const int R = 6, V = 1000, Vp = 1024;
    const Problem small = problem(&b, R, V, Vp);
    const Numbers z = bench_fetch(&b, small.z, (size_t)R * Vp);
    for (int version = 1; version <= 3; version++) {
        int32_t token[R];
        if (!bench_wants(&b, version)) continue;
        run(b.d, small, version);
        bench_wait(&b);
        bench_must(cudaMemcpy(token, (void *)small.a.token, sizeof token, cudaMemcpyDeviceToHost), "download");
        for (int i = 0; i < R; i++)
            if (token[i] != expected(small, &z[(size_t)i * Vp], i)) {
                printf("version %d: row %d draws %d, expected %d\n", version, i, token[i],
                       expected(small, &z[(size_t)i * Vp], i));
                return 1;
            }
        bench_must(cudaMemset((void *)small.a.token, 0xff, sizeof token), "cudaMemset");
    }
    bench_free(&b);
    const int vocab = 50257, padded = 50304;
    for (int rows : {1, 64, 512}) {
        std::vector<Problem> sets;
        const int count = b.gpu ? bench_sets(&b, (size_t)rows * padded * 4) : 0;
        for (int i = 0; i < count; i++) sets.push_back(problem(&b, rows, vocab, padded));
        for (int version = 1; version <= 3; version++) {
            char what[32];
            if (!bench_wants(&b, version)) continue;
            const double s =
                !b.gpu ? 0 : bench_seconds(&b, (int)sets.size(), [&](int i) { run(b.d, sets[(size_t)i], version); });
            snprintf(what, sizeof what, "sample, %d rows", rows);
            bench_line(&b, what, version, names[version - 1], 0, s, (double)rows * vocab * 4, 0);
        }
        bench_free(&b);
    }
    return 0;
}

/* adamw.cu - versions of the optimizer step and of the gradient's global norm.
 *
 *   1  AdamW in four kernels: moments, update, decay, rounding to nearest
 *   2  AdamW in one kernel, one parameter per thread, rounding to nearest
 *   3  AdamW in one kernel, eight parameters per thread, stochastic rounding        (llmc/cuda/adamw.cuh)
 *   4  norm: one float atomic per warp; not repeatable, float32 precision
 *   5  norm: in double over fixed parts, added in order                             (llmc/cuda/adamw.cuh)
 *
 * Bytes: AdamW reads gradient, master, m and v and writes master, m, v (float32) and the bf16 weight: 30 per parameter.
 * The norm reads the gradient.
 */
#include "bench.cuh"
#include "../../llmc/cuda/adamw.cuh"

struct State {
    bf16 *weights;
    float *master, *grad, *m, *v, *sum;
    size_t n;
};

static AdamW update_of(const State &s) {
    AdamW a = {};
    a.n = s.n;
    a.lr = 1e-3f;
    a.beta1 = 0.9f;
    a.beta2 = 0.95f;
    a.eps = 1e-8f;
    a.weight_decay = 0.1f;
    a.grad_scale = 0.5f;
    a.step = 7;
    a.weights = (Weights *)s.weights;
    a.master = (Floats *)s.master;
    a.grad = (const Floats *)s.grad;
    a.m = (Floats *)s.m;
    a.v = (Floats *)s.v;
    return a;
}

__global__ static void moments_kernel(State s, float b1, float b2, float scale) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.n) return;
    const float g = s.grad[i] * scale;
    s.m[i] = b1 * s.m[i] + (1 - b1) * g;
    s.v[i] = b2 * s.v[i] + (1 - b2) * g * g;
}
__global__ static void decay_kernel(State s, float keep) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s.n) s.master[i] *= keep;
}
__global__ static void update_kernel(State s, float step_size, float correction, float eps) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s.n) s.master[i] -= step_size * s.m[i] / (sqrtf(s.v[i]) * correction + eps);
}
__global__ static void round_kernel(State s) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s.n) s.weights[i] = __float2bfloat16_rn(s.master[i]);
}

__global__ static void fused_kernel(State s, AdamWFactors f) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.n) return;
    float p = s.master[i], m = s.m[i], v = s.v[i];
    adamw_one(p, m, v, s.grad[i], f);
    s.master[i] = p;
    s.m[i] = m;
    s.v[i] = v;
    s.weights[i] = __float2bfloat16_rn(p);
}

__global__ static void atomic_norm_kernel(float *sum, const float *x, size_t n) {
    float part = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        part += x[i] * x[i];
    part = warp_sum(part);
    if (threadIdx.x % 32 == 0) atomicAdd(sum, part);
}

static void version_run(Bench *b, int version, const State &s) {
    Device *d = b->d;
    const AdamW a = update_of(s);
    AdamWFactors f;
    const unsigned blocks = (unsigned)cuda_ceil(s.n, 256);
    f.b1 = a.beta1;
    f.b2 = a.beta2;
    f.eps = a.eps;
    f.scale = a.grad_scale;
    f.step_size = (float)(a.lr / (1 - pow(a.beta1, (double)a.step)));
    f.correction = (float)(1 / sqrt(1 - pow(a.beta2, (double)a.step)));
    f.keep = 1 - a.lr * a.weight_decay;
    cuda_scratch_begin(d);
    if (version == 1) {
        LAUNCH(moments_kernel, blocks, 256, 0, d->stream, s, f.b1, f.b2, f.scale);
        LAUNCH(decay_kernel, blocks, 256, 0, d->stream, s, f.keep);
        LAUNCH(update_kernel, blocks, 256, 0, d->stream, s, f.step_size, f.correction, f.eps);
        LAUNCH(round_kernel, blocks, 256, 0, d->stream, s);
    }
    if (version == 2) LAUNCH(fused_kernel, blocks, 256, 0, d->stream, s, f);
    if (version == 3) cuda_adamw<bf16>(d, &a);
    if (version == 4) {
        CUDA_CHECK(d, cudaMemsetAsync(s.sum, 0, sizeof(float), d->stream), "");
        LAUNCH(atomic_norm_kernel, cuda_blocks(d, s.n, 512), 512, 0, d->stream, s.sum, s.grad, s.n);
    }
    if (version == 5) {
        double *total = square_sum_launch(d, s.grad, s.n);
        if (total)
            CUDA_CHECK(d, cudaMemcpyAsync(s.sum, total, sizeof(double), cudaMemcpyDeviceToDevice, d->stream), "");
    }
    CUDA_LAUNCHED(d, "adamw", "version %d", version);
}

static State state_of(Bench *b, const Numbers &p, const Numbers &g, const Numbers &m, const Numbers &v) {
    State s = {};
    s.n = p.size();
    s.weights = bench_memory<bf16>(b, s.n);
    s.master = bench_upload<float>(b, p);
    s.grad = bench_upload<float>(b, g);
    s.m = bench_upload<float>(b, m);
    s.v = bench_upload<float>(b, v);
    s.sum = bench_memory<float>(b, 2);
    return s;
}

static double check_version(Bench *b, int version, size_t n) {
    Random r = random_start(3, 0);
    const Numbers p = bench_normals<float>(&r, n, 1), g = bench_normals<float>(&r, n, 1);
    const Numbers m = bench_normals<float>(&r, n, 0.1);
    Numbers v(n);
    for (float &x : v) x = 0.01f * (float)random_real(&r);
    const State s = state_of(b, p, g, m, v);
    version_run(b, version, s);
    double error;
    if (version <= 3) {
        const AdamW a = update_of(s);
        Doubles want(n);
        for (size_t i = 0; i < n; i++) {
            const double x = g[i] * a.grad_scale, b1 = a.beta1, b2 = a.beta2;
            const double mean = (b1 * m[i] + (1 - b1) * x) / (1 - pow(b1, 7));
            const double square = (b2 * v[i] + (1 - b2) * x * x) / (1 - pow(b2, 7));
            want[i] = p[i] - a.lr * (mean / (sqrt(square) + a.eps) + a.weight_decay * p[i]);
        }
        error = bench_compare("adamw", version, bench_fetch(b, s.master, n), want, 1e-5);
        bench_compare("adamw weight", version, bench_fetch(b, s.weights, n), want, 0.01);
    } else {
        Doubles want(1, 0.0);
        for (float x : g) want[0] += (double)x * x;
        Numbers got = bench_fetch(b, s.sum, 2);
        double sum;
        memcpy(&sum, got.data(), sizeof sum);
        if (version == 5) got[0] = (float)sum;
        error = bench_compare("norm", version, got, want, 1e-5);
    }
    bench_free(b);
    return error;
}

static double time_version(Bench *b, int version, size_t n) {
    std::vector<State> set((size_t)bench_sets(b, 18 * n));
    for (State &s : set) {
        s = State{};
        s.n = n;
        s.grad = bench_fill<float>(b, n, 1);
        s.sum = bench_memory<float>(b, 2);
        if (version > 3) continue;
        s.weights = bench_memory<bf16>(b, n);
        s.master = bench_fill<float>(b, n, 1);
        s.m = bench_memory<float>(b, n);
        s.v = bench_memory<float>(b, n);
    }
    const double seconds = bench_seconds(b, (int)set.size(), [&](int i) { version_run(b, version, set[i]); });
    bench_free(b);
    return seconds;
}

int main(int argc, char **argv) {
    static const char *const name[] = {"AdamW in four kernels, to nearest", "AdamW in one, a parameter a thread",
                                       "AdamW in one, eight a thread, stochastic", "norm, float atomics",
                                       "norm, double, fixed order"};
    Bench b = bench_start(argc, argv, "adamw");
    for (int version = 1; version <= 5; version++) {
        if (!bench_wants(&b, version)) continue;
        const double error = std::max(check_version(&b, version, 1000), check_version(&b, version, 70003));
        const size_t n = (size_t)1 << 25;
        const double seconds = b.gpu ? time_version(&b, version, n) : 0;
        bench_line(&b, "adamw", version, name[version - 1], error, seconds, (version <= 3 ? 30.0 : 4.0) * (double)n, 0);
    }
    return 0;
}

/* matmul.cu - versions of out = x w^T + b, with and without a GELU, and of its gradients. bf16 input and output,
 * float32 sums.
 *
 *   1  one thread per output, operands from the caches
 *   2  tiles of 32 x 32 in shared memory, float32 arithmetic
 *   3  tiles of 64 x 64, tensor cores by mma.sync, operands by cp.async in two stages
 *   4  cuBLASLt, with separate kernels for bias and GELU
 *   5  cuBLASLt, bias in its epilogue, a separate kernel for GELU        (llmc/cuda/matmul.cuh before sm_90)
 *   6  cuBLASLt, bias and GELU in its epilogue                           (llmc/cuda/matmul.cuh from sm_90 on)
 *   7  dw += dout^T x by cuBLASLt, float32 output, and db by columns     (llmc/cuda/matmul.cuh)
 *   8  dx = (dout w) gelu'(pre), with a separate kernel for gelu'
 *   9  dx = (dout w) gelu'(pre) in one product                           (llmc/cuda/matmul.cuh from sm_90 on)
 *
 * Versions 1 to 3 have neither bias nor GELU. FLOPs: 2 N IC OC.
 */
#include "bench.cuh"

typedef bf16 T;
enum { TILE = 32, BM = 64, BN = 64, BK = 32, PAD = 8 };

struct Product {
    T *x, *w, *b, *pre, *out, *dout;
    float *dw, *db;
    int N, IC, OC;
};

/* ---- 1 ---------------------------------------------------------------------------------------------------------- */

__global__ static void product1_kernel(const Product a) {
    const int o = (int)(blockIdx.x * blockDim.x + threadIdx.x), i = (int)(blockIdx.y * blockDim.y + threadIdx.y);
    if (i >= a.N || o >= a.OC) return;
    float sum = 0;
    for (int c = 0; c < a.IC; c++) sum += to_float(a.x[(size_t)i * a.IC + c]) * to_float(a.w[(size_t)o * a.IC + c]);
    a.pre[(size_t)i * a.OC + o] = from_float<T>(sum);
}

/* ---- 2 ---------------------------------------------------------------------------------------------------------- */

__global__ static void product2_kernel(const Product a) {
    __shared__ float x[TILE][TILE + 1], w[TILE][TILE + 1];
    const int tx = (int)threadIdx.x, ty = (int)threadIdx.y, i0 = (int)blockIdx.y * TILE, o0 = (int)blockIdx.x * TILE;
    float sum[4] = {0, 0, 0, 0};
    for (int c0 = 0; c0 < a.IC; c0 += TILE) {
        for (int k = 0; k < 4; k++) {
            const int row = ty + 8 * k, c = c0 + tx;
            x[row][tx] = i0 + row < a.N && c < a.IC ? to_float(a.x[(size_t)(i0 + row) * a.IC + c]) : 0;
            w[row][tx] = o0 + row < a.OC && c < a.IC ? to_float(a.w[(size_t)(o0 + row) * a.IC + c]) : 0;
        }
        __syncthreads();
        for (int c = 0; c < TILE; c++)
            for (int k = 0; k < 4; k++) sum[k] += x[ty + 8 * k][c] * w[tx][c];
        __syncthreads();
    }
    for (int k = 0; k < 4; k++)
        if (i0 + ty + 8 * k < a.N && o0 + tx < a.OC)
            a.pre[(size_t)(i0 + ty + 8 * k) * a.OC + o0 + tx] = from_float<T>(sum[k]);
}

/* ---- 3 ---------------------------------------------------------------------------------------------------------- */

/* 128 threads; a warp has 16 rows and all 64 columns. Elements outside the matrices are read as zero. IC must be a
 * multiple of 8. */
__global__ static void __launch_bounds__(128) product3_kernel(const Product a) {
    __shared__ __align__(16) T x[2][BM][BK + PAD];
    __shared__ __align__(16) T w[2][BN][BK + PAD];
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int i0 = (int)blockIdx.y * BM, o0 = (int)blockIdx.x * BN;
    float sum[BN / 8][4] = {};
    auto fetch = [&](int c0, int stage) {
        for (int at = thread; at < BM * (BK / 8); at += 128) {
            const int row = at / (BK / 8), c = at % (BK / 8) * 8;
            const bool in = c0 + c < a.IC, x_in = in && i0 + row < a.N, w_in = in && o0 + row < a.OC;
            cp_async_16_zfill(&x[stage][row][c], x_in ? a.x + (size_t)(i0 + row) * a.IC + c0 + c : a.x, x_in);
            cp_async_16_zfill(&w[stage][row][c], w_in ? a.w + (size_t)(o0 + row) * a.IC + c0 + c : a.w, w_in);
        }
        cp_async_commit();
    };
    fetch(0, 0);
    for (int c0 = 0, stage = 0; c0 < a.IC; c0 += BK, stage ^= 1) {
        if (c0 + BK < a.IC) {
            fetch(c0 + BK, stage ^ 1);
            cp_async_wait<1>();
        } else cp_async_wait<0>();
        __syncthreads();
        for (int k = 0; k < BK; k += 16) {
            uint32_t of_x[4], of_w[4];
            ldmatrix_x4(of_x, &x[stage][warp * 16 + lane % 16][k + lane / 16 * 8]);
            for (int j = 0; j < BN / 16; j++) {
                ldmatrix_x4(of_w, &w[stage][j * 16 + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
                const uint32_t low[2] = {of_w[0], of_w[1]}, high[2] = {of_w[2], of_w[3]};
                mma_m16n8k16_bf16(sum[2 * j], of_x, low, sum[2 * j]);
                mma_m16n8k16_bf16(sum[2 * j + 1], of_x, high, sum[2 * j + 1]);
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < BN / 8; j++)
        for (int k = 0; k < 4; k++) {
            const int i = i0 + warp * 16 + lane / 4 + k / 2 * 8, o = o0 + j * 8 + lane % 4 * 2 + k % 2;
            if (i < a.N && o < a.OC) a.pre[(size_t)i * a.OC + o] = from_float<T>(sum[j][k]);
        }
}

/* ---- all versions ------------------------------------------------------------------------------------------------ */

static void version_run(Bench *b, int version, const Product &a) {
    Device *d = b->d;
    const int N = a.N, IC = a.IC, OC = a.OC;
    const unsigned tiles_i = (unsigned)((N + 31) / 32), tiles_o = (unsigned)((OC + 31) / 32);
    cuda_scratch_begin(d);
    if (version == 1) LAUNCH(product1_kernel, dim3(tiles_o, (unsigned)((N + 7) / 8)), dim3(32, 8), 0, d->stream, a);
    if (version == 2) LAUNCH(product2_kernel, dim3(tiles_o, tiles_i), dim3(32, 8), 0, d->stream, a);
    if (version == 3)
        LAUNCH(product3_kernel, dim3((unsigned)((OC + BN - 1) / BN), (unsigned)((N + BM - 1) / BM)), 128, 0, d->stream,
               a);
    if (version == 4) {
        cuda_matmul_nt<T, T>(d, a.pre, a.x, a.w, N, OC, IC, 1, 0);
        bias_add<T>(d, a.pre, a.b, N, OC);
        cuda_gelu_forward<T>(d, (Acts *)a.out, (Acts *)a.pre, (size_t)N * OC);
    }
    if (version == 5) {
        cuda_linear_forward<T>(d, (Acts *)a.pre, (Acts *)a.x, (Weights *)a.w, (Weights *)a.b, N, IC, OC);
        cuda_gelu_forward<T>(d, (Acts *)a.out, (Acts *)a.pre, (size_t)N * OC);
    }
    if (version == 6)
        matmul_run(d, matmul_key<T, T>(OC, N, IC, true, false, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, 0, a.w, a.x, a.out),
                   a.out, a.w, a.x, 1, 0, a.b, a.pre);
    if (version == 7)
        linear_backward_weights<T>(d, (Floats *)a.dw, (Floats *)a.db, (Acts *)a.dout, (Acts *)a.x, N, IC, OC);
    if (version == 8) { /* x contains the pre-activations of the layer below, out receives their gradient */
        cuda_matmul_nn<T, T>(d, a.out, a.dout, a.w, N, IC, OC, 1, 0);
        cuda_gelu_backward<T>(d, (Acts *)a.out, (Acts *)a.x, (size_t)N * IC);
    }
    if (version == 9)
        matmul_run(d, matmul_key<T, T>(IC, N, OC, false, false, CUBLASLT_EPILOGUE_DGELU, 0, a.w, a.dout, a.out), a.out,
                   a.w, a.dout, 1, 0, NULL, a.x);
    CUDA_LAUNCHED(d, "matmul", "version %d", version);
}

static double gelu_of(double x) { return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

static double check_version(Bench *b, int version, int N, int IC, int OC) {
    Random r = random_start(5, 0);
    const Numbers x = bench_normals<T>(&r, (size_t)N * IC, 1), w = bench_normals<T>(&r, (size_t)OC * IC, 0.3);
    const Numbers bias = bench_normals<T>(&r, OC, 1), dout = bench_normals<T>(&r, (size_t)N * OC, 1);
    Product a = {};
    const size_t largest = (size_t)N * (size_t)std::max(IC, OC);
    a.N = N;
    a.IC = IC;
    a.OC = OC;
    a.x = bench_upload<T>(b, x);
    a.w = bench_upload<T>(b, w);
    a.b = bench_upload<T>(b, bias);
    a.dout = bench_upload<T>(b, dout);
    a.pre = bench_memory<T>(b, (size_t)N * OC);
    a.out = bench_memory<T>(b, largest);
    a.dw = bench_memory<float>(b, (size_t)OC * IC);
    a.db = bench_memory<float>(b, OC);
    version_run(b, version, a);
    Doubles pre((size_t)N * OC), out((size_t)N * OC), dw((size_t)OC * IC), db(OC), dx((size_t)N * IC);
    for (int i = 0; i < N; i++)
        for (int o = 0; o < OC; o++) {
            double sum = version <= 3 ? 0 : bias[o];
            const double g = dout[(size_t)i * OC + o];
            for (int c = 0; c < IC; c++) {
                sum += (double)x[(size_t)i * IC + c] * w[(size_t)o * IC + c];
                dw[(size_t)o * IC + c] += g * x[(size_t)i * IC + c];
                dx[(size_t)i * IC + c] += g * w[(size_t)o * IC + c];
            }
            pre[(size_t)i * OC + o] = sum;
            out[(size_t)i * OC + o] = gelu_of(sum);
            db[o] += g;
        }
    for (size_t i = 0; i < dx.size(); i++) dx[i] *= (gelu_of(x[i] + 1e-5) - gelu_of(x[i] - 1e-5)) / 2e-5;
    double error = 0;
    if (version <= 6) error = bench_compare("matmul", version, bench_fetch(b, a.pre, pre.size()), pre, 0.01);
    if (version >= 4 && version <= 6)
        error = std::max(error, bench_compare("matmul gelu", version, bench_fetch(b, a.out, out.size()), out, 0.01));
    if (version == 7) {
        error = bench_compare("matmul dw", version, bench_fetch(b, a.dw, dw.size()), dw, 1e-5);
        error = std::max(error, bench_compare("matmul db", version, bench_fetch(b, a.db, db.size()), db, 1e-5));
    }
    if (version >= 8) error = bench_compare("matmul dx", version, bench_fetch(b, a.out, dx.size()), dx, 0.01);
    bench_free(b);
    return error;
}

static double time_version(Bench *b, int version, int N, int IC, int OC) {
    std::vector<Product> set((size_t)bench_sets(b, (size_t)N * (size_t)(IC + OC) * 2));
    for (Product &a : set) {
        a = Product{};
        a.N = N;
        a.IC = IC;
        a.OC = OC;
        a.x = bench_fill<T>(b, (size_t)N * IC, 1);
        a.w = bench_fill<T>(b, (size_t)OC * IC, 1);
        a.b = bench_fill<T>(b, OC, 1);
        a.dout = bench_fill<T>(b, (size_t)N * OC, 1);
        a.pre = bench_memory<T>(b, (size_t)N * OC);
        a.out = bench_memory<T>(b, (size_t)N * (size_t)std::max(IC, OC));
        a.dw = bench_memory<float>(b, (size_t)OC * IC);
        a.db = bench_memory<float>(b, OC);
    }
    const double seconds = bench_seconds(b, (int)set.size(), [&](int i) { version_run(b, version, set[i]); });
    bench_free(b);
    return seconds;
}

int main(int argc, char **argv) {
    static const char *const name[] = {"one thread per output",
                                       "tiles in shared memory",
                                       "mma.sync, cp.async",
                                       "cuBLASLt, then bias, then GELU",
                                       "cuBLASLt with bias, then GELU",
                                       "cuBLASLt with bias and GELU",
                                       "cuBLASLt, gradients of weights and bias",
                                       "cuBLASLt, then GELU's gradient",
                                       "cuBLASLt with GELU's gradient"};
    Bench b = bench_start(argc, argv, "matmul");
    for (int version = 1; version <= 9; version++) {
        if (!bench_wants(&b, version)) continue;
        const double error = std::max(check_version(&b, version, 16, 32, 48), check_version(&b, version, 80, 72, 88));
        const int N = 16384, IC = 768, OC = 3072; /* GPT-2 124M's first product of the MLP */
        const double seconds = b.gpu ? time_version(&b, version, N, IC, OC) : 0;
        bench_line(&b, "matmul", version, name[version - 1], error, seconds, 0, 2.0 * N * IC * OC);
    }
    return 0;
}

/* product.h - products and transposition of small float32 matrices that fit in the caches.
 *
 * They are for blocks of about 16 to 128 rows and columns inside another operation (attention.h), for which a library
 * call and its packing would cost as much as the product. oneDNN computes large products. The left matrix is read one
 * number at a time and may have any strides, so a transposed one costs nothing. Rows of the right matrix and of the
 * result are contiguous and are read as vectors. Every sum adds its terms in order, whatever the sizes, so the bits of
 * an element do not depend on its place in a block.
 *
 *     cpu_product_set(m, n, depth, a, lda, 1, b, ldb, c, ldc);      // C = A B
 *     cpu_product_add(m, n, depth, a, 1, lda, b, ldb, c, ldc);      // C += A^T B
 */
#ifndef LLMC_CPU_PRODUCT_H
#define LLMC_CPU_PRODUCT_H

#include <stddef.h>

/* Compiler vectors (gcc, clang), as wide as the processor's. A tile of MR rows by NV vectors of sums fills the
 * registers: 6 x 4 of 32, or 6 x 2 of 16. Tiles of fewer vectors have more rows to cover the latency of additions. */
#if defined __AVX512F__
enum { CPU_VEC = 16, CPU_NV = 4 };
#elif defined __AVX__
enum { CPU_VEC = 8, CPU_NV = 2 };
#elif defined __aarch64__
enum { CPU_VEC = 4, CPU_NV = 4 };
#else
enum { CPU_VEC = 4, CPU_NV = 2 };
#endif
enum { CPU_MR = 6, CPU_MR_MAX = 8 };
typedef float CpuVec __attribute__((vector_size(4 * CPU_VEC), aligned(4), may_alias));
typedef float CpuQuad __attribute__((vector_size(16), aligned(4), may_alias));

#define CPU_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define CPU_UNROLL /* clang unrolls without it */
#else
#define CPU_UNROLL _Pragma("GCC unroll 8")
#endif

/* The cases of a switch over 1 to 6, or 1 to 12: X(n) is one. */
#define CPU_CASES_6(X)  X(1) X(2) X(3) X(4) X(5) X(6)
#define CPU_CASES_12(X) CPU_CASES_6(X) X(7) X(8) X(9) X(10) X(11) X(12)

typedef enum { CPU_SET, CPU_ADD, CPU_RESCALE } CpuProductMode;

/* C[mr, nv] = initial + A[mr, depth] B[depth, nv], with nv in vectors. The initial value is 0, C or C * rescale,
 * depending on the mode. The sums stay in registers. */
#define CPU_PRODUCT_TILE(name, Vec)                                                                                    \
    CPU_INLINE void name(const int mr, const int nv, const CpuProductMode mode, int depth, const float *a, size_t row, \
                         size_t column, const float *b, size_t ldb, float *c, size_t ldc, const float *rescale) {      \
        const int width = (int)(sizeof(Vec) / sizeof(float));                                                          \
        Vec sum[CPU_MR_MAX][CPU_NV];                                                                                   \
        CPU_UNROLL for (int i = 0; i < mr; i++) CPU_UNROLL for (int j = 0; j < nv; j++) {                              \
            const Vec *at = (const Vec *)(c + i * ldc + j * width);                                                    \
            if (mode == CPU_SET) sum[i][j] = (Vec){0};                                                                 \
            if (mode == CPU_ADD) sum[i][j] = *at;                                                                      \
            if (mode == CPU_RESCALE) sum[i][j] = *at * *(const Vec *)(rescale + j * width);                            \
        }                                                                                                              \
        for (int k = 0; k < depth; k++, a += column, b += ldb) {                                                       \
            Vec right[CPU_NV];                                                                                         \
            CPU_UNROLL for (int j = 0; j < nv; j++) right[j] = *(const Vec *)(b + j * width);                          \
            CPU_UNROLL for (int i = 0; i < mr; i++) {                                                                  \
                const float left = a[i * row];                                                                         \
                CPU_UNROLL for (int j = 0; j < nv; j++) sum[i][j] = sum[i][j] + left * right[j];                       \
            }                                                                                                          \
        }                                                                                                              \
        CPU_UNROLL for (int i = 0; i < mr; i++) CPU_UNROLL for (int j = 0; j < nv; j++) {                              \
            *(Vec *)(c + i * ldc + j * width) = sum[i][j];                                                             \
        }                                                                                                              \
    }
CPU_PRODUCT_TILE(cpu_product_tile, CpuVec)
CPU_PRODUCT_TILE(cpu_product_tile_quad, CpuQuad)
#undef CPU_PRODUCT_TILE

/* The same for m rows of nv vectors. */
CPU_INLINE void cpu_product_rows(const int nv, const CpuProductMode mode, int m, int depth, const float *a, size_t row,
                                 size_t column, const float *b, size_t ldb, float *c, size_t ldc,
                                 const float *rescale) {
    const int mr = CPU_NV == 4 && nv <= 2 ? CPU_MR_MAX : CPU_MR;
    int i = 0;
    for (; i + mr <= m; i += mr)
        cpu_product_tile(mr, nv, mode, depth, a + i * row, row, column, b, ldb, c + i * ldc, ldc, rescale);
    for (; i + 4 <= m; i += 4)
        cpu_product_tile(4, nv, mode, depth, a + i * row, row, column, b, ldb, c + i * ldc, ldc, rescale);
    for (; i < m; i++)
        cpu_product_tile(1, nv, mode, depth, a + i * row, row, column, b, ldb, c + i * ldc, ldc, rescale);
}

/* The same for any n: panels of NV vectors, then fewer vectors, then four columns at a time, then single columns. */
CPU_INLINE void cpu_product(const CpuProductMode mode, int m, int n, int depth, const float *a, size_t row,
                            size_t column, const float *b, size_t ldb, float *c, size_t ldc, const float *rescale) {
    int j = 0;
#define CPU_COLUMNS(nv)                                                                                                \
    cpu_product_rows(nv, mode, m, depth, a, row, column, b + j, ldb, c + j, ldc, rescale ? rescale + j : NULL)
    for (; j + CPU_NV * CPU_VEC <= n; j += CPU_NV * CPU_VEC) CPU_COLUMNS(CPU_NV);
    const int left = (n - j) / CPU_VEC;
    if (left == 1) CPU_COLUMNS(1);
    if (CPU_NV > 2 && left == 2) CPU_COLUMNS(2);
    if (CPU_NV > 3 && left == 3) CPU_COLUMNS(3);
#undef CPU_COLUMNS
    for (j += left * CPU_VEC; j + 4 <= n; j += 4) {
        const float *scale = rescale ? rescale + j : NULL;
        int i = 0;
        for (; i + 4 <= m; i += 4)
            cpu_product_tile_quad(4, 1, mode, depth, a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, scale);
        for (; i < m; i++)
            cpu_product_tile_quad(1, 1, mode, depth, a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, scale);
    }
    for (; j < n; j++)
        for (int i = 0; i < m; i++) {
            float *at = c + i * ldc + j, sum = mode == CPU_SET ? 0.0f : mode == CPU_ADD ? *at : *at * rescale[j];
            for (int k = 0; k < depth; k++) sum = sum + a[i * row + k * column] * b[k * ldb + j];
            *at = sum;
        }
}

/* C[m,n] = A[m,depth] B[depth,n]. A(i,k) is at a[i * row + k * column]; rows of B and C are contiguous, ldb and ldc
 * apart. Each sum adds its terms in the order of k. */
static inline void cpu_product_set(int m, int n, int depth, const float *a, size_t row, size_t column, const float *b,
                                   size_t ldb, float *c, size_t ldc) {
    cpu_product(CPU_SET, m, n, depth, a, row, column, b, ldb, c, ldc, NULL);
}

/* C += A B */
static inline void cpu_product_add(int m, int n, int depth, const float *a, size_t row, size_t column, const float *b,
                                   size_t ldb, float *c, size_t ldc) {
    cpu_product(CPU_ADD, m, n, depth, a, row, column, b, ldb, c, ldc, NULL);
}

/* C(i,j) = C(i,j) rescale[j] + (A B)(i,j) */
static inline void cpu_product_rescale(int m, int n, int depth, const float *a, size_t row, size_t column,
                                       const float *b, size_t ldb, float *c, size_t ldc, const float *rescale) {
    cpu_product(CPU_RESCALE, m, n, depth, a, row, column, b, ldb, c, ldc, rescale);
}

/* Four elements of a and b, which are numbered 0 to 3 and 4 to 7. gcc 11 has no __builtin_shufflevector. */
#if defined __clang__ || __GNUC__ >= 12
#define CPU_PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int CpuIndices __attribute__((vector_size(16)));
#define CPU_PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (CpuIndices){i, j, k, l})
#endif

/* to[i][j] = from[j][i]; to may be from. */
CPU_INLINE void cpu_transpose4(CpuQuad to[4], const CpuQuad from[4]) {
    const CpuQuad a = CPU_PICK(from[0], from[1], 0, 4, 1, 5);
    const CpuQuad b = CPU_PICK(from[2], from[3], 0, 4, 1, 5);
    const CpuQuad c = CPU_PICK(from[0], from[1], 2, 6, 3, 7);
    const CpuQuad d = CPU_PICK(from[2], from[3], 2, 6, 3, 7);
    to[0] = CPU_PICK(a, b, 0, 1, 4, 5);
    to[1] = CPU_PICK(a, b, 2, 3, 6, 7);
    to[2] = CPU_PICK(c, d, 0, 1, 4, 5);
    to[3] = CPU_PICK(c, d, 2, 3, 6, 7);
}

/* Copies four rows of n at source[0..3], times scale, to columns 0..3 of the n rows at `to`, which are ld apart. */
static inline void cpu_transpose_in(float *to, size_t ld, const float *const source[4], int n, float scale) {
    int d = 0;
    for (; d + 4 <= n; d += 4) {
        CpuQuad t[4];
        for (int i = 0; i < 4; i++) t[i] = *(const CpuQuad *)(source[i] + d) * scale;
        cpu_transpose4(t, t);
        for (int i = 0; i < 4; i++) *(CpuQuad *)(to + (d + i) * ld) = t[i];
    }
    for (; d < n; d++)
        for (int i = 0; i < 4; i++) to[d * ld + i] = source[i][d] * scale;
}

/* The inverse: copies columns 0..3 of n rows, each times its scale, to four rows. A NULL row is not written. */
static inline void cpu_transpose_out(float *const to[4], const float *from, size_t ld, int n, const float scale[4]) {
    const CpuQuad s = *(const CpuQuad *)scale;
    int d = 0;
    for (; d + 4 <= n; d += 4) {
        CpuQuad t[4];
        for (int i = 0; i < 4; i++) t[i] = *(const CpuQuad *)(from + (d + i) * ld) * s;
        cpu_transpose4(t, t);
        for (int i = 0; i < 4; i++)
            if (to[i]) *(CpuQuad *)(to[i] + d) = t[i];
    }
    for (; d < n; d++)
        for (int i = 0; i < 4; i++)
            if (to[i]) to[i][d] = from[d * ld + i] * scale[i];
}

#endif

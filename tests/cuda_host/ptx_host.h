/* ptx_host.h - the instructions of llmc/cuda/ptx.cuh for the host compiler, written from their description in the PTX
 * ISA.
 *
 * Included at the end of cuda_host.h. Instructions of a whole warp are collectives: the last lane to arrive computes
 * for all lanes. cp.async copies when the thread that issued it waits for its group, so that after a missing wait the
 * kernel reads the old contents.
 */
#ifndef CUDA_HOST_PTX_H
#define CUDA_HOST_PTX_H

/* mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 */
struct CudaHostMma {
    uint32_t a[4], b[2];
    float c[4];
};
static inline float cuda_host_half(uint32_t pair, int high) {
    return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}
CUDA_HOST_MACHINE inline void cuda_host_mma_all(CudaHostCall **calls, uint32_t lanes) {
    if (lanes != 0xffffffffu) cuda_host_fail("mma.sync: only lanes %08x take part", lanes);
    float A[16][16], B[16][8], C[16][8];
    for (int l = 0; l < 32; l++) {
        const CudaHostMma *m = (const CudaHostMma *)calls[l]->in;
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++)
            A[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = cuda_host_half(m->a[i / 2], i % 2);
        for (int i = 0; i < 4; i++) B[2 * t + i % 2 + i / 2 * 8][g] = cuda_host_half(m->b[i / 2], i % 2);
        for (int i = 0; i < 4; i++) C[g + i / 2 * 8][2 * t + i % 2] = m->c[i];
    }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++)
            for (int k = 0; k < 16; k++) C[i][j] += A[i][k] * B[k][j];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) ((float *)calls[l]->out)[i] = C[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}
static inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     const float (&c)[4]) {
    CudaHostMma m;
    float out[4];
    memcpy(m.a, a, sizeof(a));
    memcpy(m.b, b, sizeof(b));
    memcpy(m.c, c, sizeof(c));
    CudaHostCall call = {&m, out, 0, 0xffffffffu, CUDA_HOST_MMA, "mma_m16n8k16_bf16"};
    cuda_host_collective(&call, cuda_host_mma_all);
    memcpy(d, out, sizeof(out));
}

/* ldmatrix.sync.aligned.m8n8.x{2,4}[.trans].shared.b16 */
template <int TILES, bool TRANS>
CUDA_HOST_MACHINE inline void cuda_host_ldmatrix_all(CudaHostCall **calls, uint32_t lanes) {
    if (lanes != 0xffffffffu) cuda_host_fail("ldmatrix: only lanes %08x take part", lanes);
    for (int i = 0; i < TILES; i++)
        for (int l = 0; l < 32; l++) {
            int g = l / 4, t = l % 4;
            uint32_t pair = 0;
            for (int e = 0; e < 2; e++) {
                int row = TRANS ? 2 * t + e : g, column = TRANS ? g : 2 * t + e;
                pair |= (uint32_t)((const uint16_t *)calls[8 * i + row]->in)[column] << 16 * e;
            }
            ((uint32_t *)calls[l]->out)[i] = pair;
        }
}
/* Each lane reads the eight elements at its address itself, in code compiled with the kernel, so that the sanitizers
 * and the race detector see the accesses. */
template <int TILES, bool TRANS> static inline void cuda_host_ldmatrix(uint32_t *r, const void *row, const char *name) {
    uint16_t elements[8] = {0};
    if (cuda_host_thread->lane < 8 * TILES) {
        if ((uintptr_t)row % 16) cuda_host_fail("%s: the address %p is not a multiple of 16", name, row);
        for (int i = 0; i < 8; i++) elements[i] = ((const uint16_t *)row)[i];
    }
    CudaHostCall call = {elements, r, 0, 0xffffffffu, CUDA_HOST_LDMATRIX, name};
    cuda_host_collective(&call, cuda_host_ldmatrix_all<TILES, TRANS>);
}
static inline void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    cuda_host_ldmatrix<4, false>(r, row, "ldmatrix_x4");
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    cuda_host_ldmatrix<4, true>(r, row, "ldmatrix_x4_trans");
}
static inline void ldmatrix_x2(uint32_t (&r)[2], const void *row) {
    cuda_host_ldmatrix<2, false>(r, row, "ldmatrix_x2");
}
static inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
    cuda_host_ldmatrix<2, true>(r, row, "ldmatrix_x2_trans");
}

/* cp.async.cg.shared.global 16: the copy may land at any time between its issue and the end of the wait for its group.
 * Each copy is made at the wait; some, drawn from the seed, are made at their issue as well. */
struct CudaHostCopy {
    void *shared;
    const void *global; /* NULL: zeros */
};
/* Returns true if the copy must be made now, too. */
bool cuda_host_copy_begin(const CudaHostCopy &copy);
void cuda_host_copy_commit(void);
/* Returns the next copy of all but the newest `left` groups; false if there is none. */
bool cuda_host_copy_next(int left, CudaHostCopy *copy);

static inline void cuda_host_copy_make(const CudaHostCopy &copy) {
    *(uint4 *)copy.shared = copy.global ? *(const uint4 *)copy.global : make_uint4(0, 0, 0, 0);
}
static inline void cp_async_16_zfill(void *shared, const void *global, bool valid) {
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
        cuda_host_fail("cp.async: %p or %p is not a multiple of 16", shared, global);
    CudaHostCopy copy = {shared, valid ? global : NULL};
    if (cuda_host_copy_begin(copy)) cuda_host_copy_make(copy);
}
static inline void cp_async_16(void *shared, const void *global) { cp_async_16_zfill(shared, global, true); }
static inline void cp_async_commit() { cuda_host_copy_commit(); }
template <int N> static inline void cp_async_wait() {
    CudaHostCopy copy;
    while (cuda_host_copy_next(N, &copy)) cuda_host_copy_make(copy);
}

static inline float fast_exp2(float x) { return exp2f(x); }
static inline float fast_reciprocal(float x) { return 1 / x; }

#define PTX_CHECK_WIDE(p)                                                                                              \
    ((uintptr_t)(p) % 16 ? cuda_host_fail("wide access to %p, which is not a multiple of 16", (const void *)(p))       \
                         : (void)0)

#endif

/* segments.cuh - work distribution for attention kernels: the segments of a packed batch are stored on the device.
 *
 * The host knows how many rows and segments a batch has, but not how long each segment is. Therefore a grid has as many
 * blocks as a batch of this size can have strips (strips_most()), and each block looks up its own strip. Strips have
 * `size` rows and are counted segment by segment, the last strip of a segment first because it sees the most keys.
 * Blocks beyond the last strip return at once. Nothing is copied to the host, and a captured graph stays valid for any
 * segments.
 *
 * The keys of a query are numbered 0, 1, ...: first its prefix, then its own segment's keys. A single bound therefore
 * defines what a query sees: query i of a segment sees keys 0 .. prefix_len + past + i (batch.h). A tile of keys may
 * cross the border between prefix and segment. These numbers are positions, so a window of w keys leaves out all but the
 * last w that the query sees.
 *
 * EXTRAS, a template parameter of attention's kernels, is true if the problem has a window or a cap. Kernels without
 * them contain no code for them.
 */
#ifndef LLMC_CUDA_SEGMENTS_CUH
#define LLMC_CUDA_SEGMENTS_CUH

#include "../model/backend.h" /* Attention */
#include "../model/batch.h"   /* Segment */
#include "common.cuh"         /* CUDA_LAUNCHED, Device, cuda_ceil */
#include "ptx.cuh"            /* LAUNCH */

/* Rows first .. first+rows-1, counted from the start of the segment. */
struct Strip {
    Segment segment;
    int index; /* index of the segment */
    int first, rows;
};

/* The maximum number of strips of `size` rows that a batch can have. */
static inline unsigned strips_most(const Attention *a, int size) {
    const unsigned strips = (unsigned)(a->rows / size + a->segments);
    return strips < (unsigned)a->rows ? strips : (unsigned)a->rows;
}

/* Finds strip number `wanted`. All 32 lanes of a warp must call it and get the same strip. False past the last one. */
__device__ static inline bool strip_find(Strip *strip, const Attention &a, int wanted, int size) {
    const Segment *segment = (const Segment *)a.segment;
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < a.segments; base += 32) {
        const int len = base + lane < a.segments ? segment[base + lane].len : 0;
        const int strips = len > 0 ? (len + size - 1) / size : 0;
        int end = strips; /* number of strips up to and including this segment */
        for (int offset = 1; offset < 32; offset *= 2) {
            const int before = __shfl_up_sync(0xffffffffu, end, offset);
            if (lane >= offset) end += before;
        }
        const int all = __shfl_sync(0xffffffffu, end, 31);
        if (wanted < all) {
            const int owner = __ffs((int)__ballot_sync(0xffffffffu, wanted < end)) - 1;
            const int last = __shfl_sync(0xffffffffu, end, owner) - 1;
            strip->index = base + owner;
            strip->segment = segment[strip->index];
            strip->first = (last - wanted) * size;
            strip->rows = min(size, strip->segment.len - strip->first);
            return true;
        }
        wanted -= all;
    }
    return false;
}

/* Maps row numbers to rows in memory: the keys that a segment's queries see, or a segment's own rows. */
struct RowMap {
    int prefix_start, prefix_len, start;
    __device__ int row(int j) const { return j < prefix_len ? prefix_start + j : start + (j - prefix_len); }
};

__device__ static inline RowMap map_keys(const Segment &s) {
    return RowMap{s.prefix_start, max(s.prefix_len, 0), s.key_start};
}
__device__ static inline RowMap map_rows(int start) { return RowMap{0, 0, start}; }

/* The number of keys that query i of a segment sees. */
__device__ static inline int keys_seen(const Segment &s, int i) { return max(s.prefix_len, 0) + s.past + i + 1; }

/* The first of these keys that is inside the window, of a query that sees `seen` keys. */
template <bool EXTRAS> __device__ static inline int keys_from(const Attention &a, int seen) {
    return EXTRAS && a.window > 0 ? max(seen - a.window, 0) : 0;
}

static inline bool attention_has_extras(const Attention *a) { return a->window > 0 || a->cap > 0; }

/* ---- the backward pass seen from the keys ------------------------------------------------------------------------ */

/* Iterates over the tiles of queries that see a strip of keys: those of its own segment from the strip on, then those
 * of each later segment of the family whose prefix overlaps the strip; of these, as many as a window lets see the strip.
 * Each tile is visited once for every query head that shares the key head. */
template <bool EXTRAS> struct SeenBy {
    const Segment *segments;
    int count, own, first, rows; /* the strip: rows first .. first+rows-1 of segment `own` */
    int start;                   /* its first row in the batch */
    int shared;                  /* query heads per key head */
    int s, i, head;              /* current position: segment, query in it, index of the query head */
    Segment at;
    int key_first, key_end; /* rows of the strip in the prefix of segment s; s = own: all, with the causal mask */
    int window, ahead;      /* EXTRAS: query q of segment s is q + ahead - key positions after row `key` */
    int end;                /* EXTRAS: queries end .. of segment s see no row of the strip */

    __device__ bool segment_enter(int next) {
        for (s = next; s < count; s++) {
            at = segments[s];
            if (s != own && at.prefix_len <= 0) break; /* the next family begins */
            i = s == own ? first : 0;
            head = 0;
            key_first = s == own ? 0 : max(at.prefix_start - start, 0);
            key_end = s == own ? rows : min(at.prefix_start + at.prefix_len - start, rows);
            if (EXTRAS) {
                ahead = s == own ? -first : at.prefix_start + at.prefix_len - start;
                end = window > 0 ? min(at.len, window - ahead + key_end - 1) : at.len;
            }
            if (key_first < key_end && i < (EXTRAS ? end : at.len)) return true;
        }
        return false;
    }
    /* True if query q of the current segment is not too far after row `key`. */
    __device__ bool inside(int key, int q) const { return !EXTRAS || window == 0 || q + ahead - key < window; }
    __device__ bool step(int size) {
        if (++head < shared) return true;
        head = 0;
        i += size;
        return i < (EXTRAS ? end : at.len) || segment_enter(s + 1);
    }
};

template <bool EXTRAS> __device__ static inline SeenBy<EXTRAS> seen_by(const Attention &a, const Strip &strip) {
    SeenBy<EXTRAS> w = {(const Segment *)a.segment,
                        a.segments,
                        strip.index,
                        strip.first,
                        strip.rows,
                        strip.segment.start + strip.first,
                        a.heads / a.kv_heads,
                        0,
                        0,
                        0,
                        {0, 0, 0, 0, 0, 0},
                        0,
                        0,
                        a.window,
                        0,
                        0};
    w.segment_enter(strip.index);
    return w;
}

/* True if query q of w's current segment sees row `key` of the strip. */
template <bool EXTRAS> __device__ static inline bool seen_from(const SeenBy<EXTRAS> &w, int key, int q) {
    return key >= w.key_first && key < w.key_end && (w.s != w.own || w.first + key <= q) && w.inside(key, q);
}

/* ---- rows in no segment ---------------------------------------------------------------------------------------- */

/* The first `count` 16-bit halves of each row of an array whose rows are `stride` halves apart. */
struct Halves {
    uint16_t *x;
    size_t stride;
    int count;
};

template <typename X> static inline Halves halves_of(X *x, int stride, int columns) {
    return Halves{(uint16_t *)x, x ? (size_t)stride * (sizeof(X) / 2) : 0, x ? columns * (int)(sizeof(X) / 2) : 0};
}

/* Zeros the rows in no segment, in up to three arrays. One thread per row searches for its segment. */
__global__ static void outside_zero_kernel(const Attention a, Halves one, Halves two, Halves three) {
    __shared__ int inside[256];
    const Segment *segment = (const Segment *)a.segment;
    const int first = (int)blockIdx.x * 256, row = first + (int)threadIdx.x;
    bool found = row >= a.rows;
    for (int s = 0; s < a.segments; s++) found |= row >= segment[s].start && row < segment[s].start + segment[s].len;
    inside[threadIdx.x] = found;
    if (__syncthreads_and(found)) return;
    for (int i = 0; i < 256; i++) {
        if (inside[i]) continue;
        const size_t at = (size_t)(first + i);
        for (int k = (int)threadIdx.x; k < one.count; k += 256) one.x[at * one.stride + (size_t)k] = 0;
        for (int k = (int)threadIdx.x; k < two.count; k += 256) two.x[at * two.stride + (size_t)k] = 0;
        for (int k = (int)threadIdx.x; k < three.count; k += 256) three.x[at * three.stride + (size_t)k] = 0;
    }
}

static inline void outside_zero(Device *d, const Attention *a, Halves one, Halves two, Halves three) {
    LAUNCH(outside_zero_kernel, (unsigned)cuda_ceil((size_t)a->rows, 256), 256, 0, d->stream, *a, one, two, three);
    CUDA_LAUNCHED(d, "outside_zero_kernel", "N %d, S %d", a->rows, a->segments);
}

#endif

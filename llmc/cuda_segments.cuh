/* cuda_segments.cuh - how attention kernels find their work: the segments of a packed batch lie on the device.
 *
 * The host knows how many rows and segments a batch has, not how long each segment is. So a grid has as many blocks as
 * the strips of a batch can be at most (strips_most), and each block looks up its own: strips are counted segment by
 * segment, each of `size` rows, a segment's last strip first, since it sees most keys. Blocks beyond the last strip end
 * at once. Nothing is copied to the host and a captured graph stays valid whatever the segments become.
 *
 * The keys of a query are numbered 0, 1, ...: first its prefix, then its own segment's keys. So one bound says what a
 * query sees: query i of a segment sees keys 0 .. prefix_len + past + i (batch.h), and a tile of keys may lie across the
 * border of the two.
 */
#ifndef LLMC_CUDA_SEGMENTS_CUH
#define LLMC_CUDA_SEGMENTS_CUH

#include "cuda_common.cuh"

/* Rows first .. first+rows-1, counted inside the segment. */
struct Strip {
    Segment segment;
    int index; /* of the segment */
    int first, rows;
};

/* The most strips of `size` rows that a batch can have. */
static inline unsigned strips_most(const Attention *a, int size) {
    const unsigned strips = (unsigned)(a->rows / size + a->segments);
    return strips < (unsigned)a->rows ? strips : (unsigned)a->rows;
}

/* Strip number `wanted`. All 32 lanes of a warp call it and get the same. False past the last one. */
__device__ static inline bool strip_find(Strip *strip, const Attention &a, int wanted, int size) {
    const Segment *segment = (const Segment *)a.segment;
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < a.segments; base += 32) {
        const int len = base + lane < a.segments ? segment[base + lane].len : 0;
        const int strips = len > 0 ? (len + size - 1) / size : 0;
        int end = strips; /* number of strips up to here */
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

/* Where rows lie in memory: the keys that a segment's queries see, or a segment's own rows. */
struct RowMap {
    int prefix_start, prefix_len, start;
    __device__ int row(int j) const { return j < prefix_len ? prefix_start + j : start + (j - prefix_len); }
};

__device__ static inline RowMap map_keys(const Segment &s) {
    return RowMap{s.prefix_start, max(s.prefix_len, 0), s.key_start};
}
__device__ static inline RowMap map_rows(int start) { return RowMap{0, 0, start}; }

/* How many keys query i of a segment sees. */
__device__ static inline int keys_seen(const Segment &s, int i) { return max(s.prefix_len, 0) + s.past + i + 1; }

/* ---- the backward pass seen from the keys ------------------------------------------------------------------------ */

/* Goes through the tiles of queries that see a strip of keys: its own segment's from the strip on, then those of each
 * later segment of the family whose prefix reaches into it; for each tile all query heads that share the key head. */
struct SeenBy {
    const Segment *segments;
    int count, own, first, rows; /* the strip: rows first .. first+rows-1 of segment `own` */
    int start;                   /* its first row in the batch */
    int shared;                  /* query heads of a key head */
    int s, i, head;              /* where we are: segment, its query, head within the shared ones */
    Segment at;
    int key_first, key_end; /* rows of the strip that all queries of segment s see; s = own: see causal */

    __device__ bool segment_enter(int next) {
        for (s = next; s < count; s++) {
            at = segments[s];
            if (s != own && at.prefix_len <= 0) break; /* the next family */
            i = s == own ? first : 0;
            head = 0;
            key_first = s == own ? 0 : max(at.prefix_start - start, 0);
            key_end = s == own ? rows : min(at.prefix_start + at.prefix_len - start, rows);
            if (key_first < key_end && i < at.len) return true;
        }
        return false;
    }
    __device__ bool step(int size) {
        if (++head < shared) return true;
        head = 0;
        i += size;
        return i < at.len || segment_enter(s + 1);
    }
};

__device__ static inline SeenBy seen_by(const Attention &a, const Strip &strip) {
    SeenBy w = {(const Segment *)a.segment,
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
                0};
    w.segment_enter(strip.index);
    return w;
}

/* Does key row `key` of the strip count for query q of w's segment? */
__device__ static inline bool seen_from(const SeenBy &w, int key, int q) {
    return key >= w.key_first && key < w.key_end && (w.s != w.own || w.first + key <= q);
}

/* ---- rows in no segment ---------------------------------------------------------------------------------------- */

/* `count` 16-bit halves of each row of an array, rows `stride` halves apart. */
struct Halves {
    uint16_t *x;
    size_t stride;
    int count;
};

template <typename X> static inline Halves halves_of(X *x, int stride, int columns) {
    return Halves{(uint16_t *)x, x ? (size_t)stride * (sizeof(X) / 2) : 0, x ? columns * (int)(sizeof(X) / 2) : 0};
}

/* Zeros the rows that are in no segment, of up to three arrays. One thread a row looks for its segment. */
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

/* random.h - counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011).
 *
 * A draw is a pure function of (seed, stream, index), without hidden state. A sample therefore does not depend on the
 * rest of the batch, on slots, threads or ranks, and a run resumes by restoring counters alone. Streams in use:
 *
 *   rollouts         stream = sequence id,              index = position of the sampled token
 *   everything else  stream = RANDOM_STREAM(name) + n,  index = a counter (a `Random`)
 *
 *     float u = random_uniform(seed, sequence, i);      // in [0, 1)
 *     Random r = random_start(seed, RANDOM_SHUFFLE + epoch);
 *     random_shuffle(&r, order, n);
 */
#ifndef LLMC_BASE_RANDOM_H
#define LLMC_BASE_RANDOM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* The upper bits separate the named streams from sequence ids, which are below 2^56. */
enum {
    RANDOM_INIT_ = 1,
    RANDOM_SHUFFLE_,
    RANDOM_NOISE_,
    RANDOM_TASK_,
    RANDOM_ROLLOUT_,
    RANDOM_EVAL_,
    RANDOM_REWARD_,
    RANDOM_MIXTURE_,
    RANDOM_SHOTS_,
    RANDOM_PICK_,
    RANDOM_DUMP_,
    RANDOM_ENVIRONMENT_,
    RANDOM_WORDING_,
    RANDOM_JUDGE_,
    RANDOM_SEARCH_,
    RANDOM_COVARIANCE_
};
#define RANDOM_STREAM(n)   ((uint64_t)(n) << 56)
#define RANDOM_INIT        RANDOM_STREAM(RANDOM_INIT_)    /* weights of a new model: + the tensor's stream */
#define RANDOM_SHUFFLE     RANDOM_STREAM(RANDOM_SHUFFLE_) /* order of records: + epoch */
#define RANDOM_NOISE       RANDOM_STREAM(RANDOM_NOISE_)   /* NEFTune: + (step << 32) + record of the step */
#define RANDOM_TASK        RANDOM_STREAM(RANDOM_TASK_)    /* task generators: + record */
#define RANDOM_ROLLOUT     RANDOM_STREAM(RANDOM_ROLLOUT_) /* training samples: + sequence id */
#define RANDOM_EVAL        RANDOM_STREAM(RANDOM_EVAL_)    /* evaluation samples: + sequence id */
#define RANDOM_REWARD      RANDOM_STREAM(RANDOM_REWARD_)  /* random-reward control: + sequence id */
#define RANDOM_MIXTURE     RANDOM_STREAM(RANDOM_MIXTURE_) /* 0: shards of a mixture; 1 + shard: a part of its records */
#define RANDOM_SHOTS       RANDOM_STREAM(RANDOM_SHOTS_)   /* examples in a prompt: + the prompt's number */
#define RANDOM_PICK        RANDOM_STREAM(RANDOM_PICK_)    /* choice of rows: index = the row's number */
#define RANDOM_ENVIRONMENT RANDOM_STREAM(RANDOM_ENVIRONMENT_) /* seeds of episodes: + sequence id */
#define RANDOM_WORDING     RANDOM_STREAM(RANDOM_WORDING_)     /* wordings of rows: index = the row's number << 8 */
#define RANDOM_DUMP        RANDOM_STREAM(RANDOM_DUMP_)        /* samples for --rollouts: + (step << 24) + sample */
#define RANDOM_JUDGE       RANDOM_STREAM(RANDOM_JUDGE_) /* rationales, opponents, principles of a judge: + a question */
#define RANDOM_SEARCH      RANDOM_STREAM(RANDOM_SEARCH_)     /* search: + 56 bits of the hash of a solution's path */
#define RANDOM_COVARIANCE  RANDOM_STREAM(RANDOM_COVARIANCE_) /* Clip-Cov: + sequence id; index = (step << 32) + token */

typedef struct Random {
    uint64_t seed, stream, index;
} Random;

/* Computes one Philox4x32-10 block: counter c[4] and key (k0, k1) -> 4 words of output in c. */
static inline void philox4x32(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        const uint32_t c0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, c2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = c0;
        c[1] = (uint32_t)p1;
        c[2] = c2;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Returns 64 random bits for (seed, stream, index). */
static inline uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    philox4x32(c, (uint32_t)seed, (uint32_t)(seed >> 32));
    return (uint64_t)c[1] << 32 | c[0];
}

/* Uniform in [0, 1), a multiple of 2^-24. */
static inline float random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (float)(random_bits(seed, stream, index) >> 40) * 0x1p-24f;
}

static inline Random random_start(uint64_t seed, uint64_t stream) {
    Random r = {seed, stream, 0};
    return r;
}

static inline uint64_t random_next(Random *r) { return random_bits(r->seed, r->stream, r->index++); }

/* Uniform in [0, 1) with 53 bits. random_real_of(): from a number of 64 random bits. */
static inline double random_real_of(uint64_t bits) { return (double)(bits >> 11) * 0x1p-53; }
static inline double random_real(Random *r) { return random_real_of(random_next(r)); }

/* Uniform in {0, ..., n-1} without modulo bias (multiply-shift with rejection: Lemire 2019); n >= 1. */
static inline uint64_t random_below(Random *r, uint64_t n) {
    for (;;) {
        const unsigned __int128 product = (unsigned __int128)random_next(r) * n;
        if ((uint64_t)product >= -n % n) return (uint64_t)(product >> 64);
    }
}

/* Uniform in {low, ..., high}. */
static inline int64_t random_between(Random *r, int64_t low, int64_t high) {
    return low + (int64_t)random_below(r, (uint64_t)(high - low) + 1);
}

/* Standard normal (Box and Muller 1958). The second value is discarded, so each draw uses exactly two counters.
 * random_normal_of(): from the bits of these. */
static inline double random_normal_of(uint64_t first, uint64_t second) {
    const double u = 1.0 - random_real_of(first), v = random_real_of(second);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}
static inline double random_normal(Random *r) {
    const uint64_t first = random_next(r);
    return random_normal_of(first, random_next(r));
}

enum { RANDOM_BATCH = 64 }; /* counters whose blocks random_batch() computes together */

/* bits[i] = random_bits(seed, stream, index + i), in vectors. */
static inline void random_batch(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bits[RANDOM_BATCH]) {
    uint32_t c0[RANDOM_BATCH], c1[RANDOM_BATCH], c2[RANDOM_BATCH], c3[RANDOM_BATCH];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < RANDOM_BATCH; i++) {
        c0[i] = (uint32_t)(index + (uint64_t)i);
        c1[i] = (uint32_t)((index + (uint64_t)i) >> 32);
        c2[i] = (uint32_t)stream;
        c3[i] = (uint32_t)(stream >> 32);
    }
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
#pragma omp simd
        for (int i = 0; i < RANDOM_BATCH; i++) {
            const uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
        }
    }
    for (int i = 0; i < RANDOM_BATCH; i++) bits[i] = (uint64_t)c1[i] << 32 | c0[i];
}

/* out[i] = deviation times the next draw of random_normal(), for n draws. */
static inline void random_normals(Random *r, double deviation, float *out, size_t n) {
    uint64_t bits[RANDOM_BATCH];
    for (size_t i = 0; i < n; i++) {
        const size_t at = 2 * i % RANDOM_BATCH;
        if (at == 0) random_batch(r->seed, r->stream, r->index + 2 * i, bits);
        out[i] = (float)(deviation * random_normal_of(bits[at], bits[at + 1]));
    }
    r->index += 2 * (uint64_t)n;
}

/* Fisher-Yates shuffle of n indices. */
static inline void random_shuffle(Random *r, int64_t *items, int64_t n) {
    for (int64_t i = n - 1; i > 0; i--) {
        const int64_t j = (int64_t)random_below(r, (uint64_t)i + 1), held = items[i];
        items[i] = items[j];
        items[j] = held;
    }
}

#endif

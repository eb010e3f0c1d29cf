/* peak.h - the arithmetic peak of this processor, measured.
 *
 * A share of the peak is only worth printing if it cannot exceed 100 % and does not depend on how busy the machine was
 * in the milliseconds of one measurement. Therefore only the arithmetic itself is measured, on operands that never
 * leave the registers. No matrix product can exceed that rate:
 *
 *   float32   fused multiply-adds of this instruction set
 *   bf16      AMX tiles (tdpbf16ps) or, without AMX, dot products of pairs (vdpbf16ps), or the float32 figure if larger
 *
 * The peak is the best of several short measurements and of those of earlier runs on the same processor with the same
 * number of threads, which are stored in $XDG_CACHE_HOME/llmc-peak (~/.cache/llmc-peak): one line per setting, "GFLOP/s
 * dtype isa threads processor". A cache that cannot be read or written is ignored.
 */
#ifndef LLMC_CPU_PEAK_H
#define LLMC_CPU_PEAK_H

#include "../base/program.h"  /* program_processor */
#include "../model/backend.h" /* DTYPE_BF16 */
#include "gemm.h"             /* Device */
#include "product.h"          /* CpuVec, CPU_VEC */
#include "tiles.h"            /* CPU_TILES, tiles_amx, tiles_configure */
#include <stdio.h>
#include <sys/stat.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum { PEAK_CHAINS = 12, PEAK_REPEATS = 8, PEAK_STEPS = 200000, PEAK_TILE_STEPS = 20000 };

/* Each of these runs its steps on the calling thread, stores a value that depends on all of them, and returns the
 * number of floating-point operations that it executed. */
static inline double peak_fma(volatile float *sink) {
    CpuVec x[PEAK_CHAINS];
    const float a = *sink;
    for (int i = 0; i < PEAK_CHAINS; i++) x[i] = (CpuVec){0} + (float)i;
    for (int step = 0; step < PEAK_STEPS; step++)
        for (int i = 0; i < PEAK_CHAINS; i++) x[i] = x[i] * a + a;
    float total = 0;
    for (int i = 0; i < PEAK_CHAINS; i++) total += x[i][0];
    *sink = total;
    return 2.0 * PEAK_CHAINS * CPU_VEC * PEAK_STEPS;
}

#ifdef __AVX512BF16__
static inline double peak_pairs(volatile float *sink) {
    __m512 x[PEAK_CHAINS];
    const float a = *sink;
    const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_set1_ps(a), _mm512_set1_ps(a));
    for (int i = 0; i < PEAK_CHAINS; i++) x[i] = _mm512_set1_ps((float)i);
    for (int step = 0; step < PEAK_STEPS; step++)
        for (int i = 0; i < PEAK_CHAINS; i++) x[i] = _mm512_dpbf16_ps(x[i], pair, pair);
    float total = 0;
    for (int i = 0; i < PEAK_CHAINS; i++) total += _mm512_cvtss_f32(x[i]);
    *sink = total;
    return 4.0 * PEAK_CHAINS * 16 * PEAK_STEPS;
}
#endif

#ifdef CPU_TILES
/* Four tiles of 16 x 16 sums from two of 16 x 32 on either side. */
static inline double peak_tiles(volatile float *sink) {
    float sums[16 * 16];
    tiles_configure();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int step = 0; step < PEAK_TILE_STEPS; step++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_release();
    *sink = sums[0];
    return 4 * 2.0 * 16 * 16 * 32 * PEAK_TILE_STEPS;
}
#endif

/* The best rate of all threads together over a few repetitions, FLOP/s. */
static inline double peak_measure(double (*run)(volatile float *)) {
    double best = 0;
    for (int repeat = 0; repeat < PEAK_REPEATS; repeat++) {
        double flops = 0, seconds = 0;
#pragma omp parallel reduction(+ : flops) reduction(max : seconds)
        {
            volatile float sink = 0.5f;
#pragma omp barrier
            const double start = omp_get_wtime();
            flops += run(&sink);
            seconds = omp_get_wtime() - start;
        }
        if (flops / seconds > best) best = flops / seconds;
    }
    return best;
}

static inline double peak_of(const Device *d) {
    double peak = peak_measure(peak_fma);
#ifdef __AVX512BF16__
    if (d->dtype == DTYPE_BF16) {
        double (*run)(volatile float *) = peak_pairs;
#ifdef CPU_TILES
        if (tiles_amx()) run = peak_tiles;
#endif
        const double bf16 = peak_measure(run);
        if (bf16 > peak) peak = bf16;
    }
#endif
    (void)d;
    return peak;
}

/* What distinguishes this setting from others: "bf16 ISA THREADS PROCESSOR". */
static inline void peak_setting(const Device *d, char *text, size_t size) {
    char processor[128];
    snprintf(text, size, "%s %d %d %s", d->dtype == DTYPE_BF16 ? "bf16" : "float32", (int)dnnl_get_effective_cpu_isa(),
             omp_get_max_threads(), program_processor(processor, sizeof processor));
}

static inline bool peak_path(char *path, size_t size) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (cache && *cache) n = snprintf(path, size, "%s", cache);
    else if (home && *home) n = snprintf(path, size, "%s/.cache", home);
    if (n < 0 || (size_t)n + 32 > size) return false;
    mkdir(path, 0755); /* ~/.cache may not exist yet; its parent is not created */
    strcpy(path + n, "/llmc-peak");
    return true;
}

/* The largest figure in the cache for this setting, in GFLOP/s; 0 if there is none. */
static inline double peak_cached(const char *path, const char *setting) {
    char line[512];
    double best = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        char *end;
        const double value = strtod(line, &end);
        line[strcspn(line, "\n")] = 0;
        if (*end == ' ' && !strcmp(end + 1, setting) && value > best && value < 1e9) best = value;
    }
    if (f) fclose(f);
    return best;
}

/* FLOP/s of this processor in the device's dtype. A figure that beats the cached one by more than 1 % is appended. */
static inline double cpu_peak(Device *d) {
    char path[4096], setting[256];
    peak_setting(d, setting, sizeof setting);
    const bool cache = peak_path(path, sizeof path);
    const double cached = cache ? 1e9 * peak_cached(path, setting) : 0, measured = peak_of(d);
    if (measured <= cached) return cached;
    FILE *f = cache && measured > 1.01 * cached ? fopen(path, "a") : NULL;
    if (f) {
        fprintf(f, "%.1f %s\n", 1e-9 * measured, setting);
        fclose(f);
    }
    return measured;
}

#endif

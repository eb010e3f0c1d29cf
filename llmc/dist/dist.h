/* dist.h - data-parallel training on several ranks.
 *
 * Each rank is a process that holds the model and computes a part of every step. A launcher starts the ranks (launch.h
 * lists the supported ones): mpirun, srun, or a torchrun-style set of variables. Nothing here starts processes. Ranks
 * communicate over MPI on CPUs and over NCCL on GPUs, through one table (link.h) that a library next to the program
 * fills in. The library is opened only if there is more than one rank, so a single process does not need MPI:
 *
 *   device  started by        llmc_mpi.so              llmc_nccl.so
 *   cpu     mpirun, srun      everything               -
 *   cuda    mpirun, srun      host-memory collectives  gradients, weights; NCCL's unique id comes through MPI
 *   cuda    RANK, WORLD_SIZE  -                        everything; NCCL connects at MASTER_ADDR:MASTER_PORT by itself
 *   cpu     RANK, WORLD_SIZE  rejected: NCCL does not support CPUs, and MPI needs its own launcher
 *
 * LLMC_MPI_LIBRARY and LLMC_NCCL_LIBRARY override the paths of these libraries.
 *
 * A step on W ranks:
 *
 *   share      Every rank knows the whole batch and assigns each part of it (a record, a pair, a group) to one rank
 *              with dist_share(): the longest first, each to the rank with the fewest tokens so far. The result is the
 *              same on all ranks, without communication. Normalisers are those of the whole batch, so the step's loss
 *              is the sum of the ranks' losses.
 *   backward   The gradients of layer l are summed over the ranks during the backward pass of layer l-1, in buckets of
 *              at least a million floats, in the last micro-batch of the step (grads.h). The embeddings come last.
 *   update     zero 0: every rank has all gradients and computes the same update.
 *              zero 1: every rank has the gradients and moments of its slices of the tensors and updates those slices;
 *                      then the weights are all-gathered. As many bytes are sent as with zero 0; the moments (8 bytes
 *                      per parameter) are divided by W.
 *              zero 2: gradients are sliced too: a rank keeps those of two layers and of the embeddings whole, and
 *                      only its slices of the others. Gradients are summed over the ranks in every micro-batch, so more
 *                      bytes are sent.
 *   the rest   Sums of metrics and the check for signals go through dist_sum() and dist_any() on the host.
 *
 * Sums are made in the order of the ranks, so the same run on the same number of ranks gives the same bits. A different
 * number gives the same samples (a draw is keyed by seed, sequence and position) and losses that differ by rounding.
 *
 * A rank that waits `timeout` seconds for the others to start ends. Later, a waiting rank checks every ten milliseconds
 * whether the ranks on its own machine are alive, and gives up after `timeout` seconds. Then the lowest rank that has
 * not failed prints one line, and all ranks are ended. Files are written by rank 0 and appear only when complete, so
 * the last saved state remains.
 *
 *     Dist d;
 *     if (!dist_open(&d, 600, backend, device, &e)) die("%s", e.text);
 *     dist_share(cost, n, d.ranks, owner);                            // work on those with owner[i] == d.rank
 *     loss = dist_total(&d, loss);
 *
 * A collective call that fails cannot be repeated, because the ranks are no longer synchronised. It therefore returns
 * nothing: dist_failed() ends the run, in a way that the program can set (`failed`).
 *
 * grads.h handles gradients, moments and weights. With one rank dist_share() assigns everything to it, and the
 * collective calls do nothing.
 */
#ifndef LLMC_DIST_DIST_H
#define LLMC_DIST_DIST_H

#include "../base/clock.h"    /* clock_seconds */
#include "../base/error.h"    /* Error, error_set, xcalloc, xmalloc, ... */
#include "../base/launch.h"   /* Launch, LAUNCH_ALONE, LAUNCH_MPI, LAUNCH_VARIABLES, ... */
#include "../base/library.h"  /* Library, library_open */
#include "../model/backend.h" /* Backend, Device */
#include "link.h"             /* DIST_LINK_SYMBOL, DistLink, DistPlace, DistState */
#include <assert.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

/* A rank's process and host. */
typedef struct DistPeer {
    uint64_t machine; /* equal if process numbers are comparable, see dist_here() */
    int64_t process;
    char host[48];
} DistPeer;

/* An opened library and its state. */
typedef struct DistLibrary {
    const DistLink *link;
    DistState *state;
} DistLibrary;

typedef struct Dist {
    int rank, ranks, local_rank;
    double timeout;           /* seconds */
    DistLibrary device, host; /* transfers device and host memory; both may be the same library */
    DistPeer *peer;           /* (ranks) */
    uint8_t *lost;            /* (ranks) 1 if the rank ended or did not respond: the run is over */
    double waited;            /* seconds spent waiting in this header's calls */
    /* Finishes the sums of gradients that are in progress, before any other communication; NULL if there are none. */
    bool (*settle)(void *context, Error *e);
    void *settle_context;
    /* Ends the run after a failed collective call, and does not return. If NULL, one rank prints the error. */
    void (*failed)(void *context, const Error *e);
    void *failed_context;
} Dist;

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Opens the library `name`, or the file that the environment variable `variable` names. builds: how to build it. */
static inline bool dist_library(DistLibrary *l, const char *name, const char *variable, const char *builds, Error *e) {
    Library library;
    /* global: MPI's plugins use its symbols */
    if (!library_open(&library, name, variable, RTLD_GLOBAL, builds, e)) return false;
    const DistLink *(*table)(void);
    *(void **)&table = dlsym(library.handle, DIST_LINK_SYMBOL);
    if (!table) return error_set(e, "%s: has no symbol %s", library.path, DIST_LINK_SYMBOL);
    l->link = table();
    return true;
}

/* Describes this process. Process numbers are comparable if machine, boot and pid namespace are equal. */
static inline DistPeer dist_here(void) {
    DistPeer p = {.process = getpid()};
    struct stat about = {0};
    char boot[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f && !fgets(boot, sizeof boot, f)) boot[0] = 0;
    if (f) fclose(f);
    if (gethostname(p.host, sizeof p.host - 1)) strcpy(p.host, "?");
    if (stat("/proc/self/ns/pid", &about)) about.st_ino = 0;
    p.machine = (uint64_t)about.st_ino;
    for (const char *c = boot; *c; c++) p.machine = p.machine * 1099511628211u + (uint8_t)*c;
    for (const char *c = p.host; *c; c++) p.machine = p.machine * 1099511628211u + (uint8_t)*c;
    return p;
}

static inline bool dist_gone(const DistPeer *here, const DistPeer *there) {
    return here->machine == there->machine && kill((pid_t)there->process, 0) && errno == ESRCH;
}

/* DistWatch: fails if a missing rank has ended or the timeout has passed. */
static inline bool dist_watch(void *context, double seconds, const uint8_t *missing, Error *e) {
    Dist *d = (Dist *)context;
    if (!d->peer)
        return seconds < d->timeout || error_set(e, "the ranks did not find one another within %g s", d->timeout);
    for (int r = 0; r < d->ranks; r++) {
        if (r == d->rank || (missing && !missing[r]) || !dist_gone(&d->peer[d->rank], &d->peer[r])) continue;
        d->lost[r] = 1;
        return error_set(e, "rank %d of %d (process %lld on %s) has ended", r, d->ranks, (long long)d->peer[r].process,
                         d->peer[r].host);
    }
    if (seconds < d->timeout) return true;
    int first = -1, count = 0;
    for (int r = 0; r < d->ranks; r++) {
        if (r == d->rank || !missing || !missing[r]) continue;
        if (first < 0) first = r;
        d->lost[r] = 1;
        count++;
    }
    if (first < 0) return error_set(e, "the other ranks have not answered for %g s (--dist-timeout)", d->timeout);
    char more[32] = "";
    if (count > 1) snprintf(more, sizeof more, " and %d more", count - 1);
    return error_set(e, "rank %d of %d (process %lld on %s)%s has not answered for %g s (--dist-timeout)", first,
                     d->ranks, (long long)d->peer[first].process, d->peer[first].host, more, d->timeout);
}

/* True if a call has failed because of a rank that has ended or does not answer. */
static inline bool dist_any_lost(const Dist *d) {
    for (int r = 0; d->lost && r < d->ranks; r++)
        if (d->lost[r]) return true;
    return false;
}

/* True if this rank prints the error after a failed call: it is the lowest that is not lost. */
static inline bool dist_speaks(const Dist *d) {
    for (int r = 0; r < d->rank; r++)
        if (!d->lost[r]) return false;
    return true;
}

/* Ends all ranks. */
static inline NORETURN void dist_abort(Dist *d, int status) {
    fflush(NULL);
    if (d->host.state) d->host.link->abort(d->host.state, status);
    _exit(status);
}

/* Waits until the rank that speaks ends, which may first write a state, or for a minute if it is on another machine. */
static inline void dist_wait_for_speaker(const Dist *d) {
    const double start = clock_seconds();
    const struct timespec moment = {.tv_nsec = 100000000};
    int speaker = 0;
    while (d->lost[speaker]) speaker++;
    const bool here = d->peer[speaker].machine == d->peer[d->rank].machine;
    while (here ? !dist_gone(&d->peer[d->rank], &d->peer[speaker]) : clock_seconds() - start < 60) {
        if (nanosleep(&moment, NULL)) _exit(1); /* interrupted: the rank that printed ends this one, too */
        if (clock_seconds() - start > 60 + d->timeout) break;
    }
    const struct timespec grace = {.tv_sec = 5};
    if (nanosleep(&grace, NULL)) _exit(1);
}

/* Ends the run after a failed collective call. One rank prints the reason; the others give it time to do so. */
static inline NORETURN void dist_failed(Dist *d, const Error *e) {
    if (!dist_speaks(d)) dist_wait_for_speaker(d);
    if (d->failed) d->failed(d->failed_context, e);
    else fprintf(stderr, "%s: %s\n", program_invocation_short_name, e->text);
    dist_abort(d, 1);
}

static inline void dist_close(Dist *d) {
    if (d->device.state && d->device.state != d->host.state) d->device.link->close(d->device.state);
    if (d->host.state) d->host.link->close(d->host.state);
    free(d->peer), free(d->lost);
    *d = (Dist){.ranks = 1};
}

static inline bool dist_try_exchange(Dist *d, const void *mine, void *all, const size_t *bytes, Error *e);

/* ---- the start ------------------------------------------------------------------------------------------------- */

/* The line of a rank that waits too long for the others to start. MPI_Init() cannot be interrupted otherwise. */
static inline char *dist_alone(void) {
    static char line[256];
    return line;
}

static inline void dist_on_alarm(int number) {
    (void)number;
    const ssize_t n = write(STDERR_FILENO, dist_alone(), strlen(dist_alone()));
    (void)n;
    _exit(1);
}

/* Ends the program after `seconds`, unless it is called again with 0. The lowest rank prints first, and the launcher
 * ends the others. */
static inline void dist_alarm(const Dist *d, double seconds) {
    struct sigaction action = {.sa_handler = seconds > 0 ? dist_on_alarm : SIG_DFL};
    const double until = seconds > 0 ? seconds + 0.5 * fmin(d->rank, 20) : 0;
    const struct itimerval timer = {
        .it_value = {.tv_sec = (time_t)until, .tv_usec = (suseconds_t)(1e6 * (until - floor(until)))}};
    snprintf(dist_alone(), 256,
             "%s: rank %d: not all of the %d ranks have started within %g s (--dist-timeout); see the launcher's "
             "messages, and whether each rank has the same command\n",
             program_invocation_short_name, d->rank, d->ranks, seconds);
    sigemptyset(&action.sa_mask);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* Connects the ranks. */
static inline bool dist_join(Dist *d, const Launch *l, const Backend *b, Device *device, Error *e) {
    const bool nccl = b->stream != NULL; /* a GPU */
    d->lost = (uint8_t *)xcalloc((size_t)d->ranks, 1);
    DistPlace place = {d->rank, d->ranks, d->local_rank, {dist_watch, d}, b->stream, NULL, NULL};
    if (l->kind == LAUNCH_MPI) {
        if (!dist_library(&d->host, "llmc_mpi.so", "LLMC_MPI_LIBRARY",
                          "make builds llmc_mpi.so if libopenmpi-dev is installed", e))
            return false;
        if (!d->host.link->open(&d->host.state, &place, device, e)) return false;
        if (place.ranks != d->ranks || place.rank != d->rank)
            return error_set(e, "the launcher started %d ranks but MPI sees %d; under Slurm use srun --mpi=pmix",
                             d->ranks, place.ranks);
        d->local_rank = place.local_rank;
        d->device = d->host;
        place.host = d->host.link;
        place.host_state = d->host.state;
    }
    if (nccl) {
        d->device = (DistLibrary){0};
        if (!dist_library(&d->device, "llmc_nccl.so", "LLMC_NCCL_LIBRARY",
                          "make cuda builds llmc_nccl.so if nccl.h is installed", e))
            return false;
        if (!d->device.link->open(&d->device.state, &place, device, e)) return false;
        if (!d->host.state) d->host = d->device;
    }
    const DistPeer here = dist_here();
    DistPeer *peer = (DistPeer *)xcalloc((size_t)d->ranks, sizeof *peer);
    size_t each[d->ranks];
    for (int r = 0; r < d->ranks; r++) each[r] = sizeof here;
    if (!dist_try_exchange(d, &here, peer, each, e)) {
        free(peer);
        return false;
    }
    d->peer = peer;
    return true;
}

/* Joins the ranks that the launcher started, if there are several. b, device: those of the model. timeout: seconds. */
static inline bool dist_open(Dist *d, double timeout, const Backend *b, Device *device, Error *e) {
    const Launch l = launch_of_environment();
    *d = (Dist){.rank = l.rank, .ranks = l.ranks, .local_rank = l.local_rank, .timeout = timeout};
    if (l.kind == LAUNCH_ALONE) return true;
    if (l.kind == LAUNCH_VARIABLES && !b->stream)
        return error_set(e, "RANK and WORLD_SIZE are set, which works only on GPUs (--device cuda); "
                            "start ranks on processors with mpirun or srun");
    dist_alarm(d, timeout);
    const bool ok = dist_join(d, &l, b, device, e);
    dist_alarm(d, 0);
    return ok;
}

/* ---- collectives on host memory -------------------------------------------------------------------------------- */

/* All-gather: all = bytes[r] bytes of every rank r, in the order of ranks. */
static inline bool dist_try_exchange(Dist *d, const void *mine, void *all, const size_t *bytes, Error *e) {
    if (d->ranks == 1) {
        if (bytes[0]) memmove(all, mine, bytes[0]);
        return true;
    }
    if (d->settle && !d->settle(d->settle_context, e)) return false;
    const double start = clock_seconds();
    const bool ok = d->host.link->exchange(d->host.state, mine, all, bytes, e);
    d->waited += clock_seconds() - start;
    return ok;
}

/* The same; a failure ends the run, here and in all functions below. */
static inline void dist_exchange_parts(Dist *d, const void *mine, void *all, const size_t *bytes) {
    Error e;
    if (!dist_try_exchange(d, mine, all, bytes, &e)) dist_failed(d, &e);
}

/* All-gather of equal parts. all: (ranks, bytes) */
static inline void dist_exchange(Dist *d, const void *mine, void *all, size_t bytes) {
    size_t each[d->ranks];
    assert(d->ranks >= 1);
    for (int r = 0; r < d->ranks; r++) each[r] = bytes;
    dist_exchange_parts(d, mine, all, each);
}

/* All-gather in place: rank r holds elements first[r] ... first[r+1]-1 (of `size` bytes each) of an array; afterwards
 * every rank holds all of them. first: (ranks + 1), non-decreasing; first[0] need not be 0. */
static inline void dist_complete(Dist *d, void *array, const int64_t *first, size_t size) {
    if (d->ranks == 1) return;
    size_t bytes[d->ranks];
    for (int r = 0; r < d->ranks; r++) bytes[r] = (size_t)(first[r + 1] - first[r]) * size;
    char *all = (char *)array + (size_t)first[0] * size;
    const size_t total = (size_t)(first[d->ranks] - first[0]) * size;
    char *copy = (char *)xmalloc(total);
    dist_exchange_parts(d, (char *)array + (size_t)first[d->rank] * size, copy, bytes);
    if (total) memcpy(all, copy, total);
    free(copy);
}

/* All-gather of any `count` elements of `size` bytes per rank. Returns the elements of all ranks, in order, which the
 * caller frees. first: (ranks + 1), rank r's elements are first[r] ... first[r+1]-1. */
static inline void *dist_collect(Dist *d, const void *mine, int64_t count, size_t size, int64_t *first) {
    int64_t counts[d->ranks];
    size_t bytes[d->ranks];
    dist_exchange(d, &count, counts, sizeof count);
    first[0] = 0;
    for (int r = 0; r < d->ranks; r++) {
        first[r + 1] = first[r] + counts[r];
        bytes[r] = (size_t)counts[r] * size;
    }
    void *all = xmalloc((size_t)first[d->ranks] * size);
    dist_exchange_parts(d, mine, all, bytes);
    return all;
}

/* x[n] = sum over the ranks, in the order of ranks. */
static inline void dist_sum(Dist *d, double *x, size_t n) {
    if (d->ranks == 1) return;
    double *all = (double *)xmalloc((size_t)d->ranks * n * sizeof *all);
    dist_exchange(d, x, all, n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = 0;
        for (size_t r = 0; r < (size_t)d->ranks; r++) x[i] += all[r * n + i];
    }
    free(all);
}

/* x[n] = maximum over the ranks; NaN is less than any number. */
static inline void dist_max(Dist *d, double *x, size_t n) {
    if (d->ranks == 1) return;
    double *all = (double *)xmalloc((size_t)d->ranks * n * sizeof *all);
    dist_exchange(d, x, all, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < (size_t)d->ranks; r++) x[i] = r ? fmax(x[i], all[r * n + i]) : all[i];
    free(all);
}

/* x[n] = minimum over the ranks; NaN is greater than any number. */
static inline void dist_min(Dist *d, double *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = -x[i];
    dist_max(d, x, n);
    for (size_t i = 0; i < n; i++) x[i] = -x[i];
}

/* A struct whose fields are all doubles, as the array and the length that dist_sum(), dist_max() and dist_min()
 * take. */
#define DIST_FIELDS(x) (double *)&(x), sizeof(x) / sizeof(double)

/* Adds the fields of one such struct to those of another: dist_add(DIST_FIELDS(total), DIST_FIELDS(part)). */
static inline void dist_add(double *total, size_t n, const double *part, size_t fields) {
    for (size_t i = 0; i < n && i < fields; i++) total[i] += part[i];
}

/* The sum of x over the ranks. */
static inline double dist_total(Dist *d, double x) {
    dist_sum(d, &x, 1);
    return x;
}

/* Whether x is true on any rank. */
static inline bool dist_any(Dist *d, bool x) {
    double one = x;
    dist_max(d, &one, 1);
    return one > 0;
}

/* The first rank whose value differs from rank 0's, or -1. */
static inline int dist_differs(Dist *d, uint64_t value) {
    uint64_t all[d->ranks];
    dist_exchange(d, &value, all, sizeof value);
    for (int r = 1; r < d->ranks; r++)
        if (all[r] != all[0]) return r;
    return -1;
}

/* ---- distribution of work -------------------------------------------------------------------------------------- */

typedef struct DistItem {
    double cost;
    int64_t index;
} DistItem;

static inline int dist_item_order(const void *a, const void *b) { /* by decreasing cost, then by index */
    const DistItem *x = (const DistItem *)a, *y = (const DistItem *)b;
    return x->cost != y->cost ? (x->cost < y->cost ? 1 : -1) : x->index < y->index ? -1 : x->index > y->index;
}

/* Distributes n pieces of work over the ranks: the costliest first, each to the rank with the lowest load so far
 * (Graham 1969, LPT: the maximum load is at most 4/3 of the optimum). owner: (n), the same on all ranks. */
static inline void dist_share(const double *cost, int64_t n, int ranks, int32_t *owner) {
    DistItem *item = (DistItem *)xcalloc((size_t)n, sizeof *item);
    double *load = (double *)xcalloc((size_t)ranks, sizeof *load);
    for (int64_t i = 0; i < n; i++) item[i] = (DistItem){cost[i], i};
    qsort(item, (size_t)n, sizeof *item, dist_item_order);
    for (int64_t i = 0; i < n; i++) {
        int least = 0;
        for (int r = 1; r < ranks; r++)
            if (load[r] < load[least]) least = r;
        owner[item[i].index] = least;
        load[least] += item[i].cost;
    }
    free(item), free(load);
}

/* Splits n pieces of work, in their order, into one contiguous range of nearly equal cost per rank: rank r has pieces
 * first[r] ... first[r+1]-1. first: (ranks + 1). */
static inline void dist_cut(const double *cost, int64_t n, int ranks, int64_t *first) {
    double total = 0, before = 0;
    int64_t i = 0;
    for (int64_t k = 0; k < n; k++) total += cost[k];
    for (int r = 0; r < ranks; r++) {
        first[r] = i;
        const double end = total * (r + 1) / ranks;
        for (; i < n && before + cost[i] / 2 <= end; i++) before += cost[i];
    }
    first[ranks] = n;
}

#endif

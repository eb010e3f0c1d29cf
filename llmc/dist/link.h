/* link.h - interface between dist.h and the communication libraries llmc_mpi.so and llmc_nccl.so.
 *
 * Ranks are processes that run the same program on the same data, each with a part of the work. A library fills in one
 * table, DistLink, and exports it under DIST_LINK_SYMBOL. Its operations are collective: every rank starts the same
 * ones in the same order. reduce() and gather() are asynchronous: they return at once, and finish() waits for them.
 *
 * An array is distributed over the ranks by share_slice() (../model/share.h).
 *
 * MPI sums over ranks in the order of the ranks. NCCL sums in the order of its own algorithm, which is the same in
 * every run on the same machines.
 *
 * nvcc compiles this header too, so it uses only the common subset of C and C++.
 */
#ifndef LLMC_DIST_LINK_H
#define LLMC_DIST_LINK_H

#include "../base/error.h"    /* Error */
#include "../model/backend.h" /* Device, Floats */

#ifdef __cplusplus
extern "C" {
#endif

/* A contiguous array of n elements of device memory that takes part in an operation. */
typedef struct DistPiece {
    void *x;
    size_t n;
    Floats *into; /* reduce: this rank's slice of the sum is added to it; NULL: the sum replaces the slice in x */
} DistPiece;

/* Called about every ten milliseconds during a wait. seconds: duration of the wait so far. missing[ranks]: 1 for each
 * rank whose part has not arrived, or NULL if the library cannot tell. Returns false, with a message, to end the
 * wait. */
typedef struct DistWatch {
    bool (*check)(void *context, double seconds, const uint8_t *missing, Error *e);
    void *context;
} DistWatch;

typedef struct DistState DistState;
struct DistLink;

typedef struct DistPlace {
    int rank, ranks, local_rank; /* local: among the ranks of the same machine */
    DistWatch watch;
    void *(*stream)(
        Device *d); /* backend.h's: launches the queued work of the device and returns its stream; or NULL */
    const struct DistLink *host; /* another library that transfers host memory between these ranks, or NULL */
    DistState *host_state;
} DistPlace;

typedef struct DistLink {
    const char *name;
    /* Joins the other ranks. place: as given by the environment; the library may correct the numbers. device: holds the
     * memory of the pieces. */
    bool (*open)(DistState **s, DistPlace *place, Device *device, Error *e);
    /* All-gather of host memory: all = the concatenation of every rank's `mine`, of bytes[r] bytes for rank r, in the
     * order of ranks. Waits for completion. */
    bool (*exchange)(DistState *s, const void *mine, void *all, const size_t *bytes, Error *e);
    /* Starts a sum of float32 pieces over the ranks. Reduce-scatter: each rank gets its slice of the sum (see
     * DistPiece); everywhere: all-reduce, each rank gets the whole sum in x. x must not be accessed before finish(). */
    bool (*reduce)(DistState *s, const DistPiece *piece, int pieces, bool everywhere, Error *e);
    /* Starts an all-gather of every rank's own slices of the pieces. element: size of an element in bytes. */
    bool (*gather)(DistState *s, const DistPiece *piece, int pieces, size_t element, Error *e);
    /* Advances the operations in progress, without waiting. */
    bool (*progress)(DistState *s, Error *e);
    /* Waits until all started operations but the latest `left` are complete. */
    bool (*finish)(DistState *s, int left, Error *e);
    uint64_t (*bytes_sent)(const DistState *s);
    void (*close)(DistState *s);
    /* Ends all ranks of the run, including this one. */
    void (*abort)(DistState *s, int status);
} DistLink;

#define DIST_LINK_SYMBOL "llmc_dist_link" /* const DistLink *llmc_dist_link(void) */

#ifdef __cplusplus
}
#endif

#endif

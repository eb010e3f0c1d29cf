/* link.h - the contract between dist.h and a library that carries data between ranks: llmc_mpi.so, llmc_nccl.so.
 *
 * Ranks are processes that run the same program on the same data, each with a part of the work. A library fills in one
 * table, DistLink, and exports it under DIST_LINK_SYMBOL. Its operations are collective: every rank starts the same ones
 * in the same order. reduce() and gather() only start; they go on while the caller computes, and finish() waits.
 *
 * How an array is distributed over the ranks is the rule of share_slice() (../model/share.h).
 *
 * Sums over ranks are made in the order of the ranks where the library can (MPI: always; NCCL: as its own algorithm does,
 * the same at every run on the same machines).
 *
 * This header is seen by nvcc: it stays in the common subset of C and C++.
 */
#ifndef LLMC_DIST_LINK_H
#define LLMC_DIST_LINK_H

#include "../model/backend.h"
#include "../model/share.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A stretch of n elements of device memory that takes part in an operation. */
typedef struct DistPiece {
    void *x;
    size_t n;
    Floats *into; /* reduce: this rank's slice of the sum is added here; NULL: it takes the place of the slice in x */
} DistPiece;

/* Asked about every ten milliseconds of waiting. seconds: how long so far; missing[ranks]: 1 for each rank whose part has
 * not come, or NULL where the library cannot tell. False, with a message: the wait is given up. */
typedef struct DistWatch {
    bool (*check)(void *context, double seconds, const uint8_t *missing, Error *e);
    void *context;
} DistWatch;

typedef struct DistState DistState;
struct DistLink;

typedef struct DistPlace {
    int rank, ranks, local_rank; /* local: among those on the same machine */
    DistWatch watch;
    void *(*stream)(Device *d);  /* backend.h's: starts what is queued on the device, returns its stream; or NULL */
    const struct DistLink *host; /* another library that carries host memory between these ranks, or NULL */
    DistState *host_state;
} DistPlace;

typedef struct DistLink {
    const char *name;
    /* Joins the other ranks. place: as the environment has it; the library may correct the numbers. device: the one that
     * x of the pieces is memory of. */
    bool (*open)(DistState **s, DistPlace *place, Device *device, Error *e);
    /* all = what each rank brought, one after another in the order of ranks; rank r brings bytes[r]. Host memory; waits. */
    bool (*exchange)(DistState *s, const void *mine, void *all, const size_t *bytes, Error *e);
    /* Starts to sum float32 pieces over the ranks. Each rank gets its slice of the sum (see DistPiece); everywhere: all
     * ranks get all of it, in x. x must not be touched before finish(). */
    bool (*reduce)(DistState *s, const DistPiece *piece, int pieces, bool everywhere, Error *e);
    /* Starts to give everyone's own slices of the pieces to all. element: bytes of one. */
    bool (*gather)(DistState *s, const DistPiece *piece, int pieces, size_t element, Error *e);
    /* Moves what is under way, without waiting. */
    bool (*progress)(DistState *s, Error *e);
    /* Waits until at most `left` of the started operations, the latest, are under way. */
    bool (*finish)(DistState *s, int left, Error *e);
    uint64_t (*bytes_sent)(const DistState *s);
    void (*close)(DistState *s);
    /* Ends all ranks of the run, this one too. */
    void (*abort)(DistState *s, int status);
} DistLink;

#define DIST_LINK_SYMBOL "llmc_dist_link" /* const DistLink *llmc_dist_link(void) */

#ifdef __cplusplus
}
#endif

#endif

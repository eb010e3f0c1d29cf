/* mpi.c - link.h over MPI, for ranks on CPUs.
 *
 * It is built as llmc_mpi.so if there is an mpicc. dist.h opens it in programs that mpirun or srun started, so the
 * programs themselves do not depend on MPI.
 *
 * MPI only carries messages from one rank to another. Sums are computed here, in the order of the ranks, so they are
 * the same in every run, in whatever order the messages arrive:
 *
 *   reduce   Each rank sends every other rank its contribution to that rank's slices, and sums the contributions to its
 *            own: ((x_0 + x_1) + x_2) + ... With everywhere, each rank then sends its slice of the sum to all others.
 *   gather   Each rank sends its own slices to all others.
 *
 * All pieces of an operation that go to one rank are packed into one message. Per rank and operation there are 2 (W-1)
 * messages, and 4 n (W-1)/W bytes for n floats (twice that with everywhere), which is the minimum for a sum.
 *
 * MPI advances large messages only inside its own calls, so progress() is called between the layers of a backward pass.
 * A wait polls continuously at first and later sleeps between polls, so that ranks on the same core do not starve each
 * other.
 */
#include "../base/clock.h"    /* clock_seconds */
#include "../base/error.h"    /* Error, error_set, xcalloc, xmalloc, ... */
#include "../model/backend.h" /* Device */
#include "../model/share.h"   /* share_slice */
#include "link.h"             /* DistPiece, DistLink, DistPlace, DistWatch */
#include <mpi.h>
#include <sched.h>

typedef enum { OP_REDUCE, OP_GATHER, OP_EXCHANGE } OpKind;

/* Buffers are reused: allocating many fresh megabytes would cost more than the copy into them. */
typedef struct Buffer {
    char *data;
    size_t size;
} Buffer;

typedef struct Op {
    OpKind kind;
    bool everywhere;
    int tag, pieces;
    DistPiece *piece;      /* (pieces) */
    size_t element;        /* bytes */
    MPI_Request *request;  /* (2 ranks): receives, then sends */
    Buffer *receive, send; /* (ranks) one per sender; one for all sends */
    struct Op *next;
} Op;

struct DistState {
    int rank, ranks;
    MPI_Comm comm;
    DistWatch watch;
    Op *first, *last; /* operations in progress, in the order of their start */
    int under_way, tag;
    uint64_t sent;
    uint8_t *missing; /* (ranks) */
    Buffer *spare;    /* unused buffers */
    int spares, spares_max;
};

enum { TAGS = 16384 };      /* MPI guarantees at least 32767 */
enum { MESSAGE = 1 << 30 }; /* maximum bytes; MPI counts in int */

static bool mpi_check(int status, const char *call, Error *e) {
    if (status == MPI_SUCCESS) return true;
    char text[MPI_MAX_ERROR_STRING];
    int n = 0;
    MPI_Error_string(status, text, &n);
    return error_set(e, "mpi: %s: %.*s", call, n, text);
}

/* ---- buffers --------------------------------------------------------------------------------------------------- */

/* Returns the smallest unused buffer that is large enough and at most about twice as large, or else a new one. */
static Buffer buffer_take(DistState *s, size_t bytes) {
    int best = -1;
    for (int i = 0; i < s->spares; i++)
        if (s->spare[i].size >= bytes && s->spare[i].size / 2 <= bytes &&
            (best < 0 || s->spare[i].size < s->spare[best].size))
            best = i;
    if (best < 0) return (Buffer){(char *)xmalloc(bytes), bytes};
    const Buffer b = s->spare[best];
    s->spare[best] = s->spare[--s->spares];
    return b;
}

static void buffer_give(DistState *s, Buffer *b) {
    if (!b->data) return;
    if (s->spares == s->spares_max) {
        s->spares_max = 2 * s->spares_max + 16;
        s->spare = (Buffer *)xrealloc(s->spare, (size_t)s->spares_max, sizeof *s->spare);
    }
    s->spare[s->spares++] = *b;
    *b = (Buffer){0};
}

/* ---- operations in progress ------------------------------------------------------------------------------------ */

static size_t slice_bytes(const DistState *s, const Op *o, int rank) {
    size_t total = 0, first, count;
    for (int i = 0; i < o->pieces; i++) {
        share_slice(o->piece[i].n, rank, s->ranks, &first, &count);
        total += count * o->element;
    }
    return total;
}

/* Copies a rank's slices of all pieces to or from a buffer. */
static void slices_copy(const DistState *s, const Op *o, int rank, char *buffer, bool from_pieces) {
    for (int i = 0; i < o->pieces; i++) {
        size_t first, count;
        share_slice(o->piece[i].n, rank, s->ranks, &first, &count);
        char *x = (char *)o->piece[i].x + first * o->element;
        if (from_pieces) memcpy(buffer, x, count * o->element);
        else memcpy(x, buffer, count * o->element);
        buffer += count * o->element;
    }
}

static bool mpi_send(DistState *s, Op *o, const void *data, size_t bytes, int to, Error *e) {
    s->sent += bytes;
    return mpi_check(MPI_Isend(data, (int)bytes, MPI_BYTE, to, o->tag, s->comm, &o->request[s->ranks + to]),
                     "MPI_Isend", e);
}

static bool mpi_receive(DistState *s, Op *o, int from, size_t bytes, Error *e) {
    o->receive[from] = buffer_take(s, bytes);
    return mpi_check(MPI_Irecv(o->receive[from].data, (int)bytes, MPI_BYTE, from, o->tag, s->comm, &o->request[from]),
                     "MPI_Irecv", e);
}

static Op *op_new(DistState *s, OpKind kind, const DistPiece *piece, int pieces, size_t element) {
    Op *o = (Op *)xcalloc(1, sizeof *o);
    *o = (Op){.kind = kind, .tag = s->tag, .pieces = pieces, .element = element};
    s->tag = (s->tag + 1) % TAGS;
    o->piece = (DistPiece *)xmalloc((size_t)pieces * sizeof *piece);
    if (pieces) memcpy(o->piece, piece, (size_t)pieces * sizeof *piece);
    o->request = (MPI_Request *)xmalloc(2 * (size_t)s->ranks * sizeof *o->request);
    for (int i = 0; i < 2 * s->ranks; i++) o->request[i] = MPI_REQUEST_NULL;
    o->receive = (Buffer *)xcalloc((size_t)s->ranks, sizeof *o->receive);
    if (s->last) s->last->next = o;
    else s->first = o;
    s->last = o;
    s->under_way++;
    return o;
}

static void op_buffers_free(DistState *s, Op *o) {
    for (int r = 0; r < s->ranks; r++) buffer_give(s, &o->receive[r]);
    buffer_give(s, &o->send);
}

/* Removes the first operation of the list. */
static void op_free(DistState *s, Op *o) {
    s->first = o->next;
    s->under_way--;
    if (!s->first) s->last = NULL;
    op_buffers_free(s, o);
    free(o->receive), free(o->request), free(o->piece), free(o);
}

/* Starts to send this rank's contributions to the other ranks' slices and to receive theirs to its own. */
static bool reduce_start(DistState *s, Op *o, Error *e) {
    const size_t mine = slice_bytes(s, o, s->rank);
    size_t total = 0, at = 0;
    for (int r = 0; r < s->ranks; r++) total += r == s->rank ? 0 : slice_bytes(s, o, r);
    if (mine > MESSAGE || total > (size_t)MESSAGE * (size_t)s->ranks)
        return error_set(e, "mpi: a bucket has %zu bytes per rank, but a message holds at most %d", mine, MESSAGE);
    o->send = buffer_take(s, total);
    for (int r = 0; r < s->ranks; r++)
        if (r != s->rank && !mpi_receive(s, o, r, mine, e)) return false;
    for (int k = 1; k < s->ranks; k++) {
        const int r = (s->rank + k) % s->ranks;
        const size_t bytes = slice_bytes(s, o, r);
        slices_copy(s, o, r, o->send.data + at, true);
        if (!mpi_send(s, o, o->send.data + at, bytes, r, e)) return false;
        at += bytes;
    }
    return true;
}

/* x = x_0 + x_1 + ... in the order of ranks, for this rank's slices. */
static void reduce_sum(DistState *s, Op *o) {
    size_t at = 0;
    for (int i = 0; i < o->pieces; i++) {
        size_t first, count;
        share_slice(o->piece[i].n, s->rank, s->ranks, &first, &count);
        float *mine = (float *)o->piece[i].x + first, *into = (float *)o->piece[i].into;
        enum { BLOCK = 4096 };
        for (size_t block = 0; block < count; block += BLOCK) {
            const size_t n = count - block < BLOCK ? count - block : BLOCK;
            float sum[BLOCK];
            for (int r = 0; r < s->ranks; r++) {
                const float *x = (r == s->rank ? mine : (const float *)o->receive[r].data + at) + block;
                if (r == 0) memcpy(sum, x, n * sizeof *x);
                else
                    for (size_t k = 0; k < n; k++) sum[k] += x[k];
            }
            if (into)
                for (size_t k = 0; k < n; k++) into[block + k] += sum[k];
            else memcpy(mine + block, sum, n * sizeof *sum);
        }
        at += count;
    }
}

/* Starts to send this rank's slices to all others and to receive theirs. */
static bool gather_start(DistState *s, Op *o, Error *e) {
    const size_t mine = slice_bytes(s, o, s->rank);
    o->send = buffer_take(s, mine);
    slices_copy(s, o, s->rank, o->send.data, true);
    for (int r = 0; r < s->ranks; r++) {
        const size_t bytes = slice_bytes(s, o, r);
        if (bytes > MESSAGE)
            return error_set(e, "mpi: %zu bytes per rank, but a message holds at most %d", bytes, MESSAGE);
        if (r != s->rank && !mpi_receive(s, o, r, bytes, e)) return false;
    }
    for (int k = 1; k < s->ranks; k++)
        if (!mpi_send(s, o, o->send.data, mine, (s->rank + k) % s->ranks, e)) return false;
    return true;
}

/* Advances the first operation. *over: it is complete. */
static bool op_test(DistState *s, Op *o, bool *over, Error *e) {
    int done = 0;
    *over = false;
    if (!mpi_check(MPI_Testall(2 * s->ranks, o->request, &done, MPI_STATUSES_IGNORE), "MPI_Testall", e)) return false;
    if (!done) return true;
    if (o->kind == OP_REDUCE) {
        reduce_sum(s, o);
        if (o->everywhere) { /* the all-gather follows */
            op_buffers_free(s, o);
            o->kind = OP_GATHER;
            return gather_start(s, o, e);
        }
    } else if (o->kind == OP_GATHER)
        for (int r = 0; r < s->ranks; r++)
            if (r != s->rank) slices_copy(s, o, r, o->receive[r].data, false);
    *over = true;
    return true;
}

/* Advances the operations in the order of their start and frees those that are complete. */
static bool mpi_progress(DistState *s, Error *e) {
    for (bool over = true; s->first && over;) {
        if (!op_test(s, s->first, &over, e)) return false;
        if (over) op_free(s, s->first);
    }
    return true;
}

/* Pauses between two polls of a wait that began at `start`. */
static bool mpi_pause(DistState *s, const Op *o, double start, double *asked, int *looks, Error *e) {
    if (++*looks < 200) return true;
    const double now = clock_seconds();
    if (now - *asked > 0.01) {
        *asked = now;
        for (int r = 0; r < s->ranks; r++) {
            int came = 1, went = 1;
            MPI_Request_get_status(o->request[r], &came, MPI_STATUS_IGNORE);
            MPI_Request_get_status(o->request[s->ranks + r], &went, MPI_STATUS_IGNORE);
            s->missing[r] = !came || !went;
        }
        if (!s->watch.check(s->watch.context, now - start, s->missing, e)) return false;
    }
    if (*looks < 2000) sched_yield();
    else nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    return true;
}

static bool mpi_finish(DistState *s, int left, Error *e) {
    const double start = clock_seconds();
    double asked = start;
    int looks = 0;
    while (s->under_way > left) {
        const int before = s->under_way;
        if (!mpi_progress(s, e)) return false;
        if (s->under_way < before) looks = 0;
        else if (!mpi_pause(s, s->first, start, &asked, &looks, e)) return false;
    }
    return true;
}

/* ---- the table ------------------------------------------------------------------------------------------------- */

static bool mpi_reduce(DistState *s, const DistPiece *piece, int pieces, bool everywhere, Error *e) {
    Op *o = op_new(s, OP_REDUCE, piece, pieces, sizeof(float));
    o->everywhere = everywhere;
    return reduce_start(s, o, e);
}

static bool mpi_gather(DistState *s, const DistPiece *piece, int pieces, size_t element, Error *e) {
    return gather_start(s, op_new(s, OP_GATHER, piece, pieces, element), e);
}

/* Also waits for the operations that were started before. */
static bool mpi_exchange(DistState *s, const void *mine, void *all, const size_t *bytes, Error *e) {
    if (!mpi_finish(s, 0, e)) return false;
    Op *o = op_new(s, OP_EXCHANGE, NULL, 0, 1);
    size_t at = 0;
    for (int r = 0; r < s->ranks; r++) {
        if (bytes[r] > MESSAGE)
            return error_set(e, "mpi: %zu bytes from rank %d, but a message holds at most %d", bytes[r], r, MESSAGE);
        if (r != s->rank && !mpi_receive(s, o, r, bytes[r], e)) return false;
    }
    for (int k = 1; k < s->ranks; k++)
        if (!mpi_send(s, o, mine, bytes[s->rank], (s->rank + k) % s->ranks, e)) return false;
    const double start = clock_seconds();
    double asked = start;
    int looks = 0;
    for (bool over = false; !over;)
        if (!op_test(s, o, &over, e) || (!over && !mpi_pause(s, o, start, &asked, &looks, e))) return false;
    for (int r = 0; r < s->ranks; r++) {
        if (bytes[r]) memcpy((char *)all + at, r == s->rank ? mine : o->receive[r].data, bytes[r]);
        at += bytes[r];
    }
    op_free(s, o);
    return true;
}

static uint64_t mpi_bytes_sent(const DistState *s) { return s->sent; }

static void mpi_close(DistState *s) {
    MPI_Comm_free(&s->comm);
    MPI_Finalize();
    for (int i = 0; i < s->spares; i++) free(s->spare[i].data);
    free(s->spare), free(s->missing), free(s);
}

static void mpi_abort(DistState *s, int status) {
    (void)s;
    MPI_Abort(MPI_COMM_WORLD, status);
}

static bool mpi_open(DistState **state, DistPlace *place, Device *device, Error *e) {
    (void)device; /* the CPU's memory is host memory */
    int provided;
    if (!mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread", e)) return false;
    DistState *s = (DistState *)xcalloc(1, sizeof *s);
    MPI_Comm local;
    if (!mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &s->comm), "MPI_Comm_dup", e)) return false;
    MPI_Comm_set_errhandler(s->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(s->comm, &s->rank);
    MPI_Comm_size(s->comm, &s->ranks);
    MPI_Comm_split_type(s->comm, MPI_COMM_TYPE_SHARED, s->rank, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &place->local_rank);
    MPI_Comm_free(&local);
    place->rank = s->rank;
    place->ranks = s->ranks;
    s->watch = place->watch;
    s->missing = (uint8_t *)xcalloc((size_t)s->ranks, 1);
    *state = s;
    return true;
}

__attribute__((visibility("default"))) const DistLink *llmc_dist_link(void);
const DistLink *llmc_dist_link(void) {
    static const DistLink table = {.name = "mpi",
                                   .open = mpi_open,
                                   .exchange = mpi_exchange,
                                   .reduce = mpi_reduce,
                                   .gather = mpi_gather,
                                   .progress = mpi_progress,
                                   .finish = mpi_finish,
                                   .bytes_sent = mpi_bytes_sent,
                                   .close = mpi_close,
                                   .abort = mpi_abort};
    return &table;
}

/* nccl.cu - ranks on GPUs: link.h over NCCL. Built as llmc_nccl.so where there are nvcc and nccl.h, opened by
 * dist.h on --device cuda with more than one rank; one GPU needs none of it.
 *
 * Sums and weights go by NCCL's own collectives on a stream of their own, beside the backward pass: an event says when the
 * gradients of a bucket are there, another when their sum is. A slice of equal size for every rank is what ReduceScatter
 * and AllGather want; the rest of a tensor, less than 16 elements a rank, goes by Reduce and Broadcast to the last one.
 *
 *   reduce    AllReduce where everyone wants all; else ReduceScatter in place (and, zero 2, added to the slices kept)
 *   gather    AllGather in place
 *   exchange  the host's own library (MPI) where it brought one, else Broadcasts through a small buffer on the GPU
 *
 * Ranks find one another through NCCL itself: its unique id comes from rank 0 through the host's library, or all ranks meet
 * at MASTER_ADDR:MASTER_PORT, which NCCL takes as NCCL_COMM_ID.
 *
 * Waiting asks the event, the communicator for errors and dist.h's watch in turn, so a rank that died or hangs ends the
 * run. NCCL's sums do not run in the order of ranks: they repeat on the same machines with the same NCCL and settings.
 */
#include "../cuda/common.cuh"
#include "link.h"
#include <deque>
#include <nccl.h>
#include <time.h>
#include <unistd.h>

struct DistState {
    int rank, ranks;
    Device *device;
    void *(*compute)(Device *d); /* starts what is queued on the device; its stream */
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t ready;               /* the compute stream has come as far as an operation needs */
    std::deque<cudaEvent_t> started; /* one for each operation under way, recorded behind it */
    char *buffer;                    /* of exchange(), on the GPU */
    size_t buffer_bytes;
    uint64_t sent;
    DistWatch watch;
    const DistLink *host;
    DistState *host_state;
};

#define NCCL_TRY(e, call, ...) nccl_check(e, call, #call, __FILE__, __LINE__, __VA_ARGS__)
#define CUDA_TRY(e, call, ...) nccl_cuda_check(e, call, #call, __FILE__, __LINE__, __VA_ARGS__)

PRINTF_LIKE(6, 7)
static bool nccl_failed(Error *e, const char *what, const char *call, const char *file, int line, const char *format,
                        ...) {
    char shape[128];
    va_list args;
    va_start(args, format);
    vsnprintf(shape, sizeof shape, format, args);
    va_end(args);
    const char *slash = strrchr(file, '/');
    return error_set(e, "nccl: %.160s at %s:%d (%s): %s", call, slash ? slash + 1 : file, line, shape, what);
}

template <typename... A>
static bool nccl_check(Error *e, ncclResult_t status, const char *call, const char *file, int line, const char *format,
                       A... args) {
    if (status == ncclSuccess) return true;
    char what[400];
    snprintf(what, sizeof what, "%s %.300s", ncclGetErrorString(status), ncclGetLastError(NULL));
    return nccl_failed(e, what, call, file, line, format, args...);
}

template <typename... A>
static bool nccl_cuda_check(Error *e, cudaError_t status, const char *call, const char *file, int line,
                            const char *format, A... args) {
    return status == cudaSuccess || nccl_failed(e, cudaGetErrorString(status), call, file, line, format, args...);
}

/* ---- streams and events ---------------------------------------------------------------------------------------- */

/* What is queued on the compute stream comes before the next operation. */
static bool after_compute(DistState *s, Error *e) {
    return CUDA_TRY(e, cudaEventRecord(s->ready, (cudaStream_t)s->compute(s->device)), "rank %d", s->rank) &&
           CUDA_TRY(e, cudaStreamWaitEvent(s->stream, s->ready, 0), "rank %d", s->rank);
}

static bool operation_ends(DistState *s, Error *e) {
    cudaEvent_t over;
    if (!CUDA_TRY(e, cudaEventCreateWithFlags(&over, cudaEventDisableTiming), "rank %d", s->rank)) return false;
    s->started.push_back(over);
    return CUDA_TRY(e, cudaEventRecord(over, s->stream), "rank %d", s->rank);
}

static double nccl_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Until all that is queued on the stream of the collectives is done. */
static bool wait_for_stream(DistState *s, Error *e) {
    const double start = nccl_seconds();
    double asked = start;
    for (int looks = 0;; looks++) {
        const cudaError_t status = cudaStreamQuery(s->stream);
        if (status == cudaSuccess) return true;
        if (status != cudaErrorNotReady) return CUDA_TRY(e, status, "rank %d", s->rank);
        if (looks < 1000) continue;
        const double now = nccl_seconds();
        if (now - asked > 0.01) {
            ncclResult_t within = ncclSuccess;
            asked = now;
            if (!NCCL_TRY(e, ncclCommGetAsyncError(s->comm, &within), "rank %d", s->rank)) return false;
            if (!s->watch.check(s->watch.context, now - start, NULL, e)) return false;
            if (!NCCL_TRY(e, within, "rank %d", s->rank)) return false;
        }
        usleep(20);
    }
}

/* ---- the table ------------------------------------------------------------------------------------------------- */

__global__ static void floats_add_kernel(float *to, const float *from, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        to[i] += from[i];
}

static bool nccl_reduce_piece(DistState *s, const DistPiece *p, bool everywhere, Error *e) {
    const size_t each = p->n / (size_t)s->ranks / SHARE_ALIGN * SHARE_ALIGN, even = each * (size_t)s->ranks;
    float *x = (float *)p->x;
    s->sent += p->n * sizeof(float) * (size_t)(s->ranks - 1) / (size_t)s->ranks * (everywhere ? 2 : 1);
    if (everywhere)
        return NCCL_TRY(e, ncclAllReduce(x, x, p->n, ncclFloat32, ncclSum, s->comm, s->stream), "%zu floats", p->n);
    if (each && !NCCL_TRY(e,
                          ncclReduceScatter(x, x + (size_t)s->rank * each, each, ncclFloat32, ncclSum, s->comm, s->stream),
                          "%zu floats a rank", each))
        return false;
    return p->n == even || NCCL_TRY(e,
                                    ncclReduce(x + even, x + even, p->n - even, ncclFloat32, ncclSum, s->ranks - 1,
                                               s->comm, s->stream),
                                    "%zu floats", p->n - even);
}

static bool nccl_reduce(DistState *s, const DistPiece *piece, int pieces, bool everywhere, Error *e) {
    bool ok = after_compute(s, e) && NCCL_TRY(e, ncclGroupStart(), "%d pieces", pieces);
    for (int i = 0; ok && i < pieces; i++) ok = nccl_reduce_piece(s, &piece[i], everywhere, e);
    if (!ok || !NCCL_TRY(e, ncclGroupEnd(), "%d pieces", pieces)) return false;
    for (int i = 0; i < pieces; i++) {
        size_t first, count;
        share_slice(piece[i].n, s->rank, s->ranks, &first, &count);
        if (!piece[i].into || !count) continue;
        LAUNCH((floats_add_kernel), cuda_blocks(s->device, count, 256), 256, 0, s->stream, (float *)piece[i].into,
               (const float *)piece[i].x + first, count);
        if (!CUDA_TRY(e, cudaGetLastError(), "%zu floats", count)) return false;
    }
    return operation_ends(s, e);
}

static bool nccl_gather(DistState *s, const DistPiece *piece, int pieces, size_t element, Error *e) {
    if (!after_compute(s, e) || !NCCL_TRY(e, ncclGroupStart(), "%d pieces", pieces)) return false;
    for (int i = 0; i < pieces; i++) {
        const size_t n = piece[i].n, each = n / (size_t)s->ranks / SHARE_ALIGN * SHARE_ALIGN * element;
        const size_t even = each * (size_t)s->ranks, rest = n * element - even;
        char *x = (char *)piece[i].x;
        s->sent += n * element / (size_t)s->ranks * (size_t)(s->ranks - 1);
        if (each && !NCCL_TRY(e, ncclAllGather(x + (size_t)s->rank * each, x, each, ncclUint8, s->comm, s->stream),
                              "%zu bytes a rank", each))
            return false;
        if (rest && !NCCL_TRY(e, ncclBroadcast(x + even, x + even, rest, ncclUint8, s->ranks - 1, s->comm, s->stream),
                              "%zu bytes", rest))
            return false;
    }
    return NCCL_TRY(e, ncclGroupEnd(), "%d pieces", pieces) && operation_ends(s, e);
}

static bool nccl_progress(DistState *s, Error *e) { /* the GPU needs no help */
    (void)s, (void)e;
    return true;
}

/* With some left the compute stream waits, not the host. */
static bool nccl_finish(DistState *s, int left, Error *e) {
    if (left == 0 && !s->started.empty() && !wait_for_stream(s, e)) return false;
    while ((int)s->started.size() > left) {
        if (left > 0 && !CUDA_TRY(e, cudaStreamWaitEvent((cudaStream_t)s->compute(s->device), s->started.front(), 0),
                                  "rank %d", s->rank))
            return false;
        cudaEventDestroy(s->started.front());
        s->started.pop_front();
    }
    return true;
}

static bool nccl_exchange(DistState *s, const void *mine, void *all, const size_t *bytes, Error *e) {
    if (s->host) return s->host->exchange(s->host_state, mine, all, bytes, e);
    size_t total = 0, at = 0;
    if (!nccl_finish(s, 0, e)) return false;
    for (int r = 0; r < s->ranks; r++) at += r < s->rank ? bytes[r] : 0, total += bytes[r];
    if (total > s->buffer_bytes) {
        if (s->buffer) cudaFree(s->buffer);
        s->buffer = NULL, s->buffer_bytes = 0;
        if (!CUDA_TRY(e, cudaMalloc((void **)&s->buffer, total), "%zu bytes for words between ranks", total)) return false;
        s->buffer_bytes = total;
    }
    if (bytes[s->rank] &&
        !CUDA_TRY(e, cudaMemcpyAsync(s->buffer + at, mine, bytes[s->rank], cudaMemcpyHostToDevice, s->stream), "%zu bytes",
                  bytes[s->rank]))
        return false;
    if (!NCCL_TRY(e, ncclGroupStart(), "%zu bytes", total)) return false;
    at = 0;
    for (int r = 0; r < s->ranks; r++) {
        char *x = s->buffer + at;
        if (bytes[r] && !NCCL_TRY(e, ncclBroadcast(x, x, bytes[r], ncclUint8, r, s->comm, s->stream), "%zu bytes", bytes[r]))
            return false;
        at += bytes[r];
    }
    if (!NCCL_TRY(e, ncclGroupEnd(), "%zu bytes", total) || !wait_for_stream(s, e)) return false;
    if (!total) return true;
    s->sent += bytes[s->rank];
    return CUDA_TRY(e, cudaMemcpyAsync(all, s->buffer, total, cudaMemcpyDeviceToHost, s->stream), "%zu bytes", total) &&
           wait_for_stream(s, e);
}

static uint64_t nccl_bytes_sent(const DistState *s) { return s->sent; }

static void nccl_close(DistState *s) {
    for (cudaEvent_t event : s->started) cudaEventDestroy(event);
    ncclCommDestroy(s->comm);
    if (s->buffer) cudaFree(s->buffer);
    cudaEventDestroy(s->ready), cudaStreamDestroy(s->stream);
    delete s;
}

static void nccl_abort(DistState *s, int status) {
    ncclCommAbort(s->comm);
    _exit(status);
}

/* The id that all ranks join under. */
static bool nccl_meet(const DistPlace *place, ncclUniqueId *id, Error *e) {
    if (place->host) {
        ncclUniqueId mine;
        std::vector<size_t> bytes((size_t)place->ranks, 0);
        bytes[0] = sizeof mine;
        if (place->rank == 0 && !NCCL_TRY(e, ncclGetUniqueId(&mine), "rank 0")) return false;
        return place->host->exchange(place->host_state, &mine, id, bytes.data(), e);
    }
    const char *host = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    char where[300];
    if (!getenv("NCCL_COMM_ID")) {
        if (!host || !port)
            return error_set(e, "RANK and WORLD_SIZE are set, MASTER_ADDR and MASTER_PORT are not: where do ranks meet?");
        snprintf(where, sizeof where, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
        setenv("NCCL_COMM_ID", where, 1);
    }
    return NCCL_TRY(e, ncclGetUniqueId(id), "%s", getenv("NCCL_COMM_ID"));
}

static bool nccl_open(DistState **state, DistPlace *place, Device *device, Error *e) {
    ncclUniqueId id;
    DistState *s = new DistState();
    s->rank = place->rank, s->ranks = place->ranks, s->device = device, s->watch = place->watch;
    s->compute = place->stream;
    s->host = place->host, s->host_state = place->host_state;
    if (!CUDA_TRY(e, cudaSetDevice(device->index), "device %d", device->index) || !nccl_meet(place, &id, e) ||
        !NCCL_TRY(e, ncclCommInitRank(&s->comm, s->ranks, id, s->rank), "rank %d of %d", s->rank, s->ranks) ||
        !CUDA_TRY(e, cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "rank %d", s->rank) ||
        !CUDA_TRY(e, cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming), "rank %d", s->rank)) {
        delete s;
        return false;
    }
    *state = s;
    return true;
}

extern "C" __attribute__((visibility("default"))) const DistLink *llmc_dist_link(void) {
    static const DistLink table = {"nccl",        nccl_open,     nccl_exchange,   nccl_reduce, nccl_gather,
                                   nccl_progress, nccl_finish,   nccl_bytes_sent, nccl_close,  nccl_abort};
    return &table;
}

/* nccl.cu - link.h over NCCL, for ranks on GPUs.
 *
 * It is built as llmc_nccl.so if there are nvcc and nccl.h. dist.h opens it with --device cuda and more than one rank;
 * a single GPU does not need it.
 *
 * NCCL's collectives run on a stream of their own, concurrently with the backward pass: one event marks that the
 * gradients of a bucket are ready, another that their sum is. ReduceScatter and AllGather require slices of equal size,
 * so the rest of a tensor, less than 16 elements per rank, belongs to the last rank and uses Reduce and Broadcast.
 *
 *   reduce    AllReduce if every rank needs the sums; else ReduceScatter in place (with zero 2 the result is added to
 *             the kept slices)
 *   gather    AllGather in place
 *   exchange  the host library (MPI) if there is one, else Broadcasts through a small buffer on the GPU
 *
 * Ranks join through NCCL: its unique id comes from rank 0 through the host library, or all ranks meet at
 * MASTER_ADDR:MASTER_PORT, which is passed to NCCL as NCCL_COMM_ID.
 *
 * A wait checks the event, the communicator's errors and dist.h's watch in turn, so a rank that dies or hangs ends the
 * run. NCCL does not sum in the order of ranks: its sums are reproducible on the same machines with the same NCCL and
 * settings.
 */
#include "../base/clock.h"    /* clock_seconds */
#include "../base/error.h"    /* Error, error_set, PRINTF_LIKE */
#include "../cuda/common.cuh" /* cuda_blocks */
#include "../cuda/ptx.cuh"    /* LAUNCH */
#include "../model/backend.h" /* Device */
#include "../model/share.h"   /* SHARE_ALIGN, share_slice */
#include "link.h"             /* DistLink, DistPiece, DistPlace, DistWatch */
#include <deque>
#include <nccl.h>
#include <unistd.h>

struct DistState {
    int rank, ranks;
    Device *device;
    void *(*compute)(Device *d); /* launches the queued work of the device and returns its stream */
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t ready;               /* the compute stream has produced the input of an operation */
    std::deque<cudaEvent_t> started; /* one per operation in progress, recorded after it */
    char *buffer;                    /* GPU memory for exchange() */
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

/* Makes the next operation wait for the work queued on the compute stream. */
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

/* Waits until all work queued on the stream of the collectives is done. */
static bool wait_for_stream(DistState *s, Error *e) {
    const double start = clock_seconds();
    double asked = start;
    for (int looks = 0;; looks++) {
        const cudaError_t status = cudaStreamQuery(s->stream);
        if (status == cudaSuccess) return true;
        if (status != cudaErrorNotReady) return CUDA_TRY(e, status, "rank %d", s->rank);
        if (looks < 1000) continue;
        const double now = clock_seconds();
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
                          "%zu floats per rank", each))
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
                              "%zu bytes per rank", each))
            return false;
        if (rest && !NCCL_TRY(e, ncclBroadcast(x + even, x + even, rest, ncclUint8, s->ranks - 1, s->comm, s->stream),
                              "%zu bytes", rest))
            return false;
    }
    return NCCL_TRY(e, ncclGroupEnd(), "%d pieces", pieces) && operation_ends(s, e);
}

/* The GPU advances its streams by itself. */
static bool nccl_progress(DistState *s, Error *e) {
    (void)s;
    (void)e;
    return true;
}

/* left > 0: the compute stream waits instead of the host. */
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
    for (int r = 0; r < s->ranks; r++) {
        if (r < s->rank) at += bytes[r];
        total += bytes[r];
    }
    if (total > s->buffer_bytes) {
        if (s->buffer) cudaFree(s->buffer);
        s->buffer = NULL;
        s->buffer_bytes = 0;
        if (!CUDA_TRY(e, cudaMalloc((void **)&s->buffer, total), "%zu bytes for host data between ranks", total)) return false;
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
    cudaEventDestroy(s->ready);
    cudaStreamDestroy(s->stream);
    delete s;
}

static void nccl_abort(DistState *s, int status) {
    ncclCommAbort(s->comm);
    _exit(status);
}

/* Gets the unique id that all ranks join with. */
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
            return error_set(e, "RANK and WORLD_SIZE are set, but MASTER_ADDR and MASTER_PORT are not; set them to the address of rank 0");
        snprintf(where, sizeof where, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
        setenv("NCCL_COMM_ID", where, 1);
    }
    return NCCL_TRY(e, ncclGetUniqueId(id), "%s", getenv("NCCL_COMM_ID"));
}

static bool nccl_open(DistState **state, DistPlace *place, Device *device, Error *e) {
    ncclUniqueId id;
    DistState *s = new DistState();
    s->rank = place->rank;
    s->ranks = place->ranks;
    s->device = device;
    s->watch = place->watch;
    s->compute = place->stream;
    s->host = place->host;
    s->host_state = place->host_state;
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

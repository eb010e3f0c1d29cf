/* nccl_host.cpp - NCCL between processes of one machine, through shared memory.
 *
 * As on GPUs, a call queues work on its stream and returns. The work progresses whenever its process is inside a CUDA
 * call (a synchronise, a query). Sums are computed in the order of the ranks, with bf16 rounded at each addition, so
 * every run gives the same bits. Each rank records which call it makes, with type and size. A rank that finds others in
 * a different call reports it and exits with status 99, where NCCL would hang or corrupt data. If a rank never calls,
 * the others wait, as with NCCL, until ncclCommAbort().
 *
 * A unique id names a shared memory object, which rank 0 creates and the last rank to attach unlinks. With NCCL_COMM_ID
 * set, every process may request an id and all get the same one, as with NCCL.
 */
#include "cuda_host.h"

#include <nccl.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <atomic>
#include <vector>
#undef threadIdx

enum { RANKS = 16, CHUNK = 1 << 18, PAIR = 1 << 14 };
enum Kind { ALL_REDUCE = 1, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };
static const char *const names[] = {
    "?", "ncclAllReduce", "ncclReduce", "ncclReduceScatter", "ncclAllGather", "ncclBroadcast"};

struct Signature {
    int kind, op, type, root;
    uint64_t n;
};
/* A rank may post step s when all ranks have taken step s - 1, and take step s when all ranks have posted it. */
struct Rank {
    std::atomic<uint64_t> posted, taken;
    Signature signature;
    char data[CHUNK];
};
struct Mailbox { /* from one rank to another */
    std::atomic<uint64_t> posted, taken;
    int type;
    uint64_t n, offset, bytes; /* n: elements of the message; offset, bytes: of this part */
    char data[PAIR];
};
struct Segment {
    std::atomic<int> ready, owner, attached; /* owner: process id of rank 0 */
    Rank rank[RANKS];
    Mailbox mail[RANKS][RANKS]; /* [from][to] */
};

struct ncclComm {
    Segment *shared;
    int rank, ranks;
    uint64_t step;
    uint64_t sent[RANKS], received[RANKS]; /* numbers of parts, by peer */
    std::atomic<bool> aborted;
    cudaEvent_t last; /* the latest operation; operations run in the order of the calls, on any stream */
};

/* ==== Elements ==== */

static size_t type_size(ncclDataType_t t) {
    switch (t) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: cuda_host_fail("NCCL: type %d is not supported by the harness", (int)t);
    }
}
template <typename T> static T combine(T a, T b, ncclRedOp_t op) {
    switch (op) {
    case ncclSum:
    case ncclAvg: return (T)(a + b);
    case ncclProd: return (T)(a * b);
    case ncclMax: return a > b ? a : b;
    case ncclMin: return a < b ? a : b;
    default: cuda_host_fail("NCCL: operation %d is not supported by the harness", (int)op);
    }
}
/* to[i] = x0 op x1 op ..., with x_r from rank r's chunk, over n elements that begin at `from` in each chunk */
template <typename T> static void reduce_typed(const ncclComm *c, void *to, size_t from, size_t n, ncclRedOp_t op) {
    for (size_t i = 0; i < n; i++) {
        T sum = ((const T *)c->shared->rank[0].data)[from + i];
        for (int r = 1; r < c->ranks; r++) sum = combine(sum, ((const T *)c->shared->rank[r].data)[from + i], op);
        ((T *)to)[i] = op == ncclAvg ? (T)(sum / (T)c->ranks) : sum;
    }
}
static void reduce_bf16(const ncclComm *c, void *to, size_t from, size_t n, ncclRedOp_t op) {
    for (size_t i = 0; i < n; i++) {
        float sum = __bfloat162float(((const __nv_bfloat16 *)c->shared->rank[0].data)[from + i]);
        for (int r = 1; r < c->ranks; r++) {
            float x = __bfloat162float(((const __nv_bfloat16 *)c->shared->rank[r].data)[from + i]);
            sum = __bfloat162float(__float2bfloat16_rn(combine(sum, x, op)));
        }
        ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn(op == ncclAvg ? sum / (float)c->ranks : sum);
    }
}
static void reduce(const ncclComm *c, void *to, size_t from, size_t n, ncclDataType_t type, ncclRedOp_t op) {
    switch (type) {
    case ncclInt8: return reduce_typed<int8_t>(c, to, from, n, op);
    case ncclUint8: return reduce_typed<uint8_t>(c, to, from, n, op);
    case ncclInt32: return reduce_typed<int32_t>(c, to, from, n, op);
    case ncclUint32: return reduce_typed<uint32_t>(c, to, from, n, op);
    case ncclInt64: return reduce_typed<int64_t>(c, to, from, n, op);
    case ncclUint64: return reduce_typed<uint64_t>(c, to, from, n, op);
    case ncclFloat32: return reduce_typed<float>(c, to, from, n, op);
    case ncclFloat64: return reduce_typed<double>(c, to, from, n, op);
    default: return reduce_bf16(c, to, from, n, op);
    }
}

/* ==== Collectives ==== */

struct Collective {
    Signature signature;
    const char *from;
    char *to;
    size_t at;   /* elements done; if the call has a block per rank, of each block */
    bool posted; /* has the current chunk been posted? */
};

static size_t chunk_elements(const ncclComm *c, const Collective &o) {
    size_t most = CHUNK / type_size((ncclDataType_t)o.signature.type);
    if (o.signature.kind == REDUCE_SCATTER) most /= (size_t)c->ranks;
    return std::min((size_t)o.signature.n - o.at, most);
}
/* A chunk of a reduce-scatter contains a piece of every rank's block, one after another. */
static void chunk_post(ncclComm *c, const Collective &o, size_t n) {
    size_t size = type_size((ncclDataType_t)o.signature.type);
    Rank &mine = c->shared->rank[c->rank];
    mine.signature = o.signature;
    if (o.signature.kind == REDUCE_SCATTER) {
        for (int r = 0; r < c->ranks; r++)
            memcpy(mine.data + (size_t)r * n * size, o.from + ((size_t)r * o.signature.n + o.at) * size, n * size);
    } else if (o.signature.kind != BROADCAST || c->rank == o.signature.root) {
        memcpy(mine.data, o.from + o.at * size, n * size);
    }
}
static void chunk_take(ncclComm *c, const Collective &o, size_t n) {
    const Signature &s = o.signature;
    size_t size = type_size((ncclDataType_t)s.type);
    char *to = o.to + o.at * size;
    switch (s.kind) {
    case REDUCE:
        if (c->rank != s.root) break;
        /* fall through */
    case ALL_REDUCE: reduce(c, to, 0, n, (ncclDataType_t)s.type, (ncclRedOp_t)s.op); break;
    case REDUCE_SCATTER: reduce(c, to, (size_t)c->rank * n, n, (ncclDataType_t)s.type, (ncclRedOp_t)s.op); break;
    case ALL_GATHER:
        for (int r = 0; r < c->ranks; r++) memcpy(to + (size_t)r * s.n * size, c->shared->rank[r].data, n * size);
        break;
    case BROADCAST: memcpy(to, c->shared->rank[s.root].data, n * size); break;
    }
}
static void signatures_compare(const ncclComm *c, const Signature &mine) {
    for (int r = 0; r < c->ranks; r++) {
        const Signature &s = c->shared->rank[r].signature;
        if (s.kind != mine.kind || s.op != mine.op || s.type != mine.type || s.root != mine.root || s.n != mine.n)
            cuda_host_fail(
                "NCCL: rank %d is in %s of %llu elements (type %d, operation %d, root %d), rank %d in %s of %llu "
                "(type %d, operation %d, root %d)",
                c->rank, names[mine.kind], (unsigned long long)mine.n, mine.type, mine.op, mine.root, r, names[s.kind],
                (unsigned long long)s.n, s.type, s.op, s.root);
    }
}

/* Progresses as far as possible without waiting. Returns true when done. */
static bool collective_go(ncclComm *c, Collective *o) {
    Rank &mine = c->shared->rank[c->rank];
    while (o->at < o->signature.n) {
        size_t n = chunk_elements(c, *o);
        if (c->aborted) return true;
        if (!o->posted) {
            for (int r = 0; r < c->ranks; r++)
                if (c->shared->rank[r].taken < c->step) return false;
            chunk_post(c, *o, n);
            mine.posted = c->step + 1;
            o->posted = true;
        }
        for (int r = 0; r < c->ranks; r++)
            if (c->shared->rank[r].posted < c->step + 1) return false;
        signatures_compare(c, o->signature);
        chunk_take(c, *o, n);
        mine.taken = ++c->step;
        o->at += n;
        o->posted = false;
    }
    return true;
}

/* ==== Messages ==== */

struct Message {
    bool send;
    char *data;
    size_t n;
    ncclDataType_t type;
    int peer;
    size_t at; /* bytes done */
};
static bool message_go(ncclComm *c, Message *m) {
    size_t all = m->n * type_size(m->type);
    Mailbox &box = m->send ? c->shared->mail[c->rank][m->peer] : c->shared->mail[m->peer][c->rank];
    uint64_t &count = m->send ? c->sent[m->peer] : c->received[m->peer];
    while (m->at < all) {
        if (m->send) {
            if (box.taken < count) return false;
            box.type = m->type;
            box.n = m->n;
            box.offset = m->at;
            box.bytes = std::min(all - m->at, (size_t)PAIR);
            memcpy(box.data, m->data + m->at, box.bytes);
            m->at += box.bytes;
            box.posted = ++count;
        } else {
            if (box.posted <= count) return false;
            if (box.type != m->type || box.n != m->n || box.offset != m->at)
                cuda_host_fail(
                    "NCCL: rank %d receives %zu elements of type %d from rank %d, which sends %llu of type %d", c->rank,
                    m->n, (int)m->type, m->peer, (unsigned long long)box.n, box.type);
            memcpy(m->data + m->at, box.data, box.bytes);
            m->at += box.bytes;
            box.taken = ++count;
        }
    }
    return true;
}
static bool messages_go(ncclComm *c, std::vector<Message> *messages) {
    bool done = true;
    for (Message &m : *messages) done = message_go(c, &m) && done;
    return done || c->aborted;
}

/* ==== Calls and groups ==== */

struct Call {
    ncclComm *comm;
    cudaStream_t stream;
    bool is_message;
    Collective collective;
    Message message;
};
static int group_depth;
static std::vector<Call> group;

/* Queues work in the order of the calls on this communicator, on any stream. */
static void queue(ncclComm *c, cudaStream_t stream, const char *what, std::function<bool()> work) {
    if (cudaStreamWaitEvent(stream, c->last, 0) != cudaSuccess) cuda_host_fail("NCCL: the stream cannot wait");
    cuda_host_enqueue_steps(stream, what, work);
    cudaEventRecord(c->last, stream);
}
static void queue_messages(ncclComm *c, cudaStream_t stream, const std::vector<Message> &messages) {
    auto kept = std::make_shared<std::vector<Message>>(messages);
    queue(c, stream, "ncclSend and ncclRecv", [c, kept] { return messages_go(c, kept.get()); });
}
static ncclResult_t group_issue(void) {
    std::vector<Call> calls;
    calls.swap(group);
    for (size_t i = 0; i < calls.size(); i++) {
        Call &call = calls[i];
        if (!call.is_message) {
            auto kept = std::make_shared<Collective>(call.collective);
            ncclComm *c = call.comm;
            queue(c, call.stream, names[kept->signature.kind], [c, kept] { return collective_go(c, kept.get()); });
            continue;
        }
        std::vector<Message> together;
        for (; i < calls.size() && calls[i].is_message && calls[i].comm == call.comm; i++)
            together.push_back(calls[i].message);
        i--;
        queue_messages(call.comm, call.stream, together);
    }
    return ncclSuccess;
}
static ncclResult_t issue(const Call &call) {
    if (!call.comm || call.comm->aborted) return ncclInvalidUsage;
    group.push_back(call);
    return group_depth ? ncclSuccess : group_issue();
}
static ncclResult_t collective(Kind kind, const void *from, void *to, size_t n, size_t from_blocks, size_t to_blocks,
                               ncclDataType_t type, int op, int root, ncclComm *c, cudaStream_t stream) {
    if (!c || root < 0 || root >= c->ranks) return ncclInvalidArgument;
    size_t bytes = n * type_size(type);
    bool reads = kind != BROADCAST || c->rank == root, writes = kind != REDUCE || c->rank == root;
    if (reads) cuda_host_need_device(from, bytes * from_blocks, names[kind]);
    if (writes) cuda_host_need_device(to, bytes * to_blocks, names[kind]);
    Call call = {c, stream, false, {{kind, op, (int)type, root, n}, (const char *)from, (char *)to, 0, false}, {}};
    return n ? issue(call) : ncclSuccess;
}
static ncclResult_t message(bool send, void *data, size_t n, ncclDataType_t type, int peer, ncclComm *c,
                            cudaStream_t stream) {
    if (!c || peer < 0 || peer >= c->ranks) return ncclInvalidArgument;
    cuda_host_need_device(data, n * type_size(type), send ? "ncclSend" : "ncclRecv");
    Call call = {c, stream, true, {}, {send, (char *)data, n, type, peer, 0}};
    return n ? issue(call) : ncclSuccess;
}

/* ==== Joining ==== */

static Segment *segment_map(int fd) {
    void *p = mmap(NULL, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return p == MAP_FAILED ? NULL : (Segment *)p;
}
static Segment *segment_make(const char *name) {
    shm_unlink(name);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Segment))) return NULL;
    Segment *s = segment_map(fd);
    if (s) {
        s->owner = getpid();
        s->ready = 1;
    }
    return s;
}
/* NULL: the object does not exist yet, or is left over from a run that has ended. */
static Segment *segment_find(const char *name) {
    int fd = shm_open(name, O_RDWR, 0600);
    struct stat st;
    if (fd < 0) return NULL;
    if (fstat(fd, &st) || st.st_size < (off_t)sizeof(Segment)) {
        close(fd);
        return NULL;
    }
    Segment *s = segment_map(fd);
    if (s && (!s->ready || (kill(s->owner, 0) && errno == ESRCH))) {
        munmap(s, sizeof(Segment));
        s = NULL;
    }
    return s;
}

extern "C" {

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int count;
    const char *meeting = getenv("NCCL_COMM_ID");
    memset(id, 0, sizeof(*id));
    if (meeting) snprintf(id->internal, 100, "/cuda_host_%d_%.60s_%d", (int)getuid(), meeting, count++);
    else snprintf(id->internal, 100, "/cuda_host_%d_%d_%d", (int)getuid(), (int)getpid(), count++);
    for (char *c = id->internal + 1; *c; c++)
        if (*c == '/') *c = '_';
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    if (ranks < 1 || ranks > RANKS || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    ncclComm *c = new ncclComm();
    c->rank = rank;
    c->ranks = ranks;
    if (rank == 0) c->shared = segment_make(id.internal);
    else
        while (!(c->shared = segment_find(id.internal))) usleep(2000);
    if (!c->shared) {
        delete c;
        return ncclSystemError;
    }
    if (++c->shared->attached == ranks) shm_unlink(id.internal);
    while (c->shared->attached < ranks) usleep(500);
    cudaEventCreate(&c->last);
    *comm = c;
    return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t c) {
    return cudaEventSynchronize(c->last) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) {
    ncclCommFinalize(c);
    cudaEventDestroy(c->last);
    munmap(c->shared, sizeof(Segment));
    delete c;
    return ncclSuccess;
}
/* Work in progress ends when it is next polled. The communicator is kept for that. */
ncclResult_t ncclCommAbort(ncclComm_t c) {
    c->aborted = true;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *e) {
    *e = c->aborted ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t c, int *count) {
    *count = c->ranks;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *rank) {
    *rank = c->rank;
    return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t, int *device) {
    *device = 0;
    return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t e) {
    switch (e) {
    case ncclSuccess: return "no error";
    case ncclSystemError: return "unhandled system error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    default: return "NCCL error";
    }
}
const char *ncclGetLastError(ncclComm_t) { return ""; }
ncclResult_t ncclGroupStart(void) {
    group_depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
    if (group_depth == 0) return ncclInvalidUsage;
    return --group_depth ? ncclSuccess : group_issue();
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t stream) {
    return collective(ALL_REDUCE, from, to, n, 1, 1, type, op, 0, c, stream);
}
ncclResult_t ncclReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t c, cudaStream_t stream) {
    return collective(REDUCE, from, to, n, 1, 1, type, op, root, c, stream);
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c,
                               cudaStream_t stream) {
    return collective(REDUCE_SCATTER, from, to, n, (size_t)c->ranks, 1, type, op, 0, c, stream);
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t stream) {
    return collective(ALL_GATHER, from, to, n, 1, (size_t)c->ranks, type, 0, 0, c, stream);
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t type, int root, ncclComm_t c,
                           cudaStream_t stream) {
    return collective(BROADCAST, from, to, n, 1, 1, type, 0, root, c, stream);
}
ncclResult_t ncclBcast(void *data, size_t n, ncclDataType_t type, int root, ncclComm_t c, cudaStream_t stream) {
    return ncclBroadcast(data, data, n, type, root, c, stream);
}
ncclResult_t ncclSend(const void *from, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
    return message(true, (void *)from, n, type, peer, c, stream);
}
ncclResult_t ncclRecv(void *to, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
    return message(false, to, n, type, peer, c, stream);
}
}

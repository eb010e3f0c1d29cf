/* queue.cuh - deferred operations: those of a decode step run as one CUDA graph.
 *
 * A decode step of a small model is about a hundred kernels of a few microseconds each: launching them one by one takes
 * longer than running them. Therefore the functions of the backend's table only record the operation and its arguments.
 * When the caller waits for a result, the operations recorded since the last wait form one byte string, which is the
 * key of a graph:
 *
 *   seen for the first time    run operation by operation (plans are made, scratch memory grows)
 *   for the second time        captured into a graph, which is launched
 *   from then on               one cudaGraphLaunch
 *
 * A key contains every pointer, shape and constant, so a graph is only replayed for exactly the same sequence of calls.
 * What changes from step to step (tokens, positions, segments, cache rows) is data in the buffers that the graph reads.
 * Uploads are part of the sequence: they are copied into pinned memory when they are requested, at an offset that is
 * reset to 0 after each wait and is therefore the same in each step.
 *
 * Graphs do not pay off for batches of more than QUEUE_ROWS rows: from embed_forward() on, the operations of such a
 * batch run at once. In both modes one pattern is fused: linear_backward followed by gelu_backward of its dx runs as
 * one product with an epilogue.
 */
#ifndef LLMC_CUDA_QUEUE_CUH
#define LLMC_CUDA_QUEUE_CUH

#include "../model/backend.h" /* QuantMatrix, Attention, Dora, Draw, ... */
#include "common.cuh"         /* Device, CUDA_CHECK, cuda_scratch_begin */
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#ifdef LLMC_NVTX
#include <nvtx3/nvToolsExt.h>
#define NVTX_PUSH(name) nvtxRangePushA(name)
#define NVTX_POP()      nvtxRangePop()
#else
#define NVTX_PUSH(name) ((void)(name))
#define NVTX_POP()      ((void)0)
#endif

enum { QUEUE_ROWS = 1024, QUEUE_GRAPHS = 128, QUEUE_KEYS = 1024, QUEUE_WORTH = 8 };
enum { STAGING_BYTES = 8 << 20 };

typedef void (*QueuedRun)(Device *d, const char *arguments);

/* The record before an operation's arguments in the byte string. */
struct Queued {
    QueuedRun run;
    const char *name;
    size_t bytes; /* size of the arguments */
};

struct QueueGraph {
    cudaGraphExec_t exec;
    size_t generation; /* generation of the scratch memory that it uses */
};

struct Queue {
    std::string calls; /* Queued, arguments, Queued, arguments, ... */
    int count;
    bool at_once; /* run operations when they are called */
    bool graphs;  /* false: the device cannot capture graphs */
    char *staging;
    size_t staged; /* bytes of staging used since the last wait */
    std::unordered_map<std::string, QueueGraph> known;
    size_t graph_count;
    /* the fused pair: linear_backward, then gelu_backward */
    QueuedRun backward, gelu;
    bool (*fuse)(Device *d, const char *backward_arguments, const char *gelu_arguments);
};

/* ---- arguments as bytes ------------------------------------------------------------------------------------------ */

/* Operations with many arguments take a pointer to a struct owned by the caller. The queue stores its contents. */
template <typename A> struct Stored {
    typedef A type;
    static A pass(type &kept) { return kept; }
    static const type &of(const A &a) { return a; }
};
template <typename S> struct StoredStruct {
    typedef S type;
    static const S *pass(type &kept) { return &kept; }
    static const type &of(const S *a) { return *a; }
};
template <> struct Stored<const Norm *> : StoredStruct<Norm> {};
template <> struct Stored<const Rotary *> : StoredStruct<Rotary> {};
template <> struct Stored<const Lora *> : StoredStruct<Lora> {};
template <> struct Stored<const Dora *> : StoredStruct<Dora> {};
template <> struct Stored<const QuantMatrix *> : StoredStruct<QuantMatrix> {};
template <> struct Stored<const Attention *> : StoredStruct<Attention> {};
template <> struct Stored<const Head *> : StoredStruct<Head> {};
template <> struct Stored<const Draw *> : StoredStruct<Draw> {};
template <> struct Stored<const AdamW *> : StoredStruct<AdamW> {};

/* Without padding, equal arguments are equal bytes. */
static_assert(sizeof(Norm) == 6 * 4 + 13 * 8, "no padding");
static_assert(sizeof(Rotary) == 12 * 4 + 8 * 8, "no padding");
static_assert(sizeof(Lora) == (6 + 2 * LORA_PARTS) * 4 + 9 * 8, "no padding");
static_assert(sizeof(Dora) == (6 + 2 * LORA_PARTS) * 4 + 11 * 8 + sizeof(QuantMatrix), "no padding");
static_assert(sizeof(QuantMatrix) == (2 + 2 * QUANT_PARTS) * 4 + QUANT_PARTS * 8, "no padding");
static_assert(sizeof(Attention) == 10 * 4 + 10 * 8, "no padding");
static_assert(sizeof(Head) == 6 * 4 + 11 * 8, "no padding");
static_assert(sizeof(Draw) == 12 * 4 + 8 + 10 * 8, "no padding");

template <typename X> static void arguments_put(std::string &to, const X &x) { to.append((const char *)&x, sizeof x); }
template <typename X> static void arguments_get(const char *&from, X &x) {
    memcpy(&x, from, sizeof x);
    from += sizeof x;
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static inline const Queued queue_at(const Queue *q, size_t at) {
    Queued call;
    memcpy(&call, q->calls.data() + at, sizeof call);
    return call;
}

/* Runs all recorded operations in order. */
static inline void queue_run(Device *d) {
    const Queue *q = d->queue;
    for (size_t at = 0; at < q->calls.size();) {
        const Queued call = queue_at(q, at);
        const char *arguments = q->calls.data() + at + sizeof call;
        size_t next = at + sizeof call + call.bytes;
        cuda_scratch_begin(d);
        NVTX_PUSH(call.name);
        bool fused = false;
        if (call.run == q->backward && next < q->calls.size()) {
            const Queued after = queue_at(q, next);
            fused = after.run == q->gelu && q->fuse(d, arguments, q->calls.data() + next + sizeof after);
            if (fused) next += sizeof after + after.bytes;
        }
        if (!fused) call.run(d, arguments);
        NVTX_POP();
        at = next;
        if (d->failed) break;
    }
}

static inline void queue_forget(Queue *q) {
    for (auto &entry : q->known)
        if (entry.second.exec) cudaGraphExecDestroy(entry.second.exec);
    q->known.clear();
    q->graph_count = 0;
}

/* Captures the recorded operations. Returns false, with nothing run, if the device cannot capture them. */
static inline bool queue_capture(Device *d, cudaGraphExec_t *exec) {
    cudaGraph_t graph = NULL;
    *exec = NULL;
    cuda_scratch_begin(d); /* outgrown blocks are freed outside the graph */
    if (cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return false;
    queue_run(d);
    const bool ok = cudaStreamEndCapture(d->stream, &graph) == cudaSuccess && graph && !d->failed &&
                    cudaGraphInstantiate(exec, graph, 0) == cudaSuccess;
    if (graph) cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    return ok;
}

/* Launches all recorded operations, as a graph if the sequence has been seen before. */
static inline void queue_flush(Device *d) {
    Queue *q = d->queue;
    if (q->count == 0) return;
    if (!d->failed) {
        QueueGraph *known = NULL;
        bool first = true;
        if (q->graphs && !q->at_once && q->count >= QUEUE_WORTH) {
            if (q->known.size() >= QUEUE_KEYS || q->graph_count >= QUEUE_GRAPHS) queue_forget(q);
            auto found = q->known.find(q->calls);
            first = found == q->known.end();
            known = first ? &(q->known[q->calls] = QueueGraph{NULL, 0}) : &found->second;
            if (known->exec && known->generation != d->scratch.generation) {
                cudaGraphExecDestroy(known->exec);
                known->exec = NULL;
                q->graph_count--;
            }
        }
        if (!first && !known->exec) {
            if (queue_capture(d, &known->exec)) {
                known->generation = d->scratch.generation;
                q->graph_count++;
            } else {
                known->exec = NULL;
                q->graphs = false;
            }
        }
        if (known && known->exec) CUDA_CHECK(d, cudaGraphLaunch(known->exec, d->stream), "%d operations", q->count);
        else if (!d->failed) queue_run(d);
    }
    q->calls.clear();
    q->count = 0;
}

/* Waits until the device has finished all operations. */
static inline void queue_wait(Device *d) {
    queue_flush(d);
    if (!d->failed) CUDA_CHECK(d, cudaStreamSynchronize(d->stream), "");
    d->queue->staged = 0;
}

template <typename... A> static void queue_add(Device *d, QueuedRun run, const char *name, const A &...arguments) {
    Queue *q = d->queue;
    if (d->failed) return;
    Queued call = {run, name, 0};
    const size_t at = q->calls.size();
    arguments_put(q->calls, call);
    (arguments_put(q->calls, Stored<A>::of(arguments)), ...);
    call.bytes = q->calls.size() - at - sizeof call;
    memcpy(&q->calls[at], &call, sizeof call);
    q->count++;
    if (q->at_once && run != q->backward) queue_flush(d); /* linear_backward waits for its GELU */
}

/* Turns the operation F, which launches kernels, into a deferred function for the backend's table. */
template <auto F> struct Deferred;
template <typename... A, void (*F)(Device *, A...)> struct Deferred<F> {
    typedef std::tuple<typename Stored<A>::type...> Arguments;
    static Arguments get(const char *from) {
        Arguments kept;
        std::apply([&](auto &...x) { (arguments_get(from, x), ...); }, kept);
        return kept;
    }
    static void run(Device *d, const char *from) {
        Arguments kept = get(from);
        std::apply([&](auto &...x) { F(d, Stored<A>::pass(x)...); }, kept);
    }
    static void call(Device *d, A... arguments) { queue_add<A...>(d, run, name, arguments...); }
    static inline const char *name = "operation";
};

/* ---- uploads ----------------------------------------------------------------------------------------------------- */

static inline void copy_staged(Device *d, void *to, const char *from, size_t bytes) {
    CUDA_CHECK(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream), "%zu bytes", bytes);
}

static inline void set_bytes(Device *d, void *to, size_t bytes) {
    CUDA_CHECK(d, cudaMemsetAsync(to, 0, bytes, d->stream), "%zu bytes", bytes);
}

/* Copies from host memory. The caller may change that memory as soon as this returns. */
static inline void queue_upload(Device *d, void *to, const void *from, size_t bytes) {
    Queue *q = d->queue;
    for (size_t at = 0; at < bytes && !d->failed;) {
        if (q->staged == STAGING_BYTES) queue_wait(d);
        const size_t room = STAGING_BYTES - q->staged, part = bytes - at < room ? bytes - at : room;
        char *staging = q->staging + q->staged;
        memcpy(staging, (const char *)from + at, part);
        Deferred<copy_staged>::call(d, (char *)to + at, staging, part);
        q->staged += (part + 255) / 256 * 256 < room ? (part + 255) / 256 * 256 : room;
        at += part;
    }
}

/* Copies to host memory and waits. Small copies go through pinned memory, which the device writes at full speed. */
static inline void queue_download(Device *d, void *to, const void *from, size_t bytes) {
    queue_wait(d);
    if (d->failed || bytes == 0) return;
    const bool staged = bytes <= STAGING_BYTES;
    void *target = staged ? d->queue->staging : to;
    CUDA_CHECK(d, cudaMemcpyAsync(target, from, bytes, cudaMemcpyDeviceToHost, d->stream), "%zu bytes", bytes);
    if (!d->failed) CUDA_CHECK(d, cudaStreamSynchronize(d->stream), "%zu bytes", bytes);
    if (staged && !d->failed) memcpy(to, target, bytes);
}

static inline bool queue_open(Device *d) {
    d->queue = new Queue();
    return CUDA_CHECK(d, cudaMallocHost((void **)&d->queue->staging, STAGING_BYTES), "%d bytes", (int)STAGING_BYTES);
}

static inline void queue_close(Device *d) {
    if (!d->queue) return;
    queue_forget(d->queue);
    if (d->queue->staging) cudaFreeHost(d->queue->staging);
    delete d->queue;
    d->queue = NULL;
}

#endif

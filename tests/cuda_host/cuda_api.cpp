/* cuda_api.cpp - the CUDA run-time API of the harness: memory, streams, events, graphs.
 *
 * Device memory is host memory with a registered range; copies must match the direction and stay within an allocation.
 * A stream is a queue of functions. Each entry records what it has to wait for: the first n entries of another stream.
 * With seed 0 a function runs when it is queued. With other seeds it stays in the queue until some call has to wait for
 * it, and the queues are then served in random order. So a missing synchronise, or a missing event between two streams,
 * gives a wrong result under some seed.
 *
 * As on a GPU, a copy from pageable memory reads it at the call, and a copy to pageable memory waits. Pinned memory is
 * read and written when the copy's turn comes. The default stream waits for all blocking streams, and they wait for it.
 * A stream under capture collects its work in a graph; calls that are not allowed during capture return
 * cudaErrorStreamCaptureUnsupported.
 */
#include "cuda_host.h"
#include "machine.h"

#include <time.h>
#include <unistd.h>
#include <deque>
#include <map>
#include <set>
#include <vector>
#undef threadIdx

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

static cudaError_t last_error;
static cudaError_t fail(cudaError_t e) { return last_error = e; }

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ==== Memory ==== */

enum { ALIGNMENT = 512 };
static std::map<uintptr_t, size_t> device_memory, pinned_memory; /* start and size */
static size_t device_used;

static size_t device_total(void) {
    const char *text = getenv("CUDA_HOST_MEMORY");
    return text ? (size_t)strtoull(text, NULL, 0) : (size_t)8 << 30;
}

static bool holds(const std::map<uintptr_t, size_t> &ranges, const void *p, size_t bytes) {
    auto after = ranges.upper_bound((uintptr_t)p);
    if (after == ranges.begin()) return false;
    --after;
    return (uintptr_t)p + bytes <= after->first + after->second;
}
bool cuda_host_is_device(const void *p, size_t bytes) { return holds(device_memory, p, bytes); }
void cuda_host_need_device(const void *p, size_t bytes, const char *what) {
    if (bytes && !cuda_host_is_device(p, bytes))
        cuda_host_fail("%s: %zu bytes at %p are not within one allocation of the device", what, bytes, p);
}

static cudaError_t device_alloc(void **p, size_t bytes) {
    *p = NULL;
    if (bytes == 0) return cudaSuccess;
    if (bytes > device_total() || device_used > device_total() - bytes) return fail(cudaErrorMemoryAllocation);
    size_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    char *memory = (char *)aligned_alloc(ALIGNMENT, room);
    if (!memory) return fail(cudaErrorMemoryAllocation);
    cuda_host_fill(memory, bytes, cuda_host_poison());
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(memory + bytes, room - bytes);
#endif
    device_memory[(uintptr_t)memory] = bytes;
    device_used += bytes;
    cuda_host_race_allocated(memory, bytes);
    *p = memory;
    return cudaSuccess;
}
static void device_free(void *p, const char *what) {
    auto found = device_memory.find((uintptr_t)p);
    if (found == device_memory.end()) cuda_host_fail("%s: %p was not allocated by cudaMalloc", what, p);
    device_used -= found->second;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(p, (found->second + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
#endif
    device_memory.erase(found);
    cuda_host_race_freed(p);
    free(p);
}

/* ==== Streams ==== */

typedef std::function<bool()> Work; /* false: it waits for another process and must be called again */

struct Stream;
struct Wait {
    std::shared_ptr<Stream> stream;
    uint64_t count; /* number of its entries that must be done */
};
struct Entry {
    Work work;
    std::vector<Wait> waits;
};
struct CUgraph_st {
    std::vector<Work> nodes; /* in the order of the calls, which the dependencies allow */
};
struct CUgraphExec_st {
    CUgraph_st graph;
};
struct Stream {
    std::deque<Entry> queue;
    uint64_t queued, done;
    std::vector<Wait> waits; /* for the next entry */
    bool blocking;           /* synchronises with the default stream */
    CUgraph_st *capture;     /* the capture in progress, or NULL */
    bool capture_began_here;
};
struct CUevent_st {
    Wait recorded; /* stream NULL: never */
    std::shared_ptr<double> time;
    CUgraph_st *capture;
};

static std::map<cudaStream_t, std::shared_ptr<Stream>> streams;
static std::shared_ptr<Stream> default_stream;

static std::shared_ptr<Stream> stream_new(bool blocking) {
    auto s = std::make_shared<Stream>();
    s->blocking = blocking;
    return s;
}
static std::shared_ptr<Stream> stream_get(cudaStream_t handle, const char *what) {
    if (!default_stream) default_stream = stream_new(true);
    if (!handle || handle == cudaStreamLegacy) return default_stream;
    auto found = streams.find(handle);
    if (found == streams.end()) cuda_host_fail("%s: there is no such stream", what);
    return found->second;
}
static std::vector<std::shared_ptr<Stream>> stream_all(void) {
    std::vector<std::shared_ptr<Stream>> all;
    if (default_stream) all.push_back(default_stream);
    for (auto &s : streams) all.push_back(s.second);
    return all;
}
static bool any_capture(void) {
    for (auto &s : streams)
        if (s.second->capture) return true;
    return false;
}

static bool stream_runnable(const Stream &s) {
    if (s.queue.empty()) return false;
    for (const Wait &w : s.queue.front().waits)
        if (w.stream->done < w.count) return false;
    return true;
}
static bool stream_step(Stream &s) {
    if (!s.queue.front().work()) return false;
    s.queue.pop_front();
    s.done++;
    return true;
}
/* Runs entries of all streams, in random order, until `count` entries of s are done. */
static void stream_run(const std::shared_ptr<Stream> &s, uint64_t count) {
    int idle = 0;
    while (s->done < count) {
        std::vector<Stream *> able;
        for (auto &t : stream_all())
            if (stream_runnable(*t)) able.push_back(t.get());
        if (stream_runnable(*s) && std::find(able.begin(), able.end(), s.get()) == able.end()) able.push_back(s.get());
        if (able.empty()) cuda_host_fail("streams wait for one another");
        if (stream_step(*able[cuda_host_shuffled() ? cuda_host_random() % able.size() : (size_t)idle % able.size()]))
            idle = 0;
        else if (++idle > 64) usleep(50); /* all of them may be waiting for other processes */
    }
}
/* Runs one entry of s, or of a stream that it waits for, so that a polling loop ends. */
static void stream_nudge(Stream &s) {
    if (stream_runnable(s)) stream_step(s);
    else if (!s.queue.empty())
        for (const Wait &w : s.queue.front().waits)
            if (w.stream->done < w.count) return stream_nudge(*w.stream);
}
static void stream_finish(const std::shared_ptr<Stream> &s) { stream_run(s, s->queued); }
void cuda_host_drain(void) {
    for (auto &s : stream_all()) stream_finish(s);
}

void cuda_host_enqueue(cudaStream_t stream, const char *what, std::function<void()> work) {
    cuda_host_enqueue_steps(stream, what, [work] {
        work();
        return true;
    });
}
void cuda_host_enqueue_steps(cudaStream_t handle, const char *what, Work work) {
    auto s = stream_get(handle, what);
    if (s->capture) {
        s->capture->nodes.push_back(std::move(work));
        return;
    }
    Entry entry = {std::move(work), std::move(s->waits)};
    s->waits.clear();
    if (s == default_stream) {
        for (auto &t : streams)
            if (t.second->blocking) entry.waits.push_back({t.second, t.second->queued});
    } else if (s->blocking && default_stream) {
        entry.waits.push_back({default_stream, default_stream->queued});
    }
    s->queue.push_back(std::move(entry));
    s->queued++;
    if (cuda_host_shuffled()) return;
    while (stream_runnable(*s) && stream_step(*s)) continue;
}

/* ==== Launches ==== */

static std::map<const void *, int> dynamic_limit; /* cudaFuncAttributeMaxDynamicSharedMemorySize */
enum { SHARED_DEFAULT = 48 << 10, SHARED_MOST_SM80 = 163 << 10, SHARED_MOST_SM90 = 227 << 10 };

void cuda_host_launch_on(cudaStream_t stream, const CudaHostLaunch &l) {
    dim3 g = l.grid, b = l.block;
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535 || b.x == 0 || b.y == 0 ||
        b.z == 0 || b.z > 64 || (size_t)b.x * b.y * b.z > 1024) {
        fail(cudaErrorInvalidConfiguration);
        return;
    }
    auto limit = dynamic_limit.find(l.kernel);
    if (l.shared > (size_t)(limit == dynamic_limit.end() ? SHARED_DEFAULT : limit->second)) {
        fail(cudaErrorInvalidValue);
        return;
    }
    cuda_host_enqueue(stream, l.name, [l] { cuda_host_run(l); });
}

/* ==== Copies ==== */

enum Side { HOST, DEVICE };
static bool side_of(cudaMemcpyKind kind, Side *to, Side *from, const void *d, const void *s) {
    switch (kind) {
    case cudaMemcpyHostToHost:
        *to = HOST;
        *from = HOST;
        return true;
    case cudaMemcpyHostToDevice:
        *to = DEVICE;
        *from = HOST;
        return true;
    case cudaMemcpyDeviceToHost:
        *to = HOST;
        *from = DEVICE;
        return true;
    case cudaMemcpyDeviceToDevice:
        *to = DEVICE;
        *from = DEVICE;
        return true;
    case cudaMemcpyDefault:
        *to = cuda_host_is_device(d, 1) ? DEVICE : HOST;
        *from = cuda_host_is_device(s, 1) ? DEVICE : HOST;
        return true;
    default: return false;
    }
}

static cudaError_t copy(void *d, const void *s, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
    Side to, from;
    if (!side_of(kind, &to, &from, d, s)) return fail(cudaErrorInvalidMemcpyDirection);
    if (bytes == 0) return cudaSuccess;
    if (to == DEVICE) cuda_host_need_device(d, bytes, "cudaMemcpy: destination");
    if (from == DEVICE) cuda_host_need_device(s, bytes, "cudaMemcpy: source");
    if (to == HOST && cuda_host_is_device(d, 1)) cuda_host_fail("cudaMemcpy: destination %p is device memory", d);
    if (from == HOST && cuda_host_is_device(s, 1)) cuda_host_fail("cudaMemcpy: source %p is device memory", s);
    auto q = stream_get(stream, "cudaMemcpyAsync");
    if (wait && any_capture()) return fail(cudaErrorStreamCaptureUnsupported);
    if (q->capture) {
        cuda_host_enqueue(stream, "cudaMemcpyAsync", [=] { memcpy(d, s, bytes); });
        return cudaSuccess;
    }
    if (from == HOST && !holds(pinned_memory, s, bytes)) {
        auto kept = std::make_shared<std::vector<char>>((const char *)s, (const char *)s + bytes);
        cuda_host_enqueue(stream, "cudaMemcpyAsync", [=] { memcpy(d, kept->data(), bytes); });
    } else {
        cuda_host_enqueue(stream, "cudaMemcpyAsync", [=] { memcpy(d, s, bytes); });
    }
    if (wait || (to == HOST && !holds(pinned_memory, d, bytes))) stream_finish(q);
    return cudaSuccess;
}

extern "C" {

cudaError_t cudaMalloc(void **p, size_t bytes) {
    return any_capture() ? fail(cudaErrorStreamCaptureUnsupported) : device_alloc(p, bytes);
}
cudaError_t cudaFree(void *p) {
    if (any_capture()) return fail(cudaErrorStreamCaptureUnsupported);
    cuda_host_drain();
    if (p) device_free(p, "cudaFree");
    return cudaSuccess;
}
/* During capture, CUDA would make this a node with its own rules for the address, which nothing here needs. */
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream) {
    if (stream_get(stream, "cudaMallocAsync")->capture) return fail(cudaErrorStreamCaptureUnsupported);
    return device_alloc(p, bytes);
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream) {
    if (p) cuda_host_enqueue(stream, "cudaFreeAsync", [p] { device_free(p, "cudaFreeAsync"); });
    return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
    *pool = NULL;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*p) return fail(cudaErrorMemoryAllocation);
    pinned_memory[(uintptr_t)*p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
cudaError_t cudaFreeHost(void *p) {
    cuda_host_drain();
    if (p && pinned_memory.erase((uintptr_t)p) == 0)
        cuda_host_fail("cudaFreeHost: %p was not allocated by cudaMallocHost", p);
    free(p);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    pinned_memory[(uintptr_t)p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    cuda_host_drain();
    return pinned_memory.erase((uintptr_t)p) ? cudaSuccess : fail(cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = device_total();
    *available = *total > device_used ? *total - device_used : 0;
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *d, const void *s, size_t bytes, cudaMemcpyKind kind) {
    return copy(d, s, bytes, kind, NULL, true);
}
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(d, s, bytes, kind, stream, false);
}
cudaError_t cudaMemcpy2DAsync(void *d, size_t d_pitch, const void *s, size_t s_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
    if (width > d_pitch || width > s_pitch) return fail(cudaErrorInvalidPitchValue);
    for (size_t i = 0; i < height; i++) {
        cudaError_t e = copy((char *)d + i * d_pitch, (const char *)s + i * s_pitch, width, kind, stream, false);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpy2D(void *d, size_t d_pitch, const void *s, size_t s_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
    cudaError_t e = cudaMemcpy2DAsync(d, d_pitch, s, s_pitch, width, height, kind, NULL);
    if (e == cudaSuccess) stream_finish(stream_get(NULL, "cudaMemcpy2D"));
    return e;
}
cudaError_t cudaMemsetAsync(void *d, int byte, size_t bytes, cudaStream_t stream) {
    cuda_host_need_device(d, bytes, "cudaMemset");
    if (bytes) cuda_host_enqueue(stream, "cudaMemsetAsync", [=] { memset(d, byte, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *d, int byte, size_t bytes) { return cudaMemsetAsync(d, byte, bytes, NULL); }

/* ==== Streams, events, graphs ==== */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    *stream = (cudaStream_t)malloc(16); /* used only as a unique handle */
    streams[*stream] = stream_new(!(flags & cudaStreamNonBlocking));
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    stream_finish(stream_get(stream, "cudaStreamDestroy"));
    streams.erase(stream);
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    auto s = stream_get(stream, "cudaStreamSynchronize");
    if (s->capture) return fail(cudaErrorStreamCaptureUnsupported);
    if (s == default_stream) cuda_host_drain();
    stream_finish(s);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    auto s = stream_get(stream, "cudaStreamQuery");
    if (s->done < s->queued) stream_nudge(*s);
    return s->done < s->queued ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    if (any_capture()) return fail(cudaErrorStreamCaptureUnsupported);
    cuda_host_drain();
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    cuda_host_enqueue(stream, "cudaLaunchHostFunc", [=] { function(data); });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    auto s = stream_get(stream, "cudaEventRecord");
    event->capture = s->capture;
    if (s->capture) return cudaSuccess;
    auto time = std::make_shared<double>(0.0);
    cuda_host_enqueue(stream, "cudaEventRecord", [time] { *time = seconds(); });
    event->recorded = {s, s->queued};
    event->time = time;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    auto s = stream_get(stream, "cudaStreamWaitEvent");
    if (event->capture) { /* the stream joins the capture */
        if (s->capture && s->capture != event->capture) return fail(cudaErrorStreamCaptureMerge);
        s->capture = event->capture;
    } else if (event->recorded.stream) {
        if (s->capture) return fail(cudaErrorStreamCaptureIsolation);
        s->waits.push_back(event->recorded);
    }
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->capture) return fail(cudaErrorCapturedEvent);
    if (event->recorded.stream) stream_run(event->recorded.stream, event->recorded.count);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Wait &r = event->recorded;
    if (!r.stream || r.stream->done >= r.count) return cudaSuccess;
    stream_nudge(*r.stream);
    return r.stream->done >= r.count ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    if (!start->recorded.stream || !end->recorded.stream) return fail(cudaErrorInvalidResourceHandle);
    if (cudaEventQuery(start) != cudaSuccess || cudaEventQuery(end) != cudaSuccess) return fail(cudaErrorNotReady);
    *ms = (float)((*end->time - *start->time) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    auto s = stream_get(stream, "cudaStreamBeginCapture");
    if (s == default_stream) return fail(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return fail(cudaErrorIllegalState);
    s->capture = new CUgraph_st();
    s->capture_began_here = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    auto s = stream_get(stream, "cudaStreamEndCapture");
    if (!s->capture) return fail(cudaErrorIllegalState);
    if (!s->capture_began_here) return fail(cudaErrorStreamCaptureUnmatched);
    *graph = s->capture;
    for (auto &t : streams)
        if (t.second->capture == *graph) {
            t.second->capture = NULL;
            t.second->capture_began_here = false;
        }
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    *status = stream_get(stream, "cudaStreamIsCapturing")->capture ? cudaStreamCaptureStatusActive
                                                                   : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{*graph};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    for (const Work &work : exec->graph.nodes) cuda_host_enqueue_steps(stream, "cudaGraphLaunch", work);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

/* ==== The device ==== */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice); }
/* Compute capability times ten, from CUDA_HOST_CAPABILITY. The backend's choices may depend on it. */
static int capability(void) {
    const char *text = getenv("CUDA_HOST_CAPABILITY");
    return text ? atoi(text) : 80;
}
static size_t shared_most(void) { return capability() >= 90 ? SHARED_MOST_SM90 : SHARED_MOST_SM80; }
/* The properties of an A100, or of an H100 if the capability is 90 or more, as far as a launch may depend on them. */
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device != 0) return fail(cudaErrorInvalidDevice);
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "CPU simulating a GPU");
    p->major = capability() / 10;
    p->minor = capability() % 10;
    p->multiProcessorCount = 4; /* few, so that small tests reach the code for many blocks per multiprocessor */
    p->totalGlobalMem = device_total();
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = shared_most();
    p->sharedMemPerMultiprocessor = shared_most() + 1024;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = 65536;
    p->regsPerMultiprocessor = 65536;
    p->l2CacheSize = 40 << 20;
    p->memoryBusWidth = 5120;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess) return e;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; return cudaSuccess;
    case cudaDevAttrClockRate: *value = 1410000; return cudaSuccess;
    case cudaDevAttrMemoryClockRate: *value = 1215000; return cudaSuccess;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; return cudaSuccess;
    default: cuda_host_fail("cudaDeviceGetAttribute: attribute %d is not supported by the harness", (int)attribute);
    }
}
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > shared_most()) return fail(cudaErrorInvalidValue);
    dynamic_limit[kernel] = value;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel) {
    memset(a, 0, sizeof(*a));
    auto limit = dynamic_limit.find(kernel);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->maxDynamicSharedSizeBytes = limit == dynamic_limit.end() ? SHARED_DEFAULT : limit->second;
    a->binaryVersion = a->ptxVersion = capability();
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t shared) {
    *blocks = std::max(1, std::min(2048 / std::max(threads, 1), (int)((shared_most() + 1024) / (shared + 1024))));
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { return cudaRuntimeGetVersion(version); }
cudaError_t cudaDeviceReset(void) {
    cuda_host_drain();
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    default: return "another CUDA error";
    }
}
const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "error";
    }
}
}

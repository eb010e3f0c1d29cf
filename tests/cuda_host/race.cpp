/* race.cpp - the race detector: reports pairs of accesses by different threads that nothing orders.
 *
 * Kernels are compiled with -fsanitize=thread and linked with the functions below in place of that sanitizer's run
 * time, so that every load and store of a kernel passes through here. Each granule of two bytes of device or shared
 * memory remembers its last write and up to three reads. Two accesses by different threads, one of them a write, race
 * unless
 *
 *   - both are atomic, or
 *   - the threads are in one block and passed a __syncthreads in between, or in one warp and passed a __syncwarp of
 *     the whole warp in between (a shuffle orders nothing: the programming guide guarantees it only for __syncwarp), or
 *   - the blocks differ, the first had passed a fence and then an atomic after its access, and the second an atomic
 *     and then a fence before its own: the pattern of the last block that finishes a sum.
 *
 * Launches are ordered by their stream. cp.async writes both when it is issued and when it has been waited for.
 *
 * At the end of the program the number of races is printed to standard error, and the exit status is 98 if it is not 0.
 */
#include "cuda_host.h"
#include "machine.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#include <map>
#include <set>
#undef threadIdx

enum { NOTHING, PLAIN, ATOMIC };

struct Access {
    uint64_t block; /* number of the block among all blocks run so far */
    uint32_t barriers, epoch;
    uint32_t fences; /* passed by the block before this access */
    uint16_t thread;
    uint8_t kind;
    const void *pc;
};
struct Granule {
    Access write, reads[3]; /* reads 0 and 1: threads of one warp; 2: another warp */
};
enum { GRANULE = 2 };

struct Range {
    uintptr_t address;
    size_t size;
    bool shared;
    Granule *granules;
};

static std::map<uintptr_t, Range> ranges;
static Range *latest;                    /* latest range found; NULL after the ranges changed */
static uint64_t launch_first, block_now; /* numbers of blocks */
static std::set<std::pair<const void *, const void *>> seen;
static int races;
static uintptr_t dynamic_now;

/* A block's fences. An atomic after a fence publishes what the block wrote before that fence. */
struct Published {
    uint32_t fences;    /* passed so far */
    uint32_t published; /* fences that were followed by an atomic */
};
static std::map<uint64_t, Published> blocks; /* blocks of this launch that used fences or atomics */
static uint32_t fences_now;                  /* fences passed by the running block */
static bool acquired, atomic_seen;           /* acquired: the running block passed an atomic and then a fence */

static void add(uintptr_t address, size_t size, bool shared) {
    size_t bytes = (size / GRANULE + 2) * sizeof(Granule); /* zero pages, allocated on first use */
    void *granules = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (granules == MAP_FAILED) cuda_host_fail("race detector: out of memory");
    ranges[address] = {address, size, shared, (Granule *)granules};
    latest = NULL;
}
static void forget(uintptr_t address) {
    auto r = ranges.find(address);
    if (r == ranges.end()) return;
    munmap(r->second.granules, (r->second.size / GRANULE + 2) * sizeof(Granule));
    ranges.erase(r);
    latest = NULL;
}
static Range *find(uintptr_t a) {
    if (latest && a - latest->address < latest->size) return latest;
    auto after = ranges.upper_bound(a);
    if (after == ranges.begin()) return NULL;
    --after;
    return a - after->first < after->second.size ? latest = &after->second : NULL;
}

bool cuda_host_race_detector(void) { return true; }
void cuda_host_race_allocated(void *memory, size_t bytes) { add((uintptr_t)memory, bytes, false); }
void cuda_host_race_freed(void *memory) { forget((uintptr_t)memory); }

void cuda_host_race_launch(const CudaHostLaunch &) {
    static bool begun;
    if (!begun)
        for (const CudaHostShared &s : cuda_host_shared()) add(s.address, s.size, true);
    begun = true;
    if (dynamic_now) forget(dynamic_now);
    dynamic_now = (uintptr_t)cuda_host_dynamic;
    if (dynamic_now) add(dynamic_now, cuda_host_dynamic_size, true);
    launch_first = block_now + 1;
    blocks.clear();
}
void cuda_host_race_block(void) {
    block_now++;
    acquired = atomic_seen = false;
    fences_now = 0;
}
void cuda_host_fence(void) {
    blocks[block_now].fences = ++fences_now;
    if (atomic_seen) acquired = true;
}

static bool conflict(const Access &old, const Access &now, bool shared) {
    if (old.kind == NOTHING || old.block < launch_first || (old.kind == ATOMIC && now.kind == ATOMIC)) return false;
    if (old.block != now.block) {
        if (shared) return false;
        auto b = blocks.find(old.block);
        return !(acquired && b != blocks.end() && old.fences < b->second.published);
    }
    if (old.thread == now.thread || old.barriers != now.barriers) return false;
    return old.thread / 32 != now.thread / 32 || old.epoch == now.epoch;
}

static std::string name_of(const Range &r, uintptr_t a) {
    std::string name = "device memory";
    if (r.address == dynamic_now) name = "dynamic shared memory";
    for (const CudaHostShared &s : cuda_host_shared())
        if (s.address == r.address) name = s.name;
    return name + " + " + std::to_string(a - r.address);
}
/* File and line of code, from binutils' addr2line if it is installed. */
static std::string place(const void *pc) {
    Dl_info object;
    char command[600], line[512] = "";
    if (!dladdr(pc, &object)) return "?";
    uintptr_t offset = (uintptr_t)pc - (uintptr_t)object.dli_fbase - 1;
    snprintf(command, sizeof(command), "addr2line -s -e '%s' %#zx 2>/dev/null", object.dli_fname, (size_t)offset);
    FILE *f = popen(command, "r");
    if (f && !fgets(line, sizeof(line), f)) line[0] = 0;
    if (f) pclose(f);
    line[strcspn(line, "\n")] = 0;
    return line[0] && line[0] != '?' ? line : std::string(object.dli_fname) + " + " + std::to_string(offset);
}
static void report(const char *what, const Range &r, uintptr_t a, const Access &old, const Access &now) {
    if (!seen.insert({old.pc, now.pc}).second) return;
    const CudaHostLaunch *l = cuda_host_running();
    races++;
    fprintf(
        stderr,
        "race: %s at %s\n    in %s, launched at %s\n    thread %u of block %llu at %s\n    thread %u of block %llu at "
        "%s\n    and nothing orders them\n",
        what, name_of(r, a).c_str(), l->name, l->site, old.thread, (unsigned long long)(old.block - launch_first),
        place(old.pc).c_str(), now.thread, (unsigned long long)(now.block - launch_first), place(now.pc).c_str());
}

static void reads_add(Granule &g, const Access &now) {
    Access *r = g.reads;
    if (r[0].kind == NOTHING || r[0].block != now.block || r[0].barriers != now.barriers) {
        if (r[0].kind != NOTHING && r[0].block != now.block)
            r[2] = r[0]; /* a read of another block is kept in the place of another warp's */
        r[0] = now;
        r[1] = Access();
    } else if (r[0].thread / 32 != now.thread / 32) {
        r[2] = r[0];
        r[0] = now;
        r[1] = Access();
    } else if (r[0].thread != now.thread || r[0].epoch != now.epoch) {
        if (r[0].thread != now.thread && r[0].epoch == now.epoch) r[1] = r[0];
        r[0] = now;
    }
}

static void access(const void *p, size_t bytes, bool write, int kind, const void *pc) {
    static bool busy;
    if (!cuda_host_thread || busy) return;
    Range *r = find((uintptr_t)p);
    if (!r) return;
    busy = true;
    Access now = {block_now,  cuda_host_thread->barriers,         cuda_host_warp_epoch(),
                  fences_now, (uint16_t)cuda_host_thread->linear, (uint8_t)kind,
                  pc};
    uintptr_t first = ((uintptr_t)p - r->address) / GRANULE, last = ((uintptr_t)p + bytes - 1 - r->address) / GRANULE;
    for (uintptr_t i = first; i <= last && i * GRANULE < r->size; i++) {
        Granule &g = r->granules[i];
        uintptr_t a = r->address + i * GRANULE;
        if (conflict(g.write, now, r->shared))
            report(write ? "write after write" : "read after write", *r, a, g.write, now);
        if (!write) {
            reads_add(g, now);
            continue;
        }
        for (const Access &old : g.reads)
            if (conflict(old, now, r->shared)) report("write after read", *r, a, old, now);
        g.write = now;
    }
    busy = false;
}

void cuda_host_atomic_access(const void *p, size_t bytes) {
    Published &b = blocks[block_now];
    b.published = b.fences;
    atomic_seen = true;
    access(p, bytes, true, ATOMIC, __builtin_return_address(0));
}

#define PC __builtin_return_address(0)
#define BOTH(name, bytes)                                                                                              \
    void __tsan_##name##read##bytes(void *p) { access(p, bytes, false, PLAIN, PC); }                                   \
    void __tsan_##name##write##bytes(void *p) { access(p, bytes, true, PLAIN, PC); }
#define SIZES(name) BOTH(name, 1) BOTH(name, 2) BOTH(name, 4) BOTH(name, 8) BOTH(name, 16)
extern "C" {
SIZES()
SIZES(unaligned_)
SIZES(volatile_)
void __tsan_read_range(void *p, size_t n) { access(p, n, false, PLAIN, PC); }
void __tsan_write_range(void *p, size_t n) { access(p, n, true, PLAIN, PC); }
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void *__tsan_memcpy(void *d, const void *s, size_t n) {
    access(s, n, false, PLAIN, PC);
    access(d, n, true, PLAIN, PC);
    return memcpy(d, s, n);
}
void *__tsan_memmove(void *d, const void *s, size_t n) {
    access(s, n, false, PLAIN, PC);
    access(d, n, true, PLAIN, PC);
    return memmove(d, s, n);
}
void *__tsan_memset(void *d, int byte, size_t n) {
    access(d, n, true, PLAIN, PC);
    return memset(d, byte, n);
}
/* Used by guards of statics and counters of shared pointers in host code. One OS thread runs everything. */
char __tsan_atomic8_load(const volatile char *p, int) { return *p; }
int __tsan_atomic32_load(const volatile int *p, int) { return *p; }
long __tsan_atomic64_load(const volatile long *p, int) { return *p; }
void __tsan_atomic32_store(volatile int *p, int v, int) { *p = v; }
int __tsan_atomic32_fetch_add(volatile int *p, int v, int) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
long __tsan_atomic64_fetch_add(volatile long *p, long v, int) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
}

static struct AtExit {
    ~AtExit() {
        cuda_host_drain();
        if (races) {
            fprintf(stderr, "race detector: %d races\n", races);
            _exit(98);
        }
    }
} at_exit_report;

/* cuda_host.cpp - the machine of cuda_host.h: fibers, barriers, warps, shared memory, pending copies.
 *
 * A launch runs its blocks one after another. A thread of a block is started when it is first chosen. A thread that has
 * to wait switches to a ready one, drawn at random under a seed. A thread that ends passes its stack to the next one to
 * start, so that kernels without barriers need a single stack. If no thread is ready and some wait, that is a deadlock.
 *
 * What a GPU leaves undefined is an error here: see cuda_host.h.
 */
#include "cuda_host.h"
#include "machine.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <deque>
#include <vector>
#undef threadIdx

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

CudaHostThread *cuda_host_thread;
uint3 cuda_host_block_index;
dim3 cuda_host_block, cuda_host_grid;
char *cuda_host_dynamic;
size_t cuda_host_dynamic_size;

enum { NEW, READY, AT_BARRIER, AT_COLLECTIVE, ENDED };

/* Lanes that wait for one another. A warp may have several such groups: some of its lanes may wait among themselves,
 * others for all. */
struct Meeting {
    uint32_t mask, arrived; /* mask 0: free */
};
struct Warp {
    CudaHostCall *calls[32];
    uint32_t exist, ended; /* masks of lanes */
    Meeting meetings[32];
    int meetings_used; /* all later ones are free */
    uint32_t epoch;
};

static const CudaHostLaunch *launch; /* the running launch */
static std::vector<CudaHostThread> threads;
static std::vector<Warp> warps;
static std::vector<int> ready;
static std::vector<char *> stacks; /* free stacks */
static size_t live, at_barrier;    /* numbers of threads */
static int barrier_kind;
static const char *barrier_site;
static uint32_t barriers_passed;

/* ==== Seed ==== */

static uint64_t seed, random_state;
static bool seeded;

void cuda_host_seed(uint64_t s) {
    cuda_host_drain();
    seeded = true;
    seed = s;
    random_state = s * 0x9E3779B97F4A7C15ull + 1;
}
static uint64_t current_seed(void) {
    const char *text = getenv("CUDA_HOST_SEED");
    if (!seeded) {
        seeded = true;
        seed = text ? strtoull(text, NULL, 0) : 0;
        random_state = seed * 0x9E3779B97F4A7C15ull + 1;
    }
    return seed;
}
bool cuda_host_shuffled(void) { return current_seed() != 0; }

/* splitmix64 (Steele, Lea and Flood 2014) */
uint64_t cuda_host_random(void) {
    current_seed();
    uint64_t z = random_state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

int cuda_host_poison(void) {
    static const int patterns[] = {0xff, 0x00, 0x7f, 0x3f};
    const char *byte = getenv("CUDA_HOST_POISON");
    return byte ? (int)strtol(byte, NULL, 0) & 0xff : patterns[current_seed() % 4];
}

/* ==== Failure ==== */

void cuda_host_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "\ncuda_host: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (launch)
        fprintf(stderr, "\n    in %s, launched at %s, block (%u, %u, %u)", launch->name, launch->site,
                cuda_host_block_index.x, cuda_host_block_index.y, cuda_host_block_index.z);
    if (launch && cuda_host_thread)
        fprintf(stderr, ", thread (%u, %u, %u)", cuda_host_thread->index.x, cuda_host_thread->index.y,
                cuda_host_thread->index.z);
    fprintf(stderr, "\n    seed %llu: CUDA_HOST_SEED=%llu\n", (unsigned long long)seed, (unsigned long long)seed);
    fflush(stderr);
    _exit(99);
}

/* ==== Shared memory ==== */

static std::vector<CudaHostShared> shared_variables;

static std::string demangle(const char *name) {
    int status;
    char *text = abi::__cxa_demangle(name, NULL, NULL, &status);
    std::string s = text ? text : name;
    free(text);
    size_t tag = s.find("[abi:cudahostshared]");
    if (tag != std::string::npos) s.erase(tag, strlen("[abi:cudahostshared]"));
    return s;
}

/* Reads the symbol table of the file that contains this code: a program or an opened library. */
static void shared_find(void) {
    static bool done;
    if (done) return;
    done = true;
    Dl_info self;
    if (!dladdr((void *)shared_find, &self)) cuda_host_fail("dladdr cannot find the harness");
    int fd = open(self.dli_fname, O_RDONLY);
    if (fd < 0) fd = open("/proc/self/exe", O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) cuda_host_fail("%s: cannot read the file to find shared variables", self.dli_fname);
    char *file = (char *)mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED) cuda_host_fail("%s: cannot map the file to find shared variables", self.dli_fname);
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *section = (const Elf64_Shdr *)(file + header->e_shoff);
    /* symbol addresses in a program that is not position independent are absolute */
    uintptr_t base = header->e_type == ET_EXEC ? 0 : (uintptr_t)self.dli_fbase;
    bool table = false;
    for (int i = 0; i < header->e_shnum; i++) {
        if (section[i].sh_type != SHT_SYMTAB) continue;
        table = true;
        const Elf64_Sym *symbol = (const Elf64_Sym *)(file + section[i].sh_offset);
        const char *names = file + section[section[i].sh_link].sh_offset;
        for (size_t n = section[i].sh_size / sizeof(*symbol); n > 0; n--, symbol++) {
            const char *name = names + symbol->st_name;
            if (ELF64_ST_TYPE(symbol->st_info) != STT_OBJECT || !strstr(name, "B14cudahostshared")) continue;
            if (strncmp(name, "_ZGV", 4) == 0)
                continue; /* the guard of a variable whose type has an empty constructor */
            shared_variables.push_back({base + symbol->st_value, symbol->st_size, demangle(name)});
        }
    }
    munmap(file, (size_t)st.st_size);
    if (!table)
        cuda_host_fail("%s is stripped: shared variables cannot be found; build it with symbols", self.dli_fname);
}

const std::vector<CudaHostShared> &cuda_host_shared(void) {
    shared_find();
    return shared_variables;
}

CUDA_HOST_MACHINE void cuda_host_fill(void *memory, size_t bytes, int byte) {
    uint64_t word = 0x0101010101010101ull * (uint64_t)byte;
    volatile char *p = (volatile char *)memory, *end = p + bytes;
    for (; p < end && (uintptr_t)p % 8; p++) *p = (char)byte;
    for (; p + 8 <= end; p += 8) *(volatile uint64_t *)p = word;
    for (; p < end; p++) *p = (char)byte;
}

static void shared_poison(void) {
    int byte = cuda_host_poison();
    for (const CudaHostShared &s : cuda_host_shared()) cuda_host_fill((void *)s.address, s.size, byte);
    if (cuda_host_dynamic_size) cuda_host_fill(cuda_host_dynamic, cuda_host_dynamic_size, byte);
}

/* ==== Fibers ==== */

enum { STACK = 256 << 10, PAGE = 4096 };

#ifndef __x86_64__
#error "cuda_host.cpp switches stacks on x86-64 only"
#endif
/* Saves the callee-saved registers, stores the stack pointer in *save, and resumes where `to` was left. */
extern "C" __attribute__((visibility("hidden"))) void cuda_host_switch(void **save, void *to);
asm(".text\n.globl cuda_host_switch\n.hidden cuda_host_switch\n.type cuda_host_switch, @function\n"
    "cuda_host_switch:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
    ".size cuda_host_switch, . - cuda_host_switch\n");

static void *main_stack_pointer;
#ifdef WITH_ASAN
static const void *main_stack;
static size_t main_stack_size;
#endif

static void fiber_main(void);
static void fiber_entry(void) {
#ifdef WITH_ASAN
    const void *from;
    size_t size;
    __sanitizer_finish_switch_fiber(NULL, &from, &size);
    if (!main_stack) {
        main_stack = from;
        main_stack_size = size;
    }
#endif
    fiber_main();
}

static char *stack_new(void) {
    if (!stacks.empty()) {
        char *free_one = stacks.back();
        stacks.pop_back();
        return free_one;
    }
    static size_t count;
    char *memory = (char *)mmap(NULL, STACK + 2 * PAGE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE)) cuda_host_fail("no memory for stacks");
    return memory + PAGE + count++ % 31 * 128; /* spreads the tops of stacks over different cache sets */
}

static void thread_prepare(CudaHostThread *t, char *stack) {
    t->stack = stack;
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(stack, STACK); /* clears the frames of a thread that ended on it */
#endif
    void **sp = (void **)(((uintptr_t)stack + STACK) & ~(uintptr_t)15);
    *--sp = NULL;
    *--sp = (void *)fiber_entry; /* the switch returns into this function */
    for (int i = 0; i < 6; i++) *--sp = NULL;
    t->stack_pointer = sp;
}

/* Switches threads. from NULL: the launch itself; to NULL: back to it. The stack of an ending thread is not used
 * again. */
static void thread_switch(CudaHostThread *from, CudaHostThread *to, bool ending) {
#ifdef WITH_ASAN
    void *fake = NULL;
    __sanitizer_start_switch_fiber(ending ? NULL : &fake, to ? to->stack : main_stack,
                                   to ? (size_t)STACK : main_stack_size);
#endif
    cuda_host_thread = to;
    void *nowhere;
    cuda_host_switch(ending ? &nowhere
                     : from ? &from->stack_pointer
                            : &main_stack_pointer,
                     to ? to->stack_pointer : main_stack_pointer);
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static int ready_take(void) {
    if (ready.empty()) return -1;
    if (cuda_host_shuffled()) std::swap(ready[cuda_host_random() % ready.size()], ready.back());
    int t = ready.back();
    ready.pop_back();
    return t;
}

[[noreturn]] static void deadlock(void) {
    std::string waiting;
    int shown = 0;
    for (const CudaHostThread &t : threads) {
        if (t.state != AT_BARRIER && t.state != AT_COLLECTIVE) continue;
        if (shown++ == 4) break;
        waiting += "\n    thread " + std::to_string(t.linear) + " waits at " + t.site +
                   (t.state == AT_BARRIER ? " for its block" : " for its warp");
    }
    cuda_host_thread = NULL;
    cuda_host_fail("deadlock: %zu of %zu threads wait for one another%s", live, threads.size(), waiting.c_str());
}

/* Switches to another thread. The running thread has recorded what it waits for. */
static void give_way(void) {
    CudaHostThread *me = cuda_host_thread;
    int next = ready_take();
    if (next < 0) deadlock();
    CudaHostThread *to = &threads[(size_t)next];
    if (to->state == NEW) thread_prepare(to, stack_new());
    to->state = READY;
    if (to != me) thread_switch(me, to, false);
}

void cuda_host_step_aside(void) {
    if (!cuda_host_thread || ready.empty() || (cuda_host_shuffled() && cuda_host_random() % 4)) return;
    /* a spinning thread must let the others run first */
    ready.insert(ready.begin(), cuda_host_thread->linear);
    give_way();
}

/* ==== Barriers of the block ==== */

static void barrier_release(void) {
    int result = barrier_kind == 2;
    for (const CudaHostThread &t : threads) {
        if (t.state != AT_BARRIER) continue;
        if (barrier_kind == 1) result |= t.vote != 0;
        if (barrier_kind == 2) result &= t.vote != 0;
        if (barrier_kind == 3) result += t.vote != 0;
    }
    barriers_passed++;
    for (size_t i = threads.size(); i-- > 0;) {
        CudaHostThread &t = threads[i];
        if (t.state != AT_BARRIER) continue;
        t.state = READY;
        t.vote = result;
        t.barriers = barriers_passed;
        ready.push_back((int)i);
    }
    at_barrier = 0;
}

int cuda_host_barrier(const char *site, int kind, int predicate) {
    CudaHostThread *me = cuda_host_thread;
    if (live != threads.size())
        cuda_host_fail("barrier at %s after %zu threads of the block have returned", site, threads.size() - live);
    if (at_barrier && (kind != barrier_kind || strcmp(site, barrier_site)))
        cuda_host_fail("divergent barrier: this thread is at %s, another waits at %s", site, barrier_site);
    me->state = AT_BARRIER;
    me->site = site;
    me->vote = predicate;
    barrier_kind = kind;
    barrier_site = site;
    if (++at_barrier == live) barrier_release();
    give_way();
    return me->vote;
}

/* ==== Warps ==== */

static Meeting *meeting_find(Warp &w, const CudaHostCall *call, int lane) {
    Meeting *m = NULL;
    for (int i = 0; i < w.meetings_used; i++) {
        if (w.meetings[i].mask == 0 && !m) m = &w.meetings[i];
        if (w.meetings[i].mask != call->mask) continue;
        m = &w.meetings[i];
        const CudaHostCall *other = w.calls[__builtin_ctz(m->arrived)];
        if (other->kind != call->kind || strcmp(other->site, call->site))
            cuda_host_fail("divergent warp: with mask %08x lane %d is at %s, lane %d at %s", call->mask, lane,
                           call->site, __builtin_ctz(m->arrived), other->site);
        return m;
    }
    if (!m) m = &w.meetings[w.meetings_used++];
    m->mask = call->mask;
    m->arrived = 0;
    return m;
}

void cuda_host_collective(CudaHostCall *call, CudaHostOperation *operation) {
    CudaHostThread *me = cuda_host_thread;
    Warp &w = warps[(size_t)me->warp];
    if (!(call->mask >> me->lane & 1))
        cuda_host_fail("%s: lane %d is not in its own mask %08x", call->site, me->lane, call->mask);
    if (call->mask & w.ended)
        cuda_host_fail("%s: mask %08x names lanes that have returned (%08x)", call->site, call->mask, w.ended);
    if (call->mask & ~w.exist)
        cuda_host_fail("%s: mask %08x names lanes that the warp lacks (it has %08x)", call->site, call->mask, w.exist);
    Meeting *m = meeting_find(w, call, me->lane);
    w.calls[me->lane] = call;
    m->arrived |= 1u << me->lane;
    if (m->arrived != m->mask) {
        me->state = AT_COLLECTIVE;
        me->site = call->site;
        give_way();
        return;
    }
    operation(w.calls, m->arrived);
    for (int l = 31; l >= 0; l--) {
        CudaHostThread *t = &threads[(size_t)(me->warp * 32 + l)];
        if (!(m->arrived >> l & 1) || t == me) continue;
        t->state = READY;
        ready.push_back(t->linear);
    }
    m->mask = 0;
    while (w.meetings_used && w.meetings[w.meetings_used - 1].mask == 0) w.meetings_used--;
}

static void vote_all(CudaHostCall **calls, uint32_t lanes) {
    uint32_t ballot = 0;
    for (CUDA_HOST_LANES(l, lanes)) ballot |= (uint32_t)calls[l]->lane << l;
    for (CUDA_HOST_LANES(l, lanes)) *(uint32_t *)calls[l]->out = ballot;
}
uint32_t cuda_host_vote(const char *site, uint32_t mask, bool predicate) {
    uint32_t out;
    CudaHostCall call = {NULL, &out, predicate, mask, CUDA_HOST_VOTE, site};
    cuda_host_collective(&call, vote_all);
    return out;
}

/* A barrier of fewer lanes than the warp orders only those lanes, so it does not start a new epoch. */
static void syncwarp_all(CudaHostCall **, uint32_t lanes) {
    Warp &w = warps[(size_t)cuda_host_thread->warp];
    if (lanes == (w.exist & ~w.ended)) w.epoch++;
}
void cuda_host_syncwarp(const char *site, uint32_t mask) {
    /* the default mask means the whole warp, even if it has fewer than 32 threads */
    const Warp &w = warps[(size_t)cuda_host_thread->warp];
    if (mask == 0xffffffffu) mask = w.exist;
    CudaHostCall call = {NULL, NULL, 0, mask, CUDA_HOST_SYNCWARP, site};
    cuda_host_collective(&call, syncwarp_all);
}

uint32_t cuda_host_active(void) {
    const Warp &w = warps[(size_t)cuda_host_thread->warp];
    return w.exist & ~w.ended;
}
uint32_t cuda_host_warp_epoch(void) { return warps[(size_t)cuda_host_thread->warp].epoch; }

/* ==== cp.async ==== */

struct Pending {
    std::deque<std::pair<CudaHostCopy, uint32_t>> copies; /* with the number of the group */
    uint32_t groups;                                      /* number committed */
};
static std::vector<Pending> pending; /* one per thread of the block */

bool cuda_host_copy_begin(const CudaHostCopy &copy) {
    Pending &p = pending[(size_t)cuda_host_thread->linear];
    p.copies.emplace_back(copy, p.groups);
    return cuda_host_race_detector() || (cuda_host_shuffled() && cuda_host_random() % 2);
}
void cuda_host_copy_commit(void) { pending[(size_t)cuda_host_thread->linear].groups++; }
bool cuda_host_copy_next(int left, CudaHostCopy *copy) {
    Pending &p = pending[(size_t)cuda_host_thread->linear];
    if (p.copies.empty() || p.copies.front().second + (uint32_t)left >= p.groups) return false;
    *copy = p.copies.front().first;
    p.copies.pop_front();
    return true;
}

/* ==== Launches ==== */

static void fiber_main(void) {
    for (;;) {
        launch->thread();
        CudaHostThread *me = cuda_host_thread;
        Warp &w = warps[(size_t)me->warp];
        if (!pending[(size_t)me->linear].copies.empty())
            cuda_host_fail("thread returns with cp.async copies in flight");
        if (at_barrier) cuda_host_fail("thread returns while others wait at the barrier at %s", barrier_site);
        for (int i = 0; i < w.meetings_used; i++)
            if (w.meetings[i].mask >> me->lane & 1)
                cuda_host_fail("thread returns while lanes %08x wait for it at %s", w.meetings[i].arrived,
                               w.calls[__builtin_ctz(w.meetings[i].arrived)]->site);
        me->state = ENDED;
        live--;
        w.ended |= 1u << me->lane;
        char *stack = me->stack;
        me->stack = NULL;
        int next = ready_take();
        if (next < 0 && live) deadlock();
        CudaHostThread *to = next < 0 ? NULL : &threads[(size_t)next];
        if (to && to->state == NEW) { /* the new thread takes over this stack */
            to->state = READY;
            to->stack = stack;
            cuda_host_thread = to;
            continue;
        }
        stacks.push_back(stack);
        if (to) to->state = READY;
        thread_switch(NULL, to, true);
        __builtin_unreachable();
    }
}

static void block_run(size_t index) {
    const dim3 g = launch->grid, b = launch->block;
    cuda_host_block_index =
        make_uint3((unsigned)(index % g.x), (unsigned)(index / g.x % g.y), (unsigned)(index / g.x / g.y));
    for (size_t t = 0; t < threads.size(); t++) {
        CudaHostThread &thread = threads[t];
        thread = CudaHostThread();
        thread.index = make_uint3((unsigned)(t % b.x), (unsigned)(t / b.x % b.y), (unsigned)(t / b.x / b.y));
        thread.linear = (int)t;
        thread.lane = (int)t % 32;
        thread.warp = (int)t / 32;
        pending[t].copies.clear();
        pending[t].groups = 0;
    }
    for (size_t w = 0; w < warps.size(); w++) {
        size_t lanes = std::min(threads.size() - w * 32, (size_t)32);
        warps[w] = Warp();
        warps[w].exist = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    }
    live = threads.size();
    at_barrier = 0;
    barriers_passed = 0;
    ready.clear();
    for (size_t t = threads.size(); t-- > 0;) ready.push_back((int)t);
    shared_poison();
    cuda_host_race_block();
    CudaHostThread *first = &threads[(size_t)ready_take()];
    thread_prepare(first, stack_new());
    first->state = READY;
    thread_switch(NULL, first, false);
    cuda_host_thread = NULL;
}

void cuda_host_run(const CudaHostLaunch &l) {
    if (launch) cuda_host_fail("a kernel launches a kernel");
    launch = &l;
    const dim3 g = l.grid, b = l.block;
    size_t blocks = (size_t)g.x * g.y * g.z, room = (l.shared + 127) / 128 * 128;
    threads.resize((size_t)b.x * b.y * b.z);
    pending.resize(threads.size());
    warps.resize((threads.size() + 31) / 32);
    cuda_host_grid = g;
    cuda_host_block = b;
    char *dynamic = l.shared ? (char *)aligned_alloc(128, room) : NULL;
#ifdef WITH_ASAN
    if (dynamic) __asan_poison_memory_region(dynamic + l.shared, room - l.shared);
#endif
    cuda_host_dynamic = dynamic;
    cuda_host_dynamic_size = l.shared;
    cuda_host_race_launch(l);
    std::vector<size_t> order(blocks);
    for (size_t i = 0; i < blocks; i++) order[i] = i;
    if (cuda_host_shuffled())
        for (size_t i = blocks; i > 1; i--) std::swap(order[i - 1], order[cuda_host_random() % i]);
    for (size_t i : order) block_run(i);
#ifdef WITH_ASAN
    if (dynamic) __asan_unpoison_memory_region(dynamic, room);
#endif
    free(dynamic);
    cuda_host_dynamic = NULL;
    cuda_host_dynamic_size = 0;
    launch = NULL;
}
const CudaHostLaunch *cuda_host_running(void) { return launch; }

/* Defaults that the race detector overrides. */
__attribute__((weak)) void cuda_host_atomic_access(const void *, size_t) {}
__attribute__((weak)) void cuda_host_fence(void) {}
__attribute__((weak)) void cuda_host_race_launch(const CudaHostLaunch &) {}
__attribute__((weak)) void cuda_host_race_block(void) {}
__attribute__((weak)) bool cuda_host_race_detector(void) { return false; }
__attribute__((weak)) void cuda_host_race_allocated(void *, size_t) {}
__attribute__((weak)) void cuda_host_race_freed(void *) {}

/* emulate_amx.c - the tile instructions of AMX for a processor without them, so that the code for tiles is tested on it too.
 *
 * A library for LD_PRELOAD. A processor without AMX, and Linux for a process that has not asked for tiles, refuse each tile
 * instruction with SIGILL. The handler decodes the instruction, does its work in plain C on tiles of the thread, and continues
 * behind it. Everything else, AVX512-BF16 included, the processor runs itself. The program is told that it may use AMX: the
 * library answers in the place of oneDNN (dnnl_get_effective_cpu_isa) and of Linux (arch_prctl for the permission).
 *
 *     make build/emulate_amx.so && LD_PRELOAD=build/emulate_amx.so build/test_half
 *
 * It is not for a processor with AMX: that one runs LDTILECFG itself, for which Linux asks no permission, so that the library
 * does not learn the shapes of the tiles.
 *
 * Instructions: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED and TDPBF16PS. Any other instruction, a
 * palette other than 1, a tile without a shape, and shapes that do not fit one another end the process with a line that says
 * so.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "AMX instruction set reference".
 */
#include <dlfcn.h>
#include <errno.h>
#include <oneapi/dnnl/dnnl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, FLUSH_DENORMALS = 0x8040, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };

typedef struct Tile {
    uint8_t data[ROWS][ROW_BYTES];
    int rows, bytes; /* 0: no shape */
} Tile;

static _Thread_local Tile tiles[TILES];

/* Writes a line to standard error by calls that a signal handler may make, and ends the process. */
static void refuse(const char *why) {
    const char *const parts[] = {"emulate_amx: ", why, "\n"};
    for (int i = 0; i < 3; i++)
        if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0) break;
    abort();
}

/* ---- the instructions -------------------------------------------------------------------------------------------- */

static Tile *shaped(int i) {
    if (i < 0 || i >= TILES || !tiles[i].rows || !tiles[i].bytes) refuse("a tile without a shape is used");
    return &tiles[i];
}

/* LDTILECFG: 64 bytes are the palette, the first row, 14 that must be 0, 16 numbers of bytes in a row, 16 numbers of rows. */
static void configure(const uint8_t *from) {
    if (from[0] != 1) refuse("LDTILECFG with a palette other than 1");
    for (int i = 2; i < 16; i++)
        if (from[i]) refuse("LDTILECFG with reserved bytes that are not 0");
    memset(tiles, 0, sizeof tiles);
    for (int i = 0; i < 16; i++) {
        const int bytes = from[16 + 2 * i] | from[17 + 2 * i] << 8, rows = from[48 + i];
        if (i >= TILES && (bytes || rows)) refuse("LDTILECFG gives a shape to a tile that does not exist");
        if (bytes > ROW_BYTES || rows > ROWS || !bytes != !rows) refuse("LDTILECFG with an impossible shape");
        if (i < TILES) tiles[i].bytes = bytes;
        if (i < TILES) tiles[i].rows = rows;
    }
}

/* c [m, n] += a [m, 2 k] b [k, n pairs]. The first and the second elements of the pairs have sums of their own, which are
 * added to c at the end; the inputs' and the results' denormal numbers are 0. */
static void dot_products(Tile *c, const Tile *a, const Tile *b) {
    const int m = c->rows, n = c->bytes / 4, k = a->bytes / 4;
    if (a->rows != m || b->bytes != c->bytes || b->rows != k) refuse("TDPBF16PS with shapes that do not fit");
    for (int i = 0; i < m; i++) {
        float even[ROW_BYTES / 4] = {0}, odd[ROW_BYTES / 4] = {0}, sum[ROW_BYTES / 4];
        for (int p = 0; p < k; p++) {
            uint32_t left, right[ROW_BYTES / 4];
            memcpy(&left, a->data[i] + 4 * p, sizeof left);
            memcpy(right, b->data[p], sizeof right);
            const uint32_t bits[2] = {left << 16, left & 0xffff0000u};
            float x[2];
            memcpy(x, bits, sizeof x);
            for (int j = 0; j < ROW_BYTES / 4; j++) {
                const uint32_t low = right[j] << 16, high = right[j] & 0xffff0000u;
                float y, z;
                memcpy(&y, &low, sizeof y);
                memcpy(&z, &high, sizeof z);
                even[j] = __builtin_fmaf(x[0], y, even[j]);
                odd[j] = __builtin_fmaf(x[1], z, odd[j]);
            }
        }
        memcpy(sum, c->data[i], sizeof sum);
        for (int j = 0; j < n; j++) sum[j] += even[j] + odd[j];
        memcpy(c->data[i], sum, sizeof sum);
    }
}

/* ---- their decoding ------------------------------------------------------------------------------------------------ */

/* A VEX instruction of three prefix bytes in the map 0F38: `pp` is its mandatory prefix (none, 66, F3, F2). */
typedef struct Instruction {
    int opcode, pp, mod, reg, rm, vvvv;
    uint64_t base, index; /* of the memory operand, if mod is not 3; the index is scaled */
    int length;
} Instruction;

static uint64_t general(const ucontext_t *context, int number) {
    static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)context->uc_mcontext.gregs[place[number]];
}

/* Reads the displacement of n bytes at `at`. */
static int64_t displacement(const uint8_t *at, int n) {
    int32_t value = 0;
    if (n == 1) return (int8_t)at[0];
    if (n == 4) memcpy(&value, at, sizeof value);
    return value;
}

static bool decode(const ucontext_t *context, Instruction *out) {
    const uint8_t *at = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || at[2] & 0x84) return false; /* VEX.128.0F38.W0 */
    const int r = ~at[1] >> 4 & 8, x = ~at[1] >> 3 & 8, b = ~at[1] >> 2 & 8, modrm = at[4];
    *out = (Instruction){.opcode = at[3],
                         .pp = at[2] & 3,
                         .mod = modrm >> 6,
                         .reg = (modrm >> 3 & 7) + r,
                         .rm = modrm & 7,
                         .vvvv = ~(at[2] >> 3) & 15,
                         .length = 5};
    if (out->mod == 3) return true;
    const int size = out->mod == 1 ? 1 : out->mod == 2 ? 4 : 0;
    if (out->rm != 4) { /* [base + displacement] or [rip + displacement] */
        const bool relative = !out->mod && out->rm == 5;
        const int bytes = relative ? 4 : size;
        out->length += bytes;
        const uint64_t from = relative ? (uint64_t)at + (uint64_t)out->length : general(context, out->rm + b);
        out->base = from + (uint64_t)displacement(at + 5, bytes);
        return true;
    }
    const int sib = at[5], index = (sib >> 3 & 7) + x, base = (sib & 7) + b;
    const bool absent = !out->mod && (sib & 7) == 5;
    const int bytes = absent ? 4 : size;
    out->length += 1 + bytes;
    out->index = index == 4 ? 0 : general(context, index) << (sib >> 6);
    out->base = (absent ? 0 : general(context, base)) + (uint64_t)displacement(at + 6, bytes);
    return true;
}

static bool run(const Instruction *in) {
    enum { NONE, P66, PF3, PF2 };
    const bool memory = in->mod != 3;
    if (in->opcode == 0x49 && in->pp == NONE && memory) {
        configure((const uint8_t *)(in->base + in->index));
        return true;
    }
    if (in->opcode == 0x49 && in->pp == NONE) {
        memset(tiles, 0, sizeof tiles);
        return true;
    }
    if (in->opcode == 0x49 && in->pp == PF2 && !memory) {
        memset(shaped(in->reg)->data, 0, sizeof tiles->data);
        return true;
    }
    if (in->opcode == 0x4b && memory && in->rm == 4 && in->pp != NONE) { /* rows are the index apart */
        Tile *tile = shaped(in->reg);
        if (in->pp != PF3) memset(tile->data, 0, sizeof tile->data);
        for (int i = 0; i < tile->rows; i++) {
            uint8_t *row = (uint8_t *)(in->base + (uint64_t)i * in->index);
            if (in->pp == PF3) memcpy(row, tile->data[i], (size_t)tile->bytes);
            else memcpy(tile->data[i], row, (size_t)tile->bytes);
        }
        return true;
    }
    if (in->opcode == 0x5c && in->pp == PF3 && !memory) {
        if (in->reg == in->rm || in->reg == in->vvvv || in->rm == in->vvvv) refuse("TDPBF16PS with one tile twice");
        dot_products(shaped(in->reg), shaped(in->rm), shaped(in->vvvv));
        return true;
    }
    return false;
}

/* The tile instructions that follow one another take one signal. */
static void on_illegal(int signal, siginfo_t *info, void *at) {
    (void)signal;
    (void)info;
    ucontext_t *context = at;
    Instruction in;
    bool any = false;
    _mm_setcsr(_mm_getcsr() | FLUSH_DENORMALS); /* of this handler alone */
    for (; decode(context, &in) && run(&in); any = true) context->uc_mcontext.gregs[REG_RIP] += in.length;
    if (!any) refuse("an instruction that is not emulated");
}

/* ---- what the program is told ---------------------------------------------------------------------------------------- */

dnnl_cpu_isa_t dnnl_get_effective_cpu_isa(void) { return dnnl_cpu_isa_avx512_core_amx; }

long syscall(long number, ...) {
    va_list list;
    long a[6], result;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && a[0] == REQUEST_PERMISSION && a[1] == TILE_DATA) return 0;
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result >= 0 || result < -4095) return result;
    errno = (int)-result;
    return -1;
}

/* The program cannot take SIGILL for itself: cmocka gives every test handlers of its own. */
typedef void (*Handler)(int);
typedef Handler Signal(int, Handler);
typedef int Sigaction(int, const struct sigaction *, struct sigaction *);

static void *behind(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) refuse(name);
    return found;
}

int sigaction(int signal, const struct sigaction *action, struct sigaction *before) {
    if (signal == SIGILL) {
        if (before) *before = (struct sigaction){.sa_handler = SIG_DFL};
        return 0;
    }
    return ((Sigaction *)behind("sigaction"))(signal, action, before);
}

Handler signal(int signal, Handler handler) {
    if (signal == SIGILL) return SIG_DFL;
    return ((Signal *)behind("signal"))(signal, handler);
}

__attribute__((constructor)) static void begin(void) {
    const struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (((Sigaction *)behind("sigaction"))(SIGILL, &action, NULL)) refuse("there is no handler for SIGILL");
}

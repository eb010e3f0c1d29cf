/* map.h - files mapped into memory, read-only, so that a large file costs memory only where it is read.
 *
 * Pages come from the system's page cache when they are read, and mapping_forget() gives those back that have been read.
 * A file that becomes shorter while it is mapped raises SIGBUS at the next read beyond its end: program_start()
 * (program.h) ends the program with one line then, for which every mapping is in a list with its file's name. Programs of
 * this project never shorten a file: they replace it as a whole (io.h).
 *
 *     Mapping *m = mapping_new("standard input", STDIN_FILENO, 1024);    // NULL: this file cannot be mapped
 *     use(m->bytes, m->size);
 *     mapping_free(m);
 */
#ifndef LLMC_BASE_MAP_H
#define LLMC_BASE_MAP_H

#include "error.h" /* xmalloc, xstrdup */
#include <sys/mman.h>
#include <unistd.h>

enum { MAPPING_RESIDENT = 1 << 24 }; /* bytes of a mapping that readers in any order keep in memory */

typedef struct Mapping {
    char *name; /* for messages */
    uint8_t *bytes;
    size_t size;
    size_t touched; /* bytes of the pages that were read since mapping_touch() gave them back */
    struct Mapping *next;
} Mapping;

static inline Mapping **mapping_list(void) {
    static Mapping *first;
    return &first;
}

/* Maps the first `size` >= 1 bytes of a file. Returns NULL if the system cannot map it. */
static inline Mapping *mapping_new(const char *name, int fd, size_t size) {
    void *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) return NULL;
    Mapping *m = (Mapping *)xmalloc(sizeof *m);
    *m = (Mapping){.name = xstrdup(name), .bytes = (uint8_t *)bytes, .size = size, .next = *mapping_list()};
    *mapping_list() = m;
    return m;
}

/* Unmaps the file; m may be NULL. */
static inline void mapping_free(Mapping *m) {
    if (!m) return;
    Mapping **at = mapping_list();
    while (*at != m) at = &(*at)->next;
    *at = m->next;
    munmap(m->bytes, m->size);
    free(m->name);
    free(m);
}

/* Gives back the pages that lie entirely in [from, from + n) of the mapping, which may be NULL. They are read again from
 * the file when they are used. */
static inline void mapping_forget(const Mapping *m, const void *from, size_t n) {
    if (!m) return;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), at = (size_t)((const uint8_t *)from - m->bytes);
    const size_t first = (at + page - 1) / page * page, end = (at + n) / page * page;
    if (first < end) madvise(m->bytes + first, end - first, MADV_DONTNEED);
}

/* Counts n bytes that are about to be read; after every MAPPING_RESIDENT of them, the pages read until then are given
 * back. */
static inline void mapping_touch(Mapping *m, size_t n) {
    if (!m) return;
    m->touched += n + 4096;
    if (m->touched < MAPPING_RESIDENT) return;
    mapping_forget(m, m->bytes, m->size);
    m->touched = 0;
}

/* The mapping that contains an address, or NULL. A signal handler may call it. */
static inline const Mapping *mapping_at(const void *address) {
    const Mapping *m = *mapping_list();
    while (m && !((const uint8_t *)address >= m->bytes && (const uint8_t *)address < m->bytes + m->size)) m = m->next;
    return m;
}

#endif

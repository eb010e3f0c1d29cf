/* output.h - the files of a run: no path for two things, and no output that another run is writing.
 *
 *     OutputPaths p = {0};
 *     output_add(&p, "input", "data.shard", OUTPUT_READ);
 *     output_add(&p, "output", "./data.shard", OUTPUT_WRITTEN);
 *     if (!output_distinct(&p, &e)) usage_error("%s", e.text);    // also through links
 *     if (!output_lock(&p, &e)) die("%s", e.text);                // until the process ends
 *
 * Two paths are the same if they are one file (device and inode), or one name in one folder. Devices, pipes and "-" are
 * never the same: many outputs may be /dev/null.
 *
 * A lock is an abstract socket whose name is that of the file and its folder. It leaves nothing on the disk and ends
 * with the process, however that ends. It excludes the other processes of this machine (of a network namespace) only.
 */
#ifndef LLMC_BASE_OUTPUT_H
#define LLMC_BASE_OUTPUT_H

#include "error.h" /* Error, error_set, xrealloc, xstrdup */
#include "io.h"    /* XXH3_64bits, io_target */
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* A training state may replace the one that is resumed. */
typedef enum { OUTPUT_READ, OUTPUT_WRITTEN, OUTPUT_STATE, OUTPUT_RESUMED } OutputUse;

typedef struct OutputPath {
    const char *option; /* its name, without hyphens */
    char *path;
    OutputUse use;
    dev_t device, folder_device;
    ino_t inode, folder;
    uint64_t name; /* hash of the name in the folder */
    bool exists;
} OutputPath;

typedef struct OutputPaths {
    OutputPath *path;
    int count;
} OutputPaths;

/* Adds a path that an option gives. A NULL path, "-" and the path of a device or of a pipe are left out, and so is one
 * whose folder does not exist. */
static inline void output_add(OutputPaths *p, const char *option, const char *path, OutputUse use) {
    struct stat file, folder;
    if (!path || !*path || !strcmp(path, "-")) return;
    const bool exists = !stat(path, &file);
    if (exists && !S_ISREG(file.st_mode) && !S_ISDIR(file.st_mode)) return;
    char *target = io_target(path);
    for (size_t n = target ? strlen(target) : 0; n > 1 && target[n - 1] == '/'; n--) target[n - 1] = 0;
    char *slash = target ? strrchr(target, '/') : NULL;
    OutputPath add = {.option = option, .use = use, .exists = exists};
    if (target) {
        const char *name = slash ? slash + 1 : target;
        add.name = XXH3_64bits(name, strlen(name));
        if (slash) slash[slash == target] = 0;
        if (!stat(slash ? target : ".", &folder)) {
            add.folder_device = folder.st_dev;
            add.folder = folder.st_ino;
            if (exists) add.device = file.st_dev;
            if (exists) add.inode = file.st_ino;
            add.path = xstrdup(path);
            p->path = (OutputPath *)xrealloc(p->path, (size_t)p->count + 1, sizeof *p->path);
            p->path[p->count++] = add;
        }
    }
    free(target);
}

static inline bool output_same(const OutputPath *a, const OutputPath *b) {
    if (a->exists && b->exists && a->device == b->device && a->inode == b->inode) return true;
    return a->folder_device == b->folder_device && a->folder == b->folder && a->name == b->name;
}

static inline bool output_is_written(const OutputPath *a) { return a->use == OUTPUT_WRITTEN || a->use == OUTPUT_STATE; }

/* Checks that no output is also an input or another output. */
static inline bool output_distinct(const OutputPaths *p, Error *e) {
    for (int i = 0; i < p->count; i++)
        for (int k = 0; k < i; k++) {
            const OutputPath *a = &p->path[k], *b = &p->path[i];
            const bool resumed = (a->use == OUTPUT_RESUMED && b->use == OUTPUT_STATE) ||
                                 (a->use == OUTPUT_STATE && b->use == OUTPUT_RESUMED);
            if (resumed || (!output_is_written(a) && !output_is_written(b)) || !output_same(a, b)) continue;
            return error_set(e, "--%s and --%s: both are %s; give each its own path", a->option, b->option, b->path);
        }
    return true;
}

/* Locks every output. The lock is held until the process ends. */
static inline bool output_lock(const OutputPaths *p, Error *e) {
    for (int i = 0; i < p->count; i++) {
        const OutputPath *a = &p->path[i];
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        if (!output_is_written(a)) continue;
        const int n =
            snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "llmc.output.%llx.%llx.%llx",
                     (unsigned long long)a->folder_device, (unsigned long long)a->folder, (unsigned long long)a->name);
        const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        const socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
        if (fd < 0 || !bind(fd, (const struct sockaddr *)&name, size)) continue;
        const bool taken = errno == EADDRINUSE;
        close(fd);
        if (taken)
            return error_set(e, "--%s %s: another run is writing it; wait for its end, or give another path", a->option,
                             a->path);
    }
    return true;
}

static inline void output_free(OutputPaths *p) {
    for (int i = 0; i < p->count; i++) free(p->path[i].path);
    free(p->path);
    *p = (OutputPaths){0};
}

#endif

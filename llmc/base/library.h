/* library.h - opening a shared library that is built and installed together with the program.
 *
 * The library is searched for in the directory of the executable, in ../lib/llmc next to it, where `make install` puts
 * it, then where the system's loader searches (LD_LIBRARY_PATH, /usr/lib). An environment variable can name another
 * file. A program needs a library only if it opens it.
 *
 *     Library l;
 *     if (!library_open(&l, "llmc_mpi.so", "LLMC_MPI_LIBRARY", RTLD_LOCAL, "make builds llmc_mpi.so", &e))
 *         return false;
 *     void *table = dlsym(l.handle, "llmc_dist_link");
 *
 * g++ compiles this header too, so it uses only the common subset of C and C++.
 */
#ifndef LLMC_BASE_LIBRARY_H
#define LLMC_BASE_LIBRARY_H

#include "error.h" /* Error, error_set */
#include <dlfcn.h>
#include <unistd.h>

typedef struct Library {
    void *handle;    /* for dlsym() */
    char path[4096]; /* the file, or its name if the system's loader found it; for messages */
} Library;

/* Writes the path of the file `name` in the directory of the executable, or in ../lib/llmc, to path[size]. Returns false
 * if it is in neither. */
static inline bool library_next_to_program(const char *name, char *path, size_t size) {
    static const char *const folders[] = {"", "../lib/llmc/"};
    const ssize_t n = readlink("/proc/self/exe", path, size - 1);
    if (n <= 0) return false;
    path[n] = 0;
    char *slash = strrchr(path, '/');
    for (int i = 0; slash && i < 2; i++) {
        const size_t left = size - (size_t)(slash + 1 - path);
        const int length = snprintf(slash + 1, left, "%s%s", folders[i], name);
        if (length >= 0 && (size_t)length < left && !access(path, R_OK)) return true;
    }
    return false;
}

/* Opens the library `name`, or the file that the environment variable `variable` names. It stays loaded. scope:
 * RTLD_LOCAL, or RTLD_GLOBAL if other libraries use its symbols. builds: a clause for the error message that tells the
 * user how to build it. */
static inline bool library_open(Library *l, const char *name, const char *variable, int scope, const char *builds,
                                Error *e) {
    const char *named = getenv(variable);
    if (named && !*named) named = NULL;
    if (named || !library_next_to_program(name, l->path, sizeof l->path))
        snprintf(l->path, sizeof l->path, "%s", named ? named : name);
    l->handle = dlopen(l->path, RTLD_NOW | scope);
    if (l->handle) return true;
    const char *why = dlerror();
    return error_set(e, "%s (%s)", why ? why : l->path, builds);
}

#endif

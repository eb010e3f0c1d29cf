/* run_folder.h - the folder of --output-dir: names of a run's files, and its training states.
 *
 *     if (!run_folder_make("run", &e)) die("%s", e.text);
 *     if (!run_folder_check("run", NULL, false, &e)) die("%s", e.text);    // refuses that of another run
 *     char *model = run_folder_path("run", "model.safetensors");
 *     char *state = run_folder_state("run", 40);                           // run/checkpoint-40
 *     const int64_t newest = run_folder_newest("run");                     // 40, or -1
 *     run_folder_remove_state("run", 20, "critic");                        // and run/checkpoint-20.critic-20
 *     run_folder_remove_states("run");                                     // all of them
 *     free(model), free(state);
 */
#ifndef LLMC_TRAIN_RUN_FOLDER_H
#define LLMC_TRAIN_RUN_FOLDER_H

#include "../base/error.h" /* Error, error_set, xmalloc, xstrdup, ... */
#include "../base/io.h"    /* io_leftovers, io_make_folder, writer_remove */
#include "companion.h"     /* companion_path */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

/* DIR/NAME; the caller frees it. */
static inline char *run_folder_path(const char *folder, const char *name) {
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/') n--;
    char *path = (char *)xmalloc(n + strlen(name) + 2);
    sprintf(path, "%.*s/%s", (int)n, folder, name);
    return path;
}

/* The path of the training state of a step; the caller frees it. */
static inline char *run_folder_state(const char *folder, int64_t step) {
    char name[40];
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)step);
    return run_folder_path(folder, name);
}

/* The step of a file that is named like a training state, up to the end or to `end`; or -1. */
static inline int64_t run_folder_step(const char *name, char end) {
    static const char begin[] = "checkpoint-";
    const char *digits = name + strlen(begin);
    if (strncmp(name, begin, strlen(begin))) return -1;
    const size_t n = strspn(digits, "0123456789");
    if (!n || n > 18 || digits[n] != end || (n > 1 && digits[0] == '0')) return -1;
    return strtoll(digits, NULL, 10);
}

/* The step of the newest state, or -1 if there is none. A state has its name only once it is complete. */
static inline int64_t run_folder_newest(const char *folder) {
    int64_t newest = -1;
    DIR *d = opendir(folder);
    for (const struct dirent *i; d && (i = readdir(d));) {
        const int64_t step = run_folder_step(i->d_name, 0);
        if (step > newest) newest = step;
    }
    if (d) closedir(d);
    return newest;
}

/* Whether the folder has a file that a run wrote there. The empty metrics file of one that was refused before its first
 * step is none. */
static inline bool run_folder_used(const char *folder) {
    static const char *const names[] = {"model.safetensors", "best.safetensors", "metrics.jsonl", "report.html"};
    bool used = run_folder_newest(folder) >= 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct stat about;
        char *path = run_folder_path(folder, names[i]);
        used = used || (!stat(path, &about) && about.st_size);
        free(path);
    }
    return used;
}

/* Whether `path` is a file in the folder. */
static inline bool run_folder_has(const char *folder, const char *path) {
    struct stat a, b;
    const char *slash = strrchr(path, '/');
    char *parent = slash ? xstrndup(path, slash == path ? 1 : (size_t)(slash - path)) : xstrdup(".");
    const bool same = !stat(folder, &a) && !stat(parent, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    free(parent);
    return same;
}

/* Makes the folder and its parents, unless it exists. */
static inline bool run_folder_make(const char *folder, Error *e) {
    Error why;
    struct stat about;
    if (!stat(folder, &about) && !S_ISDIR(about.st_mode))
        return error_set(e, "--output-dir %s: it is not a folder", folder);
    return io_make_folder(folder, &why) || error_set(e, "--output-dir %s", why.text);
}

/* Checks that the folder has no files of another run than the one that is resumed. resumed: its state, or NULL;
 * overwrite: the files of another run may be replaced. */
static inline bool run_folder_check(const char *folder, const char *resumed, bool overwrite, Error *e) {
    if (overwrite || (resumed && run_folder_has(folder, resumed)) || !run_folder_used(folder)) return true;
    return error_set(e,
                     "--output-dir %s: it holds the files of another run; give another folder, --resume to continue "
                     "that run, or --overwrite-output-dir",
                     folder);
}

/* Removes a state and its companion (companion.h) of this kind, or NULL. Either may be missing. */
static inline void run_folder_remove_state(const char *folder, int64_t step, const char *kind) {
    char *path = run_folder_state(folder, step), *companion = kind ? companion_path(kind, path, step) : NULL;
    unlink(path);
    if (companion) unlink(companion);
    free(path), free(companion);
}

/* Removes the temporary files of states whose runs have ended. */
static inline void run_folder_clean(const char *folder) {
    DIR *d = opendir(folder);
    for (const struct dirent *i; d && (i = readdir(d));) {
        const int64_t step = run_folder_step(i->d_name, '.');
        if (step < 0) continue;
        char *path = run_folder_state(folder, step);
        io_leftovers(path, false, writer_remove);
        free(path);
    }
    if (d) closedir(d);
}

/* Whether a file is named like the companion of a training state, checkpoint-STEP.KIND-STEP. */
static inline bool run_folder_is_companion(const char *name) {
    const int64_t step = run_folder_step(name, '.');
    const char *last = strrchr(name, '-');
    char end[24];
    snprintf(end, sizeof end, "-%lld", (long long)step);
    return step >= 0 && !strcmp(last, end);
}

/* Removes all states and their companions. */
static inline void run_folder_remove_states(const char *folder) {
    DIR *d = opendir(folder);
    for (const struct dirent *i; d && (i = readdir(d));) {
        struct stat about;
        if (run_folder_step(i->d_name, 0) < 0 && !run_folder_is_companion(i->d_name)) continue;
        char *path = run_folder_path(folder, i->d_name);
        if (!lstat(path, &about) && S_ISREG(about.st_mode)) unlink(path);
        free(path);
    }
    if (d) closedir(d);
}

#endif

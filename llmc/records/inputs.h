/* inputs.h - the files that an option names, which may be given several times and may hold patterns.
 *
 * A pattern ('shards/fineweb_*.bin', in quotes so that the shell leaves it alone) stands for the files that it matches,
 * in the order of their names (glob(7)); a file of exactly that name is taken as it is. The same file twice is refused,
 * under whatever names.
 *
 *     OptionList list = {0}; // the values of the option
 *     Inputs files;
 *     if (!inputs_open(&files, "-i/--input", &list, &e)) usage_error("%s", e.text);
 *     for (int i = 0; i < files.count; i++) use(files.path[i]);
 *     inputs_close(&files);
 */
#ifndef LLMC_RECORDS_INPUTS_H
#define LLMC_RECORDS_INPUTS_H

#include "../base/error.h"   /* Error, error_set, xcalloc, xrealloc, ... */
#include "../base/options.h" /* OptionList */
#include <glob.h>
#include <sys/stat.h>

typedef struct Inputs {
    char **path;
    int count;
} Inputs;

static inline void inputs_close(Inputs *in) {
    for (int i = 0; i < in->count; i++) free(in->path[i]);
    free(in->path);
    *in = (Inputs){0};
}

static inline void inputs_add(Inputs *in, const char *path) {
    in->path = (char **)xrealloc(in->path, (size_t)in->count + 1, sizeof *in->path);
    in->path[in->count++] = xstrdup(path);
}

/* Adds the files that one value of the option names. */
static inline bool inputs_expand(Inputs *in, const char *option, const char *value, Error *e) {
    glob_t found;
    if (!strpbrk(value, "*?[") || !access(value, F_OK)) {
        inputs_add(in, value);
        return true;
    }
    const int result = glob(value, 0, NULL, &found);
    if (result) return error_set(e, "%s %s: no file matches the pattern", option, value);
    for (size_t i = 0; i < found.gl_pathc; i++) inputs_add(in, found.gl_pathv[i]);
    globfree(&found);
    return true;
}

/* Refuses a file that is named twice. A file that does not exist is left to the reader. */
static inline bool inputs_check(const Inputs *in, const char *option, Error *e) {
    struct stat *about = (struct stat *)xcalloc((size_t)in->count + 1, sizeof *about);
    bool ok = true;
    for (int i = 0; ok && i < in->count; i++) {
        const bool file = !stat(in->path[i], &about[i]) && S_ISREG(about[i].st_mode);
        for (int k = 0; ok && k < i; k++) {
            const bool linked = file && about[i].st_dev == about[k].st_dev && about[i].st_ino == about[k].st_ino;
            if (linked || !strcmp(in->path[i], in->path[k]))
                ok = error_set(e, "%s: %s and %s are the same file", option, in->path[k], in->path[i]);
        }
    }
    free(about);
    return ok;
}

/* Fills in the files of all values of an option. option: its name, for messages. On failure nothing stays allocated. */
static inline bool inputs_open(Inputs *in, const char *option, const OptionList *list, Error *e) {
    *in = (Inputs){0};
    bool ok = true;
    for (int i = 0; ok && i < list->count; i++) ok = inputs_expand(in, option, list->items[i], e);
    ok = ok && inputs_check(in, option, e);
    if (!ok) inputs_close(in);
    return ok;
}

#endif

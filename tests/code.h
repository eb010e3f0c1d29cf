/* code.h - the programs of tests/code/escapes.txt and cheats.txt, each of which begins after a line with its name. */
#ifndef TESTS_CODE_H
#define TESTS_CODE_H

#include "../llmc/base/error.h" /* xcalloc, xstrndup, xstrdup */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct CodeSample {
    char *name, *text;
    bool stays; /* runs until its time is over */
} CodeSample;

/* Reads the programs of a file; *count is their number. NULL: there is no file. */
static inline CodeSample *code_samples(const char *path, int *count) {
    enum { MOST = 256 };
    FILE *f = fopen(path, "r");
    if (!f) return NULL;
    char *text = (char *)xcalloc(1, 1 << 18);
    const size_t n = fread(text, 1, (1 << 18) - 1, f);
    fclose(f);
    CodeSample *all = (CodeSample *)xcalloc(MOST, sizeof *all);
    *count = 0;
    for (char *at = strstr(text, "\n####"); at && n && *count < MOST;) {
        CodeSample *s = &all[(*count)++];
        s->stays = at[5] == '!';
        const char *name = at + 6 + s->stays, *end = strchr(name, '\n');
        at = strstr(end, "\n####");
        s->name = xstrndup(name, (size_t)(end - name));
        s->text = at ? xstrndup(end + 1, (size_t)(at - end)) : xstrdup(end + 1);
    }
    free(text);
    return all;
}

static inline void code_samples_free(CodeSample *all, int count) {
    for (int i = 0; i < count; i++) free(all[i].name), free(all[i].text);
    free(all);
}

#endif

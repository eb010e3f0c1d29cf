/* golden.h - reader of the golden values under tests/golden, which the generators in dev/golden write as text:
 *
 *     case KIND FAMILY NAME
 *     key count v1 v2 ...
 *     end
 *
 * A line that begins with `#` is a comment. Numbers have the format of strtod().
 *
 *     FILE *f = golden_open("losses.txt");
 *     Golden g;
 *     while (golden_next(f, &g)) { const double *x = golden(&g, "logp"); ... golden_free(&g); }
 */
#ifndef LLMC_TEST_GOLDEN_H
#define LLMC_TEST_GOLDEN_H

#include "../llmc/base/error.h" /* die, xcalloc */

enum { GOLDEN_FIELDS = 64 };

typedef struct Golden {
    char kind[32], family[32], name[64];
    int fields;
    struct {
        char key[64];
        int count;
        double *values;
    } field[GOLDEN_FIELDS];
} Golden;

/* Opens a file under tests/golden. Tests run in the project's root. */
static inline FILE *golden_open(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    FILE *f = fopen(path, "r");
    if (!f) die("%s: %s", path, strerror(errno));
    return f;
}

static inline bool golden_next(FILE *f, Golden *g) {
    char line[256];
    *g = (Golden){0};
    do
        if (!fgets(line, sizeof line, f)) return false;
    while (line[0] == '#');
    if (sscanf(line, "case %31s %31s %63s", g->kind, g->family, g->name) != 3) die("golden file: bad line: %s", line);
    for (;; g->fields++) {
        if (g->fields == GOLDEN_FIELDS) die("golden file: %s: too many fields", g->name);
        if (fscanf(f, "%63s", g->field[g->fields].key) != 1) die("golden file: %s: no end", g->name);
        if (!strcmp(g->field[g->fields].key, "end")) break;
        int n = 0;
        if (fscanf(f, "%d", &n) != 1 || n < 0) die("golden file: %s: bad count", g->name);
        double *v = (double *)xcalloc((size_t)n, sizeof *v);
        for (int i = 0; i < n; i++)
            if (fscanf(f, "%lf", &v[i]) != 1) die("golden file: %s: bad number", g->name);
        g->field[g->fields].count = n;
        g->field[g->fields].values = v;
    }
    if (!fgets(line, sizeof line, f)) die("golden file: %s: no newline", g->name);
    return true;
}

static inline int golden_find(const Golden *g, const char *key) {
    for (int i = 0; i < g->fields; i++)
        if (!strcmp(g->field[i].key, key)) return i;
    return -1;
}

/* Returns the values under `key` and their number, or NULL. */
static inline const double *golden(const Golden *g, const char *key) {
    const int i = golden_find(g, key);
    return i < 0 ? NULL : g->field[i].values;
}
static inline int golden_count(const Golden *g, const char *key) {
    const int i = golden_find(g, key);
    return i < 0 ? 0 : g->field[i].count;
}

/* Returns the values as floats, malloc'ed, or NULL. */
static inline float *golden_floats(const Golden *g, const char *key) {
    const int i = golden_find(g, key);
    if (i < 0) return NULL;
    float *x = (float *)xcalloc((size_t)g->field[i].count, sizeof *x);
    for (int k = 0; k < g->field[i].count; k++) x[k] = (float)g->field[i].values[k];
    return x;
}

/* Sets offset to the first tokens of a case's completions, whose lengths are under `key`, and to the end of the last one.
 * Returns their number. room: values of offset; most: tokens that a caller has room for. */
static inline int golden_offsets(const Golden *g, const char *key, int32_t *offset, int room, int most) {
    const int n = golden_count(g, key);
    assert_true(n < room);
    offset[0] = 0;
    for (int i = 0; i < n; i++) offset[i + 1] = offset[i] + (int32_t)golden(g, key)[i];
    assert_true(offset[n] <= most);
    return n;
}

static inline void golden_free(Golden *g) {
    for (int i = 0; i < g->fields; i++) free(g->field[i].values);
}

/* Checks |a - b| <= tolerance * max(|a|, |b|, scale). Two NaNs also agree.
 *
 * The losses compute in double from float inputs and return float gradients. A gradient is therefore off by 2^-25 =
 * 3e-8 of its size, and golden values have 9 digits: a tolerance of 1e-6 covers both. Equalities of two results in
 * double are off by some hundred roundings of 1e-16 at most, hence 1e-12. */
static inline void check_near(double a, double b, double scale, double tolerance, const char *what) {
    if (isnan(a) && isnan(b)) return;
    if (fabs(a - b) <= tolerance * fmax(fmax(fabs(a), fabs(b)), scale)) return;
    fail_msg("%s: %.12g is not %.12g", what, a, b);
}

static inline double largest(const double *x, int n) {
    double m = 0;
    for (int i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}

#endif

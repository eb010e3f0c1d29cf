/* inputs.h - the files that an option names, which may be given several times and may hold patterns.
 *
 * A pattern ('shards/fineweb_*.bin', in quotes so that the shell leaves it alone) stands for the files that it matches,
 * in the order of their names (glob(7)); a file of exactly that name is taken as it is. The same file twice is refused,
 * under whatever names.
 *
 * A name may be followed by a colon and what a mixture (mix.h) takes of the file: a.shard:3 gives it the weight 3,
 * a.shard:0.5x takes half of its records, a.shard:2000n that many. Of a pattern, this holds for each file. A file whose
 * name ends in this way is taken as it is. Before the name may stand another one and "=": math=a.shard:3 has the name
 * math in metrics, instead of the file's own. inputs_read() reads a list of such files:
 *
 *     # path     weight  cap  epochs
 *     a.shard    3       -    2
 *     b.shard    0.5x
 *
 *     OptionList list = {0}; // the values of the option
 *     Inputs files;
 *     if (!inputs_open(&files, "-i/--input", &list, &e)) usage_error("%s", e.text);
 *     for (int i = 0; i < files.count; i++) use(files.path[i]);
 *     inputs_close(&files);
 */
#ifndef LLMC_RECORDS_INPUTS_H
#define LLMC_RECORDS_INPUTS_H

#include "../base/error.h"   /* error_set, Error, xrealloc, xstrdup, ... */
#include "../base/io.h"      /* file_slurp */
#include "../base/options.h" /* OptionList */
#include <glob.h>
#include <sys/stat.h>

enum { INPUTS_LIST_MAX = 1 << 20 }; /* bytes of a list */

typedef enum { AMOUNT_NONE, AMOUNT_WEIGHT, AMOUNT_PASSES, AMOUNT_RECORDS } AmountKind;

/* What a mixture takes of a file. */
typedef struct InputAmount {
    AmountKind kind;
    double value;  /* the weight, the passes over the file (0.5x), or the number of records (2000n) */
    int64_t cap;   /* the number of records counts as at most this where it sets the share; 0: no limit */
    double epochs; /* maximum number of passes in a run; 0: no limit */
} InputAmount;

typedef struct Inputs {
    char **path;
    char **label;        /* (count) the name in metrics, or NULL for the file's own */
    InputAmount *amount; /* (count) */
    int count;
} Inputs;

static inline void inputs_close(Inputs *in) {
    for (int i = 0; i < in->count; i++) free(in->path[i]), free(in->label[i]);
    free(in->path), free(in->label);
    free(in->amount);
    *in = (Inputs){0};
}

/* The name of a file without its folder and its endings, for metrics: "b" of "x/b.shard.zst". The caller frees it. */
static inline char *input_name(const char *path) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    return xstrndup(base, strcspn(base, "."));
}

/* The name that file i was given, or that of the file without its folder and its endings. The caller frees it. */
static inline char *inputs_name(const Inputs *in, int i) {
    return in->label[i] ? xstrdup(in->label[i]) : input_name(in->path[i]);
}

static inline void inputs_add(Inputs *in, const char *path) {
    in->path = (char **)xrealloc(in->path, (size_t)in->count + 1, sizeof *in->path);
    in->amount = (InputAmount *)xrealloc(in->amount, (size_t)in->count + 1, sizeof *in->amount);
    in->label = (char **)xrealloc(in->label, (size_t)in->count + 1, sizeof *in->label);
    in->label[in->count] = NULL;
    in->amount[in->count] = (InputAmount){0};
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

/* ---- amounts --------------------------------------------------------------------------------------------------- */

/* Reads "3", "0.5x" or "2000n". False with a reason in *why if the text is none of them, or NULL if it is no number. */
static inline bool input_amount(const char *text, InputAmount *amount, const char **why) {
    char *end;
    const double value = strtod(text, &end);
    *why = NULL;
    if (end == text || isspace((unsigned char)*text)) return false;
    const AmountKind kind = !*end               ? AMOUNT_WEIGHT
                            : !strcmp(end, "x") ? AMOUNT_PASSES
                            : !strcmp(end, "n") ? AMOUNT_RECORDS
                                                : AMOUNT_NONE;
    if (kind == AMOUNT_NONE) return false;
    amount->kind = kind;
    amount->value = value;
    if (kind == AMOUNT_WEIGHT && !(value >= 0 && isfinite(value))) *why = "a weight must be a number of at least 0";
    if (kind == AMOUNT_PASSES && !(value > 0 && value <= 1e6)) *why = "passes must be a number from above 0 to 1000000";
    if (kind == AMOUNT_RECORDS && !(value >= 1 && value <= 1e12 && value == floor(value)))
        *why = "a number of records must be a whole number from 1 to 10^12";
    return !*why;
}

/* Whether a value of an option names files as it is: one of exactly that name, or those that it matches. */
static inline bool input_exists(const char *value) {
    glob_t found;
    if (!access(value, F_OK)) return true;
    if (!strpbrk(value, "*?[") || glob(value, 0, NULL, &found)) return false;
    globfree(&found);
    return true;
}

/* Adds the files that one value of the option names, with the amount that follows their name. */
static inline bool inputs_expand_amount(Inputs *in, const char *option, const char *value, Error *e) {
    const char *colon = strrchr(value, ':'), *why = NULL;
    const int before = in->count;
    InputAmount amount = {0};
    if (!colon || colon == value || input_exists(value)) return inputs_expand(in, option, value, e);
    char *name = xstrdup(value);
    name[colon - value] = '\0';
    const bool is = input_amount(colon + 1, &amount, &why);
    bool ok = true;
    if (!is && why) ok = error_set(e, "%s %s: %s", option, value, why);
    else if (!is && input_exists(name))
        ok = error_set(e, "%s %s: '%s' is no amount; give a weight (3), passes (0.5x) or a number of records (2000n)",
                       option, value, colon + 1);
    else ok = inputs_expand(in, option, is ? name : value, e);
    for (int i = before; ok && i < in->count; i++) in->amount[i] = amount;
    free(name);
    return ok;
}

/* The bytes of the name before "=" in a value that is no file as it is; 0 if there is none. */
static inline size_t input_label(const char *value) {
    const size_t n = strspn(value, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-");
    return n && n < 64 && value[n] == '=' && !input_exists(value) ? n : 0;
}

/* Adds the files that one value of the option names, with the name before them and the amount that follows. */
static inline bool inputs_expand_named(Inputs *in, const char *option, const char *value, Error *e) {
    const size_t n = input_label(value);
    const int before = in->count;
    if (!inputs_expand_amount(in, option, n ? value + n + 1 : value, e)) return false;
    for (int i = before; n && i < in->count; i++) in->label[i] = xstrndup(value, n);
    return true;
}

/* Refuses amounts where they have no effect, and names unless they are used. */
static inline bool inputs_whole(const Inputs *in, const char *option, bool named, Error *e) {
    for (int i = 0; i < in->count; i++) {
        if (in->label[i] && !named)
            return error_set(e, "%s %s=%s: a name is for training and validation data; name the file alone", option,
                             in->label[i], in->path[i]);
        if (in->amount[i].kind != AMOUNT_NONE)
            return error_set(e, "%s %s: a weight or an amount is for training data only; name the file alone", option,
                             in->path[i]);
    }
    return true;
}

/* Reads a field of a list: "-" or nothing for none, else a number above 0. */
static inline bool input_field(const char *text, double *value) {
    char *end;
    *value = 0;
    if (!text || !strcmp(text, "-")) return true;
    *value = strtod(text, &end);
    return end != text && !*end && *value > 0 && *value <= 1e12;
}

/* Adds the files of one line of a list: PATH [WEIGHT [CAP [EPOCHS]]]. The line is changed. */
static inline bool inputs_read_line(Inputs *in, const char *option, char *line, Error *e) {
    char *save = NULL, *field[5] = {NULL};
    const char *why = NULL;
    int n = 0;
    double cap, epochs;
    InputAmount amount = {0};
    for (char *word = strtok_r(line, " \t\r", &save); word && n < 5; word = strtok_r(NULL, " \t\r", &save))
        field[n++] = word;
    if (!n || field[0][0] == '#') return true;
    if (n > 4) return error_set(e, "%s has more than four fields: path, weight, cap, epochs", option);
    if (!strcmp(field[0], "-")) return error_set(e, "%s: a list cannot name standard input", option);
    if (n > 1 && strcmp(field[1], "-") && !input_amount(field[1], &amount, &why))
        return error_set(e, "%s: '%s' is no amount: %s", option, field[1],
                         why ? why : "give a weight (3), passes (0.5x), a number of records (2000n) or -");
    if (!input_field(field[2], &cap) || cap != floor(cap))
        return error_set(e, "%s: the cap is '%s', expected a number of records or -", option, field[2]);
    if (!input_field(field[3], &epochs))
        return error_set(e, "%s: the epochs are '%s', expected a number above 0 or -", option, field[3]);
    amount.cap = (int64_t)cap;
    amount.epochs = epochs;
    const int before = in->count;
    const size_t label = input_label(field[0]);
    if (!inputs_expand(in, option, label ? field[0] + label + 1 : field[0], e)) return false;
    for (int i = before; label && i < in->count; i++) in->label[i] = xstrndup(field[0], label);
    for (int i = before; i < in->count; i++) in->amount[i] = amount;
    return true;
}

/* Adds the files of a list (a text file of lines: path, weight, cap, epochs). option: its name, for messages. */
static inline bool inputs_read(Inputs *in, const char *option, const char *path, Error *e) {
    size_t n;
    char *text = file_slurp(path, INPUTS_LIST_MAX, &n, e);
    if (!text) return false;
    bool ok = !memchr(text, '\0', n) || error_set(e, "%s %s: it is not a text file", option, path);
    const int before = in->count;
    int number = 0;
    for (char *line = text, *next; ok && line; line = next) {
        char where[512];
        next = strchr(line, '\n');
        if (next) *next++ = '\0';
        snprintf(where, sizeof where, "%s %s:%d", option, path, ++number);
        ok = inputs_read_line(in, where, line, e);
    }
    if (ok && in->count == before) ok = error_set(e, "%s %s: it names no file", option, path);
    free(text);
    return ok;
}

/* Fills in the files of all values of an option. option: its name, for messages. On failure nothing stays allocated. */
static inline bool inputs_open(Inputs *in, const char *option, const OptionList *list, Error *e) {
    *in = (Inputs){0};
    bool ok = true;
    for (int i = 0; ok && i < list->count; i++) ok = inputs_expand_named(in, option, list->items[i], e);
    ok = ok && inputs_check(in, option, e);
    if (!ok) inputs_close(in);
    return ok;
}

#endif

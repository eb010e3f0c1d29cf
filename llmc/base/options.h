/* options.h - command-line options: one table per program drives parsing, --help, defaults and the printed
 * configuration.
 *
 *     static struct { const char *input; int64_t steps; double beta; bool verbose; int loss; } o = {.steps = 100};
 *     static const Option table[] = {
 *         OPTION_GROUP("Training"),
 *         OPTION_TEXT  ("input",   'i', &o.input, "FILE", "shard to train on"),
 *         OPTION_INT   ("steps",   'x', &o.steps, 1, 1e9, "optimizer steps"),
 *         OPTION_REAL  ("beta",     0,  &o.beta, 0, 1e3, "strength of the KL penalty"),
 *         OPTION_CHOICE("loss",     0,  &o.loss, "grpo|bnpo|dr_grpo", "objective"),
 *         OPTION_FLAG  ("verbose", 0,   &o.verbose, "print the configuration"),
 *         OPTION_END};
 *     static const OptionAbout about = {"[options]", "Trains a model."};
 *     int first = options_parse(table, &about, argc, argv);     // argv[first..] are not options
 *     options_parse_all(table, &about, argc, argv);             // or: every argument must be an option
 *
 * The value of a variable before parsing is the default that --help shows. A numeric argument must consist of the
 * number alone ("1e-3x" is rejected) and be in [low, high]. Integers also accept a suffix k, m or g (powers of 1024). A
 * flag accepts --name and --no-name; --help shows --[no-]name with a help text that describes --name. A choice stores
 * its index. An OPTION_LIST may be repeated. As in getopt_long, options may be abbreviated and mixed with other
 * arguments. option_given() tells whether an option was given, and options_refuse_unused() ends a program that was given
 * an option without effect. --help prints to standard output and exits with status 0. A bad command line prints one
 * line to standard error and exits with status 2.
 */
#ifndef LLMC_BASE_OPTIONS_H
#define LLMC_BASE_OPTIONS_H

#include "error.h" /* usage_error, xrealloc */
#include <getopt.h>
#include <math.h>

typedef enum { OPT_END, OPT_GROUP, OPT_FLAG, OPT_INT, OPT_REAL, OPT_TEXT, OPT_CHOICE, OPT_LIST } OptionKind;

typedef struct OptionList {
    const char **items;
    int count;
} OptionList;

typedef struct Option {
    OptionKind kind;
    const char *name;
    char letter;
    void *value; /* bool, int64_t, double, const char *, int (choice), OptionList */
    double low, high;
    const char *argument; /* shown after the name by --help; for a choice, the names separated by | */
    const char *help;
} Option;

typedef struct OptionAbout {
    const char *usage; /* arguments, shown after the program's name */
    const char *text;  /* what the program does, in a few lines, and examples */
} OptionAbout;

#define OPTION_GROUP(title)                                                                                            \
    { OPT_GROUP, title, 0, NULL, 0, 0, NULL, NULL }
#define OPTION_FLAG(name, letter, value, help)                                                                         \
    { OPT_FLAG, name, letter, value, 0, 0, NULL, help }
#define OPTION_INT(name, letter, value, low, high, help)                                                               \
    { OPT_INT, name, letter, value, low, high, "N", help }
#define OPTION_REAL(name, letter, value, low, high, help)                                                              \
    { OPT_REAL, name, letter, value, low, high, "X", help }
#define OPTION_TEXT(name, letter, value, argument, help)                                                               \
    { OPT_TEXT, name, letter, value, 0, 0, argument, help }
#define OPTION_CHOICE(name, letter, value, choices, help)                                                              \
    { OPT_CHOICE, name, letter, value, 0, 0, choices, help }
#define OPTION_LIST(name, letter, value, argument, help)                                                               \
    { OPT_LIST, name, letter, value, 0, 0, argument, help }
#define OPTION_END                                                                                                     \
    { OPT_END, NULL, 0, NULL, 0, 0, NULL, NULL }

enum { OPTIONS_MAX = 160 };

/* The index of `word` among "a|b|c", or -1. */
static inline int option_choice_index(const char *choices, const char *word) {
    const size_t n = strlen(word);
    int index = 0;
    for (const char *c = choices;; index++) {
        const size_t length = strcspn(c, "|");
        if (length == n && !memcmp(c, word, n)) return index;
        if (!c[length]) return -1;
        c += length + 1;
    }
}

/* Copies the name of choice `index` into name[size]. */
static inline void option_choice_name(const char *choices, int index, char *name, size_t size) {
    const char *c = choices;
    while (index-- > 0) c += strcspn(c, "|") + 1;
    snprintf(name, size, "%.*s", (int)strcspn(c, "|"), c);
}

/* Formats the value as text: "" for an unset text or an empty list. */
static inline void option_value(const Option *o, char *text, size_t size) {
    switch (o->kind) {
    case OPT_FLAG: snprintf(text, size, "%s", *(bool *)o->value ? "true" : "false"); break;
    case OPT_INT: snprintf(text, size, "%lld", (long long)*(int64_t *)o->value); break;
    case OPT_REAL: snprintf(text, size, "%.9g", *(double *)o->value); break;
    case OPT_TEXT: snprintf(text, size, "%s", *(const char **)o->value ? *(const char **)o->value : ""); break;
    case OPT_CHOICE: option_choice_name(o->argument, *(int *)o->value, text, size); break;
    case OPT_LIST: {
        const OptionList *list = (const OptionList *)o->value;
        size_t used = 0;
        text[0] = 0;
        for (int i = 0; i < list->count && used < size; i++)
            used += (size_t)snprintf(text + used, size - used, "%s%s", i ? " " : "", list->items[i]);
        break;
    }
    default: text[0] = 0;
    }
}

static inline void options_help(const Option *table, const OptionAbout *about) {
    printf("usage: %s %s\n\n%s\n", program_invocation_short_name, about->usage, about->text);
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (o->kind == OPT_GROUP) {
            printf("\n%s:\n", o->name);
            continue;
        }
        char left[96], value[256];
        const int n =
            o->letter ? snprintf(left, sizeof left, "  -%c, ", o->letter) : snprintf(left, sizeof left, "      ");
        snprintf(left + n, sizeof left - (size_t)n, "--%s%s%s%s", o->kind == OPT_FLAG ? "[no-]" : "", o->name,
                 o->argument ? " " : "",
                 o->argument && o->kind != OPT_CHOICE ? o->argument : (o->kind == OPT_CHOICE ? "NAME" : ""));
        option_value(o, value, sizeof value);
        printf(strlen(left) > 33 ? "%s\n%35s%s" : "%-34s %s%s", left, "", o->help);
        if (o->kind == OPT_CHOICE) printf(": %s", o->argument);
        if (o->kind == OPT_FLAG) printf(" (default: %s)", *(bool *)o->value ? "yes" : "no");
        else if (value[0]) printf(" (default: %s)", value);
        putchar('\n');
    }
    printf("\n  -h, --help                       show this help and exit\n");
}

/* ---- options that were given ------------------------------------------------------------------------------------ */

/* The variables of the options that were given, whatever their values. */
typedef struct OptionsGiven {
    const void *value[OPTIONS_MAX];
    int count;
} OptionsGiven;

static inline OptionsGiven *options_given(void) {
    static OptionsGiven given;
    return &given;
}

/* Whether the option of this variable was given. */
static inline bool option_given(const void *value) {
    const OptionsGiven *given = options_given();
    for (int i = 0; i < given->count; i++)
        if (given->value[i] == value) return true;
    return false;
}

static inline void option_mark(const void *value) {
    OptionsGiven *given = options_given();
    if (!option_given(value) && given->count < OPTIONS_MAX) given->value[given->count++] = value;
}

/* An option, by its variable, and whether it has an effect together with the others. */
typedef struct OptionUse {
    const void *value;
    bool used;
    const char *why; /* follows the option's name in the message, as "used only with --beta above 0" */
} OptionUse;

/* Ends the program with a usage error if an option was given that has no effect. */
static inline void options_refuse_unused(const Option *table, const OptionUse *use, size_t count) {
    for (size_t i = 0; i < count; i++)
        for (const Option *o = table; o->kind != OPT_END && !use[i].used; o++)
            if (o->kind != OPT_GROUP && o->value == use[i].value && option_given(o->value))
                usage_error("--%s: %s", o->name, use[i].why);
}

/* strtoll() and strtod() skip blanks before a number. Such blanks are rejected here, as are blanks after a number. */
static inline bool option_blank(const char *word) { return *word == ' ' || (*word >= '\t' && *word <= '\r'); }

static inline void option_store(const Option *o, const char *word, bool negated) {
    char name[80];
    if (o->letter) snprintf(name, sizeof name, "-%c/--%s", o->letter, o->name);
    else snprintf(name, sizeof name, "--%s", o->name);
    option_mark(o->value);
    switch (o->kind) {
    case OPT_FLAG: *(bool *)o->value = !negated; break;
    case OPT_TEXT: *(const char **)o->value = word; break;
    case OPT_CHOICE: {
        const int index = option_choice_index(o->argument, word);
        if (index < 0) usage_error("%s: '%s' is not one of %s", name, word, o->argument);
        *(int *)o->value = index;
        break;
    }
    case OPT_LIST: {
        OptionList *list = (OptionList *)o->value;
        list->items = (const char **)xrealloc(list->items, (size_t)list->count + 1, sizeof *list->items);
        list->items[list->count++] = word;
        break;
    }
    case OPT_INT: {
        char *end;
        errno = 0;
        const long long number = strtoll(word, &end, 10);
        static const char suffixes[] = "kmg";
        const char *suffix = *end ? strchr(suffixes, *end | 32) : NULL;
        if (end == word || option_blank(word) || (suffix ? end[1] : end[0]))
            usage_error("%s: '%s' is not a whole number", name, word);
        const double scaled = (double)number * (suffix ? pow(1024.0, (double)(suffix - suffixes + 1)) : 1.0);
        if (errno == ERANGE || scaled < o->low || scaled > o->high)
            usage_error("%s: %s is out of range [%.15g, %.15g]", name, word, o->low, o->high);
        *(int64_t *)o->value = suffix ? (int64_t)scaled : (int64_t)number;
        break;
    }
    case OPT_REAL: {
        char *end;
        const double number = strtod(word, &end);
        if (end == word || *end || option_blank(word) || isnan(number))
            usage_error("%s: '%s' is not a number", name, word);
        if (number < o->low || number > o->high)
            usage_error("%s: %s is out of range [%g, %g]", name, word, o->low, o->high);
        *(double *)o->value = number;
        break;
    }
    default: break;
    }
}

/* Whether the value of an option may be left out: its argument is named in brackets. The value is then "". */
static inline bool option_optional(const Option *o) { return o->argument && o->argument[0] == '['; }

static inline int option_has_argument(const Option *o) {
    return o->kind == OPT_FLAG ? no_argument : option_optional(o) ? optional_argument : required_argument;
}

/* Parses argv into the table's variables. Returns the index of the first argument that is not an option; such arguments
 * are moved to the end of argv. Does not return after --help or a bad command line. */
static inline int options_parse(const Option *table, const OptionAbout *about, int argc, char **argv) {
    struct option longs[2 * OPTIONS_MAX + 2];
    const Option *which[2 * OPTIONS_MAX + 2];
    char shorts[3 * OPTIONS_MAX + 3] = ":", negations[OPTIONS_MAX][64];
    int n = 0, flags = 0;
    size_t s = 1;
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (o->kind == OPT_GROUP) continue;
        which[n] = o;
        longs[n] = (struct option){o->name, option_has_argument(o), NULL, 1000 + n};
        n++;
        if (o->kind == OPT_FLAG) {
            snprintf(negations[flags], sizeof negations[flags], "no-%s", o->name);
            which[n] = NULL; /* negates the preceding flag */
            longs[n] = (struct option){negations[flags++], no_argument, NULL, 1000 + n};
            n++;
        }
        if (o->letter) {
            shorts[s++] = o->letter;
            if (o->kind != OPT_FLAG) shorts[s++] = ':';
        }
    }
    longs[n++] = (struct option){"help", no_argument, NULL, 'h' + 256};
    longs[n] = (struct option){NULL, 0, NULL, 0};
    shorts[s++] = 'h';
    shorts[s] = 0;
    opterr = 0;
    optind = 0;
    for (;;) {
        const int at = optind > 0 ? optind : 1, c = getopt_long(argc, argv, shorts, longs, NULL);
        if (c == -1) return optind;
        if (c == 'h' || c == 'h' + 256) {
            options_help(table, about);
            exit(ferror(stdout) || fflush(stdout) ? 1 : 0);
        }
        if (c == ':') usage_error("%s: needs a value", argv[optind - 1 < argc ? optind - 1 : at]);
        if (c == '?') {
            const char *word = argv[optind - 1 < argc ? optind - 1 : at];
            if (optopt && optopt < 256) usage_error("-%c: unknown option", optopt);
            usage_error("%s: unknown or ambiguous option, or one that takes no value", word);
        }
        const Option *o = NULL;
        bool negated = false;
        if (c >= 1000) {
            o = which[c - 1000];
            if (!o) {
                o = which[c - 1001];
                negated = true;
            }
        } else
            for (const Option *t = table; t->kind != OPT_END; t++)
                if (t->kind != OPT_GROUP && t->letter == c) o = t;
        if (option_optional(o) && !optarg && optind < argc && argv[optind][0] != '-') optarg = argv[optind++];
        option_store(o, optarg ? optarg : "", negated);
    }
}

/* Like options_parse(), for a program that takes only options: any other argument is a bad command line. */
static inline void options_parse_all(const Option *table, const OptionAbout *about, int argc, char **argv) {
    const int first = options_parse(table, about, argc, argv);
    if (first < argc) usage_error("%s: unexpected argument", argv[first]);
}

/* Prints the configuration to standard error: a table of all options with their values, including defaults. */
static inline void options_print(const Option *table) {
    for (const Option *o = table; o->kind != OPT_END; o++) {
        char value[256];
        if (o->kind == OPT_GROUP) {
            fprintf(stderr, "-- %s\n", o->name);
            continue;
        }
        option_value(o, value, sizeof value);
        fprintf(stderr, "| %-28s | %-40s |\n", o->name, value[0] ? value : "(none)");
    }
}

#endif

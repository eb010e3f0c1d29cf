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
 * The value of a variable before parsing is the default that --help shows. A number before parsing that is outside
 * [low, high] stands for an option that is not set; then the help text says what that means. A numeric argument must
 * consist of the number alone ("1e-3x" is rejected) and be in [low, high]. Integers also accept a suffix k, m or g
 * (powers of 1024). A flag accepts --name and --no-name; --help shows --[no-]name with a help text that describes
 * --name. A choice stores its index. An OPTION_LIST may be repeated; of any other option that is given twice the last
 * value counts, with a warning. As in getopt_long, options may be abbreviated and mixed with other arguments; `_` reads
 * as `-` in their names, and the names that peers use are accepted (options_alias). option_given() says
 * whether an option was given, and options_refuse_unused() ends a program that was given an option without effect.
 *
 * Every program has -h/--help, --version and --config FILE, which print to standard output and exit with status 0, or
 * read a file of options (config_file.h). What the command line gives counts, not the file. A bad command line or file
 * prints one line to standard error and exits with status 2.
 */
#ifndef LLMC_BASE_OPTIONS_H
#define LLMC_BASE_OPTIONS_H

#include "config_file.h" /* config_writer_value, ConfigEntry, ConfigFile, ConfigWriter, ... */
#include "error.h"       /* usage_error, Error, error_set, NORETURN, ... */
#include "suggest.h"     /* suggest */
#include "terminal.h"    /* terminal_wrap, terminal_width, terminal_columns */
#include "text.h"        /* TextBuffer, text_free, text_format, text_string, ... */
#include <getopt.h>
#include <math.h>

#ifndef LLMC_VERSION /* the version and the commit, from the Makefile */
#define LLMC_VERSION "of an unknown version"
#endif

typedef enum { OPT_END, OPT_GROUP, OPT_FLAG, OPT_INT, OPT_REAL, OPT_TEXT, OPT_CHOICE, OPT_LIST, OPT_ACTION } OptionKind;

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
    const char *text;  /* what the program does; lines that begin with two blanks are examples */
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

enum { OPTIONS_MAX = 256 }; /* options and groups of a table */

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

/* ---- values ---------------------------------------------------------------------------------------------------- */

/* What options_parse() keeps of each option of its table, in the table's order. */
typedef struct OptionState {
    union {
        bool flag;
        int64_t integer;
        double real;
        const char *text;
        int choice;
        OptionList list;
    } standard;      /* the value before parsing */
    bool in_command; /* given on the command line */
    bool in_file;    /* given in the file of --config */
} OptionState;

/* The states of the program's options. */
static inline OptionState *option_states(void) {
    static OptionState states[OPTIONS_MAX];
    return states;
}

/* The table that was parsed last, or NULL. */
static inline const Option **options_parsed(void) {
    static const Option *table;
    return &table;
}

/* Whether the option of this variable was given, whatever its value. */
static inline bool option_given(const void *value) {
    const Option *table = *options_parsed();
    for (int i = 0; table && table[i].kind != OPT_END; i++)
        if (table[i].kind != OPT_GROUP && table[i].value == value)
            return option_states()[i].in_command || option_states()[i].in_file;
    return false;
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

static inline size_t option_size(const Option *o) {
    static const size_t size[] = {
        [OPT_FLAG] = sizeof(bool),         [OPT_INT] = sizeof(int64_t), [OPT_REAL] = sizeof(double),
        [OPT_TEXT] = sizeof(const char *), [OPT_CHOICE] = sizeof(int),  [OPT_LIST] = sizeof(OptionList)};
    return size[o->kind];
}

/* Whether the option has no value: a text or list that was not given, or a number outside the option's range. */
static inline bool option_unset(const Option *o) {
    switch (o->kind) {
    case OPT_INT: return *(int64_t *)o->value < (int64_t)o->low || (double)*(int64_t *)o->value > o->high;
    case OPT_REAL: return !(*(double *)o->value >= o->low && *(double *)o->value <= o->high);
    case OPT_TEXT: return !*(const char **)o->value;
    case OPT_LIST: return !((const OptionList *)o->value)->count;
    default: return false;
    }
}

/* Formats a number with `digits` significant digits; 0: as many as read back as the same number. */
static inline void option_number(double number, int digits, char *text, size_t size) {
    snprintf(text, size, "%.*g", digits ? digits : 15, number);
    for (int more = 16; !digits && more <= 17 && strtod(text, NULL) != number; more++)
        snprintf(text, size, "%.*g", more, number);
}

/* Formats the value, whole, as the text of `out`, which is returned: "" for an option without a value. */
static inline const char *option_value(const Option *o, TextBuffer *out) {
    char text[80];
    text_clear(out);
    if (o->kind == OPT_GROUP || option_unset(o)) return out->text;
    switch (o->kind) {
    case OPT_FLAG: text_string(out, *(bool *)o->value ? "true" : "false"); break;
    case OPT_INT: text_format(out, "%lld", (long long)*(int64_t *)o->value); break;
    case OPT_REAL:
        option_number(*(double *)o->value, 9, text, sizeof text);
        text_string(out, text);
        break;
    case OPT_TEXT: text_string(out, *(const char **)o->value); break;
    case OPT_CHOICE:
        option_choice_name(o->argument, *(int *)o->value, text, sizeof text);
        text_string(out, text);
        break;
    case OPT_LIST: {
        const OptionList *list = (const OptionList *)o->value;
        for (int i = 0; i < list->count; i++) text_format(out, "%s%s", i ? " " : "", list->items[i]);
        break;
    }
    default: break;
    }
    return out->text;
}

/* Formats the value before parsing of option i of the table. */
static inline const char *option_default(const Option *table, int i, TextBuffer *out) {
    Option o = table[i];
    o.value = &option_states()[i].standard;
    return option_value(&o, out);
}

/* strtoll() and strtod() skip blanks before a number. Such blanks are rejected here, as are blanks after a number. */
static inline bool option_blank(const char *word) { return *word == ' ' || (*word >= '\t' && *word <= '\r'); }

static inline bool option_store_int(const Option *o, const char *word, Error *e) {
    char *end;
    errno = 0;
    const long long number = strtoll(word, &end, 10);
    static const char suffixes[] = "kmg";
    const char *suffix = *end ? strchr(suffixes, *end | 32) : NULL;
    if (end == word || option_blank(word) || (suffix ? end[1] : end[0]))
        return error_set(e, "'%s' is not a whole number", word);
    const double scaled = (double)number * (suffix ? pow(1024.0, (double)(suffix - suffixes + 1)) : 1.0);
    if (errno == ERANGE || scaled < o->low || scaled > o->high)
        return error_set(e, "%s is out of range [%.15g, %.15g]", word, o->low, o->high);
    *(int64_t *)o->value = suffix ? (int64_t)scaled : (int64_t)number;
    return true;
}

static inline bool option_store_real(const Option *o, const char *word, Error *e) {
    char *end;
    const double number = strtod(word, &end);
    if (end == word || *end || option_blank(word) || isnan(number)) return error_set(e, "'%s' is not a number", word);
    if (number < o->low || number > o->high) return error_set(e, "%s is out of range [%g, %g]", word, o->low, o->high);
    *(double *)o->value = number;
    return true;
}

/* Stores the word's value in the option's variable. A flag's word is NULL (true), or as in YAML. */
static inline bool option_store(const Option *o, const char *word, Error *e) {
    switch (o->kind) {
    case OPT_FLAG: {
        const int truth = word ? option_choice_index("false|no|off|False|No|Off|true|yes|on|True|Yes|On", word) : 6;
        if (truth < 0) return error_set(e, "'%s' is neither true nor false", word);
        *(bool *)o->value = truth >= 6;
        return true;
    }
    case OPT_TEXT: *(const char **)o->value = word; return true;
    case OPT_CHOICE: {
        const int index = option_choice_index(o->argument, word);
        if (index < 0) return error_set(e, "'%s' is not one of %s", word, o->argument);
        *(int *)o->value = index;
        return true;
    }
    case OPT_LIST: {
        OptionList *list = (OptionList *)o->value;
        list->items = (const char **)xrealloc(list->items, (size_t)list->count + 1, sizeof *list->items);
        list->items[list->count++] = word;
        return true;
    }
    case OPT_INT: return option_store_int(o, word, e);
    case OPT_REAL: return option_store_real(o, word, e);
    default: return true;
    }
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

/* Names that TRL, transformers, OpenRLHF, verl or vLLM use for an option, and its name here. */
static inline const char *options_alias(size_t i, const char **name) {
    static const char *const aliases[][2] = {{"lr", "learning-rate"},
                                             {"model", "checkpoint"},
                                             {"model-name-or-path", "checkpoint"},
                                             {"pretrain", "checkpoint"},
                                             {"dataset", "input"},
                                             {"train-file", "input"},
                                             {"eval-dataset", "val"},
                                             {"validation-file", "val"},
                                             {"epochs", "num-train-epochs"},
                                             {"max-epochs", "num-train-epochs"},
                                             {"max-seq-length", "max-length"},
                                             {"max-len", "max-length"},
                                             {"warmup-ratio", "warmup-steps"},
                                             {"lr-scheduler", "lr-scheduler-type"},
                                             {"adam-eps", "adam-epsilon"},
                                             {"train-batch-size", "per-device-train-batch-size"},
                                             {"batch-size", "per-device-train-batch-size"},
                                             {"lora-r", "lora-rank"},
                                             {"lora-target-modules", "lora-targets"},
                                             {"resume-from-checkpoint", "resume"},
                                             {"logging-dir", "tensorboard"},
                                             {"ref-model", "reference"},
                                             {"reward-model-path", "reward-model"},
                                             {"n-samples-per-prompt", "num-generations"},
                                             {"response-length", "max-completion-length"},
                                             {"generate-max-len", "max-completion-length"},
                                             {"prompt-max-len", "max-prompt-length"},
                                             {"init-kl-coef", "kl-coef"},
                                             {"max-tokens", "max-new-tokens"},
                                             {"temp", "temperature"},
                                             {"eval-prompts", "max-eval-samples"}};
    if (i >= sizeof aliases / sizeof *aliases) return NULL;
    *name = aliases[i][1];
    return aliases[i][0];
}

enum { OPTION_NAME_MAX = 56, OPTION_NAMES_MAX = 6 * OPTIONS_MAX, OPTION_LONG = 1000 };
enum { OPTION_HELP = 256, OPTION_VERSION, OPTION_CONFIG };

/* All names that a command line may use, for getopt_long(). The value of a name is OPTION_LONG + twice the index of its
 * option in the table, and 1 more if the name negates a flag. */
typedef struct OptionNames {
    int count;
    struct option longs[OPTION_NAMES_MAX];
    char text[OPTION_NAMES_MAX][OPTION_NAME_MAX];
} OptionNames;

/* Adds a name and, if it has a `-`, the name with `_` instead. */
static inline void option_add_name(OptionNames *names, const char *prefix, const char *name, int argument, int value) {
    for (int underscores = 0; underscores < 2; underscores++) {
        char *text = names->text[names->count];
        if (names->count + 1 >= OPTION_NAMES_MAX) die("the table of options has too many names");
        snprintf(text, OPTION_NAME_MAX, "%s%s", prefix, name);
        if (underscores && !strchr(text, '-')) return;
        for (char *c = text; underscores && *c; c++)
            if (*c == '-') *c = '_';
        names->longs[names->count++] = (struct option){text, argument, NULL, value};
    }
}

/* Whether the value of an option may be left out: its argument is named in brackets. The value is then "". */
static inline bool option_optional(const Option *o) { return o->argument && o->argument[0] == '['; }

static inline int option_has_argument(const Option *o) {
    return o->kind == OPT_FLAG ? no_argument : option_optional(o) ? optional_argument : required_argument;
}

/* Copies the first n bytes of a word that may be the name of an option, with `-` for `_`. Longer words are cut. */
static inline void option_dashed(char name[OPTION_NAME_MAX], const char *word, size_t n) {
    snprintf(name, OPTION_NAME_MAX, "%.*s", (int)n, word);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = '-';
}

/* The index of the option with exactly this name, or of the one that it is an alias of, or -1. `_` reads as `-`. */
static inline int option_find(const Option *table, const char *word) {
    char name[OPTION_NAME_MAX];
    const char *stands_for, *alias;
    if (strlen(word) >= sizeof name) return -1;
    option_dashed(name, word, strlen(word));
    for (int i = 0; table[i].kind != OPT_END; i++)
        if (table[i].kind != OPT_GROUP && !strcmp(table[i].name, name)) return i;
    for (size_t k = 0; (alias = options_alias(k, &stands_for)); k++)
        if (!strcmp(alias, name)) return option_find(table, stands_for);
    return -1;
}

static inline void option_add_names(OptionNames *names, const Option *table) {
    const char *stands_for, *alias;
    for (int i = 0; table[i].kind != OPT_END; i++) {
        const Option *o = &table[i];
        if (o->kind == OPT_GROUP) continue;
        const int value = OPTION_LONG + 2 * i;
        option_add_name(names, "", o->name, option_has_argument(o), value);
        if (o->kind == OPT_FLAG) option_add_name(names, "no-", o->name, no_argument, value + 1);
    }
    option_add_name(names, "", "help", no_argument, OPTION_HELP);
    option_add_name(names, "", "version", no_argument, OPTION_VERSION);
    option_add_name(names, "", "config", required_argument, OPTION_CONFIG);
    for (size_t k = 0; (alias = options_alias(k, &stands_for)); k++) {
        const int i = option_find(table, alias);
        if (i >= 0 && !strcmp(table[i].name, stands_for))
            option_add_name(names, "", alias, option_has_argument(&table[i]), OPTION_LONG + 2 * i);
    }
    names->longs[names->count] = (struct option){NULL, 0, NULL, 0};
}

/* The nearest name to a misspelt one, or NULL. */
static inline const char *option_suggest(const OptionNames *names, const char *word) {
    const char *known[OPTION_NAMES_MAX];
    char name[OPTION_NAME_MAX];
    int count = 0;
    option_dashed(name, word, strlen(word));
    for (int i = 0; i < names->count; i++)
        if (!strchr(names->text[i], '_')) known[count++] = names->text[i];
    return suggest(name, known, count);
}

/* Ends the program for a long option that getopt_long() does not recognise: unknown, or the beginning of several names.
 * word: with -- at its beginning. */
static inline NORETURN void option_unknown(const OptionNames *names, const char *word) {
    char all[256] = "", name[OPTION_NAME_MAX];
    size_t used = 0;
    int found = 0;
    option_dashed(name, word + 2, strcspn(word + 2, "="));
    for (int i = 0; *name && i < names->count; i++) {
        if (strncmp(names->text[i], name, strlen(name)) || strchr(names->text[i], '_')) continue;
        if (used < sizeof all)
            used += (size_t)snprintf(all + used, sizeof all - used, "%s--%s", found ? ", " : "", names->text[i]);
        found++;
    }
    if (found > 1) usage_error("--%s: ambiguous, it may be %s%s", name, all, used < sizeof all ? "" : "...");
    const char *near = option_suggest(names, name);
    if (near) usage_error("--%s: unknown option (did you mean --%s?)", name, near);
    usage_error("--%s: unknown option", name);
}

/* ---- help ------------------------------------------------------------------------------------------------------ */

/* The options of every program, for --help. */
static inline const Option *options_common(void) {
    static const Option common[] = {
        OPTION_GROUP("Common"),
        OPTION_TEXT("config", 0, NULL, "FILE", "read options from a YAML file; the command line counts more"),
        {OPT_ACTION, "version", 0, NULL, 0, 0, NULL, "print the version and exit"},
        {OPT_ACTION, "help", 'h', NULL, 0, 0, NULL, "print this help and exit"},
        OPTION_END};
    return common;
}

/* Prints one option, its help text and its default, wrapped to the width. */
static inline void option_help(const Option *o, const char *standard, int width) {
    const int indent = width < 72 ? 10 : 35;
    char left[96], text[2048];
    const char *argument = o->kind == OPT_CHOICE ? "NAME" : o->argument;
    int n = o->letter ? snprintf(left, sizeof left, "  -%c, ", o->letter) : snprintf(left, sizeof left, "      ");
    n += snprintf(left + n, sizeof left - (size_t)n, "--%s%s%s%s", o->kind == OPT_FLAG ? "[no-]" : "", o->name,
                  argument ? " " : "", argument ? argument : "");
    size_t used = (size_t)snprintf(text, sizeof text, "%s", o->help);
    if (o->kind == OPT_CHOICE) used += (size_t)snprintf(text + used, sizeof text - used, ": %s", o->argument);
    if (*standard && used < sizeof text) snprintf(text + used, sizeof text - used, " (default: %s)", standard);
    fputs(left, stdout);
    if (n >= indent) printf("\n%*s", indent, "");
    else printf("%*s", indent - n, "");
    terminal_wrap(stdout, text, indent, indent, width);
}

/* The length of the name of a program at the beginning of the text, with ./ or ./data/ before it, or 0. *name: where
 * the name itself begins. */
static inline size_t options_program(const char *text, const char **name) {
    static const char *const programs =
        "train_sft|train_rm|train_ppo|train_dpo|train_grpo|generate|evaluate|make_shard|"
        "make_tasks|make_prefs|make_corpus|pick|show";
    char word[16];
    *name = text;
    if (!strncmp(*name, "./", 2)) *name += 2;
    if (!strncmp(*name, "data/", 5)) *name += 5;
    const size_t n = strspn(*name, "abcdefghijklmnopqrstuvwxyz_");
    if (!n || n >= sizeof word || (*name)[n] == '.' || (*name)[n] == '/') return 0;
    snprintf(word, sizeof word, "%.*s", (int)n, *name);
    return option_choice_index(programs, word) < 0 ? 0 : (size_t)(*name - text) + n;
}

/* Prints an example. Installed programs have other names (llmc-train-sft); if this is one, so do those in the example. A
 * line that is too long continues on the next. */
static inline void options_example(const char *line, size_t n, int width) {
    char text[1024];
    const char *name;
    size_t used = 0;
    const bool installed = !strncmp(program_invocation_short_name, "llmc-", 5);
    for (size_t i = 0; i < n && used + 24 < sizeof text;) {
        const bool begins = installed && (!i || line[i - 1] == ' ' || line[i - 1] == '\'');
        const size_t length = begins ? options_program(line + i, &name) : 0;
        if (!length) {
            text[used++] = line[i++];
            continue;
        }
        used += (size_t)sprintf(text + used, "llmc-");
        for (; name < line + i + length; name++) text[used++] = *name == '_' ? '-' : *name;
        i += length;
    }
    text[used] = 0;
    const char *rest = text;
    for (int left = width; terminal_columns(rest, strlen(rest)) > left; left = width - 6) {
        int cut = 0;
        for (int i = 8; i <= left - 2 && rest[i]; i++)
            if (rest[i] == ' ' && rest[i - 1] != ' ' && rest[i - 1] != '\\') cut = i;
        if (!cut) break;
        printf("%.*s \\\n      ", cut, rest);
        rest += cut + 1;
    }
    puts(rest);
}

/* Prints the description: paragraphs are wrapped to the width, and examples stay as they are. */
static inline void options_about(const char *text, int width) {
    char paragraph[4096];
    size_t used = 0;
    while (*text) {
        const size_t n = strcspn(text, "\n");
        const bool plain = n && strncmp(text, "  ", 2);
        if (plain && used + n + 2 < sizeof paragraph)
            used +=
                (size_t)snprintf(paragraph + used, sizeof paragraph - used, "%s%.*s", used ? " " : "", (int)n, text);
        text += n + (text[n] == '\n');
        if (used && (!plain || !*text)) {
            terminal_wrap(stdout, paragraph, 0, 0, width);
            used = 0;
        }
        if (!plain) options_example(text - n - (text[-1] == '\n'), n, width);
    }
}

static inline void options_help(const Option *table, const OptionAbout *about) {
    const int width = terminal_width(STDOUT_FILENO);
    TextBuffer value = {0};
    text_format(&value, "Usage: %s ", program_invocation_short_name);
    fputs(value.text, stdout);
    terminal_wrap(stdout, about->usage, (int)value.length, 7, width);
    putchar('\n');
    options_about(about->text, width);
    for (int i = 0; table[i].kind != OPT_END; i++) {
        if (table[i].kind == OPT_GROUP) {
            text_clear(&value);
            text_format(&value, "%s:", table[i].name);
            putchar('\n');
            terminal_wrap(stdout, value.text, 0, 2, width);
            continue;
        }
        const char *standard = option_default(table, i, &value);
        if (table[i].kind == OPT_FLAG) standard = option_states()[i].standard.flag ? "yes" : "no";
        option_help(&table[i], standard, width);
    }
    const Option *common = options_common();
    printf("\n%s:\n", common[0].name);
    for (int i = 1; common[i].kind != OPT_END; i++) option_help(&common[i], "", width);
    text_free(&value);
}

/* ---- the file of --config -------------------------------------------------------------------------------------- */

/* Stores the values of one line of the file. A list is for an OPTION_LIST, or for a text that is itself a LIST separated
 * by commas. */
static inline void options_take_entry(const Option *o, const ConfigFile *f, const ConfigEntry *entry) {
    Error e;
    const bool joins = o->kind == OPT_TEXT && !strcmp(o->argument, "LIST");
    if (entry->list && o->kind != OPT_LIST && !joins)
        usage_error("%s:%d: %s: a list, expected one value", f->path, entry->line, entry->key);
    if (joins && entry->list) {
        size_t length = 1;
        for (int i = 0; i < entry->count; i++) length += strlen(entry->values[i]) + 1;
        char *text = (char *)xcalloc(length, 1);
        for (int i = 0; i < entry->count; i++) sprintf(text + strlen(text), "%s%s", i ? "," : "", entry->values[i]);
        *(const char **)o->value = text;
        return;
    }
    for (int i = 0; i < entry->count; i++) {
        const char *word = o->kind == OPT_TEXT || o->kind == OPT_LIST ? xstrdup(entry->values[i]) : entry->values[i];
        if (!option_store(o, word, &e)) usage_error("%s:%d: %s: %s", f->path, entry->line, entry->key, e.text);
    }
}

/* The path that --config gave, or NULL. */
static inline const char **options_config(void) {
    static const char *path;
    return &path;
}

/* Reads the file and stores the values of the options that the command line does not give. */
static inline void options_take_file(const Option *table, const OptionNames *names, const char *path) {
    Error e;
    ConfigFile f;
    OptionState *states = option_states();
    bool seen[OPTIONS_MAX] = {false};
    if (!config_file_read(&f, path, &e)) usage_error("--config: %s", e.text);
    for (int i = 0; i < f.count; i++) {
        const ConfigEntry *entry = &f.entries[i];
        const int found = option_find(table, entry->key);
        const char *near = found < 0 ? option_suggest(names, entry->key) : NULL;
        if (near) usage_error("%s:%d: '%s' is no option (did you mean %s?)", path, entry->line, entry->key, near);
        if (found < 0) usage_error("%s:%d: '%s' is no option", path, entry->line, entry->key);
        if (seen[found])
            usage_error("%s:%d: '%s' is given twice, under two names", path, entry->line, table[found].name);
        seen[found] = true;
        if (!entry->count || states[found].in_command) continue;
        states[found].in_file = !entry->standard;
        options_take_entry(&table[found], &f, entry);
    }
    config_file_free(&f);
}

static inline void option_write(ConfigWriter *w, const Option *o) {
    char number[64];
    TextBuffer value = {0};
    config_writer_key(w, o->name);
    if (o->kind == OPT_LIST) {
        const OptionList *list = (const OptionList *)o->value;
        config_writer_list(w);
        for (int i = 0; i < list->count; i++) config_writer_value(w, list->items[i], true);
        config_writer_list_end(w);
    } else if (o->kind == OPT_TEXT) {
        config_writer_value(w, *(const char **)o->value, true);
    } else if (o->kind == OPT_REAL) {
        option_number(*(double *)o->value, 0, number, sizeof number);
        config_writer_value(w, number, false);
    } else {
        config_writer_value(w, option_value(o, &value), o->kind == OPT_CHOICE);
    }
    text_free(&value);
}

/* Writes the options that have a value to a file that --config reads: first those that were given, then the others as
 * `defaults`. without: whether an option is left out; NULL: none is. */
static inline bool options_write(const Option *table, const char *path, bool (*without)(const Option *), Error *e) {
    ConfigWriter w;
    char comment[256];
    snprintf(comment, sizeof comment, "%s %s", program_invocation_short_name, LLMC_VERSION);
    if (!config_writer_open(&w, path, comment, e)) return false;
    for (int given = 1; given >= 0; given--) {
        if (!given) config_writer_defaults(&w);
        for (const Option *o = table; o->kind != OPT_END; o++) {
            if (o->kind == OPT_GROUP || option_unset(o) || (without && without(o))) continue;
            if (option_given(o->value) == given) option_write(&w, o);
        }
    }
    return config_writer_close(&w, e);
}

/* ---- parsing --------------------------------------------------------------------------------------------------- */

/* Stores an option of the command line. Of an option that is given again with another value the last value counts. */
static inline void options_take(const Option *table, int i, const char *word) {
    Error e;
    const Option *o = &table[i];
    OptionState *state = &option_states()[i];
    char name[80];
    TextBuffer before = {0}, after = {0};
    if (o->letter) snprintf(name, sizeof name, "-%c/--%s", o->letter, o->name);
    else snprintf(name, sizeof name, "--%s", o->name);
    option_value(o, &before);
    if (!option_store(o, word, &e)) usage_error("%s: %s", name, e.text);
    option_value(o, &after);
    if (state->in_command && o->kind != OPT_LIST && strcmp(before.text, after.text))
        warn("%s: given twice, first as %s; %s counts", name, before.length ? before.text : "''",
             after.length ? after.text : "''");
    state->in_command = true;
    text_free(&before), text_free(&after);
}

/* Remembers the default of every option, and the letters for getopt_long(). */
static inline void options_begin(const Option *table, char *letters) {
    size_t n = 0;
    letters[n++] = ':';
    *options_parsed() = table;
    for (int i = 0; table[i].kind != OPT_END; i++) {
        if (i == OPTIONS_MAX) die("the table of options is longer than OPTIONS_MAX");
        OptionState *state = &option_states()[i];
        *state = (OptionState){0};
        if (table[i].kind == OPT_GROUP) continue;
        memcpy(&state->standard, table[i].value, option_size(&table[i]));
        if (!table[i].letter) continue;
        letters[n++] = table[i].letter;
        if (table[i].kind != OPT_FLAG) letters[n++] = ':';
    }
    letters[n++] = 'h';
    letters[n] = 0;
}

/* Ends the program for a word that getopt_long() refuses. c: what it returned. */
static inline NORETURN void options_refuse(const OptionNames *names, int c, const char *word) {
    if (c == ':') usage_error("%s: needs a value", word);
    if (optopt && optopt < 256) usage_error("-%c: unknown option", optopt);
    if (optopt) usage_error("%.*s: takes no value", (int)strcspn(word, "="), word);
    option_unknown(names, word);
}

/* The index of the option with this letter, which the table has. */
static inline int option_of_letter(const Option *table, int letter) {
    int i = 0;
    while (table[i].kind == OPT_GROUP || table[i].letter != letter) i++;
    return i;
}

static inline NORETURN void options_exit(void) { exit(ferror(stdout) || fflush(stdout) ? 1 : 0); }

/* Parses argv into the table's variables. Returns the index of the first argument that is not an option; such arguments
 * are moved to the end of argv. Does not return after --help, --version or a bad command line. */
static inline int options_parse(const Option *table, const OptionAbout *about, int argc, char **argv) {
    static OptionNames names;
    char letters[2 * OPTIONS_MAX + 4];
    const char *config = NULL;
    names.count = 0;
    option_add_names(&names, table);
    options_begin(table, letters);
    opterr = 0;
    optind = 0;
    for (;;) {
        const int at = optind > 0 ? optind : 1, c = getopt_long(argc, argv, letters, names.longs, NULL);
        if (c == -1) break;
        switch (c) {
        case 'h':
        case OPTION_HELP: options_help(table, about); options_exit();
        case OPTION_VERSION: printf("%s (llmc) %s\n", program_invocation_short_name, LLMC_VERSION); options_exit();
        case OPTION_CONFIG:
            if (config && strcmp(config, optarg)) usage_error("--config: given twice; put all options into one file");
            config = optarg;
            continue;
        case ':':
        case '?': options_refuse(&names, c, argv[optind - 1 < argc ? optind - 1 : at]);
        default: break;
        }
        const int i = c < OPTION_LONG ? option_of_letter(table, c) : (c - OPTION_LONG) / 2;
        const bool negated = c >= OPTION_LONG && c % 2;
        if (option_optional(&table[i]) && !optarg)
            optarg = optind < argc && argv[optind][0] != '-' ? argv[optind++] : (char *)"";
        options_take(table, i, table[i].kind != OPT_FLAG ? optarg : negated ? "false" : NULL);
    }
    const int first = optind;
    *options_config() = config;
    if (config) options_take_file(table, &names, config);
    return first;
}

/* Like options_parse(), for a program that takes only options: any other argument is a bad command line. */
static inline void options_parse_all(const Option *table, const OptionAbout *about, int argc, char **argv) {
    const int first = options_parse(table, about, argc, argv);
    if (first < argc) usage_error("%s: unexpected argument", argv[first]);
}

/* Prints the configuration to standard error: a table of all options with their values. A star marks those that were
 * given and differ from their default, which follows in parentheses. */
static inline void options_print(const Option *table) {
    enum { NAME = 29, INDENT = NAME + 7 };
    const int width = terminal_width(STDERR_FILENO);
    TextBuffer value = {0}, standard = {0};
    for (int i = 0; table[i].kind != OPT_END; i++) {
        const Option *o = &table[i];
        const OptionState *state = &option_states()[i];
        if (o->kind == OPT_GROUP) {
            fprintf(stderr, "-- %s\n", o->name);
            continue;
        }
        option_value(o, &value);
        option_default(table, i, &standard);
        const bool differs = (state->in_command || state->in_file) && strcmp(value.text, standard.text);
        if (!value.length) text_string(&value, "(not set)");
        if (differs && standard.length) text_format(&value, " (default: %s)", standard.text);
        fprintf(stderr, "%s %-*s | ", differs ? "*" : "|", NAME, o->name);
        terminal_wrap(stderr, value.text, NAME + 5, INDENT, width);
    }
    text_free(&value), text_free(&standard);
}

#endif

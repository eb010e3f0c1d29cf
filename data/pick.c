/* pick.c - chooses among rows and makes training data of them: filters, groups, pairs, duplicates.
 *
 *     data/pick -i samples.jsonl --where 'right and finished' --group index --max-per-group 4 --dedupe text --as sft -o rft.jsonl
 *     data/pick -i samples.jsonl --group index --pairs reward --min-margin 0.2 -o prefs.jsonl
 *     data/pick -i samples.jsonl --group index --rankings reward -o rankings.jsonl
 *     data/pick -i labelled.jsonl --pairs p --tie 0.1 -o prefs.jsonl
 *
 * Rows are JSON lines, such as those that generate and evaluate write. Each row passes these steps in this order, whatever
 * the order of the options:
 *
 *     --join, --set                         fields are added
 *     --where                               rows that do not meet the condition are dropped
 *     --spin, --unpaired, --pairs without groups    rows that cannot become such a row are dropped
 *     --dedupe, --decontaminate, --drop-near    rows that repeat an earlier row or a test set are dropped
 *     --rate                                groups are dropped by their share of right rows, over all rows that were read
 *     --best, --max-per-group               of each group some rows stay
 *     --pairs, --rankings                   each group becomes pairs or a ranking
 *     --sample, --shuffle                   of all these some stay, in random order
 *     --rename, --drop, --as                fields are renamed and left out
 *
 * Without a step that needs whole groups or all rows, each row is written as it is read. Otherwise rows are kept in memory
 * as text. Random choices are functions of (seed, number of the row), so equal input gives equal output. The output has the
 * order of the input unless it is shuffled.
 */
#include "../llmc/base/error.h"     /* Error, usage_error, warn, error_set, ... */
#include "../llmc/base/io.h"        /* XXH3_64bits, XXH3_64bits_withSeed, writer_write, Writer, ... */
#include "../llmc/base/json_scan.h" /* json_scan_want, JsonScan, json_scan_free */
#include "../llmc/base/json_text.h" /* json_dump_short */
#include "../llmc/base/jsonl.h"     /* jsonl_error, jsonl_close, jsonl_next, jsonl_open, ... */
#include "../llmc/base/options.h"   /* OPTION_TEXT, OPTION_FLAG, OPTION_INT, OPTION_GROUP, ... */
#include "../llmc/base/output.h"    /* output_add, OUTPUT_READ, OUTPUT_WRITTEN, OutputPaths, ... */
#include "../llmc/base/random.h"    /* RANDOM_PICK, random_bits */
#include "../llmc/base/text.h"      /* TextBuffer, text_append, text_clear, text_free */
#include "../llmc/records/inputs.h" /* Inputs, inputs_add, inputs_check, inputs_close, ... */
#include "condition.h"              /* Condition, condition_free, condition_holds, condition_parse, ... */
#include "keys.h"                   /* keys_at, keys_free, Keys, keys_bytes, ... */
#include "row_fields.h"             /* row_get, FIELD_COMPLETION, RowFieldId, FIELD_MESSAGES, ... */
#include "words.h"                  /* words_split, Contamination, Words, words_free, ... */
#include <signal.h>
#include <unistd.h>

enum { AS_AUTO, AS_ROWS, AS_SFT, AS_PROMPT, AS_PREFERENCE, AS_RANKING, AS_UNPAIRED };
#define AS_CHOICES "auto|rows|sft|prompt|preference|ranking|unpaired"

static struct {
    OptionList inputs, set, rename, drop;
    const char *output, *where, *group, *rate, *by, *pairs, *rankings, *chosen_field, *dedupe, *near_field,
        *decontaminate, *join, *on;
    int64_t max_per_group, best, pairs_per_group, ngram, sample, seed, max_memory;
    double min_margin, tie, near, overlap;
    bool all_pairs, spin, unpaired, shuffle, skip_bad, stats, quiet;
    int as;
} o = {.output = "-", .near_field = "completion", .chosen_field = "answer", .near = -1, .ngram = 8};

static const Option options[] = {
    // clang-format off
    OPTION_GROUP("Input and output"),
    OPTION_LIST  ("input",  'i', &o.inputs, "FILE",
                  "JSON lines or a JSON array, also .gz or .zst, or a pattern; - is standard input; may be repeated"),
    OPTION_TEXT  ("output", 'o', &o.output, "FILE", "JSON lines; - is standard output, .zst compresses"),
    OPTION_CHOICE("as",      0,  &o.as,     AS_CHOICES,
                  "fields that are written; auto: those of the pairs, rankings or labels that are made, else all"),
    OPTION_FLAG  ("skip-bad", 0, &o.skip_bad, "count and skip invalid lines instead of stopping at the first"),
    OPTION_FLAG  ("stats",    0, &o.stats,  "print the sizes of groups and the means of rewards and lengths"),
    OPTION_FLAG  ("quiet",   'q', &o.quiet, "print no summary, only warnings"),
    OPTION_INT   ("seed",     0, &o.seed,   0, 9007199254740992.0, "random seed"),
    OPTION_INT   ("max-memory", 0, &o.max_memory, 0, 1e15,
                  "bytes that kept rows may take, also 4g; 0: half of the machine's memory"),
    OPTION_GROUP("Fields"),
    OPTION_TEXT  ("join",     0, &o.join,   "FILE", "add the fields of the row of FILE that has the same --on"),
    OPTION_TEXT  ("on",       0, &o.on,     "FIELD", "key of --join"),
    OPTION_LIST  ("set",      0, &o.set,    "NAME=TEXT",
                  "set a field to a text in which {field} is a field; {{ is a brace, \\n a newline"),
    OPTION_LIST  ("rename",   0, &o.rename, "OLD=NEW", "rename a field"),
    OPTION_LIST  ("drop",     0, &o.drop,   "NAMES", "leave out these fields, separated by commas"),
    OPTION_GROUP("Rows"),
    OPTION_TEXT  ("where",    0, &o.where,  "EXPR",
                  "keep rows that meet a condition, such as 'right and len(tokens) < 512'; see above"),
    OPTION_TEXT  ("dedupe",   0, &o.dedupe, "WHAT",
                  "drop rows that repeat one: text (prompt and completion), equations (of a completion to one prompt), "
                  "or a field"),
    OPTION_REAL  ("drop-near", 0, &o.near,  0, 1,
                  "drop rows whose ROUGE-L with an earlier row, of the same group, is above X; if unset, none"),
    OPTION_TEXT  ("near-field", 0, &o.near_field, "FIELD", "text that --drop-near compares"),
    OPTION_TEXT  ("decontaminate", 0, &o.decontaminate, "FILE",
                  "drop rows whose prompt or text shares an n-gram of words with a row of FILE"),
    OPTION_INT   ("ngram",    0, &o.ngram,  1, 1000, "words of the n-grams of --decontaminate"),
    OPTION_REAL  ("overlap",  0, &o.overlap, 0, 0.999,
                  "share of the words of a row of FILE that must be exceeded; 0: one n-gram is enough"),
    OPTION_INT   ("sample",   0, &o.sample, 0, 1e15, "keep N rows at random; 0: all"),
    OPTION_FLAG  ("shuffle",  0, &o.shuffle, "write the rows in random order"),
    OPTION_GROUP("Groups"),
    OPTION_TEXT  ("group",    0, &o.group,  "FIELD", "rows with an equal value belong together, such as index"),
    OPTION_TEXT  ("rate",     0, &o.rate,   "LOW,HIGH", "keep groups whose share of right rows is between these"),
    OPTION_INT   ("max-per-group", 0, &o.max_per_group, 0, 1e9, "keep at most N rows of a group, at random; 0: all"),
    OPTION_INT   ("best",     0, &o.best,   0, 1e9, "keep the N rows of a group with the highest --by; 0: all"),
    OPTION_TEXT  ("by",       0, &o.by,     "FIELD", "number by which --best chooses"),
    OPTION_GROUP("Pairs, rankings and labels"),
    OPTION_TEXT  ("pairs",    0, &o.pairs,  "FIELD",
                  "write the completions of a group with the highest and the lowest value as chosen and rejected; without "
                  "--group, FIELD is the probability that a row's chosen completion is better than its rejected one"),
    OPTION_REAL  ("tie",      0, &o.tie,    0, 0.5, "drop pairs whose probability is closer to 1/2 than this"),
    OPTION_REAL  ("min-margin", 0, &o.min_margin, 0, 1e300,
                  "the difference of a pair's values, or of neighbours in a ranking, must be above this"),
    OPTION_FLAG  ("all-pairs", 0, &o.all_pairs, "write all pairs of a group"),
    OPTION_INT   ("pairs-per-group", 0, &o.pairs_per_group, 0, 1e9,
                  "write N of all pairs of a group, at random; 0: the highest against the lowest"),
    OPTION_TEXT  ("rankings", 0, &o.rankings, "FIELD",
                  "write the completions of a group from the highest value to the lowest; of equal ones only the first"),
    OPTION_FLAG  ("spin",     0, &o.spin,   "write the reference answer as chosen, the completion as rejected"),
    OPTION_TEXT  ("chosen-field", 0, &o.chosen_field, "FIELD", "reference answer of --spin"),
    OPTION_FLAG  ("unpaired", 0, &o.unpaired, "write whether a completion is right as its label"),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "[options] -i FILE",
    "Chooses among rows of JSON, such as samples of a model, and makes training data of them.\n"
    "\n"
    "  pick -i samples.jsonl --where right --group index --max-per-group 4 --dedupe text --as sft -o rft.jsonl\n"
    "  pick -i samples.jsonl --group index --rate 0.2,0.8 --max-per-group 1 --as prompt -o harder.jsonl\n"
    "  pick -i samples.jsonl --group index --pairs reward --min-margin 0.2 -o prefs.jsonl\n"
    "  pick -i samples.jsonl --group index --max-per-group 4 --rankings reward -o rankings.jsonl\n"
    "  pick -i new.jsonl -i seeds.jsonl --near-field prompt --drop-near 0.7 --decontaminate test.jsonl -o pool.jsonl\n"
    "\n"
    "A condition of --where compares fields, numbers and texts in quotes by == != < <= > >= and joins them by and, or,\n"
    "not and ( ). len(field) is the length of a text or a list, has(field) whether there is one, and\n"
    "matches(field, /re/) whether a text holds a pattern. A missing field is null, and a comparison with null is false."};

/* ---- state ----------------------------------------------------------------------------------------------------- */

/* A row that is kept. */
typedef struct Kept {
    char *text;
    int64_t number;   /* of the input row, from 0 */
    int64_t group;    /* number of its group, or -1 */
    double by, value; /* of --best, and of --pairs or --rankings; NaN: null */
    uint64_t said;    /* hash of the completion, with --rankings */
    int64_t next;     /* the row below it in its ranking, or -1 */
} Kept;

typedef struct Group {
    int64_t right, checked; /* over all rows that were read */
    int64_t rows, first;    /* that are kept; place of the first in `order` */
} Group;

/* A row to write: kept row a, the ranking that a leads, or the pair of a over b. */
typedef struct Unit {
    int64_t a, b; /* b: -1 */
    uint64_t rank;
} Unit;

/* Fields that the user names: NAME=TEXT of --set, OLD=NEW of --rename, or a name of --drop. */
typedef struct Named {
    struct NamedField {
        char *name;
        const char *text; /* of --drop NULL */
        bool seen;        /* of --drop: a row had the field */
    } * field;
    int count;
} Named;

static Inputs inputs;
static Named set, renamed, dropped;
static Condition condition;
static Writer out;
static bool opened;   /* out */
static Jsonl reader;  /* of the current file; names the row in messages */
static JsonScan scan; /* the fields that the steps read */
static bool scans;    /* they are known */
static double rate[2];
static bool collects; /* rows are kept */

static Kept *kept;
static Group *groups;
static Unit *units;
static int64_t kept_count, kept_capacity, group_count, group_capacity, unit_count, unit_capacity;
static size_t kept_bytes;
static Keys group_keys, seen;
static Near near_rows;
static Contamination tests;
static struct {
    Keys keys; /* 1 + index */
    json_t *rows;
} joined;

static struct {
    int64_t read, where, unlabelled, equal, tied, repeated, contaminated, near, rate, per_group, ties, valueless, level,
        twice, unsampled, unjoined, written;
    double reward, length;
    int64_t rewards, lengths;
} tally;

/* ---- fields ---------------------------------------------------------------------------------------------------- */

static const RowFields usual; /* the usual names of fields */

static NORETURN void fail(const Error *e) {
    if (opened) writer_abort(&out);
    die("%s", e->text);
}

/* The value of a row's completion: a text, a message or a list of messages; else NULL. */
static json_t *completion_of(json_t *row) { return row_peek(&usual, row, FIELD_COMPLETION); }

/* Appends the texts of a prompt, of messages or of a document. */
static void append_texts(TextBuffer *text, const json_t *value) {
    size_t i;
    json_t *item;
    if (json_is_string(value)) {
        text_append(text, json_string_value(value), json_string_length(value));
        text_append(text, "\n", 1);
    }
    json_array_foreach(value, i, item) append_texts(text, item);
    if (!json_is_object(value)) return;
    const json_t *content = json_object_get(value, "content");
    append_texts(text, content ? content : json_object_get(value, "value"));
}

/* Sets *text to the prompt of a row: its messages, or its prompt with its input, or its text. */
static void prompt_text(TextBuffer *text, json_t *row) {
    static const RowFieldId fields[] = {FIELD_MESSAGES, FIELD_PROMPT, FIELD_INPUT, FIELD_TEXT};
    text_clear(text);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const json_t *value = row_peek(&usual, row, fields[i]);
        if (value) append_texts(text, value);
        if (value && !i) return;
    }
}

/* Folds white space in place: runs become one blank, none is left at the ends. */
static size_t fold_blanks(char *text, size_t n) {
    size_t to = 0;
    for (size_t i = 0; i < n; i++) {
        const bool blank = text[i] == ' ' || (text[i] >= '\t' && text[i] <= '\r');
        if (!blank) text[to++] = text[i];
        else if (to && text[to - 1] != ' ') text[to++] = ' ';
    }
    if (to && text[to - 1] == ' ') to--;
    return to;
}

static uint64_t hash_value(const json_t *value) {
    if (json_is_string(value)) return XXH3_64bits_withSeed(json_string_value(value), json_string_length(value), 1);
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    const uint64_t hash = text ? XXH3_64bits(text, strlen(text)) : 0;
    free(text);
    return hash;
}

/* Sets *value to the number of a field: true is 1, null or no field NaN. */
static bool number_of(json_t *row, const char *field, double *value, Error *e) {
    const json_t *v = row_get(row, field);
    *value = json_is_boolean(v) ? json_is_true(v) : json_is_number(v) ? json_number_value(v) : NAN;
    return !v || json_is_boolean(v) || json_is_number(v) ||
           jsonl_error(&reader, field, e, "is %s, expected a number", jsonl_type(v));
}

/* ---- adding fields --------------------------------------------------------------------------------------------- */

static void open_join(void) {
    Error e;
    json_t *row;
    int more;
    if (!jsonl_open(&reader, o.join, false, &e)) fail(&e);
    joined.rows = json_array();
    while ((more = jsonl_next(&reader, &row, &e)) > 0) {
        bool fresh;
        const json_t *key = row_get(row, o.on);
        if (!key) {
            row_missing(&reader, row, o.on, "on", &e);
            fail(&e);
        }
        int64_t *at = keys_at(&joined.keys, hash_value(key), &fresh);
        if (!fresh) {
            jsonl_error(&reader, o.on, &e, "an earlier line has the same value, so --join cannot choose");
            fail(&e);
        }
        json_array_append(joined.rows, row);
        *at = (int64_t)json_array_size(joined.rows);
    }
    if (more < 0) fail(&e);
    jsonl_close(&reader);
}

/* Adds the fields of the row of --join. */
static bool join(json_t *row, Error *e) {
    const json_t *key = row_get(row, o.on);
    if (!key) return row_missing(&reader, row, o.on, "on", e);
    const int64_t *at = keys_find(&joined.keys, hash_value(key));
    const char *name;
    json_t *value;
    if (!at) {
        tally.unjoined++;
        return true;
    }
    json_object_foreach(json_array_get(joined.rows, (size_t)*at - 1), name, value) {
        json_t *own = json_object_get(row, name);
        if (own && !json_equal(own, value))
            return jsonl_error(&reader, name, e, "has another value in %s; rename or drop one of them before", o.join);
        if (!own) json_object_set(row, name, value);
    }
    return true;
}

/* Sets the fields of --set. */
static bool set_fields(json_t *row, Error *e) {
    TextBuffer text = {0};
    bool ok = true;
    for (int i = 0; i < set.count && ok; i++) {
        text_clear(&text);
        ok = row_fill(NULL, &reader, row, set.field[i].text, "set", &text, e);
        if (ok) json_object_set_new(row, set.field[i].name, json_stringn(text.text, text.length));
    }
    text_free(&text);
    return ok;
}

/* ---- rows that repeat others ----------------------------------------------------------------------------------- */

/* Appends the equations of a text, a op b = c without blanks, each followed by a newline (Yuan et al. 2023, RFT). */
static void append_equations(TextBuffer *to, const char *text) {
    static pcre2_code *code;
    static pcre2_match_data *data;
    const char *pattern = "(-?[\\d.,]+(?:\\s*[-+*/x]\\s*\\(?-?[\\d.,]+\\)?)+)\\s*=\\s*(-?\\$?[\\d.,]*\\d)";
    int error;
    PCRE2_SIZE at = 0;
    if (!code) {
        code = (pcre2_code *)checked_object(
            pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, 0, &error, &at, NULL),
            "the pattern of equations");
        data = (pcre2_match_data *)checked_object(pcre2_match_data_create_from_pattern(code, NULL), "a match");
    }
    const size_t n = strlen(text);
    for (at = 0; at < n && pcre2_match(code, (PCRE2_SPTR)text, n, at, 0, data, NULL) > 0;) {
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(data);
        for (size_t i = found[0]; i < found[1]; i++)
            if (!isspace((unsigned char)text[i])) text_append(to, text + i, 1);
        text_append(to, "\n", 1);
        at = found[1];
    }
}

/* Whether the row repeats one that passed before, by --dedupe. */
static bool repeats(json_t *row, bool *yes, Error *e) {
    TextBuffer text = {0};
    uint64_t hash = 0;
    bool fresh = true, ok = true;
    const bool whole = !strcmp(o.dedupe, "text"), equations = !strcmp(o.dedupe, "equations");
    text_clear(&text);
    if (whole || equations) {
        static const RowFieldId fields[] = {FIELD_COMPLETION, FIELD_CHOSEN, FIELD_REJECTED};
        prompt_text(&text, row);
        hash = XXH3_64bits(text.text, fold_blanks(text.text, text.length));
        text_clear(&text);
        const char *said = equations ? json_string_value(completion_of(row)) : NULL;
        if (said) append_equations(&text, said);
        if (!text.length)
            for (size_t i = 0; i < 3; i++) append_texts(&text, row_peek(&usual, row, fields[i]));
        hash = XXH3_64bits_withSeed(text.text, fold_blanks(text.text, text.length), hash);
    } else {
        const json_t *value = row_get(row, o.dedupe);
        ok = value != NULL || row_missing(&reader, row, o.dedupe, "dedupe", e);
        if (ok && json_is_string(value)) {
            text_append(&text, json_string_value(value), json_string_length(value));
            hash = XXH3_64bits(text.text, fold_blanks(text.text, text.length));
        } else if (ok) hash = hash_value(value);
    }
    if (ok) keys_at(&seen, hash, &fresh);
    *yes = !fresh;
    text_free(&text);
    return ok;
}

static void open_decontaminate(void) {
    Error e;
    json_t *row;
    int more;
    Words words = {0};
    TextBuffer text = {0};
    tests = (Contamination){.ngram = (size_t)o.ngram, .overlap = o.overlap};
    if (!jsonl_open(&reader, o.decontaminate, false, &e)) fail(&e);
    while ((more = jsonl_next(&reader, &row, &e)) > 0) {
        words.count = 0;
        prompt_text(&text, row);
        words_split(&words, text.text, text.length);
        contamination_add(&tests, &words);
    }
    if (more < 0) fail(&e);
    jsonl_close(&reader);
    if (!tests.texts) die("%s: no row has a prompt, messages or a text with words", o.decontaminate);
    words_free(&words), text_free(&text);
}

/* Whether the row shares n-grams with the test set, or is near an earlier row. */
static bool resembles(json_t *row, int64_t group, bool *yes, Error *e) {
    Words words = {0};
    TextBuffer text = {0};
    bool ok = true;
    *yes = false;
    if (o.decontaminate) {
        prompt_text(&text, row);
        words_split(&words, text.text, text.length);
        *yes = contamination_drops(&tests, &words);
        tally.contaminated += *yes;
    }
    if (!*yes && o.near >= 0) {
        const json_t *value = row_get(row, o.near_field);
        ok = value || row_missing(&reader, row, o.near_field, "near-field", e);
        text_clear(&text);
        append_texts(&text, value);
        words.count = 0;
        words_split(&words, text.text, text.length);
        *yes = ok && near_drops(&near_rows, &words, (uint64_t)group);
        tally.near += *yes;
    }
    words_free(&words), text_free(&text);
    return ok;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* Sets *group to the number of the row's group, -1 without --group, and counts its right rows. */
static bool group_of(json_t *row, int64_t *group, Error *e) {
    *group = -1;
    if (!o.group) return true;
    const json_t *value = row_get(row, o.group), *right = row_get(row, "right");
    bool fresh;
    if (!value) return row_missing(&reader, jsonl_whole(&reader), o.group, "group", e);
    int64_t *at = keys_at(&group_keys, hash_value(value), &fresh);
    if (fresh) {
        if (group_count == group_capacity) {
            group_capacity = 2 * group_capacity + 64;
            groups = (Group *)xrealloc(groups, (size_t)group_capacity, sizeof *groups);
        }
        groups[group_count] = (Group){0};
        *at = group_count++;
    }
    *group = *at;
    if (o.rate && right && !json_is_boolean(right))
        return jsonl_error(&reader, "right", e, "is %s, expected true or false", jsonl_type(right));
    groups[*group].checked += right != NULL;
    groups[*group].right += json_is_true(right);
    return true;
}

/* Makes a pair of a row with chosen, rejected and the probability p that the former is better (--pairs without --group): the
 * likelier one becomes chosen, and its log-odds the margin. */
static bool label_pair(json_t *row, bool *keep, Error *e) {
    json_t *chosen = json_object_get(row, "chosen"), *rejected = json_object_get(row, "rejected");
    double p;
    if (!chosen || !rejected)
        return jsonl_error(&reader, NULL, e, "has no chosen and rejected; give --group to make pairs of completions");
    if (!number_of(row, o.pairs, &p, e)) return false;
    *keep = !isnan(p);
    tally.valueless += !*keep;
    if (!*keep) return true;
    if (p < 0 || p > 1) return jsonl_error(&reader, o.pairs, e, "is %g, expected a probability", p);
    *keep = fabs(p - 0.5) >= o.tie && p != 0.5;
    tally.tied += !*keep;
    if (p < 0.5) {
        json_incref(chosen);
        json_object_set(row, "chosen", rejected);
        json_object_set_new(row, "rejected", chosen);
        p = 1 - p;
    }
    const double sure = fmin(p, 1 - 1e-12); /* a margin is finite */
    json_object_set_new(row, "margin", json_real(log(sure) - log1p(-sure)));
    return true;
}

/* Makes the fields of --spin, of --unpaired and of labelled pairs. *keep: false if the row has no such fields. */
static bool label(json_t *row, bool *keep, Error *e) {
    if (o.pairs && !o.group) return label_pair(row, keep, e);
    if (o.spin) {
        json_t *chosen = row_get(row, o.chosen_field), *said = completion_of(row);
        if (!chosen) return row_missing(&reader, row, o.chosen_field, "chosen-field", e);
        if (!said) return jsonl_error(&reader, NULL, e, "has no completion for --spin");
        *keep = !json_equal(chosen, said);
        tally.equal += !*keep;
        if (json_is_string(chosen) || json_is_array(chosen)) json_object_set(row, "chosen", chosen);
        else {
            char *text = json_dump_short(chosen, JSON_ENCODE_ANY | JSON_COMPACT);
            json_t *as_text = json_string(text);
            free(text);
            *keep = *keep && !json_equal(as_text, said);
            json_object_set_new(row, "chosen", as_text);
        }
        json_object_set(row, "rejected", said);
    }
    if (o.unpaired) {
        json_t *right = row_get(row, "right");
        if (right && !json_is_boolean(right))
            return jsonl_error(&reader, "right", e, "is %s, expected true or false", jsonl_type(right));
        *keep = right != NULL;
        tally.unlabelled += !*keep;
        if (*keep) json_object_set(row, "label", right);
    }
    return true;
}

static void check_memory(void) {
    const size_t used = kept_bytes + (size_t)kept_capacity * sizeof *kept + (size_t)group_capacity * sizeof *groups +
                        (size_t)unit_capacity * sizeof *units + keys_bytes(&group_keys) + keys_bytes(&seen) +
                        near_bytes(&near_rows);
    if (used <= (size_t)o.max_memory) return;
    Error e;
    error_set(
        &e,
        "the rows up to line %lld of %s take more than %lld MB of memory; drop more of them by --where, divide the "
        "input, or raise --max-memory",
        (long long)reader.line, reader.name, (long long)(o.max_memory >> 20));
    fail(&e);
}

/* Whether steps add fields to rows before they are kept. */
static bool adds(void) { return o.join || set.count || o.spin || o.unpaired || (o.pairs && !o.group); }

/* Returns the row as text: its line, if that is what it is. The caller frees it. */
static char *row_text(json_t *row) {
    if (!adds() && !reader.array) return xstrndup(reader.text.text, reader.text.length);
    return json_dump_short(row, JSON_COMPACT);
}

/* Whether --rename, --drop or --as change rows before they are written. */
static bool reshapes(void) { return renamed.count || dropped.count || o.as > AS_ROWS; }

static void count_row(json_t *row);
static void write_row(json_t *row, const char *text);

/* The field by which the rows of a group are ordered, or NULL, and the option that names it. */
static const char *order_field(void) { return o.rankings ? o.rankings : o.group ? o.pairs : NULL; }
static const char *order_option(void) { return o.rankings ? "--rankings" : "--pairs"; }

/* Keeps the row for the steps that follow. */
static bool keep_row(json_t *row, int64_t group, Error *e) {
    if (kept_count == kept_capacity) {
        kept_capacity = 2 * kept_capacity + 64;
        kept = (Kept *)xrealloc(kept, (size_t)kept_capacity, sizeof *kept);
    }
    Kept k = {.number = tally.read - 1, .group = group, .next = -1};
    if (o.by && !number_of(row, o.by, &k.by, e)) return false;
    const char *field = order_field();
    json_t *said = completion_of(row);
    if (field && !number_of(row, field, &k.value, e)) return false;
    if (field && !said) return jsonl_error(&reader, NULL, e, "has no completion for %s", order_option());
    if (field && isnan(k.value)) {
        tally.valueless++;
        return true;
    }
    if (o.rankings) k.said = hash_value(said);
    k.text = row_text(row);
    kept_bytes += strlen(k.text) + 32;
    kept[kept_count++] = k;
    if (group >= 0) groups[group].rows++;
    return true;
}

/* Takes a row through the steps up to the groups. */
static bool take(json_t *row, Error *e) {
    int64_t group;
    bool holds = true, repeated = false;
    tally.read++;
    if (o.join && !join(row, e)) return false;
    if (!set_fields(row, e) || !group_of(row, &group, e)) return false;
    condition_see(&condition, row);
    if (o.where && !condition_holds(&condition, &reader, row, &holds, e)) return false;
    tally.where += !holds;
    if (holds && !label(row, &holds, e)) return false;
    if (!holds) return true;
    if (o.dedupe && !repeats(row, &repeated, e)) return false;
    tally.repeated += repeated;
    if (!repeated && !resembles(row, group, &repeated, e)) return false;
    if (repeated) return true;
    if (collects) return keep_row(row, group, e);
    char *text = reshapes() ? NULL : row_text(row);
    count_row(row);
    write_row(row, text);
    free(text);
    return true;
}

/* Adds a field to those that are read: its name, and the first part of a path. */
static void read_field(const char *name) {
    if (!name) return;
    json_scan_want(&scan, name, strlen(name));
    json_scan_want(&scan, name, strcspn(name, "."));
}

/* Finds out which fields of a row are read, unless that may be all of them. */
static void find_fields(void) {
    const bool whole = adds() || o.dedupe || o.decontaminate || o.near >= 0;
    scans = !whole && (collects || (!o.stats && !reshapes()));
    if (!scans) return;
    for (int i = 0; i < condition.count; i++) read_field(condition.node[i].field);
    read_field(o.group);
    read_field(o.by);
    read_field(order_field());
    if (o.group) read_field("right");
    for (const char *s = order_field() ? row_field[FIELD_COMPLETION].names : ""; *s;) {
        const size_t n = strcspn(s, "|");
        char *name = xstrndup(s, n);
        read_field(name);
        free(name);
        s += n + (s[n] == '|');
    }
}

static void read_inputs(int64_t *skipped, Error *first) {
    Error e;
    for (int i = 0; i < inputs.count; i++) {
        json_t *row;
        int more;
        if (!jsonl_open(&reader, inputs.path[i], o.skip_bad, &e)) fail(&e);
        if (scans) reader.scan = &scan;
        while ((more = jsonl_next(&reader, &row, &e)) > 0) {
            if (!take(row, &e) && !jsonl_skip(&reader, &e)) fail(&e);
            check_memory();
        }
        if (more < 0) fail(&e);
        if (!*skipped) *first = reader.first;
        *skipped += reader.skipped;
        jsonl_close(&reader);
    }
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

typedef enum { RANK_MEMBER, RANK_PAIR, RANK_SAMPLE, RANK_SHUFFLE } RankUse;

/* The random rank of a row or a pair, a function of the numbers of its rows. */
static uint64_t rank_of(RankUse use, int64_t a, int64_t b) {
    const uint64_t second = b < 0 ? 0 : (uint64_t)kept[b].number + 1;
    return random_bits((uint64_t)o.seed, RANDOM_PICK + ((uint64_t)use << 48) + second, (uint64_t)kept[a].number);
}

static void add_unit(int64_t a, int64_t b, uint64_t rank) {
    if (unit_count == unit_capacity) {
        unit_capacity = 2 * unit_capacity + 64;
        units = (Unit *)xrealloc(units, (size_t)unit_capacity, sizeof *units);
        check_memory();
    }
    units[unit_count++] = (Unit){a, b, rank};
}

static int by_place(const void *x, const void *y) {
    const Unit *a = (const Unit *)x, *b = (const Unit *)y;
    if (a->a != b->a) return a->a < b->a ? -1 : 1;
    return (a->b > b->b) - (a->b < b->b);
}

static int by_rank(const void *x, const void *y) {
    const Unit *a = (const Unit *)x, *b = (const Unit *)y;
    return a->rank != b->rank ? a->rank < b->rank ? -1 : 1 : by_place(x, y);
}

/* Orders rows a and b of values p and q, the highest first; equal values in the order of the input, null last. */
static int falling(double p, double q, int64_t a, int64_t b) {
    if (isnan(p)) p = -INFINITY;
    if (isnan(q)) q = -INFINITY;
    return p != q ? (p > q ? -1 : 1) : (a > b) - (a < b);
}

/* By --by. */
static int by_choice(const void *x, const void *y) {
    const int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return falling(kept[a].by, kept[b].by, a, b);
}

/* By the value of --rankings. */
static int by_value(const void *x, const void *y) {
    const int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return falling(kept[a].value, kept[b].value, a, b);
}

/* Keeps n of the units from `from` on with the lowest ranks, in the order of the input. */
static void draw_units(int64_t from, int64_t n) {
    const int64_t count = unit_count - from;
    if (n >= count) return;
    qsort(units + from, (size_t)count, sizeof *units, by_rank);
    unit_count = from + n;
    qsort(units + from, (size_t)n, sizeof *units, by_place);
}

/* Adds the pairs of a group's rows. */
static void pair_group(const int64_t *row, int64_t n) {
    int64_t high = row[0], low = row[0];
    const int64_t before = unit_count;
    if (!o.all_pairs && !o.pairs_per_group) {
        for (int64_t i = 1; i < n; i++) {
            if (kept[row[i]].value > kept[high].value) high = row[i];
            if (kept[row[i]].value < kept[low].value) low = row[i];
        }
        if (kept[high].value - kept[low].value > o.min_margin) add_unit(high, low, 0);
    } else
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < n; k++)
                if (kept[row[i]].value - kept[row[k]].value > o.min_margin)
                    add_unit(row[i], row[k], rank_of(RANK_PAIR, row[i], row[k]));
    if (unit_count == before) tally.ties++;
    if (o.pairs_per_group) draw_units(before, o.pairs_per_group);
}

/* Whether a ranking holds the completion of a row. */
static bool ranking_has(int64_t first, int64_t row) {
    for (int64_t i = first; i >= 0; i = kept[i].next)
        if (kept[i].said == kept[row].said) return true;
    return false;
}

/* Adds the ranking of a group's rows, which are put in order. A row that is not --min-margin below the one before it, or that
 * repeats the completion of a better one, is left out: the order of a ranking is strict. */
static void rank_group(int64_t *row, int64_t n) {
    qsort(row, (size_t)n, sizeof *row, by_value);
    int64_t last = row[0];
    for (int64_t i = 1; i < n; i++) {
        const bool level = kept[last].value - kept[row[i]].value <= o.min_margin;
        const bool twice = !level && ranking_has(row[0], row[i]);
        tally.level += level;
        tally.twice += twice;
        if (!level && !twice) last = kept[last].next = row[i];
    }
    if (last != row[0]) add_unit(row[0], -1, 0);
    else tally.ties++;
}

/* Drops rows of a group by --rate, --best and --max-per-group. Returns the number that is left, in row[]. */
static int64_t thin_group(const Group *g, int64_t *row, int64_t n) {
    const double share = g->checked ? (double)g->right / (double)g->checked : NAN;
    if (o.rate && !(share >= rate[0] && share <= rate[1])) {
        tally.rate += n;
        return 0;
    }
    const int64_t before = n;
    if (o.best && n > o.best) {
        qsort(row, (size_t)n, sizeof *row, by_choice);
        n = o.best;
    }
    if (o.max_per_group && n > o.max_per_group) {
        const int64_t first = unit_count;
        for (int64_t i = 0; i < n; i++) add_unit(row[i], -1, rank_of(RANK_MEMBER, row[i], -1));
        draw_units(first, o.max_per_group);
        n = unit_count - first;
        for (int64_t i = 0; i < n; i++) row[i] = units[first + i].a;
        unit_count = first;
    }
    tally.per_group += before - n;
    return n;
}

static int by_number(const void *x, const void *y) {
    const int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a > b) - (a < b);
}

/* Makes the units of all kept rows. */
static void make_units(void) {
    int64_t *order = (int64_t *)xcalloc((size_t)kept_count, sizeof *order), place = 0;
    for (int64_t g = 0; g < group_count; g++) {
        groups[g].first = place;
        place += groups[g].rows;
        groups[g].rows = 0;
    }
    for (int64_t i = 0; i < kept_count; i++) {
        Group *g = o.group ? &groups[kept[i].group] : NULL;
        if (g) order[g->first + g->rows++] = i;
        else add_unit(i, -1, 0);
    }
    for (int64_t g = 0; g < group_count; g++) {
        int64_t *row = order + groups[g].first, n = groups[g].rows;
        if (n) n = thin_group(&groups[g], row, n);
        if (n) qsort(row, (size_t)n, sizeof *row, by_number);
        if (n && o.pairs) pair_group(row, n);
        if (n && o.rankings) rank_group(row, n);
        for (int64_t i = 0; i < n && !order_field(); i++) add_unit(row[i], -1, 0);
    }
    free(order);
    if (!order_field()) qsort(units, (size_t)unit_count, sizeof *units, by_place);
    if (o.sample && o.sample < unit_count) {
        tally.unsampled = unit_count - o.sample;
        for (int64_t i = 0; i < unit_count; i++) units[i].rank = rank_of(RANK_SAMPLE, units[i].a, units[i].b);
        draw_units(0, o.sample);
    }
    if (!o.shuffle) return;
    for (int64_t i = 0; i < unit_count; i++) units[i].rank = rank_of(RANK_SHUFFLE, units[i].a, units[i].b);
    qsort(units, (size_t)unit_count, sizeof *units, by_rank);
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

/* Moves the fields of --rename and removes those of --drop. */
static bool change_names(json_t *row, Error *e) {
    for (int i = 0; i < renamed.count; i++) {
        const char *name = renamed.field[i].name, *to = renamed.field[i].text;
        json_t *value = json_object_get(row, name);
        if (!value) return error_set(e, "--rename %s=%s: a row has no such field", name, to);
        if (json_object_get(row, to))
            return error_set(e, "--rename %s=%s: a row has the field %s already", name, to, to);
        json_object_set(row, to, value);
        json_object_del(row, name);
    }
    for (int i = 0; i < dropped.count; i++)
        if (!json_object_del(row, dropped.field[i].name)) dropped.field[i].seen = true;
    return true;
}

static void only(json_t *row, const RowFieldId *fields, size_t count, const char *const *also) {
    json_t *some = json_object();
    char name[128];
    for (size_t i = 0; i < count; i++)
        if (row_name(&usual, row, fields[i], name, sizeof name)) {
            name[strcspn(name, ".")] = 0;
            json_object_set(some, name, json_object_get(row, name));
        }
    for (; *also; also++)
        if (json_object_get(row, *also)) json_object_set(some, *also, json_object_get(row, *also));
    json_object_clear(row);
    json_object_update(row, some);
    json_decref(some);
}

/* Checks that the row has a field, under one of its usual names. */
static bool needs(json_t *row, RowFieldId field, Error *e) {
    char names[240], name[128];
    if (row_peek(&usual, row, field)) return true;
    row_list(row, names, sizeof names);
    option_choice_name(AS_CHOICES, o.as, name, sizeof name);
    return error_set(e, "--as %s: a row has no %.*s; it has the fields %s", name,
                     (int)strcspn(row_field[field].names, "|"), row_field[field].names, names);
}

/* Leaves the fields of --as. */
static bool shape(json_t *row, Error *e) {
    static const RowFieldId before[] = {FIELD_MESSAGES, FIELD_PROMPT, FIELD_INPUT,      FIELD_SYSTEM,
                                        FIELD_HISTORY,  FIELD_TOOLS,  FIELD_COMPLETION, FIELD_LABEL};
    static const RowFieldId pair[] = {FIELD_MESSAGES, FIELD_PROMPT, FIELD_INPUT,    FIELD_SYSTEM, FIELD_HISTORY,
                                      FIELD_TOOLS,    FIELD_CHOSEN, FIELD_REJECTED, FIELD_MARGIN, FIELD_REFERENCE};
    static const RowFieldId ranking[] = {FIELD_MESSAGES, FIELD_PROMPT, FIELD_INPUT,       FIELD_SYSTEM,
                                         FIELD_HISTORY,  FIELD_TOOLS,  FIELD_COMPLETIONS, FIELD_REFERENCE};
    static const char *const none[] = {NULL};
    static const char *const samples[] = {"index",   "sample", "completion", "tokens", "finished",
                                          "logprob", "right",  "reward",     "rewards"};
    switch (o.as) {
    case AS_SFT:
        if (!row_peek(&usual, row, FIELD_MESSAGES) && !needs(row, FIELD_COMPLETION, e)) return false;
        only(row, before, 7, none);
        return true;
    case AS_PROMPT:
        if (!row_peek(&usual, row, FIELD_MESSAGES) && !needs(row, FIELD_PROMPT, e)) return false;
        for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) json_object_del(row, samples[i]);
        return true;
    case AS_PREFERENCE:
        if (!needs(row, FIELD_CHOSEN, e) || !needs(row, FIELD_REJECTED, e)) return false;
        only(row, pair, sizeof pair / sizeof *pair, none);
        return true;
    case AS_RANKING:
        if (!needs(row, FIELD_COMPLETIONS, e)) return false;
        only(row, ranking, sizeof ranking / sizeof *ranking, none);
        return true;
    case AS_UNPAIRED:
        if (!needs(row, FIELD_LABEL, e) || !needs(row, FIELD_COMPLETION, e)) return false;
        only(row, before, 8, none);
        return true;
    default: return true;
    }
}

/* Adds a row whose completion is written to the statistics. */
static void count_row(json_t *row) {
    if (!o.stats) return;
    const json_t *reward = row_get(row, "reward"), *tokens = row_get(row, "tokens"), *said = completion_of(row);
    if (json_is_number(reward)) {
        tally.reward += json_number_value(reward);
        tally.rewards++;
    }
    if (!json_is_array(tokens) && !json_is_string(said)) return;
    tally.length += json_is_array(tokens) ? (double)json_array_size(tokens) : (double)json_string_length(said);
    tally.lengths++;
}

/* Writes a row. text: what is written; NULL: the row, after --rename, --drop and --as. */
static void write_row(json_t *row, const char *text) {
    Error e;
    char *made = NULL;
    tally.written++;
    if (!text) {
        if (!change_names(row, &e) || !shape(row, &e)) fail(&e);
        made = json_dump_short(row, JSON_COMPACT);
        text = made;
    }
    if (!writer_write(&out, text, strlen(text), &e) || !writer_write(&out, "\n", 1, &e)) fail(&e);
    free(made);
}

static json_t *load(int64_t i) {
    return (json_t *)checked_object(json_loads(kept[i].text, JSON_ALLOW_NUL, NULL), "a row");
}

/* Returns a copy of a row without its completion. */
static json_t *without_completion(json_t *row) {
    char own[128];
    json_t *rest = json_copy(row);
    row_name(&usual, row, FIELD_COMPLETION, own, sizeof own);
    own[strcspn(own, ".")] = 0;
    json_object_del(rest, own);
    return rest;
}

/* Leaves those fields of a row in which another one agrees. */
static void keep_common(json_t *row, json_t *other) {
    void *next;
    const char *key;
    json_t *value;
    json_object_foreach_safe(row, next, key, value) {
        if (!json_equal(value, json_object_get(other, key))) json_object_del(row, key);
    }
}

/* Makes the row of a pair: the fields in which both rows agree, and chosen, rejected and margin. */
static json_t *pair_row(const Unit *u) {
    json_t *a = load(u->a), *b = load(u->b), *row = without_completion(a);
    keep_common(row, b);
    json_object_set(row, "chosen", completion_of(a));
    json_object_set(row, "rejected", completion_of(b));
    json_object_set_new(row, "margin", json_real(kept[u->a].value - kept[u->b].value));
    count_row(a), count_row(b);
    json_decref(a), json_decref(b);
    return row;
}

/* Makes the row of a ranking: the fields in which all of its rows agree, and completions. */
static json_t *ranking_row(const Unit *u) {
    json_t *best = load(u->a), *row = without_completion(best), *all = json_array();
    json_array_append(all, completion_of(best));
    for (int64_t i = kept[u->a].next; i >= 0; i = kept[i].next) {
        json_t *other = load(i);
        keep_common(row, other);
        json_array_append(all, completion_of(other));
        count_row(other);
        json_decref(other);
    }
    json_object_set_new(row, "completions", all);
    count_row(best);
    json_decref(best);
    return row;
}

static void write_units(void) {
    for (int64_t i = 0; i < unit_count; i++) {
        const Unit *u = &units[i];
        const bool made = u->b >= 0 || o.rankings;
        json_t *row = u->b >= 0 ? pair_row(u) : o.rankings ? ranking_row(u) : o.stats || reshapes() ? load(u->a) : NULL;
        if (row && !made) count_row(row);
        write_row(row, made || reshapes() ? NULL : kept[u->a].text);
        json_decref(row);
    }
}

/* ---- summary --------------------------------------------------------------------------------------------------- */

static void say(int64_t count, const char *what) {
    if (count) fprintf(stderr, ", %lld %s", (long long)count, what);
}

static void summarize(int64_t skipped, const Error *first) {
    if (!o.quiet) {
        fprintf(stderr, "%s: %lld rows read, %lld written", program_invocation_short_name, (long long)tally.read,
                (long long)tally.written);
        say(tally.where, "dropped by --where");
        say(tally.unlabelled, "without right");
        say(tally.equal, "equal to the reference");
        say(tally.tied, "pairs too close to call");
        say(tally.repeated, "repeated");
        say(tally.contaminated, "in the test set");
        say(tally.near, "near another");
        say(tally.rate, "dropped by --rate");
        say(tally.per_group, "beyond the number of a group");
        say(tally.valueless, o.rankings ? "without a value for --rankings" : "without a value for --pairs");
        say(tally.level, "too close to a better one");
        say(tally.twice, "with the completion of a better one");
        say(tally.ties, o.rankings ? "groups without a ranking" : "groups without a pair");
        say(tally.unsampled, "not sampled");
        fputc('\n', stderr);
    }
    if (o.stats) {
        int64_t least = INT64_MAX, most = 0, rows = 0, used = 0;
        for (int64_t g = 0; g < group_count; g++) {
            if (!groups[g].rows) continue;
            if (groups[g].rows < least) least = groups[g].rows;
            if (groups[g].rows > most) most = groups[g].rows;
            rows += groups[g].rows;
            used++;
        }
        if (used)
            fprintf(stderr, "groups    %lld of %lld have rows after the filters: %lld to %lld each, mean %.2f\n",
                    (long long)used, (long long)group_count, (long long)least, (long long)most,
                    (double)rows / (double)used);
        if (tally.rewards)
            fprintf(stderr, "reward    mean %.4f of the completions written\n", tally.reward / (double)tally.rewards);
        if (tally.lengths)
            fprintf(stderr, "length    mean %.1f tokens, or characters of rows without tokens\n",
                    tally.length / (double)tally.lengths);
    }
    if (skipped) warn("invalid lines skipped: %lld (first: %s)", (long long)skipped, first->text);
    if (tally.unjoined) warn("%lld rows have no row with the same %s in %s", (long long)tally.unjoined, o.on, o.join);
    for (int i = 0; i < dropped.count; i++)
        if (tally.written && !dropped.field[i].seen) warn("--drop %s: no row has this field", dropped.field[i].name);
    for (int i = 0; i < condition.count; i++)
        if (tally.read && condition.node[i].field && !condition.node[i].seen)
            warn("--where: no row has the field '%s'", condition.node[i].field);
    if (!tally.written) warn("no row was written");
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

static void named_add(Named *names, const char *name, size_t n, const char *text) {
    names->field = (struct NamedField *)xrealloc(names->field, (size_t)names->count + 1, sizeof *names->field);
    names->field[names->count++] = (struct NamedField){.name = xstrndup(name, n), .text = text};
}

static void named_free(Named *names) {
    for (int i = 0; i < names->count; i++) free(names->field[i].name);
    free(names->field);
}

/* Reads NAME=TEXT of --set, whose texts are patterns, or OLD=NEW of --rename. */
static void read_pairs(Named *names, const OptionList *list, const char *option, bool pattern) {
    Error e;
    bool fields = false; /* a text need not have any */
    for (int i = 0; i < list->count; i++) {
        const char *item = list->items[i], *equals = strchr(item, '=');
        if (!equals || equals == item || (!pattern && !equals[1]))
            usage_error("--%s %s: expected %s", option, item, pattern ? "NAME=TEXT" : "OLD=NEW");
        if (pattern) item = row_unescape(item);
        equals = strchr(item, '=');
        if (pattern && !row_pattern_check(equals + 1, &fields, &e)) usage_error("--%s: %s", option, e.text);
        named_add(names, item, (size_t)(equals - item), equals + 1);
    }
}

/* Reads the names of --drop. */
static void read_drops(void) {
    for (int i = 0; i < o.drop.count; i++)
        for (const char *s = o.drop.items[i]; *s;) {
            const size_t n = strcspn(s, ",");
            named_add(&dropped, s, n, NULL);
            s += n + (s[n] == ',');
        }
}

static void check_rate(void) {
    char *end;
    if (!o.rate) return;
    rate[0] = strtod(o.rate, &end);
    bool good = end != o.rate && *end == ',';
    const char *second = end + good;
    rate[1] = good ? strtod(second, &end) : 0;
    good = good && end != second && !*end && rate[0] >= 0 && rate[1] <= 1 && rate[0] <= rate[1];
    if (!good) usage_error("--rate %s: expected LOW,HIGH with 0 <= LOW <= HIGH <= 1", o.rate);
}

static void check_options(void) {
    Error e;
    OutputPaths p = {0};
    if (!o.inputs.count && isatty(STDIN_FILENO)) usage_error("-i/--input is required");
    for (int i = 0; i < o.inputs.count; i++)
        if (!inputs_expand(&inputs, "-i/--input", o.inputs.items[i], &e)) usage_error("%s", e.text);
    if (!inputs.count) inputs_add(&inputs, "-");
    if (!inputs_check(&inputs, "-i/--input", &e)) usage_error("%s", e.text);
    output_add(&p, "output", o.output, OUTPUT_WRITTEN);
    for (int i = 0; i < inputs.count; i++) output_add(&p, "input", inputs.path[i], OUTPUT_READ);
    output_add(&p, "join", o.join, OUTPUT_READ);
    output_add(&p, "decontaminate", o.decontaminate, OUTPUT_READ);
    if (!output_distinct(&p, &e)) usage_error("%s", e.text);
    output_free(&p);
    const bool grouped = o.group != NULL;
    const OptionUse use[] = {
        {&o.on, o.join != NULL, "used only with --join"},
        {&o.near_field, o.near >= 0, "used only with --drop-near"},
        {&o.ngram, o.decontaminate != NULL, "used only with --decontaminate"},
        {&o.overlap, o.decontaminate != NULL, "used only with --decontaminate"},
        {&o.rate, grouped, "used only with --group"},
        {&o.max_per_group, grouped, "used only with --group"},
        {&o.best, grouped, "used only with --group"},
        {&o.by, o.best > 0, "used only with --best"},
        {&o.tie, o.pairs && !grouped, "used only with --pairs without --group"},
        {&o.rankings, grouped, "used only with --group"},
        {&o.min_margin, (o.pairs && grouped) || o.rankings, "used only with --pairs and --group, or with --rankings"},
        {&o.all_pairs, o.pairs && grouped, "used only with --pairs and --group"},
        {&o.pairs_per_group, o.pairs && grouped, "used only with --pairs and --group"},
        {&o.chosen_field, o.spin, "used only with --spin"},
        {&o.seed, o.sample || o.shuffle || o.max_per_group || o.pairs_per_group,
         "used only with --sample, --shuffle, --max-per-group or --pairs-per-group"},
    };
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (o.join && !o.on) usage_error("--join needs the field that rows are joined by: --on FIELD");
    if (o.best && !o.by) usage_error("--best needs the number that it goes by: --by FIELD");
    if ((o.pairs != NULL) + (o.rankings != NULL) + o.spin + o.unpaired > 1)
        usage_error("--pairs, --rankings, --spin and --unpaired: give only one of them");
    if (o.all_pairs && o.pairs_per_group) usage_error("--all-pairs and --pairs-per-group: give only one of them");
    read_pairs(&set, &o.set, "set", true);
    read_pairs(&renamed, &o.rename, "rename", false);
    read_drops();
    check_rate();
    if (o.where && !condition_parse(&condition, o.where, &e)) usage_error("--where: %s", e.text);
    if (o.as == AS_AUTO)
        o.as = o.pairs || o.spin ? AS_PREFERENCE : o.rankings ? AS_RANKING : o.unpaired ? AS_UNPAIRED : AS_ROWS;
    collects = o.group || o.sample || o.shuffle;
    if (!o.max_memory) o.max_memory = (int64_t)sysconf(_SC_PHYS_PAGES) / 2 * sysconf(_SC_PAGESIZE);
}

int main(int argc, char **argv) {
    Error e, first = {{0}};
    int64_t skipped = 0;
    options_parse_all(options, &about, argc, argv);
    check_options();
    signal(SIGPIPE, SIG_IGN);
    near_rows.limit = o.near;
    if (o.join) open_join();
    if (o.decontaminate) open_decontaminate();
    if (!writer_open(&out, o.output, &e)) die("%s", e.text);
    opened = true;
    find_fields();
    read_inputs(&skipped, &first);
    if (collects) {
        make_units();
        write_units();
    }
    if (!writer_commit(&out, &e)) fail(&e);
    summarize(skipped, &first);
    for (int64_t i = 0; i < kept_count; i++) free(kept[i].text);
    free(kept), free(groups), free(units), json_decref(joined.rows);
    keys_free(&group_keys), keys_free(&seen), keys_free(&joined.keys);
    named_free(&set), named_free(&renamed), named_free(&dropped);
    json_scan_free(&scan);
    near_free(&near_rows), contamination_free(&tests), condition_free(&condition);
    inputs_close(&inputs);
    return 0;
}

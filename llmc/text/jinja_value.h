/* jinja_value.h - values of chat templates: Python's values as far as templates use them, with the origin of each byte.
 *
 *   kind         made by                                 Python's type
 *   UNDEFINED    an unknown name, a missing key          jinja2.Undefined: false, prints as nothing
 *   NONE ... FLOAT  constants, JSON                      None, bool, int (64 bits here), float
 *   STRING       literals, JSON, concatenation           str; after the filter `safe` markupsafe.Markup
 *   LIST, TUPLE  constants, JSON, filters                list, tuple
 *   RANGE        range()                                 range
 *   VIEW         x.items(), x.keys(), x.values()         a view of a dict: iterable, has a length, no elements
 *   GENERATOR    map, select, items, unique, ...         a generator: true, iterable once
 *   MAP          constants, JSON                         dict, in the order of insertion
 *   NAMESPACE    namespace()                             jinja2's Namespace
 *   LOOP, MACRO, FUNCTION, METHOD                        `loop`, a macro, a global function, x.method before its call
 *
 * A mark is kept for each byte of a string: JINJA_MESSAGE if it comes from the conversation, else it is the template's;
 * JINJA_GENERATED inside {% generation %}, whose first byte also has JINJA_BEGIN. Operations on strings copy the marks
 * with the bytes.
 *
 * All memory of a rendering comes from one arena, which is freed at its end. The first failure is kept in the JinjaRun;
 * every later operation returns undefined, and loops end.
 *
 *     JinjaRun r = {0};
 *     const size_t start = r.out.length;                        // strings are built at the end of the output
 *     jinja_put(&r, "<|", 2, 0);
 *     jinja_put_value(&r, jinja_literal(&r, "user", 4, 0));
 *     JinjaValue tag = jinja_cut(&r, start);                    // and cut off
 *     jinja_run_free(&r);
 */
#ifndef LLMC_TEXT_JINJA_VALUE_H
#define LLMC_TEXT_JINJA_VALUE_H

#include "../base/error.h" /* xrealloc, Error, error_set, xmalloc */
#include "../base/text.h"  /* utf8_decode, utf8_length */
#include <jansson.h>
#include <locale.h>
#include <math.h>
#include <wctype.h>
#include <xxhash.h>

enum {
    JINJA_DEPTH = 64,           /* nesting of blocks, parentheses, macro calls and data */
    JINJA_STACK = 600,          /* nesting of evaluations, over all macro calls */
    JINJA_OUTPUT_MAX = 1 << 26, /* bytes of the result, and of the strings that are being built */
    JINJA_MEMORY_MAX = 1 << 29, /* bytes of all values of a rendering */
    JINJA_STEPS_MAX = 10000000, /* evaluations and elements visited; 64 bytes copied also count as one */
    JINJA_RANGE_MAX = 100000,   /* numbers of range(), as in jinja2's sandbox */
};

enum { JINJA_MESSAGE = 1, JINJA_GENERATED = 2, JINJA_BEGIN = 4 };

typedef enum {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_RANGE,
    JINJA_VIEW,
    JINJA_GENERATOR,
    JINJA_MAP,
    JINJA_NAMESPACE,
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_FUNCTION,
    JINJA_METHOD,
} JinjaKind;

typedef struct JinjaString {
    const char *text;
    size_t length;
    const uint8_t *marks; /* (length), or NULL: every byte has `mark` */
    uint8_t mark;
    bool safe; /* Markup: + escapes the other operand */
} JinjaString;

typedef struct JinjaValue {
    JinjaKind kind;
    union {
        int64_t integer; /* BOOL, INT; FUNCTION: which */
        double real;
        const JinjaString *string;
        struct JinjaList *list; /* LIST, TUPLE, RANGE, VIEW, GENERATOR */
        struct JinjaMap *map;   /* MAP, NAMESPACE */
        struct JinjaLoop *loop;
        struct JinjaMacro *macro;
        struct JinjaMethod *method;
        const char *name; /* UNDEFINED: of what, or NULL */
    };
} JinjaValue;

typedef struct JinjaList {
    JinjaValue *items;
    size_t count, capacity, next; /* next: GENERATOR, the first item that is not consumed */
} JinjaList;

typedef struct JinjaEntry {
    JinjaValue key, value;
    uint64_t hash;
} JinjaEntry;

typedef struct JinjaMap {
    JinjaEntry *entries;
    size_t count, capacity;
} JinjaMap;

typedef struct JinjaMethod {
    JinjaValue object;
    const char *name;
} JinjaMethod;

typedef struct JinjaText {
    char *text;
    uint8_t *marks;
    size_t length, capacity;
    size_t steps; /* of a whole rendering */
} JinjaText;

typedef struct JinjaRun {
    struct JinjaBlock {
        struct JinjaBlock *next;
        char bytes[];
    } * blocks;
    size_t room, memory; /* bytes left in the first block; bytes of all blocks */
    char *free;
    JinjaText out;
    size_t steps;
    int line, depth, calls;
    bool failed;
    Error *e;
    locale_t utf8; /* for the case of letters; 0 until needed */
    struct tm date;
    struct JinjaScope *scope; /* names inside loops and macros */
    JinjaValue *globals;      /* (names) by the number of the name */
    JinjaValue captured;      /* what a filter block filters */
} JinjaRun;

/* ---- failures and memory --------------------------------------------------------------------------------------- */

/* Keeps the first failure, with the line of the template, and returns undefined. */
__attribute__((format(printf, 2, 3))) static inline JinjaValue jinja_fail(JinjaRun *r, const char *format, ...) {
    char what[800];
    if (!r->failed) {
        va_list args;
        va_start(args, format);
        vsnprintf(what, sizeof what, format, args);
        va_end(args);
        error_set(r->e, "chat template: line %d: %s", r->line, what);
    }
    r->failed = true;
    return (JinjaValue){.kind = JINJA_UNDEFINED};
}

/* Counts n steps. Returns false after a failure or beyond the limit. */
static inline bool jinja_step(JinjaRun *r, size_t n) {
    r->steps += n < JINJA_STEPS_MAX ? n : JINJA_STEPS_MAX;
    if (r->steps >= JINJA_STEPS_MAX) jinja_fail(r, "takes more than %d steps", JINJA_STEPS_MAX);
    return !r->failed;
}

/* Allocates n bytes until the end of the rendering. Never NULL: beyond the limit, the failure is kept. */
static inline void *jinja_alloc(JinjaRun *r, size_t n) {
    n = (n + 15) & ~(size_t)15;
    if (n > r->room) {
        const size_t size = n > 4096 ? n : r->memory < 65536 ? 4096 : 65536;
        struct JinjaBlock *b = (struct JinjaBlock *)xmalloc(sizeof *b + 16 + size);
        b->next = r->blocks;
        r->blocks = b;
        r->memory += size;
        r->room = size;
        r->free = (char *)(((uintptr_t)b->bytes + 15) & ~(uintptr_t)15);
        if (r->memory > JINJA_MEMORY_MAX) jinja_fail(r, "needs more than %d bytes of memory", JINJA_MEMORY_MAX);
    }
    void *memory = r->free;
    r->free += n;
    r->room -= n;
    return memory;
}

static inline void jinja_run_free(JinjaRun *r) {
    for (struct JinjaBlock *b = r->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    if (r->utf8) freelocale(r->utf8);
    free(r->out.text);
    free(r->out.marks);
    *r = (JinjaRun){0};
}

/* ---- building strings ------------------------------------------------------------------------------------------ */

/* Makes room for n bytes at the end of the output; false beyond the limit. */
static inline bool jinja_room(JinjaRun *r, size_t n) {
    JinjaText *t = &r->out;
    if (n > JINJA_OUTPUT_MAX - t->length) jinja_fail(r, "writes more than %d bytes", JINJA_OUTPUT_MAX);
    if (!jinja_step(r, n / 64)) return false;
    if (t->length + n <= t->capacity && t->capacity) return true;
    t->capacity = t->length + n > 2 * t->capacity ? t->length + n + 256 : 2 * t->capacity;
    t->text = (char *)xrealloc(t->text, t->capacity, 1);
    t->marks = (uint8_t *)xrealloc(t->marks, t->capacity, 1);
    return true;
}

/* Appends n bytes with one mark. */
static inline void jinja_put(JinjaRun *r, const char *text, size_t n, uint8_t mark) {
    if (!n || !jinja_room(r, n)) return;
    memcpy(r->out.text + r->out.length, text, n);
    memset(r->out.marks + r->out.length, mark, n);
    r->out.length += n;
}

static inline uint8_t jinja_mark(const JinjaString *s, size_t at) { return s->marks ? s->marks[at] : s->mark; }

/* Appends bytes [from, to) of a string with their marks. */
static inline void jinja_put_part(JinjaRun *r, const JinjaString *s, size_t from, size_t to) {
    if (!s->marks || to <= from) {
        jinja_put(r, s->text + from, to > from ? to - from : 0, s->mark);
        return;
    }
    if (!jinja_room(r, to - from)) return;
    memcpy(r->out.text + r->out.length, s->text + from, to - from);
    memcpy(r->out.marks + r->out.length, s->marks + from, to - from);
    r->out.length += to - from;
}

static inline void jinja_put_string(JinjaRun *r, const JinjaString *s) { jinja_put_part(r, s, 0, s->length); }

static inline JinjaValue jinja_string_value(const JinjaString *s) {
    return (JinjaValue){.kind = JINJA_STRING, .string = s};
}

/* Makes a string of bytes that outlive the rendering. */
static inline JinjaValue jinja_literal(JinjaRun *r, const char *text, size_t n, uint8_t mark) {
    JinjaString *s = (JinjaString *)jinja_alloc(r, sizeof *s);
    *s = (JinjaString){.text = text, .length = n, .mark = mark};
    return jinja_string_value(s);
}

/* Cuts the output after byte `start` off and returns it as a string. */
static inline JinjaValue jinja_cut(JinjaRun *r, size_t start) {
    if (r->failed) return (JinjaValue){0};
    const size_t n = r->out.length - start;
    const uint8_t *marks = n ? r->out.marks + start : NULL;
    const bool mixed = n > 1 && memcmp(marks, marks + 1, n - 1) != 0;
    JinjaString *s = (JinjaString *)jinja_alloc(r, sizeof *s);
    char *bytes = (char *)jinja_alloc(r, mixed ? 2 * n : n);
    *s = (JinjaString){.text = bytes, .length = n, .mark = n ? marks[0] : 0};
    if (n) memcpy(bytes, r->out.text + start, n);
    if (mixed) {
        memcpy(bytes + n, marks, n);
        s->marks = (const uint8_t *)bytes + n;
    }
    r->out.length = start;
    return jinja_string_value(s);
}

/* Returns a string as Markup or as str. */
static inline JinjaValue jinja_marked_safe(JinjaRun *r, JinjaValue v, bool safe) {
    if (v.kind != JINJA_STRING || v.string->safe == safe) return v;
    JinjaString *s = (JinjaString *)jinja_alloc(r, sizeof *s);
    *s = *v.string;
    s->safe = safe;
    return jinja_string_value(s);
}

/* Returns the bytes [from, to) of a string, which share its memory. */
static inline JinjaValue jinja_part(JinjaRun *r, const JinjaString *s, size_t from, size_t to) {
    JinjaString *part = (JinjaString *)jinja_alloc(r, sizeof *part);
    *part = *s;
    part->text += from;
    part->length = to - from;
    if (s->marks) part->marks += from;
    return jinja_string_value(part);
}

/* ---- containers ------------------------------------------------------------------------------------------------ */

static inline JinjaValue jinja_int(int64_t n) { return (JinjaValue){.kind = JINJA_INT, .integer = n}; }
static inline JinjaValue jinja_bool(bool b) { return (JinjaValue){.kind = JINJA_BOOL, .integer = b}; }
static inline JinjaValue jinja_none(void) { return (JinjaValue){.kind = JINJA_NONE}; }
static inline JinjaValue jinja_undefined(const char *name) {
    return (JinjaValue){.kind = JINJA_UNDEFINED, .name = name};
}

/* A new empty LIST, TUPLE, RANGE, VIEW or GENERATOR. */
static inline JinjaValue jinja_list(JinjaRun *r, JinjaKind kind) {
    JinjaList *l = (JinjaList *)jinja_alloc(r, sizeof *l);
    *l = (JinjaList){0};
    return (JinjaValue){.kind = kind, .list = l};
}

static inline void jinja_append(JinjaRun *r, JinjaList *l, JinjaValue v) {
    if (!jinja_step(r, 1)) return;
    if (l->count == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 4;
        JinjaValue *items = (JinjaValue *)jinja_alloc(r, l->capacity * sizeof *items);
        if (l->count) memcpy(items, l->items, l->count * sizeof *items);
        l->items = items;
    }
    l->items[l->count++] = v;
}

/* A new empty MAP or NAMESPACE. */
static inline JinjaValue jinja_map(JinjaRun *r, JinjaKind kind) {
    JinjaMap *m = (JinjaMap *)jinja_alloc(r, sizeof *m);
    *m = (JinjaMap){0};
    return (JinjaValue){.kind = kind, .map = m};
}

static inline bool jinja_number(JinjaValue v) {
    return v.kind == JINJA_BOOL || v.kind == JINJA_INT || v.kind == JINJA_FLOAT;
}

static inline double jinja_real(JinjaValue v) { return v.kind == JINJA_FLOAT ? v.real : (double)v.integer; }

static inline uint64_t jinja_hash(JinjaValue v) {
    if (v.kind == JINJA_STRING) return XXH3_64bits(v.string->text, v.string->length);
    if (!jinja_number(v)) return (uint64_t)v.kind;
    const double real = jinja_real(v);
    return XXH3_64bits(&real, sizeof real);
}

static inline bool jinja_equal(JinjaRun *r, JinjaValue a, JinjaValue b, int depth);

/* Returns the entry of a key, or NULL. */
static inline JinjaEntry *jinja_find(JinjaRun *r, const JinjaMap *m, JinjaValue key) {
    const uint64_t hash = jinja_hash(key);
    if (!jinja_step(r, m->count / 8)) return NULL;
    for (size_t i = 0; i < m->count; i++)
        if (m->entries[i].hash == hash && jinja_equal(r, m->entries[i].key, key, 0)) return &m->entries[i];
    return NULL;
}

static inline JinjaEntry *jinja_find_text(JinjaRun *r, const JinjaMap *m, const char *key) {
    const JinjaString s = {.text = key, .length = strlen(key)};
    return jinja_find(r, m, jinja_string_value(&s));
}

/* Appends an entry whose key is known to be new. */
static inline void jinja_put_entry(JinjaRun *r, JinjaMap *m, JinjaValue key, JinjaValue value) {
    if (!jinja_step(r, 1)) return;
    if (m->count == m->capacity) {
        m->capacity = m->capacity ? 2 * m->capacity : 4;
        JinjaEntry *entries = (JinjaEntry *)jinja_alloc(r, m->capacity * sizeof *entries);
        if (m->count) memcpy(entries, m->entries, m->count * sizeof *entries);
        m->entries = entries;
    }
    m->entries[m->count++] = (JinjaEntry){key, value, jinja_hash(key)};
}

/* Sets a key. Keys are strings, numbers or none. */
static inline void jinja_set(JinjaRun *r, JinjaMap *m, JinjaValue key, JinjaValue value) {
    if (key.kind != JINJA_STRING && key.kind != JINJA_NONE && !jinja_number(key)) {
        jinja_fail(r, "a key of a map is neither a string nor a number");
        return;
    }
    JinjaEntry *found = jinja_find(r, m, key);
    if (found) found->value = value;
    else jinja_put_entry(r, m, key, value);
}

/* ---- truth, equality, order ------------------------------------------------------------------------------------ */

static inline bool jinja_truth(JinjaValue v) {
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE: return false;
    case JINJA_BOOL:
    case JINJA_INT: return v.integer != 0;
    case JINJA_FLOAT: return v.real != 0;
    case JINJA_STRING: return v.string->length > 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW: return v.list->count > 0;
    case JINJA_MAP: return v.map->count > 0;
    default: return true;
    }
}

static inline bool jinja_same_text(const JinjaString *a, const JinjaString *b) {
    return a->length == b->length && !memcmp(a->text, b->text, a->length);
}

static inline bool jinja_is_text(JinjaValue v, const char *text) {
    return v.kind == JINJA_STRING && v.string->length == strlen(text) && !memcmp(v.string->text, text, strlen(text));
}

static inline bool jinja_equal_maps(JinjaRun *r, const JinjaMap *a, const JinjaMap *b, int depth) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count && jinja_step(r, 1); i++) {
        const JinjaEntry *other = jinja_find(r, b, a->entries[i].key);
        if (!other || !jinja_equal(r, a->entries[i].value, other->value, depth + 1)) return false;
    }
    return true;
}

/* Python's ==. */
static inline bool jinja_equal(JinjaRun *r, JinjaValue a, JinjaValue b, int depth) {
    if (depth > JINJA_DEPTH) return jinja_fail(r, "compares data nested deeper than %d", JINJA_DEPTH), false;
    if (!jinja_step(r, 1)) return false;
    if (jinja_number(a) && jinja_number(b)) {
        if (a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT) return a.integer == b.integer;
        return jinja_real(a) == jinja_real(b);
    }
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE: return true;
    case JINJA_STRING: return jinja_step(r, a.string->length / 64) && jinja_same_text(a.string, b.string);
    case JINJA_MAP: return a.map == b.map || jinja_equal_maps(r, a.map, b.map, depth);
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        if (a.list->count != b.list->count) return false;
        for (size_t i = 0; i < a.list->count && !r->failed; i++)
            if (!jinja_equal(r, a.list->items[i], b.list->items[i], depth + 1)) return false;
        return true;
    case JINJA_FUNCTION: return a.integer == b.integer;
    case JINJA_METHOD: return false;
    default: return a.list == b.list; /* the same object */
    }
}

/* Python's order: -1, 0 or 1 for numbers, strings, lists of these; anything else fails. */
static inline int jinja_order(JinjaRun *r, JinjaValue a, JinjaValue b, int depth) {
    if (!jinja_step(r, 1)) return 0;
    if (jinja_number(a) && jinja_number(b)) {
        if (a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT) return (a.integer > b.integer) - (a.integer < b.integer);
        const double x = jinja_real(a), y = jinja_real(b);
        return (x > y) - (x < y);
    }
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        const size_t n = a.string->length < b.string->length ? a.string->length : b.string->length;
        const int c = jinja_step(r, n / 64) ? memcmp(a.string->text, b.string->text, n) : 0;
        return c ? (c > 0) - (c < 0) : (a.string->length > b.string->length) - (a.string->length < b.string->length);
    }
    if (a.kind == b.kind && (a.kind == JINJA_LIST || a.kind == JINJA_TUPLE) && depth < JINJA_DEPTH) {
        for (size_t i = 0; i < a.list->count && i < b.list->count; i++) {
            if (jinja_equal(r, a.list->items[i], b.list->items[i], 0)) continue;
            return jinja_order(r, a.list->items[i], b.list->items[i], depth + 1);
        }
        return (a.list->count > b.list->count) - (a.list->count < b.list->count);
    }
    jinja_fail(r, "two values have no order: <, > and sorting need two numbers or two strings");
    return 0;
}

/* ---- printing -------------------------------------------------------------------------------------------------- */

/* Appends a number as Python's repr() writes it: the shortest decimal that reads back as the same double. */
static inline void jinja_put_real(JinjaRun *r, double x, uint8_t mark) {
    char digits[40], out[48];
    if (!isfinite(x)) {
        const char *name = isnan(x) ? "nan" : x > 0 ? "inf" : "-inf";
        jinja_put(r, name, strlen(name), mark);
        return;
    }
    for (int precision = 1; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision - 1, x);
        if (strtod(digits, NULL) == x) break;
    }
    const int exponent = atoi(strchr(digits, 'e') + 1);
    const int precision = (int)strspn(digits, "-0123456789.") - (digits[0] == '-') - (strchr(digits, '.') != NULL);
    if (exponent < -4 || exponent >= 16) snprintf(out, sizeof out, "%.*e", precision - 1, x);
    else snprintf(out, sizeof out, "%.*f", precision - 1 > exponent ? precision - 1 - exponent : 1, x);
    jinja_put(r, out, strlen(out), mark);
}

/* Whether Python's repr() writes the code point as it is. */
static inline bool jinja_printable(JinjaRun *r, uint32_t c) {
    if (c < 127) return c >= 32;
    if (c < 0xA1 || c == 0xAD) return false;
    if (!r->utf8) r->utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    const bool format = (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202F) || (c >= 0x205F && c <= 0x206F) ||
                        c == 0xFEFF || (c >= 0xE000 && c <= 0xF8FF) || (c >= 0xFFF9 && c <= 0xFFFB) || c >= 0xE0000;
    return !format && c != 0x1680 && c != 0x3000 && !(c >= 0x2000 && c <= 0x200A) &&
           (!r->utf8 || iswprint_l((wint_t)c, r->utf8));
}

/* Appends Python's repr() of a string. */
static inline void jinja_put_quoted(JinjaRun *r, const JinjaString *s) {
    const bool twice = memchr(s->text, '\'', s->length) && !memchr(s->text, '"', s->length);
    const char quote = twice ? '"' : '\'';
    jinja_put(r, &quote, 1, JINJA_MESSAGE);
    for (size_t i = 0, n; i < s->length && !r->failed; i += n) {
        char escape[16];
        n = (size_t)utf8_length(s->text + i, s->length - i);
        if (!n) n = 1;
        const uint32_t c = utf8_decode(s->text + i, (int)n);
        const char *letter = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
        if (letter) snprintf(escape, sizeof escape, "%s", letter);
        else if (c == (uint32_t)quote) snprintf(escape, sizeof escape, "\\%c", quote);
        else if (!jinja_printable(r, c))
            snprintf(escape, sizeof escape, c < 256 ? "\\x%02x" : c < 65536 ? "\\u%04x" : "\\U%08x", c);
        else {
            jinja_put_part(r, s, i, i + n);
            continue;
        }
        jinja_put(r, escape, strlen(escape), jinja_mark(s, i));
    }
    jinja_put(r, &quote, 1, JINJA_MESSAGE);
}

static inline const char *jinja_kind_name(JinjaValue v) {
    static const char *const names[] = {"undefined",   "none",    "a boolean",   "an integer", "a float",
                                        "a string",    "a list",  "a tuple",     "a range",    "a view of a map",
                                        "a generator", "a map",   "a namespace", "a loop",     "a macro",
                                        "a function",  "a method"};
    return names[v.kind];
}

/* Appends Python's repr() of a value. */
static inline void jinja_put_repr(JinjaRun *r, JinjaValue v, int depth) {
    if (!jinja_step(r, 1)) return;
    if (depth > JINJA_DEPTH) jinja_fail(r, "prints data nested deeper than %d", JINJA_DEPTH);
    char number[32];
    switch (v.kind) {
    case JINJA_UNDEFINED: jinja_put(r, "Undefined", 9, 0); break;
    case JINJA_NONE: jinja_put(r, "None", 4, 0); break;
    case JINJA_BOOL: jinja_put(r, v.integer ? "True" : "False", v.integer ? 4 : 5, 0); break;
    case JINJA_INT: jinja_put(r, number, (size_t)sprintf(number, "%lld", (long long)v.integer), 0); break;
    case JINJA_FLOAT: jinja_put_real(r, v.real, 0); break;
    case JINJA_STRING:
        if (v.string->safe) jinja_put(r, "Markup(", 7, 0);
        jinja_put_quoted(r, v.string);
        if (v.string->safe) jinja_put(r, ")", 1, 0);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        jinja_put(r, v.kind == JINJA_LIST ? "[" : "(", 1, JINJA_MESSAGE);
        for (size_t i = 0; i < v.list->count && !r->failed; i++) {
            if (i) jinja_put(r, ", ", 2, JINJA_MESSAGE);
            jinja_put_repr(r, v.list->items[i], depth + 1);
        }
        if (v.kind == JINJA_TUPLE && v.list->count == 1) jinja_put(r, ",", 1, JINJA_MESSAGE);
        jinja_put(r, v.kind == JINJA_LIST ? "]" : ")", 1, JINJA_MESSAGE);
        break;
    case JINJA_MAP:
        jinja_put(r, "{", 1, JINJA_MESSAGE);
        for (size_t i = 0; i < v.map->count && !r->failed; i++) {
            if (i) jinja_put(r, ", ", 2, JINJA_MESSAGE);
            jinja_put_repr(r, v.map->entries[i].key, depth + 1);
            jinja_put(r, ": ", 2, JINJA_MESSAGE);
            jinja_put_repr(r, v.map->entries[i].value, depth + 1);
        }
        jinja_put(r, "}", 1, JINJA_MESSAGE);
        break;
    default: jinja_fail(r, "prints %s", jinja_kind_name(v));
    }
}

/* Appends Python's str() of a value, as {{ }} prints it. */
static inline void jinja_put_value(JinjaRun *r, JinjaValue v) {
    if (v.kind == JINJA_STRING) jinja_put_string(r, v.string);
    else if (v.kind != JINJA_UNDEFINED) jinja_put_repr(r, v, 0);
}

/* Converts a value to a string. */
static inline const JinjaString *jinja_text(JinjaRun *r, JinjaValue v) {
    static const JinjaString empty = {.text = ""};
    if (v.kind == JINJA_STRING) return v.string;
    const size_t start = r->out.length;
    jinja_put_value(r, v);
    const JinjaValue text = jinja_cut(r, start);
    return text.kind == JINJA_STRING ? text.string : &empty;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

/* Converts JSON, which must outlive the rendering; its strings have the given mark. */
static inline JinjaValue jinja_of_json(JinjaRun *r, const json_t *json, uint8_t mark, int depth) {
    if (depth > JINJA_DEPTH) return jinja_fail(r, "the data is nested deeper than %d", JINJA_DEPTH);
    if (!json || !jinja_step(r, 1)) return jinja_none();
    switch (json_typeof(json)) {
    case JSON_TRUE:
    case JSON_FALSE: return jinja_bool(json_is_true(json));
    case JSON_INTEGER: return jinja_int(json_integer_value(json));
    case JSON_REAL: return (JinjaValue){.kind = JINJA_FLOAT, .real = json_real_value(json)};
    case JSON_STRING: return jinja_literal(r, json_string_value(json), json_string_length(json), mark);
    case JSON_ARRAY: {
        JinjaValue list = jinja_list(r, JINJA_LIST);
        for (size_t i = 0; i < json_array_size(json) && !r->failed; i++)
            jinja_append(r, list.list, jinja_of_json(r, json_array_get(json, i), mark, depth + 1));
        return list;
    }
    case JSON_OBJECT: {
        JinjaValue map = jinja_map(r, JINJA_MAP);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)json, key, value) {
            const JinjaValue name = jinja_literal(r, key, strlen(key), mark);
            jinja_put_entry(r, map.map, name, jinja_of_json(r, value, mark, depth + 1));
            if (r->failed) break;
        }
        return map;
    }
    default: return jinja_none();
    }
}

#endif

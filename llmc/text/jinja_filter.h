/* jinja_filter.h - filters and tests of chat templates.
 *
 *   filters   abs capitalize count d default dictsort first indent int items join last length list lower map max min
 *             reject rejectattr replace safe select selectattr sort string title tojson trim unique upper
 *   tests     boolean defined divisibleby eq equalto even false float ge gt in integer iterable le lt mapping ne none
 *             number odd sequence string true undefined, == != < <= > >= by their names in jinja2
 *
 * They are jinja2's, except that tojson is transformers': json.dumps() without HTML escapes and, unless ensure_ascii is
 * set, with all characters as they are. What tojson writes around the strings of the template belongs to the
 * conversation. map, select, reject, selectattr, rejectattr, items and unique return generators, whose elements are
 * computed at once.
 */
#ifndef LLMC_TEXT_JINJA_FILTER_H
#define LLMC_TEXT_JINJA_FILTER_H

#include "../base/text.h" /* utf8_decode */
#include "jinja_method.h" /* jinja_is_absent, jinja_items, JinjaBuiltin, jinja_character, ... */
#include "jinja_parse.h"  /* jinja_space */
#include "jinja_value.h"  /* JinjaValue, JinjaRun, jinja_fail, JINJA_STRING, ... */

/* ---- tojson ---------------------------------------------------------------------------------------------------- */

typedef struct JinjaJson {
    bool ascii, sorted;
    int64_t indent; /* -1: on one line */
    const JinjaString *comma, *colon;
} JinjaJson;

/* Appends a JSON string. */
static inline void jinja_put_json_string(JinjaRun *r, const JinjaString *s, bool ascii) {
    jinja_put(r, "\"", 1, JINJA_MESSAGE);
    for (size_t i = 0, n; i < s->length && !r->failed; i += n) {
        char escape[16];
        n = jinja_character(s, i);
        const uint32_t c = utf8_decode(s->text + i, (int)n);
        const char *simple = c ? strchr("\b\f\n\r\t\"\\", (int)(c < 128 ? c : 1)) : NULL;
        if (simple)
            snprintf(escape, sizeof escape, "\\%c", "bfnrt\"\\"[strchr("\b\f\n\r\t\"\\", (int)c) - "\b\f\n\r\t\"\\"]);
        else if (c < 32 || (ascii && c > 126 && c < 65536)) snprintf(escape, sizeof escape, "\\u%04x", c);
        else if (ascii && c >= 65536)
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xD800 + ((c - 65536) >> 10),
                     0xDC00 + ((c - 65536) & 1023));
        else {
            jinja_put_part(r, s, i, i + n);
            continue;
        }
        jinja_put(r, escape, strlen(escape), jinja_mark(s, i));
    }
    jinja_put(r, "\"", 1, JINJA_MESSAGE);
}

static inline void jinja_put_line(JinjaRun *r, const JinjaJson *j, int depth) {
    if (j->indent < 0) return;
    jinja_put(r, "\n", 1, JINJA_MESSAGE);
    for (int64_t i = 0; i < j->indent * depth && !r->failed; i++) jinja_put(r, " ", 1, JINJA_MESSAGE);
}

/* Appends a key, which JSON makes a string. */
static inline void jinja_put_json_key(JinjaRun *r, const JinjaJson *j, JinjaValue key) {
    const size_t start = r->out.length;
    if (key.kind == JINJA_STRING) {
        jinja_put_json_string(r, key.string, j->ascii);
        return;
    }
    if (key.kind == JINJA_NONE) jinja_put(r, "null", 4, JINJA_MESSAGE);
    else if (key.kind == JINJA_BOOL) jinja_put(r, key.integer ? "true" : "false", key.integer ? 4 : 5, JINJA_MESSAGE);
    else jinja_put_value(r, key);
    const JinjaValue text = jinja_cut(r, start);
    if (text.kind == JINJA_STRING) jinja_put_json_string(r, text.string, j->ascii);
}

static inline void jinja_sort(JinjaRun *r, JinjaValue *keys, JinjaValue *items, size_t n, bool reverse);

static inline void jinja_put_json(JinjaRun *r, const JinjaJson *j, JinjaValue v, int depth);

static inline void jinja_put_json_map(JinjaRun *r, const JinjaJson *j, const JinjaMap *m, int depth) {
    JinjaList keys = {0}, values = {0};
    for (size_t i = 0; i < m->count && !r->failed; i++) {
        jinja_append(r, &keys, m->entries[i].key);
        jinja_append(r, &values, m->entries[i].value);
    }
    if (j->sorted) jinja_sort(r, keys.items, values.items, keys.count, false);
    jinja_put(r, "{", 1, JINJA_MESSAGE);
    for (size_t i = 0; i < keys.count && !r->failed; i++) {
        if (i) jinja_put_string(r, j->comma);
        jinja_put_line(r, j, depth + 1);
        jinja_put_json_key(r, j, keys.items[i]);
        jinja_put_string(r, j->colon);
        jinja_put_json(r, j, values.items[i], depth + 1);
    }
    if (m->count) jinja_put_line(r, j, depth);
    jinja_put(r, "}", 1, JINJA_MESSAGE);
}

/* Appends a value as JSON. */
static inline void jinja_put_json(JinjaRun *r, const JinjaJson *j, JinjaValue v, int depth) {
    char number[32];
    if (!jinja_step(r, 1)) return;
    if (depth > JINJA_DEPTH) {
        jinja_fail(r, "tojson: the data is nested deeper than %d", JINJA_DEPTH);
        return;
    }
    switch (v.kind) {
    case JINJA_NONE: jinja_put(r, "null", 4, JINJA_MESSAGE); break;
    case JINJA_BOOL: jinja_put(r, v.integer ? "true" : "false", v.integer ? 4 : 5, JINJA_MESSAGE); break;
    case JINJA_INT:
        jinja_put(r, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)v.integer), JINJA_MESSAGE);
        break;
    case JINJA_FLOAT:
        if (isnan(v.real)) jinja_put(r, "NaN", 3, JINJA_MESSAGE);
        else if (isinf(v.real)) jinja_put(r, v.real < 0 ? "-Infinity" : "Infinity", v.real < 0 ? 9 : 8, JINJA_MESSAGE);
        else jinja_put_real(r, v.real, JINJA_MESSAGE);
        break;
    case JINJA_STRING: jinja_put_json_string(r, v.string, j->ascii); break;
    case JINJA_MAP: jinja_put_json_map(r, j, v.map, depth); break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        jinja_put(r, "[", 1, JINJA_MESSAGE);
        for (size_t i = 0; i < v.list->count && !r->failed; i++) {
            if (i) jinja_put_string(r, j->comma);
            jinja_put_line(r, j, depth + 1);
            jinja_put_json(r, j, v.list->items[i], depth + 1);
        }
        if (v.list->count) jinja_put_line(r, j, depth);
        jinja_put(r, "]", 1, JINJA_MESSAGE);
        break;
    default: jinja_fail(r, "tojson: %s cannot be written as JSON", jinja_kind_name(v));
    }
}

static inline JinjaValue jinja_filter_tojson(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    static const JinjaString comma = {.text = ", ", .length = 2, .mark = JINJA_MESSAGE},
                             colon = {.text = ": ", .length = 2, .mark = JINJA_MESSAGE};
    static const JinjaString short_comma = {.text = ",", .length = 1, .mark = JINJA_MESSAGE};
    JinjaJson j = {.ascii = !jinja_is_absent(a[0]) && jinja_truth(a[0]),
                   .sorted = !jinja_is_absent(a[3]) && jinja_truth(a[3]),
                   .indent = -1,
                   .comma = &comma,
                   .colon = &colon};
    if (!jinja_is_absent(a[1]) && a[1].kind != JINJA_NONE) {
        j.indent = jinja_integer_argument(r, a[1], 0);
        j.indent = j.indent < 0 ? 0 : j.indent > 1000 ? 1000 : j.indent;
        j.comma = &short_comma;
    }
    if (!jinja_is_absent(a[2]) && a[2].kind != JINJA_NONE) {
        const bool pair = (a[2].kind == JINJA_TUPLE || a[2].kind == JINJA_LIST) && a[2].list->count == 2;
        if (!pair || a[2].list->items[0].kind != JINJA_STRING || a[2].list->items[1].kind != JINJA_STRING)
            return jinja_fail(r, "tojson: separators is not a pair of strings");
        j.comma = a[2].list->items[0].string;
        j.colon = a[2].list->items[1].string;
    }
    const size_t start = r->out.length;
    jinja_put_json(r, &j, self, 0);
    return jinja_cut(r, start);
}

/* ---- order ----------------------------------------------------------------------------------------------------- */

/* Sorts items by their keys. Equal keys keep their order, also in reverse. */
static inline void jinja_sort(JinjaRun *r, JinjaValue *keys, JinjaValue *items, size_t n, bool reverse) {
    JinjaValue *k = (JinjaValue *)jinja_alloc(r, n * sizeof *k), *v = (JinjaValue *)jinja_alloc(r, n * sizeof *v);
    for (size_t width = 1; width < n && !r->failed; width *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * width) {
            const size_t middle = begin + width < n ? begin + width : n;
            const size_t end = begin + 2 * width < n ? begin + 2 * width : n;
            for (size_t at = begin, left = begin, right = middle; at < end; at++) {
                bool second = left == middle;
                if (left < middle && right < end) {
                    const bool equal = jinja_equal(r, keys[right], keys[left], 0);
                    const int order = equal ? 0 : jinja_order(r, keys[right], keys[left], 0);
                    second = reverse ? order > 0 : order < 0;
                }
                const size_t from = second ? right++ : left++;
                k[at] = keys[from];
                v[at] = items[from];
            }
        }
        memcpy(keys, k, n * sizeof *k);
        memcpy(items, v, n * sizeof *v);
    }
}

/* Returns what an item is compared by: its attribute, if one is given, in lower case unless `exact`. */
static inline JinjaValue jinja_sort_key(JinjaRun *r, JinjaValue item, JinjaValue attribute, bool exact) {
    if (!jinja_is_absent(attribute) && attribute.kind != JINJA_NONE) {
        if (attribute.kind == JINJA_STRING && memchr(attribute.string->text, ',', attribute.string->length))
            return jinja_fail(r, "several attributes, separated by commas, are not supported");
        item = jinja_path(r, item, attribute);
    }
    return item.kind == JINJA_STRING && !exact ? jinja_case(r, item.string, false) : item;
}

static inline bool jinja_flag(JinjaValue v) { return !jinja_is_absent(v) && jinja_truth(v); }

static inline JinjaValue jinja_new_list(JinjaRun *r, JinjaKind kind, JinjaList items) {
    JinjaValue list = jinja_list(r, kind);
    *list.list = items;
    return list;
}

static inline JinjaValue jinja_filter_sort(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaList all = jinja_items(r, self);
    JinjaList keys = {0}, items = {0};
    for (size_t i = 0; i < all.count && !r->failed; i++) {
        jinja_append(r, &keys, jinja_sort_key(r, all.items[i], a[2], jinja_flag(a[1])));
        jinja_append(r, &items, all.items[i]);
    }
    if (!r->failed) jinja_sort(r, keys.items, items.items, items.count, jinja_flag(a[0]));
    return jinja_new_list(r, JINJA_LIST, items);
}

static inline JinjaValue jinja_filter_dictsort(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const bool by_value = a[1].kind == JINJA_STRING && jinja_is_text(a[1], "value");
    if (self.kind != JINJA_MAP) return jinja_fail(r, "dictsort: got %s, expected a map", jinja_kind_name(self));
    if (!jinja_is_absent(a[1]) && !by_value && !jinja_is_text(a[1], "key"))
        return jinja_fail(r, "dictsort: can sort by 'key' or by 'value'");
    JinjaValue pairs = jinja_view(r, self.map, JINJA_LIST, true, true);
    JinjaList keys = {0};
    for (size_t i = 0; i < pairs.list->count && !r->failed; i++)
        jinja_append(r, &keys,
                     jinja_sort_key(r, pairs.list->items[i].list->items[by_value], jinja_absent(), jinja_flag(a[0])));
    if (!r->failed) jinja_sort(r, keys.items, pairs.list->items, keys.count, jinja_flag(a[2]));
    return pairs;
}

static inline JinjaValue jinja_extreme(JinjaRun *r, JinjaValue self, const JinjaValue *a, int sign) {
    const JinjaList all = jinja_items(r, self);
    JinjaValue best = jinja_undefined("the extreme of an empty sequence"), best_key = best;
    for (size_t i = 0; i < all.count && !r->failed; i++) {
        const JinjaValue key = jinja_sort_key(r, all.items[i], a[1], jinja_flag(a[0]));
        if (i && sign * jinja_order(r, key, best_key, 0) <= 0) continue;
        best = all.items[i];
        best_key = key;
    }
    return best;
}

static inline JinjaValue jinja_filter_min(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_extreme(r, self, a, -1);
}

static inline JinjaValue jinja_filter_max(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_extreme(r, self, a, 1);
}

static inline JinjaValue jinja_filter_unique(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaList all = jinja_items(r, self);
    JinjaValue list = jinja_list(r, JINJA_GENERATOR), seen = jinja_map(r, JINJA_MAP);
    for (size_t i = 0; i < all.count && !r->failed; i++) {
        const JinjaValue key = jinja_sort_key(r, all.items[i], a[1], jinja_flag(a[0]));
        const size_t before = seen.map->count;
        jinja_set(r, seen.map, key, jinja_none());
        if (seen.map->count > before) jinja_append(r, list.list, all.items[i]);
    }
    return list;
}

/* ---- strings --------------------------------------------------------------------------------------------------- */

static inline JinjaValue jinja_filter_string(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_string_value(jinja_text(r, self));
}

static inline JinjaValue jinja_filter_safe(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_marked_safe(r, jinja_string_value(jinja_text(r, self)), true);
}

static inline JinjaValue jinja_filter_trim(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_strip(r, jinja_text(r, self), jinja_string_argument(r, a[0]), true, true);
}

static inline JinjaValue jinja_filter_lower(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_case(r, jinja_text(r, self), false);
}

static inline JinjaValue jinja_filter_upper(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_case(r, jinja_text(r, self), true);
}

static inline JinjaValue jinja_filter_capitalize(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_capitalize(r, jinja_text(r, self));
}

/* Whether jinja2's filter title begins a word after this character, at s->text + i. */
static inline bool jinja_before_word(const JinjaString *s, size_t i) {
    const char c = s->text[i];
    return (c && strchr("-({[<", c)) || jinja_space(s->text + i, jinja_character(s, i));
}

static inline JinjaValue jinja_filter_title(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaString *s = jinja_text(r, self);
    const size_t start = r->out.length;
    bool first = true;
    (void)a;
    for (size_t i = 0, n; i < s->length && !r->failed; i += n) {
        n = jinja_character(s, i);
        jinja_put_case(r, s, i, i + n, first);
        first = jinja_before_word(s, i);
    }
    return jinja_cut(r, start);
}

static inline JinjaValue jinja_filter_replace(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_replace(r, jinja_text(r, self), jinja_text(r, a[0]), jinja_text(r, a[1]),
                         jinja_integer_argument(r, a[2], -1));
}

static inline JinjaValue jinja_filter_join(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    static const JinjaString nothing = {.text = ""};
    JinjaList items = jinja_items(r, self), chosen = {0};
    if (!jinja_is_absent(a[1]) && a[1].kind != JINJA_NONE) {
        for (size_t i = 0; i < items.count && !r->failed; i++)
            jinja_append(r, &chosen, jinja_path(r, items.items[i], a[1]));
        items = chosen;
    }
    return jinja_join(r, jinja_is_absent(a[0]) ? &nothing : jinja_text(r, a[0]), items, false);
}

/* Returns the length of the line break at s[at], as Python's splitlines() defines it, or 0. */
static inline size_t jinja_line_break(const JinjaString *s, size_t at) {
    if (s->text[at] == '\r') return at + 1 < s->length && s->text[at + 1] == '\n' ? 2 : 1;
    const size_t n = jinja_character(s, at);
    const uint32_t c = utf8_decode(s->text + at, (int)n);
    return (c >= 10 && c <= 12) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029 ? n : 0;
}

static inline JinjaValue jinja_filter_indent(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    if (self.kind != JINJA_STRING) return jinja_fail(r, "indent: got %s, expected a string", jinja_kind_name(self));
    const JinjaString *s = self.string, *width = a[0].kind == JINJA_STRING ? a[0].string : NULL;
    const int64_t spaces = width ? 0 : jinja_integer_argument(r, a[0], 4);
    const bool blank = jinja_flag(a[2]);
    const size_t start = r->out.length;
    for (size_t at = 0, line = 0; at <= s->length && jinja_step(r, 1); line++) {
        size_t end = at, mark = 0;
        while (end < s->length && !(mark = jinja_line_break(s, end))) end += jinja_character(s, end);
        if (line) jinja_put(r, "\n", 1, 0);
        if (line ? blank || end > at : jinja_flag(a[1])) {
            if (width) jinja_put_string(r, width);
            for (int64_t i = 0; i < spaces && !r->failed; i++) jinja_put(r, " ", 1, 0);
        }
        jinja_put_part(r, s, at, end);
        if (end == s->length || (s->text[end] == '\r' && end + 1 == s->length))
            break; /* \r and the \n that jinja2 adds */
        at = end + mark;
    }
    return jinja_marked_safe(r, jinja_cut(r, start), s->safe);
}

/* ---- sequences ------------------------------------------------------------------------------------------------- */

static inline JinjaValue jinja_filter_length(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    switch (self.kind) {
    case JINJA_UNDEFINED: return jinja_int(0);
    case JINJA_STRING: return jinja_int((int64_t)jinja_characters(r, self.string));
    case JINJA_MAP: return jinja_int((int64_t)self.map->count);
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW: return jinja_int((int64_t)self.list->count);
    default: return jinja_fail(r, "%s has no length", jinja_kind_name(self));
    }
}

static inline JinjaValue jinja_filter_list(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    const JinjaList all = jinja_items(r, self);
    JinjaValue list = jinja_list(r, JINJA_LIST);
    for (size_t i = 0; i < all.count && !r->failed; i++) jinja_append(r, list.list, all.items[i]);
    return list;
}

static inline JinjaValue jinja_filter_items(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    if (self.kind == JINJA_UNDEFINED) return jinja_list(r, JINJA_GENERATOR);
    if (self.kind != JINJA_MAP) return jinja_fail(r, "items: got %s, expected a map", jinja_kind_name(self));
    return jinja_view(r, self.map, JINJA_GENERATOR, true, true);
}

static inline JinjaValue jinja_filter_first(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    if (self.kind == JINJA_GENERATOR && self.list->next < self.list->count) return self.list->items[self.list->next++];
    const JinjaList all = jinja_items(r, self);
    return all.count ? all.items[0] : jinja_undefined("the first item of an empty sequence");
}

static inline JinjaValue jinja_filter_last(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    if (self.kind == JINJA_GENERATOR) return jinja_fail(r, "last: a generator cannot be reversed");
    const JinjaList all = jinja_items(r, self);
    return all.count ? all.items[all.count - 1] : jinja_undefined("the last item of an empty sequence");
}

/* ---- other values ---------------------------------------------------------------------------------------------- */

static inline JinjaValue jinja_filter_default(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    if (self.kind != JINJA_UNDEFINED && !(jinja_flag(a[1]) && !jinja_truth(self))) return self;
    return jinja_is_absent(a[0]) ? jinja_literal(r, "", 0, 0) : a[0];
}

/* int(x), else int(float(x)), else the default, as in jinja2. */
static inline JinjaValue jinja_filter_int(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaValue otherwise = jinja_is_absent(a[0]) ? jinja_int(0) : a[0];
    char digits[64], *end;
    double real = self.real;
    if (self.kind == JINJA_INT || self.kind == JINJA_BOOL) return jinja_int(self.integer);
    if (self.kind == JINJA_UNDEFINED) return jinja_fail(r, "int: the value is undefined");
    if (self.kind == JINJA_STRING) {
        const JinjaValue bare = jinja_strip(r, self.string, NULL, true, true);
        if (bare.kind != JINJA_STRING || !bare.string->length) return otherwise;
        const JinjaString *s = bare.string;
        bool plain = true;
        for (size_t i = 0; i < s->length; i++) {
            if ((unsigned char)s->text[i] > 127 || s->text[i] == '_')
                return jinja_fail(r, "int: digits beyond 0 to 9, and _, are not supported");
            plain = plain && (isdigit((unsigned char)s->text[i]) || strchr("+-.eE", s->text[i]));
        }
        if (!plain) return otherwise;
        if (s->length >= sizeof digits) return jinja_fail(r, "int: the number has more than 63 characters");
        memcpy(digits, s->text, s->length);
        digits[s->length] = 0;
        errno = 0;
        const long long whole = strtoll(digits, &end, 10);
        if (!*end && errno) return jinja_fail(r, "int: %s is too large", digits);
        if (!*end) return jinja_int(whole);
        real = strtod(digits, &end);
        if (*end) return otherwise;
    } else if (self.kind != JINJA_FLOAT) return otherwise;
    if (!isfinite(real))
        return self.kind == JINJA_STRING || isinf(real) ? jinja_fail(r, "int: the number is too large") : otherwise;
    if (fabs(real) >= 0x1p62) return jinja_fail(r, "int: %g is too large", real);
    return jinja_int((int64_t)real);
}

static inline JinjaValue jinja_filter_abs(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    if (!jinja_number(self)) return jinja_fail(r, "abs: got %s, expected a number", jinja_kind_name(self));
    if (self.kind == JINJA_FLOAT) return (JinjaValue){.kind = JINJA_FLOAT, .real = fabs(self.real)};
    if (self.integer == INT64_MIN) return jinja_fail(r, "abs: the number is too large");
    return jinja_int(self.integer < 0 ? -self.integer : self.integer);
}

/* ---- tests ----------------------------------------------------------------------------------------------------- */

/* Whether a contains b, by Python's `in`. */
static inline bool jinja_in(JinjaRun *r, JinjaValue b, JinjaValue a) {
    if (a.kind == JINJA_STRING) {
        if (b.kind != JINJA_STRING)
            return jinja_fail(r, "'in' of a string: the left side is %s, expected a string", jinja_kind_name(b)), false;
        if (!jinja_step(r, a.string->length / 64)) return false;
        return !b.string->length || jinja_search(a.string, 0, b.string) != NULL;
    }
    if (a.kind == JINJA_MAP) {
        if (b.kind == JINJA_LIST || b.kind == JINJA_MAP)
            return jinja_fail(r, "'in' of a map: the left side is %s", jinja_kind_name(b)), false;
        return jinja_find(r, a.map, b) != NULL;
    }
    if (a.kind == JINJA_GENERATOR) {
        while (a.list->next < a.list->count && !r->failed)
            if (jinja_equal(r, a.list->items[a.list->next++], b, 0)) return true;
        return false;
    }
    const JinjaList all = jinja_items(r, a);
    for (size_t i = 0; i < all.count && !r->failed; i++)
        if (jinja_equal(r, all.items[i], b, 0)) return true;
    return false;
}

#define JINJA_TEST(name, condition)                                                                                    \
    static inline JinjaValue jinja_test_##name(JinjaRun *r, JinjaValue v, const JinjaValue *a) {                       \
        (void)r;                                                                                                       \
        (void)a;                                                                                                       \
        return jinja_bool(condition);                                                                                  \
    }

JINJA_TEST(defined, v.kind != JINJA_UNDEFINED)
JINJA_TEST(undefined, v.kind == JINJA_UNDEFINED)
JINJA_TEST(none, v.kind == JINJA_NONE)
JINJA_TEST(boolean, v.kind == JINJA_BOOL)
JINJA_TEST(true, v.kind == JINJA_BOOL && v.integer)
JINJA_TEST(false, v.kind == JINJA_BOOL && !v.integer)
JINJA_TEST(integer, v.kind == JINJA_INT)
JINJA_TEST(float, v.kind == JINJA_FLOAT)
JINJA_TEST(number, jinja_number(v))
JINJA_TEST(string, v.kind == JINJA_STRING)
JINJA_TEST(mapping, v.kind == JINJA_MAP)
JINJA_TEST(iterable,
           v.kind == JINJA_UNDEFINED || (v.kind >= JINJA_STRING && v.kind <= JINJA_MAP) || v.kind == JINJA_LOOP)
JINJA_TEST(sequence,
           v.kind == JINJA_UNDEFINED || v.kind == JINJA_MAP || (v.kind >= JINJA_STRING && v.kind <= JINJA_RANGE))
JINJA_TEST(eq, jinja_equal(r, v, a[0], 0))
JINJA_TEST(ne, !jinja_equal(r, v, a[0], 0))
JINJA_TEST(lt, jinja_order(r, v, a[0], 0) < 0)
JINJA_TEST(le, jinja_order(r, v, a[0], 0) <= 0)
JINJA_TEST(gt, jinja_order(r, v, a[0], 0) > 0)
JINJA_TEST(ge, jinja_order(r, v, a[0], 0) >= 0)
JINJA_TEST(in, jinja_in(r, v, a[0]))

static inline JinjaValue jinja_test_divisible(JinjaRun *r, JinjaValue v, const JinjaValue *a) {
    const bool integers = v.kind == JINJA_INT && a[0].kind == JINJA_INT;
    if (!integers || !a[0].integer) return jinja_fail(r, "divisibleby: needs two integers, the second not 0");
    return jinja_bool(a[0].integer == -1 || v.integer % a[0].integer == 0);
}

static inline JinjaValue jinja_test_even(JinjaRun *r, JinjaValue v, const JinjaValue *a) {
    (void)a;
    if (v.kind != JINJA_INT) return jinja_fail(r, "even, odd: %s is not supported", jinja_kind_name(v));
    return jinja_bool(!(v.integer & 1));
}

static inline JinjaValue jinja_test_odd(JinjaRun *r, JinjaValue v, const JinjaValue *a) {
    return jinja_bool(!jinja_test_even(r, v, a).integer);
}

// clang-format off
static const JinjaBuiltin jinja_tests[] = {
    {"defined",     "",       0, jinja_test_defined},
    {"undefined",   "",       0, jinja_test_undefined},
    {"none",        "",       0, jinja_test_none},
    {"boolean",     "",       0, jinja_test_boolean},
    {"true",        "",       0, jinja_test_true},
    {"false",       "",       0, jinja_test_false},
    {"integer",     "",       0, jinja_test_integer},
    {"float",       "",       0, jinja_test_float},
    {"number",      "",       0, jinja_test_number},
    {"string",      "",       0, jinja_test_string},
    {"mapping",     "",       0, jinja_test_mapping},
    {"iterable",    "",       0, jinja_test_iterable},
    {"sequence",    "",       0, jinja_test_sequence},
    {"even",        "",       0, jinja_test_even},
    {"odd",         "",       0, jinja_test_odd},
    {"divisibleby", "num",    1, jinja_test_divisible},
    {"in",          "seq",    1, jinja_test_in},
    {"==",          "b",      1, jinja_test_eq},
    {"eq",          "b",      1, jinja_test_eq},
    {"equalto",     "b",      1, jinja_test_eq},
    {"!=",          "b",      1, jinja_test_ne},
    {"ne",          "b",      1, jinja_test_ne},
    {"<",           "b",      1, jinja_test_lt},
    {"lt",          "b",      1, jinja_test_lt},
    {"lessthan",    "b",      1, jinja_test_lt},
    {"<=",          "b",      1, jinja_test_le},
    {"le",          "b",      1, jinja_test_le},
    {">",           "b",      1, jinja_test_gt},
    {"gt",          "b",      1, jinja_test_gt},
    {"greaterthan", "b",      1, jinja_test_gt},
    {">=",          "b",      1, jinja_test_ge},
    {"ge",          "b",      1, jinja_test_ge},
    {0}};
// clang-format on

static inline bool jinja_known_test(const char *name) { return jinja_lookup(jinja_tests, name) != NULL; }

/* ---- filters that apply others --------------------------------------------------------------------------------- */

/* Returns the items of `self` for which the test that `a` names is, or with `reject` is not, true. With `attribute`,
 * a[0] is the path of what is tested, and the test follows. */
static inline JinjaValue jinja_choose(JinjaRun *r, JinjaValue self, const JinjaValue *a, bool reject, bool attribute) {
    const JinjaValue *test = a + attribute;
    const JinjaBuiltin *b = NULL;
    char name[16];
    if (test->kind == JINJA_STRING && test->string->length < sizeof name) {
        memcpy(name, test->string->text, test->string->length);
        name[test->string->length] = 0;
        b = jinja_lookup(jinja_tests, name);
    }
    if (!jinja_is_absent(*test) && !b)
        return jinja_fail(r, "the test of select, reject, selectattr or rejectattr is not supported");
    const JinjaArguments given = {.values = test + 1, .count = !b || jinja_is_absent(test[1]) ? 0 : 1};
    const JinjaList all = jinja_truth(self) ? jinja_items(r, self) : (JinjaList){0}; /* none has no items here */
    JinjaValue list = jinja_list(r, JINJA_GENERATOR);
    for (size_t i = 0; i < all.count && !r->failed; i++) {
        const JinjaValue v = attribute ? jinja_path(r, all.items[i], a[0]) : all.items[i];
        const bool passes = jinja_truth(b ? jinja_call_builtin(r, b, v, given) : v);
        if (passes != reject) jinja_append(r, list.list, all.items[i]);
    }
    return list;
}

static inline JinjaValue jinja_filter_select(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_choose(r, self, a, false, false);
}

static inline JinjaValue jinja_filter_reject(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_choose(r, self, a, true, false);
}

static inline JinjaValue jinja_filter_selectattr(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_choose(r, self, a, false, true);
}

static inline JinjaValue jinja_filter_rejectattr(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_choose(r, self, a, true, true);
}

static inline const JinjaBuiltin *jinja_filter(const char *name);

/* map(attribute=..., default=...) and map('filter', arguments). */
static inline JinjaValue jinja_filter_map(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    char name[16];
    const JinjaBuiltin *b = NULL;
    if (a[0].kind == JINJA_STRING && a[0].string->length < sizeof name) {
        memcpy(name, a[0].string->text, a[0].string->length);
        name[a[0].string->length] = 0;
        b = jinja_filter(name);
    }
    const bool attribute = jinja_is_absent(a[0]) && !jinja_is_absent(a[4]);
    if (!b && !attribute) return jinja_fail(r, "map: needs attribute=NAME or the name of a supported filter");
    JinjaArguments given = {.values = a + 1};
    while (given.count < 3 && !jinja_is_absent(a[1 + given.count])) given.count++;
    const JinjaList all = jinja_truth(self) ? jinja_items(r, self) : (JinjaList){0}; /* none has no items here */
    JinjaValue list = jinja_list(r, JINJA_GENERATOR);
    for (size_t i = 0; i < all.count && !r->failed; i++) {
        JinjaValue v = attribute ? jinja_path(r, all.items[i], a[4]) : jinja_call_builtin(r, b, all.items[i], given);
        if (attribute && v.kind == JINJA_UNDEFINED && !jinja_is_absent(a[5])) v = a[5];
        jinja_append(r, list.list, v);
    }
    return list;
}

// clang-format off
static const JinjaBuiltin jinja_filters[] = {
    {"abs",        "",                                        0, jinja_filter_abs},
    {"capitalize", "",                                        0, jinja_filter_capitalize},
    {"count",      "",                                        0, jinja_filter_length},
    {"d",          "default_value boolean",                   0, jinja_filter_default},
    {"default",    "default_value boolean",                   0, jinja_filter_default},
    {"dictsort",   "case_sensitive by reverse",               0, jinja_filter_dictsort},
    {"first",      "",                                        0, jinja_filter_first},
    {"indent",     "width first blank",                       0, jinja_filter_indent},
    {"int",        "default",                                 0, jinja_filter_int},
    {"items",      "",                                        0, jinja_filter_items},
    {"join",       "d attribute",                             0, jinja_filter_join},
    {"last",       "",                                        0, jinja_filter_last},
    {"length",     "",                                        0, jinja_filter_length},
    {"list",       "",                                        0, jinja_filter_list},
    {"lower",      "",                                        0, jinja_filter_lower},
    {"map",        "0 1 2 3 attribute default",               0, jinja_filter_map},
    {"max",        "case_sensitive attribute",                0, jinja_filter_max},
    {"min",        "case_sensitive attribute",                0, jinja_filter_min},
    {"reject",     "0 1",                                     0, jinja_filter_reject},
    {"rejectattr", "0 1 2",                                   1, jinja_filter_rejectattr},
    {"replace",    "old new count",                           2, jinja_filter_replace},
    {"safe",       "",                                        0, jinja_filter_safe},
    {"select",     "0 1",                                     0, jinja_filter_select},
    {"selectattr", "0 1 2",                                   1, jinja_filter_selectattr},
    {"sort",       "reverse case_sensitive attribute",        0, jinja_filter_sort},
    {"string",     "",                                        0, jinja_filter_string},
    {"title",      "",                                        0, jinja_filter_title},
    {"tojson",     "ensure_ascii indent separators sort_keys", 0, jinja_filter_tojson},
    {"trim",       "chars",                                   0, jinja_filter_trim},
    {"unique",     "case_sensitive attribute",                0, jinja_filter_unique},
    {"upper",      "",                                        0, jinja_filter_upper},
    {0}};
// clang-format on

static inline const JinjaBuiltin *jinja_filter(const char *name) { return jinja_lookup(jinja_filters, name); }
static inline bool jinja_known_filter(const char *name) { return jinja_filter(name) != NULL; }

#endif

/* jinja_method.h - attributes, items and methods of values in chat templates, as Python and jinja2's sandbox define
 * them.
 *
 *   strings   split strip lstrip rstrip startswith endswith replace upper lower capitalize title format join
 *   maps      get items keys values
 *   lists     append pop
 *
 * As in jinja2, x.a is Python's attribute (a method) if there is one, else the key; x['a'] is the key, else the
 * attribute. append and pop change the list; jinja2's sandbox in transformers forbids them, llama.cpp allows them.
 * format() accepts {} and {0}. Letters whose upper or lower case is several letters, or depends on the word, are
 * refused. The method title() accepts ASCII only: elsewhere a letter may have a third case.
 */
#ifndef LLMC_TEXT_JINJA_METHOD_H
#define LLMC_TEXT_JINJA_METHOD_H

#include "../base/text.h" /* utf8_decode, utf8_encode, utf8_length */
#include "jinja_parse.h"  /* jinja_space, jinja_trimmed */
#include "jinja_value.h"  /* JinjaValue, JinjaRun, JinjaString, jinja_fail, ... */

enum { JINJA_ARGUMENTS = 8 };

/* The value of a parameter without argument. */
static const char jinja_absent_name[] = "";
static inline JinjaValue jinja_absent(void) { return jinja_undefined(jinja_absent_name); }
static inline bool jinja_is_absent(JinjaValue v) { return v.kind == JINJA_UNDEFINED && v.name == jinja_absent_name; }

/* A filter, test, method or function: `parameters` are the names of the arguments after the first; arguments that are
 * not given are absent. */
typedef struct JinjaBuiltin {
    const char *name, *parameters;
    int least; /* arguments that must be given */
    JinjaValue (*call)(JinjaRun *r, JinjaValue self, const JinjaValue *a);
} JinjaBuiltin;

/* Evaluated arguments: `count` positional ones, then `named` ones with names. */
typedef struct JinjaArguments {
    const JinjaValue *values;
    const char *const *names;
    int count, named;
} JinjaArguments;

/* Assigns arguments to parameters. */
static inline bool jinja_bind(JinjaRun *r, const JinjaBuiltin *b, JinjaArguments given, JinjaValue *a) {
    int count = 0;
    for (int i = 0; i < JINJA_ARGUMENTS; i++) a[i] = jinja_absent();
    for (const char *s = b->parameters; *s; count++) {
        const size_t n = strcspn(s, " ");
        if (count < given.count) a[count] = given.values[count];
        for (int i = 0; i < given.named; i++) {
            if (strlen(given.names[i]) != n || memcmp(given.names[i], s, n)) continue;
            if (count < given.count)
                return jinja_fail(r, "%s: argument '%s' is given twice", b->name, given.names[i]), false;
            a[count] = given.values[given.count + i];
        }
        s += n + (s[n] == ' ');
    }
    for (int i = 0; i < given.named; i++) {
        const char *s = b->parameters, *name = given.names[i];
        const size_t n = strlen(name);
        while ((s = strstr(s, name)) && !((s == b->parameters || s[-1] == ' ') && (!s[n] || s[n] == ' '))) s++;
        if (!s) return jinja_fail(r, "%s: the argument '%.40s' is not supported", b->name, name), false;
    }
    for (int i = 0; i < b->least; i++)
        if (jinja_is_absent(a[i])) return jinja_fail(r, "%s: has too few arguments", b->name), false;
    return given.count <= count || (jinja_fail(r, "%s: has more than %d arguments", b->name, count), false);
}

static inline JinjaValue jinja_call_builtin(JinjaRun *r, const JinjaBuiltin *b, JinjaValue self, JinjaArguments given) {
    JinjaValue a[JINJA_ARGUMENTS];
    return jinja_bind(r, b, given, a) && jinja_step(r, 1) ? b->call(r, self, a) : (JinjaValue){0};
}

/* Returns an integer argument, or `otherwise` if it is absent or none. */
static inline int64_t jinja_integer_argument(JinjaRun *r, JinjaValue v, int64_t otherwise) {
    if (jinja_is_absent(v) || v.kind == JINJA_NONE) return otherwise;
    if (v.kind != JINJA_INT && v.kind != JINJA_BOOL)
        jinja_fail(r, "an argument is %s, expected an integer", jinja_kind_name(v));
    return v.kind == JINJA_INT || v.kind == JINJA_BOOL ? v.integer : otherwise;
}

/* Returns a string argument, or NULL if it is absent or none; anything else fails. */
static inline const JinjaString *jinja_string_argument(JinjaRun *r, JinjaValue v) {
    if (v.kind != JINJA_STRING && v.kind != JINJA_NONE && !jinja_is_absent(v))
        jinja_fail(r, "an argument is %s, expected a string", jinja_kind_name(v));
    return v.kind == JINJA_STRING ? v.string : NULL;
}

/* ---- strings --------------------------------------------------------------------------------------------------- */

/* Returns the length in bytes of the character at byte `at`. */
static inline size_t jinja_character(const JinjaString *s, size_t at) {
    const int n = utf8_length(s->text + at, s->length - at);
    return n ? (size_t)n : 1;
}

/* Returns the number of characters. */
static inline size_t jinja_characters(JinjaRun *r, const JinjaString *s) {
    size_t n = 0;
    if (!jinja_step(r, s->length / 64)) return 0;
    for (size_t i = 0; i < s->length; i++) n += ((unsigned char)s->text[i] & 0xC0) != 0x80;
    return n;
}

static inline bool jinja_contains(const JinjaString *set, const char *character, size_t n) {
    for (size_t i = 0; i < set->length; i += jinja_character(set, i))
        if (jinja_character(set, i) == n && !memcmp(set->text + i, character, n)) return true;
    return false;
}

/* Python's strip(chars); chars NULL: white space. */
static inline JinjaValue jinja_strip(JinjaRun *r, const JinjaString *s, const JinjaString *chars, bool left,
                                     bool right) {
    size_t from = 0, to = s->length;
    if (!jinja_step(r, s->length / 64 * (chars ? 1 + chars->length : 1))) return (JinjaValue){0};
    while (left && from < to) {
        const size_t n = jinja_character(s, from);
        if (chars ? !jinja_contains(chars, s->text + from, n) : !jinja_space(s->text + from, n)) break;
        from += n;
    }
    if (right && !chars) to = from + jinja_trimmed(s->text + from, to - from);
    while (right && chars && to > from) {
        size_t n = 1;
        while (n < to - from && ((unsigned char)s->text[to - n] & 0xC0) == 0x80) n++;
        if (!jinja_contains(chars, s->text + to - n, n)) break;
        to -= n;
    }
    return jinja_part(r, s, from, to);
}

static inline const char *jinja_search(const JinjaString *s, size_t at, const JinjaString *what) {
    return what->length ? (const char *)memmem(s->text + at, s->length - at, what->text, what->length) : NULL;
}

static inline JinjaValue jinja_split_spaces(JinjaRun *r, const JinjaString *s, int64_t most) {
    JinjaValue list = jinja_list(r, JINJA_LIST);
    size_t at = 0, n;
    while (!r->failed) {
        while ((n = jinja_space(s->text + at, s->length - at)) > 0) at += n;
        if (at == s->length) break;
        const size_t begin = at;
        if (most >= 0 && (int64_t)list.list->count == most) {
            jinja_append(r, list.list,
                         jinja_part(r, s, begin, begin + jinja_trimmed(s->text + begin, s->length - begin)));
            break;
        }
        while (at < s->length && !jinja_space(s->text + at, s->length - at)) at += jinja_character(s, at);
        jinja_append(r, list.list, jinja_part(r, s, begin, at));
    }
    return list;
}

/* Python's split(sep, maxsplit). */
static inline JinjaValue jinja_split(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaString *s = self.string, *mark = jinja_string_argument(r, a[0]);
    const int64_t most = jinja_integer_argument(r, a[1], -1);
    if (!jinja_step(r, s->length / 64)) return (JinjaValue){0};
    if (!mark) return jinja_split_spaces(r, s, most);
    if (!mark->length) return jinja_fail(r, "split: the separator is empty");
    JinjaValue list = jinja_list(r, JINJA_LIST);
    size_t at = 0;
    const char *found;
    while (!r->failed && (most < 0 || (int64_t)list.list->count < most) && (found = jinja_search(s, at, mark))) {
        jinja_append(r, list.list, jinja_part(r, s, at, (size_t)(found - s->text)));
        at = (size_t)(found - s->text) + mark->length;
    }
    jinja_append(r, list.list, jinja_part(r, s, at, s->length));
    return list;
}

/* Python's replace(old, new, count). */
static inline JinjaValue jinja_replace(JinjaRun *r, const JinjaString *s, const JinjaString *old,
                                       const JinjaString *new, int64_t count) {
    const size_t start = r->out.length;
    size_t at = 0;
    const char *found;
    if (!old->length) { /* between all characters */
        for (; at <= s->length && count && !r->failed; count--) {
            const size_t n = at < s->length ? jinja_character(s, at) : 1;
            jinja_put_string(r, new);
            if (at < s->length) jinja_put_part(r, s, at, at + n);
            at += n;
            jinja_step(r, 1);
        }
    }
    for (; count && !r->failed && (found = jinja_search(s, at, old)); count--) {
        jinja_put_part(r, s, at, (size_t)(found - s->text));
        jinja_put_string(r, new);
        at = (size_t)(found - s->text) + old->length;
        jinja_step(r, 1);
    }
    if (at < s->length) jinja_put_part(r, s, at, s->length);
    return jinja_cut(r, start);
}

/* Whether Python's upper() or lower() of the character is not one character of its own. */
static inline bool jinja_odd_case(uint32_t c, bool upper) {
    static const uint32_t ranges[][2] = {{0xDF, 0xDF},     {0x149, 0x149},   {0x1C5, 0x1C5},   {0x1C8, 0x1C8},
                                         {0x1CB, 0x1CB},   {0x1F0, 0x1F2},   {0x390, 0x390},   {0x3B0, 0x3B0},
                                         {0x587, 0x587},   {0x1E96, 0x1E9A}, {0x1F50, 0x1F56}, {0x1F80, 0x1FFC},
                                         {0xFB00, 0xFB06}, {0xFB13, 0xFB17}};
    if (!upper) return c == 0x130 || c == 0x3A3;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return true;
    return false;
}

/* Appends the characters of s[from..to) in upper or lower case. */
static inline void jinja_put_case(JinjaRun *r, const JinjaString *s, size_t from, size_t to, bool upper) {
    for (size_t i = from, n; i < to && !r->failed; i += n) {
        n = jinja_character(s, i);
        uint32_t c = utf8_decode(s->text + i, (int)n);
        char bytes[4];
        if (c < 128) c = (uint32_t)(upper ? toupper((int)c) : tolower((int)c));
        else if (jinja_odd_case(c, upper)) jinja_fail(r, "the case of U+%04X is not supported", c);
        else {
            if (!r->utf8) r->utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
            if (!r->utf8) jinja_fail(r, "this system has no locale C.UTF-8, which the case of U+%04X needs", c);
            else c = (uint32_t)(upper ? towupper_l((wint_t)c, r->utf8) : towlower_l((wint_t)c, r->utf8));
        }
        jinja_put(r, bytes, (size_t)utf8_encode(c, bytes), jinja_mark(s, i));
        if (!(i & 63)) jinja_step(r, 1);
    }
}

static inline JinjaValue jinja_case(JinjaRun *r, const JinjaString *s, bool upper) {
    const size_t start = r->out.length;
    jinja_put_case(r, s, 0, s->length, upper);
    return jinja_marked_safe(r, jinja_cut(r, start), s->safe);
}

static inline JinjaValue jinja_capitalize(JinjaRun *r, const JinjaString *s) {
    const size_t start = r->out.length, first = s->length ? jinja_character(s, 0) : 0;
    jinja_put_case(r, s, 0, first, true);
    jinja_put_case(r, s, first, s->length, false);
    return jinja_marked_safe(r, jinja_cut(r, start), s->safe);
}

/* Python's str.title(): a letter is a capital unless it follows a letter. */
static inline JinjaValue jinja_title(JinjaRun *r, const JinjaString *s) {
    const size_t start = r->out.length;
    bool inside = false; /* the character before is a letter */
    for (size_t i = 0; i < s->length && !r->failed; i++) {
        const uint8_t c = (uint8_t)s->text[i];
        if (c >= 128) {
            jinja_fail(r, "title() of U+%04X is not supported", utf8_decode(s->text + i, (int)jinja_character(s, i)));
            break;
        }
        const char cased = (char)(inside ? tolower(c) : toupper(c));
        jinja_put(r, &cased, 1, jinja_mark(s, i));
        inside = isalpha(c);
        if (!(i & 63)) jinja_step(r, 1);
    }
    return jinja_marked_safe(r, jinja_cut(r, start), s->safe);
}

/* Returns the items of an iterable value; a generator has none afterwards. Fails for other values. */
static inline JinjaList jinja_items(JinjaRun *r, JinjaValue v) {
    JinjaList items = {0};
    switch (v.kind) {
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW: return *v.list;
    case JINJA_GENERATOR:
        if (v.list->count > v.list->next) items.items = v.list->items + v.list->next;
        items.count = v.list->count - v.list->next;
        v.list->next = v.list->count;
        return items;
    case JINJA_STRING:
        for (size_t i = 0, n; i < v.string->length && !r->failed; i += n) {
            n = jinja_character(v.string, i);
            jinja_append(r, &items, jinja_marked_safe(r, jinja_part(r, v.string, i, i + n), false));
        }
        return items;
    case JINJA_MAP:
        for (size_t i = 0; i < v.map->count && !r->failed; i++) jinja_append(r, &items, v.map->entries[i].key);
        return items;
    case JINJA_UNDEFINED: return items;
    default: jinja_fail(r, "%s is not iterable", jinja_kind_name(v)); return items;
    }
}

/* Joins the str() of all items. */
static inline JinjaValue jinja_join(JinjaRun *r, const JinjaString *between, JinjaList items, bool strings) {
    const size_t start = r->out.length;
    for (size_t i = 0; i < items.count && jinja_step(r, 1); i++) {
        if (i) jinja_put_string(r, between);
        if (strings && items.items[i].kind != JINJA_STRING)
            return jinja_fail(r, "join: item %zu is %s, expected a string", i, jinja_kind_name(items.items[i]));
        jinja_put_value(r, items.items[i]);
    }
    return jinja_cut(r, start);
}

/* Python's format() with {}, {0}, {{ and }}. */
static inline JinjaValue jinja_format(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaString *s = self.string;
    const size_t start = r->out.length;
    size_t turn = 0;
    for (size_t i = 0; i < s->length && !r->failed; i++) {
        const char c = s->text[i], next = i + 1 < s->length ? s->text[i + 1] : 0;
        if (c != '{' && c != '}') jinja_put_part(r, s, i, i + 1);
        else if (next == c) {
            jinja_put_part(r, s, i, i + 1);
            i++;
        } else {
            const bool numbered = next >= '0' && next <= '7';
            const size_t k = numbered ? (size_t)(next - '0') : turn++, close = i + 1 + numbered;
            if (c != '{' || close >= s->length || s->text[close] != '}' || k >= JINJA_ARGUMENTS ||
                jinja_is_absent(a[k]))
                return jinja_fail(r, "format: only {} and {0} to {7} with an argument are supported");
            jinja_put_value(r, a[k]);
            i = close;
        }
    }
    return jinja_cut(r, start);
}

/* Whether the string begins, or ends, with the argument or with one of a tuple. */
static inline JinjaValue jinja_affix(JinjaRun *r, const JinjaString *s, JinjaValue what, bool end) {
    const JinjaList one = {.items = &what, .count = 1}, any = what.kind == JINJA_TUPLE ? *what.list : one;
    for (size_t i = 0; i < any.count; i++) {
        if (any.items[i].kind != JINJA_STRING)
            return jinja_fail(r, "%s: the argument is %s, expected a string", end ? "endswith" : "startswith",
                              jinja_kind_name(any.items[i]));
        const JinjaString *t = any.items[i].string;
        if (!jinja_step(r, t->length / 64 + 1)) break;
        if (t->length <= s->length && !memcmp(s->text + (end ? s->length - t->length : 0), t->text, t->length))
            return jinja_bool(true);
    }
    return jinja_bool(false);
}

/* ---- the methods ----------------------------------------------------------------------------------------------- */

static inline JinjaValue jinja_method_strip(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_strip(r, self.string, jinja_string_argument(r, a[0]), true, true);
}

static inline JinjaValue jinja_method_lstrip(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_strip(r, self.string, jinja_string_argument(r, a[0]), true, false);
}

static inline JinjaValue jinja_method_rstrip(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_strip(r, self.string, jinja_string_argument(r, a[0]), false, true);
}

static inline JinjaValue jinja_method_startswith(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_affix(r, self.string, a[0], false);
}

static inline JinjaValue jinja_method_endswith(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_affix(r, self.string, a[0], true);
}

static inline JinjaValue jinja_method_replace(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaString *old = jinja_string_argument(r, a[0]), *new = jinja_string_argument(r, a[1]);
    if (!old || !new) return jinja_fail(r, "replace: an argument is not a string");
    return jinja_replace(r, self.string, old, new, jinja_integer_argument(r, a[2], -1));
}

static inline JinjaValue jinja_method_upper(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_case(r, self.string, true);
}

static inline JinjaValue jinja_method_lower(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_case(r, self.string, false);
}

static inline JinjaValue jinja_method_capitalize(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_capitalize(r, self.string);
}

static inline JinjaValue jinja_method_title(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_title(r, self.string);
}

static inline JinjaValue jinja_method_join(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    return jinja_join(r, self.string, jinja_items(r, a[0]), true);
}

static inline JinjaValue jinja_method_get(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    const JinjaEntry *found = jinja_find(r, self.map, a[0]);
    return found ? found->value : jinja_is_absent(a[1]) ? jinja_none() : a[1];
}

/* A view of a map: its keys, its values or tuples of both. */
static inline JinjaValue jinja_view(JinjaRun *r, const JinjaMap *m, JinjaKind kind, bool keys, bool values) {
    JinjaValue view = jinja_list(r, kind);
    for (size_t i = 0; i < m->count && !r->failed; i++) {
        JinjaValue item = keys ? m->entries[i].key : m->entries[i].value;
        if (keys && values) {
            item = jinja_list(r, JINJA_TUPLE);
            jinja_append(r, item.list, m->entries[i].key);
            jinja_append(r, item.list, m->entries[i].value);
        }
        jinja_append(r, view.list, item);
    }
    return view;
}

static inline JinjaValue jinja_method_items(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_view(r, self.map, JINJA_VIEW, true, true);
}

static inline JinjaValue jinja_method_keys(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_view(r, self.map, JINJA_VIEW, true, false);
}

static inline JinjaValue jinja_method_values(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    (void)a;
    return jinja_view(r, self.map, JINJA_VIEW, false, true);
}

static inline JinjaValue jinja_method_append(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    jinja_append(r, self.list, a[0]);
    return jinja_none();
}

static inline JinjaValue jinja_method_pop(JinjaRun *r, JinjaValue self, const JinjaValue *a) {
    JinjaList *l = self.list;
    if (a[0].kind == JINJA_NONE) return jinja_fail(r, "pop: the index is none");
    int64_t at = jinja_integer_argument(r, a[0], -1);
    if (at < 0) at += (int64_t)l->count;
    if (at < 0 || at >= (int64_t)l->count || !jinja_step(r, l->count / 4)) return jinja_fail(r, "pop: no such item");
    const JinjaValue item = l->items[at];
    memmove(l->items + at, l->items + at + 1, (l->count - (size_t)at - 1) * sizeof *l->items);
    l->count--;
    return item;
}

// clang-format off
static const JinjaBuiltin jinja_string_methods[] = {
    {"split",      "sep maxsplit",    0, jinja_split},
    {"strip",      "chars",           0, jinja_method_strip},
    {"lstrip",     "chars",           0, jinja_method_lstrip},
    {"rstrip",     "chars",           0, jinja_method_rstrip},
    {"startswith", "prefix",          1, jinja_method_startswith},
    {"endswith",   "suffix",          1, jinja_method_endswith},
    {"replace",    "old new count",   2, jinja_method_replace},
    {"upper",      "",                0, jinja_method_upper},
    {"lower",      "",                0, jinja_method_lower},
    {"capitalize", "",                0, jinja_method_capitalize},
    {"title",      "",                0, jinja_method_title},
    {"format",     "0 1 2 3 4 5 6 7", 0, jinja_format},
    {"join",       "items",           1, jinja_method_join},
    {0}};
static const JinjaBuiltin jinja_map_methods[] = {
    {"get",        "key default",     1, jinja_method_get},
    {"items",      "",                0, jinja_method_items},
    {"keys",       "",                0, jinja_method_keys},
    {"values",     "",                0, jinja_method_values},
    {0}};
static const JinjaBuiltin jinja_list_methods[] = {
    {"append",     "0",               1, jinja_method_append},
    {"pop",        "0",               0, jinja_method_pop},
    {0}};
// clang-format on

static inline const JinjaBuiltin *jinja_lookup(const JinjaBuiltin *table, const char *name) {
    for (; table->name; table++)
        if (!strcmp(table->name, name)) return table;
    return NULL;
}

static inline bool jinja_known_method(const char *name) {
    return jinja_lookup(jinja_string_methods, name) || jinja_lookup(jinja_map_methods, name) ||
           jinja_lookup(jinja_list_methods, name);
}

static inline JinjaValue jinja_call_method(JinjaRun *r, const JinjaMethod *m, JinjaArguments given) {
    const JinjaKind kind = m->object.kind;
    const JinjaBuiltin *b = kind == JINJA_STRING ? jinja_lookup(jinja_string_methods, m->name)
                            : kind == JINJA_MAP  ? jinja_lookup(jinja_map_methods, m->name)
                            : kind == JINJA_LIST ? jinja_lookup(jinja_list_methods, m->name)
                                                 : NULL;
    if (!b) return jinja_fail(r, "the method '%.60s' of %s is not supported", m->name, jinja_kind_name(m->object));
    if (kind == JINJA_STRING && m->object.string->safe && strstr(" replace format join ", m->name))
        return jinja_fail(r, "the method '%s' of a string after the filter 'safe' is not supported", m->name);
    return jinja_call_builtin(r, b, m->object, given);
}

/* ---- attributes and items -------------------------------------------------------------------------------------- */

/* Whether Python's type has a method of this name. */
static inline bool jinja_has_method(JinjaKind kind, const char *name) {
    static const char *const strings =
        " capitalize casefold center count encode endswith expandtabs find format format_map index isalnum isalpha "
        "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower "
        "lstrip maketrans partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip "
        "split splitlines startswith strip swapcase title translate upper zfill ";
    static const char *const maps = " clear copy fromkeys get items keys pop popitem setdefault update values ";
    static const char *const lists = " append clear copy count extend index insert pop remove reverse sort ";
    static const char *const numbers =
        " as_integer_ratio bit_count bit_length conjugate denominator from_bytes fromhex "
        "hex imag is_integer numerator real to_bytes ";
    const char *all = kind == JINJA_STRING  ? strings
                      : kind == JINJA_MAP   ? maps
                      : kind == JINJA_LIST  ? lists
                      : kind == JINJA_TUPLE ? " count index "
                      : kind <= JINJA_FLOAT ? numbers
                                            : "";
    char word[40];
    if (strlen(name) > 30) return false;
    snprintf(word, sizeof word, " %s ", name);
    return strstr(all, word) != NULL;
}

static inline JinjaValue jinja_method(JinjaRun *r, JinjaValue object, const char *name) {
    JinjaMethod *m = (JinjaMethod *)jinja_alloc(r, sizeof *m);
    *m = (JinjaMethod){object, name};
    return (JinjaValue){.kind = JINJA_METHOD, .method = m};
}

/* Defined with the loops, in jinja.h. */
static inline JinjaValue jinja_loop_attribute(JinjaRun *r, const struct JinjaLoop *loop, const char *name);

/* Returns v.name. */
static inline JinjaValue jinja_attribute(JinjaRun *r, JinjaValue v, const char *name) {
    if (v.kind == JINJA_UNDEFINED)
        return jinja_fail(r, "'%.60s' is undefined, its attribute '%.60s' was requested",
                          v.name && *v.name ? v.name : "the value", name);
    if (v.kind == JINJA_LOOP) return jinja_loop_attribute(r, v.loop, name);
    if (!strncmp(name, "__", 2) || v.kind >= JINJA_MACRO)
        return jinja_fail(r, "the attribute '%.60s' of %s is not supported", name, jinja_kind_name(v));
    if (jinja_has_method(v.kind, name)) return jinja_method(r, v, name);
    if (v.kind != JINJA_MAP && v.kind != JINJA_NAMESPACE) return jinja_undefined(name);
    const JinjaEntry *found = jinja_find_text(r, v.map, name);
    return found ? found->value : jinja_undefined(name);
}

/* Returns the byte at which character `index` of n begins; a negative index counts from the end. false: there is no
 * such character. */
static inline bool jinja_position(const JinjaString *s, int64_t index, size_t *at) {
    if (index < 0) {
        *at = s->length;
        for (; index < 0 && *at; index++)
            for (--*at; *at && ((unsigned char)s->text[*at] & 0xC0) == 0x80;) --*at;
        return !index;
    }
    for (*at = 0; index > 0 && *at < s->length; index--) *at += jinja_character(s, *at);
    return *at < s->length;
}

/* Returns v[key]. */
static inline JinjaValue jinja_item_of(JinjaRun *r, JinjaValue v, JinjaValue key) {
    size_t at;
    if (v.kind == JINJA_UNDEFINED)
        return jinja_fail(r, "'%.60s' is undefined, one of its items was requested",
                          v.name && *v.name ? v.name : "the value");
    const bool integer = key.kind == JINJA_INT || key.kind == JINJA_BOOL;
    if (v.kind == JINJA_MAP) {
        const JinjaEntry *found = jinja_find(r, v.map, key);
        if (found) return found->value;
    } else if (integer && (v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE)) {
        const int64_t n = (int64_t)v.list->count, i = key.integer < 0 ? key.integer + n : key.integer;
        if (i >= 0 && i < n) return v.list->items[i];
    } else if (integer && v.kind == JINJA_STRING && jinja_step(r, v.string->length / 64)) {
        if (jinja_position(v.string, key.integer, &at))
            return jinja_part(r, v.string, at, at + jinja_character(v.string, at));
    }
    if (key.kind != JINJA_STRING) return jinja_undefined("an item");
    char *name = (char *)jinja_alloc(r, key.string->length + 1);
    memcpy(name, key.string->text, key.string->length);
    name[key.string->length] = 0;
    if (v.kind == JINJA_LOOP || v.kind == JINJA_NAMESPACE) return jinja_attribute(r, v, name);
    return jinja_has_method(v.kind, name) ? jinja_method(r, v, name) : jinja_undefined(name);
}

/* Returns the item at a path such as "a.b.0", as filters with attribute= do. */
static inline JinjaValue jinja_path(JinjaRun *r, JinjaValue v, JinjaValue path) {
    if (path.kind != JINJA_STRING) return jinja_item_of(r, v, path);
    const JinjaString *s = path.string;
    for (size_t at = 0; at <= s->length && !r->failed;) {
        const char *dot = (const char *)memchr(s->text + at, '.', s->length - at);
        const size_t end = dot ? (size_t)(dot - s->text) : s->length;
        bool digits = end > at && end - at < 18;
        int64_t index = 0;
        for (size_t i = at; i < end; i++) {
            digits = digits && isdigit((unsigned char)s->text[i]);
            if (digits) index = 10 * index + (s->text[i] - '0');
        }
        v = jinja_item_of(r, v, digits ? jinja_int(index) : jinja_part(r, s, at, end));
        at = end + 1;
    }
    return v;
}

/* Python's slice indices: the first index, the number of items and the step. */
static inline bool jinja_slice_bounds(JinjaRun *r, const JinjaValue part[3], int64_t n, int64_t *first, int64_t *count,
                                      int64_t *step) {
    *step = jinja_integer_argument(r, part[2], 1);
    if (!*step) return jinja_fail(r, "the step of a slice is 0"), false;
    const int64_t low = *step < 0 ? -1 : 0, high = *step < 0 ? n - 1 : n;
    int64_t bound[2] = {*step < 0 ? high : low, *step < 0 ? low : high};
    for (int i = 0; i < 2; i++) {
        if (part[i].kind == JINJA_NONE || jinja_is_absent(part[i])) continue;
        int64_t b = jinja_integer_argument(r, part[i], 0);
        if (b < 0) b = b < -n ? low : b + n;
        bound[i] = b < low ? low : b > high ? high : b;
    }
    *first = bound[0];
    const int64_t distance = *step < 0 ? bound[0] - bound[1] : bound[1] - bound[0];
    const uint64_t size = *step < 0 ? 0 - (uint64_t)*step : (uint64_t)*step;
    *count = distance > 0 ? (int64_t)(((uint64_t)distance + size - 1) / size) : 0;
    return !r->failed;
}

/* Returns v[a:b:c]. */
static inline JinjaValue jinja_slice(JinjaRun *r, JinjaValue v, const JinjaValue part[3]) {
    int64_t first, count, step;
    if (v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE) {
        JinjaValue list = jinja_list(r, v.kind);
        if (!jinja_slice_bounds(r, part, (int64_t)v.list->count, &first, &count, &step)) return list;
        for (int64_t i = 0; i < count && !r->failed; i++)
            jinja_append(r, list.list, v.list->items[first + (i ? i * step : 0)]);
        return list;
    }
    if (v.kind == JINJA_UNDEFINED && !(v.name && !*v.name))
        return jinja_fail(r, "'%.60s' is undefined", v.name ? v.name : "the value");
    if (v.kind != JINJA_STRING) return jinja_fail(r, "a slice of %s", jinja_kind_name(v));
    if (!jinja_slice_bounds(r, part, (int64_t)jinja_characters(r, v.string), &first, &count, &step)) return v;
    size_t at = 0, end;
    if (step == 1) {
        jinja_position(v.string, first, &at);
        const JinjaString rest = {.text = v.string->text + at, .length = v.string->length - at};
        jinja_position(&rest, count, &end);
        return jinja_part(r, v.string, at, at + end);
    }
    const size_t start = r->out.length;
    const JinjaList all = jinja_items(r, v);
    for (int64_t i = 0; i < count && !r->failed; i++) jinja_put_string(r, all.items[first + (i ? i * step : 0)].string);
    return jinja_marked_safe(r, jinja_cut(r, start), v.string->safe);
}

#endif

/* jinja.h - chat templates as models publish them: rendering of Jinja2 templates, with the origin of each byte.
 *
 * The language is described in jinja_parse.h, the values in jinja_value.h, methods in jinja_method.h, filters and tests
 * in jinja_filter.h. The results equal those of transformers' apply_chat_template(tokenize=False). Whatever the
 * interpreter does not support ends in an error that names it and its line, if possible before anything is rendered.
 *
 *   names      of `conversation` and `variables` below; undefined names are false and print as nothing
 *   functions  namespace(a=1)  dict(a=1)  range(a, b, c)  raise_exception(text)  strftime_now(format)
 *   loop       first last index index0 revindex revindex0 length previtem nextitem
 *
 * strftime_now() formats the date that the caller gives, at 00:00:00, so that the same command gives the same tokens on
 * every day. It accepts the directives %a %A %b %B %d %e %j %m %y %Y %H %I %M %S %p %w %u %U %W %V %G %D %F %T %R %h
 * and %%, also with - after the percent sign.
 *
 * Differences from transformers: list.append and list.pop work (its sandbox forbids them, llama.cpp allows them);
 * integers have 64 bits; limits on depth, steps, memory and output (jinja_value.h) stop a hostile template.
 *
 *     Jinja j;
 *     JinjaText out;
 *     struct tm date = {.tm_year = 126, .tm_mday = 1};
 *     json_t *data = json_pack("{s:[{s:s,s:s}]}", "messages", "role", "user", "content", "Hello");
 *     json_t *more = json_pack("{s:b,s:s}", "add_generation_prompt", 1, "bos_token", "<s>");
 *     if (!jinja_parse(&j, text, strlen(text), e)) return false;
 *     if (!jinja_render(&j, data, more, &date, &out, e)) return false;
 *     fwrite(out.text, 1, out.length, stdout);                              // out.marks: JINJA_MESSAGE, ...
 *     jinja_text_free(&out);
 *     jinja_free(&j);
 */
#ifndef LLMC_TEXT_JINJA_H
#define LLMC_TEXT_JINJA_H

#include "../base/error.h" /* xcalloc, Error, error_set, xmalloc */
#include "../base/text.h"  /* utf8_valid */
#include "jinja_filter.h"  /* jinja_in, JINJA_TEST, jinja_filter, jinja_known_filter, ... */
#include "jinja_method.h"  /* JinjaArguments, jinja_items, jinja_attribute, jinja_call_builtin, ... */
#include "jinja_parse.h"   /* JinjaNode, Jinja, JINJA_OP2, JINJA_NAME, ... */
#include "jinja_value.h"   /* JinjaValue, JinjaRun, jinja_fail, jinja_alloc, ... */

typedef struct JinjaVariable {
    int number;
    JinjaValue value;
    struct JinjaVariable *next;
} JinjaVariable;

/* The names that are assigned inside one iteration of a loop, one call of a macro or one block. */
typedef struct JinjaScope {
    struct JinjaScope *outer;
    JinjaVariable *first;
} JinjaScope;

typedef struct JinjaLoop {
    const JinjaNode *node;
    JinjaScope *outer;
    const JinjaList *all; /* of a LIST the list itself, which the body may change */
    size_t next;          /* first item whose condition is not yet evaluated; SIZE_MAX after the last one */
    JinjaList passed;     /* the items of the loop, as far as they are known */
    size_t at;            /* index of the current item */
    int64_t length;       /* that of the list when it was asked for first; -1 before */
} JinjaLoop;

typedef struct JinjaMacro {
    const JinjaNode *node;
    JinjaScope *scope; /* of its definition */
} JinjaMacro;

typedef enum { JINJA_DONE, JINJA_BREAKS, JINJA_CONTINUES } JinjaFlow;

static inline JinjaValue jinja_eval(JinjaRun *r, const JinjaNode *node);
static inline JinjaFlow jinja_run(JinjaRun *r, const JinjaNode *node);

/* ---- names ----------------------------------------------------------------------------------------------------- */

static const char *const jinja_functions[] = {"namespace", "dict", "range", "raise_exception", "strftime_now"};
enum { JINJA_F_NAMESPACE, JINJA_F_DICT, JINJA_F_RANGE, JINJA_F_RAISE, JINJA_F_DATE, JINJA_F_COUNT };

/* Returns the number of a function, or -1. */
static inline int jinja_known_function(const char *name) {
    for (int i = 0; i < JINJA_F_COUNT; i++)
        if (!strcmp(jinja_functions[i], name)) return i;
    return -1;
}

static inline JinjaVariable *jinja_variable(JinjaRun *r, int number, bool outer) {
    for (JinjaScope *s = r->scope; s; s = outer ? s->outer : NULL)
        for (JinjaVariable *v = s->first; v && jinja_step(r, 1); v = v->next)
            if (v->number == number) return v;
    return NULL;
}

static inline JinjaValue jinja_lookup_name(JinjaRun *r, const JinjaNode *node) {
    const JinjaVariable *v = jinja_variable(r, node->number, true);
    return v ? v->value : r->globals[node->number];
}

static inline void jinja_assign(JinjaRun *r, int number, JinjaValue value) {
    JinjaVariable *v = jinja_variable(r, number, false);
    if (!r->scope) r->globals[number] = value;
    else if (v) v->value = value;
    else {
        v = (JinjaVariable *)jinja_alloc(r, sizeof *v);
        *v = (JinjaVariable){number, value, r->scope->first};
        r->scope->first = v;
    }
}

static inline void jinja_open_scope(JinjaRun *r, JinjaScope *outer) {
    JinjaScope *s = (JinjaScope *)jinja_alloc(r, sizeof *s);
    *s = (JinjaScope){.outer = outer};
    r->scope = s;
}

/* Assigns to a name, the attribute of a namespace or a tuple of names. */
static inline void jinja_assign_target(JinjaRun *r, const JinjaNode *target, JinjaValue value) {
    if (r->failed) return;
    if (target->kind == JINJA_NAME) {
        jinja_assign(r, target->number, value);
        return;
    }
    if (target->kind == JINJA_ATTRIBUTE) {
        const JinjaValue space = jinja_lookup_name(r, target->left);
        if (space.kind != JINJA_NAMESPACE)
            jinja_fail(r, "'%.60s' is %s, an attribute can be set only of a namespace", target->left->name,
                       jinja_kind_name(space));
        else jinja_set(r, space.map, jinja_literal(r, target->name, strlen(target->name), 0), value);
        return;
    }
    const JinjaList items = jinja_items(r, value);
    if (!r->failed && items.count != (size_t)target->count)
        jinja_fail(r, "%zu values are assigned to %d names", items.count, target->count);
    for (int i = 0; i < target->count && !r->failed; i++) jinja_assign_target(r, target->items[i], items.items[i]);
}

/* ---- loops ----------------------------------------------------------------------------------------------------- */

/* Evaluates conditions until the loop has more than `index` items. Returns whether it has. */
static inline bool jinja_loop_has(JinjaRun *r, JinjaLoop *loop, size_t index) {
    const JinjaNode *node = loop->node;
    JinjaScope *scope = r->scope;
    while (loop->passed.count <= index && !r->failed) {
        if (loop->next >= loop->all->count) {
            loop->next = SIZE_MAX; /* as an iterator of Python, it stays at its end */
            break;
        }
        const JinjaValue item = loop->all->items[loop->next++];
        if (node->third) {
            jinja_open_scope(r, loop->outer);
            jinja_assign_target(r, node->left, item);
            if (!jinja_truth(jinja_eval(r, node->third))) continue;
        }
        jinja_append(r, &loop->passed, item);
    }
    r->scope = scope;
    return loop->passed.count > index && !r->failed;
}

static inline JinjaValue jinja_loop_attribute(JinjaRun *r, const JinjaLoop *constant, const char *name) {
    JinjaLoop *loop = (JinjaLoop *)constant;
    const int64_t at = (int64_t)loop->at;
    if (!strcmp(name, "index0")) return jinja_int(at);
    if (!strcmp(name, "index")) return jinja_int(at + 1);
    if (!strcmp(name, "first")) return jinja_bool(!at);
    if (!strcmp(name, "last")) return jinja_bool(!jinja_loop_has(r, loop, loop->at + 1));
    if (!strcmp(name, "previtem"))
        return at ? loop->passed.items[at - 1] : jinja_undefined("there is no previous item");
    if (!strcmp(name, "nextitem"))
        return jinja_loop_has(r, loop, loop->at + 1) ? loop->passed.items[at + 1]
                                                     : jinja_undefined("there is no next item");
    const bool length = !strcmp(name, "length"), rest = !strcmp(name, "revindex"), rest0 = !strcmp(name, "revindex0");
    if (!length && !rest && !rest0) return jinja_fail(r, "'loop.%.60s' is not supported", name);
    if (loop->length < 0 && loop->node->third) jinja_loop_has(r, loop, SIZE_MAX - 1);
    if (loop->length < 0) loop->length = (int64_t)(loop->node->third ? loop->passed.count : loop->all->count);
    return jinja_int(loop->length - (length ? 0 : rest ? at : at + 1));
}

static inline JinjaFlow jinja_run_for(JinjaRun *r, const JinjaNode *node) {
    JinjaScope *outer = r->scope;
    const JinjaValue iterated = jinja_eval(r, node->right);
    JinjaLoop *loop = (JinjaLoop *)jinja_alloc(r, sizeof *loop);
    JinjaList *items = (JinjaList *)jinja_alloc(r, sizeof *items);
    *items = jinja_items(r, iterated);
    *loop = (JinjaLoop){
        .node = node, .outer = outer, .all = iterated.kind == JINJA_LIST ? iterated.list : items, .length = -1};
    for (; jinja_loop_has(r, loop, loop->at); loop->at++) {
        jinja_open_scope(r, outer);
        jinja_assign(r, node->number, (JinjaValue){.kind = JINJA_LOOP, .loop = loop});
        jinja_assign_target(r, node->left, loop->passed.items[loop->at]);
        const JinjaFlow flow = jinja_run(r, node->items[0]);
        r->scope = outer;
        if (flow == JINJA_BREAKS) return JINJA_DONE;
    }
    if (loop->at || node->count < 2 || r->failed) return JINJA_DONE;
    jinja_open_scope(r, outer);
    const JinjaFlow flow = jinja_run(r, node->items[1]);
    r->scope = outer;
    return flow;
}

/* ---- calls ----------------------------------------------------------------------------------------------------- */

static inline JinjaArguments jinja_arguments(JinjaRun *r, const JinjaNode *node) {
    JinjaValue *values = (JinjaValue *)jinja_alloc(r, (size_t)node->count * sizeof *values);
    for (int i = 0; i < node->count; i++) values[i] = jinja_eval(r, node->items[i]);
    return (JinjaArguments){values, node->names, node->count - node->named, node->named};
}

static inline JinjaValue jinja_call_macro(JinjaRun *r, const JinjaMacro *m, JinjaArguments given) {
    const JinjaNode *node = m->node;
    JinjaScope *outer = r->scope;
    const size_t start = r->out.length;
    if (++r->calls > JINJA_DEPTH) jinja_fail(r, "macros call one another deeper than %d", JINJA_DEPTH);
    if (given.count > node->count) jinja_fail(r, "macro '%.60s': has more than %d arguments", node->name, node->count);
    for (int k = 0; k < given.named && !r->failed; k++) {
        int i = 0;
        while (i < node->count && strcmp(node->names[i], given.names[k])) i++;
        if (i == node->count || i < given.count)
            jinja_fail(r, "macro '%.60s': the argument '%.60s' is unexpected", node->name, given.names[k]);
    }
    jinja_open_scope(r, m->scope);
    for (int i = 0; i < node->count && !r->failed; i++) {
        JinjaValue value = {0};
        bool found = i < given.count;
        if (found) value = given.values[i];
        for (int k = 0; k < given.named; k++) {
            if (strcmp(node->names[i], given.names[k])) continue;
            value = given.values[given.count + k];
            found = true;
        }
        jinja_assign(r, node->ops[i], found ? value : jinja_eval(r, node->items[i]));
    }
    if (!r->failed) jinja_run(r, node->right);
    r->scope = outer;
    r->calls--;
    return jinja_cut(r, start);
}

/* namespace(a=1), dict(a=1) and both of a map. */
static inline JinjaValue jinja_call_map(JinjaRun *r, JinjaKind kind, JinjaArguments given) {
    JinjaValue map = jinja_map(r, kind);
    if (given.count > 1 || (given.count && given.values[0].kind != JINJA_MAP))
        return jinja_fail(r, "namespace, dict: the arguments are neither named nor one map");
    for (size_t i = 0; given.count && i < given.values[0].map->count && !r->failed; i++)
        jinja_set(r, map.map, given.values[0].map->entries[i].key, given.values[0].map->entries[i].value);
    for (int i = 0; i < given.named; i++)
        jinja_set(r, map.map, jinja_literal(r, given.names[i], strlen(given.names[i]), 0),
                  given.values[given.count + i]);
    for (size_t i = 0; kind == JINJA_NAMESPACE && i < map.map->count && !r->failed; i++) {
        const JinjaValue key = map.map->entries[i].key;
        if (key.kind == JINJA_STRING && key.string->length && key.string->text[0] == '_')
            return jinja_fail(r, "namespace: an attribute begins with _");
    }
    return map;
}

static inline JinjaValue jinja_call_range(JinjaRun *r, JinjaArguments given) {
    int64_t part[3] = {0, 0, 1};
    if (given.named || given.count < 1 || given.count > 3) return jinja_fail(r, "range: needs 1 to 3 integers");
    for (int i = 0; i < given.count; i++) {
        if (given.values[i].kind != JINJA_INT && given.values[i].kind != JINJA_BOOL)
            return jinja_fail(r, "range: got %s, expected an integer", jinja_kind_name(given.values[i]));
        part[given.count == 1 ? 1 : i] = given.values[i].integer;
    }
    if (!part[2]) return jinja_fail(r, "range: the step is 0");
    JinjaValue list = jinja_list(r, JINJA_RANGE);
    for (int64_t i = part[0]; part[2] > 0 ? i < part[1] : i > part[1];) {
        if (list.list->count == JINJA_RANGE_MAX)
            return jinja_fail(r, "range: has more than %d numbers", JINJA_RANGE_MAX);
        jinja_append(r, list.list, jinja_int(i));
        if (r->failed || __builtin_add_overflow(i, part[2], &i)) break;
    }
    return list;
}

static inline JinjaValue jinja_call_date(JinjaRun *r, JinjaArguments given) {
    char format[128], text[512];
    if (given.named || given.count != 1 || given.values[0].kind != JINJA_STRING ||
        given.values[0].string->length >= sizeof format)
        return jinja_fail(r, "strftime_now: needs a format of at most 127 bytes");
    const JinjaString *s = given.values[0].string;
    memcpy(format, s->text, s->length);
    format[s->length] = 0;
    for (const char *c = format; (c = strchr(c, '%')); c++) {
        c += 1 + (c[1] == '-');
        if (!*c || !strchr("aAbBdejmyYHIMSpwuUWVGDFTRh%", *c))
            return jinja_fail(r, "strftime_now: the directive '%%%.1s' is not supported", c);
    }
    const size_t n = strftime(text, sizeof text, format, &r->date);
    char *copy = (char *)jinja_alloc(r, n + 1);
    memcpy(copy, text, n);
    return jinja_literal(r, copy, n, 0);
}

static inline JinjaValue jinja_call_function(JinjaRun *r, int function, JinjaArguments given) {
    if (function == JINJA_F_NAMESPACE) return jinja_call_map(r, JINJA_NAMESPACE, given);
    if (function == JINJA_F_DICT) return jinja_call_map(r, JINJA_MAP, given);
    if (function == JINJA_F_RANGE) return jinja_call_range(r, given);
    if (function == JINJA_F_DATE) return jinja_call_date(r, given);
    if (given.count + given.named != 1) return jinja_fail(r, "raise_exception: needs one text");
    const JinjaString *s = jinja_text(r, given.values[0]);
    return jinja_fail(r, "refuses the conversation: %.*s", (int)(s->length < 600 ? s->length : 600), s->text);
}

static inline JinjaValue jinja_eval_call(JinjaRun *r, const JinjaNode *node) {
    const JinjaValue callee = jinja_eval(r, node->left);
    const JinjaArguments given = jinja_arguments(r, node);
    if (r->failed) return (JinjaValue){0};
    if (callee.kind == JINJA_METHOD) return jinja_call_method(r, callee.method, given);
    if (callee.kind == JINJA_MACRO) return jinja_call_macro(r, callee.macro, given);
    if (callee.kind == JINJA_FUNCTION) return jinja_call_function(r, (int)callee.integer, given);
    return jinja_fail(r, "'%.60s' is %s, it cannot be called", node->left->name ? node->left->name : "the value",
                      jinja_kind_name(callee));
}

/* ---- operators ------------------------------------------------------------------------------------------------- */

static inline JinjaValue jinja_real_value(double x) { return (JinjaValue){.kind = JINJA_FLOAT, .real = x}; }

/* Appends a string with &, <, >, ' and " escaped, as Markup does with the other operand of +. */
static inline void jinja_put_escaped(JinjaRun *r, const JinjaString *s) {
    for (size_t i = 0; i < s->length && !r->failed; i++) {
        const char c = s->text[i], *escape = c == '&'    ? "&amp;"
                                             : c == '<'  ? "&lt;"
                                             : c == '>'  ? "&gt;"
                                             : c == '\'' ? "&#39;"
                                             : c == '"'  ? "&#34;"
                                                         : NULL;
        if (escape) jinja_put(r, escape, strlen(escape), jinja_mark(s, i));
        else jinja_put_part(r, s, i, i + 1);
    }
}

static inline JinjaValue jinja_add_strings(JinjaRun *r, const JinjaString *a, const JinjaString *b) {
    const size_t start = r->out.length;
    if (b->safe && !a->safe) jinja_put_escaped(r, a);
    else jinja_put_string(r, a);
    if (a->safe && !b->safe) jinja_put_escaped(r, b);
    else jinja_put_string(r, b);
    return jinja_marked_safe(r, jinja_cut(r, start), a->safe || b->safe);
}

/* x * n for a string or a list. */
static inline JinjaValue jinja_repeat(JinjaRun *r, JinjaValue v, int64_t n) {
    if (v.kind == JINJA_STRING) {
        const size_t start = r->out.length;
        for (int64_t i = 0; i < n && v.string->length && jinja_step(r, 1); i++) jinja_put_string(r, v.string);
        return jinja_cut(r, start);
    }
    JinjaValue list = jinja_list(r, v.kind);
    for (int64_t i = 0; i < n && v.list->count && jinja_step(r, 1); i++)
        for (size_t k = 0; k < v.list->count && !r->failed; k++) jinja_append(r, list.list, v.list->items[k]);
    return list;
}

static inline JinjaValue jinja_integer_operation(JinjaRun *r, int op, int64_t a, int64_t b) {
    int64_t c = 0;
    bool overflow = false;
    if (op == '+') overflow = __builtin_add_overflow(a, b, &c);
    else if (op == '-') overflow = __builtin_sub_overflow(a, b, &c);
    else if (op == '*') overflow = __builtin_mul_overflow(a, b, &c);
    else if (op == JINJA_OP2('*', '*')) {
        if (a < 0) return jinja_fail(r, "** of a negative number is not supported");
        if (b < 0 && a) return jinja_real_value(pow((double)a, (double)b));
        if (b < 0) return jinja_fail(r, "division by zero");
        c = 1;
        for (int64_t i = 0; i < b && !overflow && a != 1 && c && jinja_step(r, 1); i++)
            overflow = __builtin_mul_overflow(c, a, &c);
    } else {
        if (!b) return jinja_fail(r, "division by zero");
        if (op == '/') return jinja_real_value((double)a / (double)b);
        overflow = a == INT64_MIN && b == -1;
        if (!overflow && op == '%') c = a % b + (a % b && (a % b < 0) != (b < 0) ? b : 0);
        else if (!overflow) c = a / b - (a % b && (a < 0) != (b < 0));
    }
    return overflow ? jinja_fail(r, "an integer exceeds 64 bits") : jinja_int(c);
}

static inline JinjaValue jinja_real_operation(JinjaRun *r, int op, double a, double b) {
    if (op == '+') return jinja_real_value(a + b);
    if (op == '-') return jinja_real_value(a - b);
    if (op == '*') return jinja_real_value(a * b);
    if (op == JINJA_OP2('*', '*')) {
        if (a < 0 || !isfinite(pow(a, b))) return jinja_fail(r, "** of these numbers is not supported");
        return jinja_real_value(pow(a, b));
    }
    if (b == 0) return jinja_fail(r, "division by zero");
    if (op == '/') return jinja_real_value(a / b);
    double rest = fmod(a, b);
    if (op == '%') return jinja_real_value(rest != 0 ? rest + ((rest < 0) != (b < 0) ? b : 0) : copysign(0, b));
    return jinja_real_value(floor((a - rest) / b + 0.5) - (rest != 0 && (rest < 0) != (b < 0)));
}

static inline JinjaValue jinja_operation(JinjaRun *r, int op, JinjaValue a, JinjaValue b) {
    const bool lists = (a.kind == JINJA_LIST || a.kind == JINJA_TUPLE) && a.kind == b.kind;
    if (jinja_number(a) && jinja_number(b)) {
        if (a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT) return jinja_integer_operation(r, op, a.integer, b.integer);
        return jinja_real_operation(r, op, jinja_real(a), jinja_real(b));
    }
    if (op == '+' && a.kind == JINJA_STRING && b.kind == JINJA_STRING) return jinja_add_strings(r, a.string, b.string);
    if (op == '+' && lists) {
        JinjaValue sum = jinja_list(r, a.kind);
        for (size_t i = 0; i < a.list->count && !r->failed; i++) jinja_append(r, sum.list, a.list->items[i]);
        for (size_t i = 0; i < b.list->count && !r->failed; i++) jinja_append(r, sum.list, b.list->items[i]);
        return sum;
    }
    const bool count_right = b.kind == JINJA_INT || b.kind == JINJA_BOOL;
    const JinjaValue repeated = count_right ? a : b, count = count_right ? b : a;
    if (op == '*' && (count.kind == JINJA_INT || count.kind == JINJA_BOOL) &&
        (repeated.kind == JINJA_STRING || repeated.kind == JINJA_LIST || repeated.kind == JINJA_TUPLE))
        return jinja_repeat(r, repeated, count.integer);
    const char name[3] = {(char)(op & 255), (char)(op >> 8), 0};
    const JinjaValue missing = a.kind == JINJA_UNDEFINED ? a : b;
    if (missing.kind == JINJA_UNDEFINED)
        return jinja_fail(r, "'%.60s' is undefined, an operand of '%s'",
                          missing.name && *missing.name ? missing.name : "a value", name);
    return jinja_fail(r, "'%s' between %s and %s is not supported", name, jinja_kind_name(a), jinja_kind_name(b));
}

static inline bool jinja_compare(JinjaRun *r, int op, JinjaValue a, JinjaValue b) {
    switch (op) {
    case JINJA_OP2('=', '='): return jinja_equal(r, a, b, 0);
    case JINJA_OP2('!', '='): return !jinja_equal(r, a, b, 0);
    case JINJA_IN: return jinja_in(r, a, b);
    case JINJA_NOT_IN: return !jinja_in(r, a, b);
    case '<': return jinja_order(r, a, b, 0) < 0;
    case '>': return jinja_order(r, a, b, 0) > 0;
    case JINJA_OP2('<', '='): return jinja_order(r, a, b, 0) <= 0;
    default: return jinja_order(r, a, b, 0) >= 0;
    }
}

/* ---- expressions ----------------------------------------------------------------------------------------------- */

/* Evaluates operands from left to right: arithmetic, comparisons, and, or, ~. */
static inline JinjaValue jinja_eval_operands(JinjaRun *r, const JinjaNode *node) {
    if (node->kind == JINJA_CONCAT) {
        JinjaValue *parts = (JinjaValue *)jinja_alloc(r, (size_t)node->count * sizeof *parts);
        for (int i = 0; i < node->count && !r->failed; i++) parts[i] = jinja_eval(r, node->items[i]);
        const size_t start = r->out.length;
        for (int i = 0; i < node->count && !r->failed; i++) jinja_put_value(r, parts[i]);
        return jinja_cut(r, start);
    }
    JinjaValue left = jinja_eval(r, node->items[0]);
    for (int i = 1; i < node->count && !r->failed; i++) {
        if (node->kind == JINJA_AND && !jinja_truth(left)) return left;
        if (node->kind == JINJA_OR && jinja_truth(left)) return left;
        const JinjaValue right = jinja_eval(r, node->items[i]);
        r->line = node->line;
        if (node->kind == JINJA_ARITHMETIC) left = jinja_operation(r, node->ops[i], left, right);
        else if (node->kind == JINJA_COMPARE && !jinja_compare(r, node->ops[i], left, right)) return jinja_bool(false);
        else left = right;
    }
    return node->kind == JINJA_COMPARE ? jinja_bool(true) : left;
}

static inline JinjaValue jinja_eval_container(JinjaRun *r, const JinjaNode *node) {
    if (node->kind == JINJA_MAKE_MAP) {
        JinjaValue map = jinja_map(r, JINJA_MAP);
        for (int i = 0; i < node->count && !r->failed; i += 2) {
            const JinjaValue key = jinja_eval(r, node->items[i]);
            jinja_set(r, map.map, key, jinja_eval(r, node->items[i + 1]));
        }
        return map;
    }
    JinjaValue list = jinja_list(r, node->kind == JINJA_MAKE_LIST ? JINJA_LIST : JINJA_TUPLE);
    for (int i = 0; i < node->count && !r->failed; i++) jinja_append(r, list.list, jinja_eval(r, node->items[i]));
    return list;
}

static inline JinjaValue jinja_eval_sign(JinjaRun *r, const JinjaNode *node) {
    const JinjaValue v = jinja_eval(r, node->left);
    if (!jinja_number(v)) return jinja_fail(r, "the sign of %s", jinja_kind_name(v));
    if (v.kind == JINJA_FLOAT) return jinja_real_value(node->kind == JINJA_NEGATE ? -v.real : v.real);
    return node->kind == JINJA_NEGATE ? jinja_integer_operation(r, '-', 0, v.integer) : jinja_int(v.integer);
}

static inline JinjaValue jinja_eval_slice(JinjaRun *r, const JinjaNode *node) {
    const JinjaValue v = jinja_eval(r, node->left);
    JinjaValue part[3];
    for (int i = 0; i < 3; i++) part[i] = node->items[i] ? jinja_eval(r, node->items[i]) : jinja_none();
    return r->failed ? v : jinja_slice(r, v, part);
}

/* Evaluates a filter or a test. */
static inline JinjaValue jinja_eval_builtin(JinjaRun *r, const JinjaNode *node) {
    const JinjaValue self = jinja_eval(r, node->left);
    const JinjaArguments given = jinja_arguments(r, node);
    r->line = node->line;
    if (r->failed) return self;
    return jinja_call_builtin(
        r, node->kind == JINJA_FILTER ? jinja_filter(node->name) : jinja_lookup(jinja_tests, node->name), self, given);
}

static inline JinjaValue jinja_eval_kind(JinjaRun *r, const JinjaNode *node) {
    JinjaValue v;
    switch (node->kind) {
    case JINJA_CONST: return node->value;
    case JINJA_NAME: return jinja_lookup_name(r, node);
    case JINJA_MAKE_LIST:
    case JINJA_MAKE_TUPLE:
    case JINJA_MAKE_MAP: return jinja_eval_container(r, node);
    case JINJA_ATTRIBUTE:
        v = jinja_eval(r, node->left);
        r->line = node->line;
        return r->failed ? v : jinja_attribute(r, v, node->name);
    case JINJA_INDEX: {
        v = jinja_eval(r, node->left);
        const JinjaValue key = jinja_eval(r, node->right);
        r->line = node->line;
        return r->failed ? v : jinja_item_of(r, v, key);
    }
    case JINJA_SLICE: return jinja_eval_slice(r, node);
    case JINJA_CALL: return jinja_eval_call(r, node);
    case JINJA_FILTER:
    case JINJA_TEST: return jinja_eval_builtin(r, node);
    case JINJA_NOT: return jinja_bool(!jinja_truth(jinja_eval(r, node->left)));
    case JINJA_NEGATE:
    case JINJA_PLUS: return jinja_eval_sign(r, node);
    case JINJA_CHOOSE:
        if (jinja_truth(jinja_eval(r, node->right))) return jinja_eval(r, node->left);
        return node->third ? jinja_eval(r, node->third) : jinja_undefined("the value of an if without else");
    case JINJA_CAPTURED: return r->captured;
    default: return jinja_eval_operands(r, node);
    }
}

static inline JinjaValue jinja_eval(JinjaRun *r, const JinjaNode *node) {
    if (!jinja_step(r, 1)) return (JinjaValue){0};
    if (r->depth >= JINJA_STACK) return jinja_fail(r, "evaluations are nested deeper than %d", JINJA_STACK);
    r->depth++;
    r->line = node->line;
    const JinjaValue v = jinja_eval_kind(r, node);
    r->depth--;
    return r->failed ? (JinjaValue){0} : v;
}

/* ---- statements ------------------------------------------------------------------------------------------------ */

/* Renders a body in a scope of its own. Returns its text after the given filters of CAPTURED. */
static inline JinjaValue jinja_capture(JinjaRun *r, const JinjaNode *body, const JinjaNode *filters) {
    JinjaScope *scope = r->scope;
    const size_t start = r->out.length;
    jinja_open_scope(r, scope);
    jinja_run(r, body);
    r->scope = scope;
    const JinjaValue text = jinja_cut(r, start), saved = r->captured;
    if (!filters || r->failed) return text;
    r->captured = text;
    const JinjaValue result = jinja_eval(r, filters);
    r->captured = saved;
    return result;
}

static inline void jinja_run_generation(JinjaRun *r, const JinjaNode *node) {
    JinjaScope *scope = r->scope;
    const size_t start = r->out.length;
    jinja_open_scope(r, scope);
    jinja_run(r, node->right);
    r->scope = scope;
    for (size_t i = start; i < r->out.length; i++) r->out.marks[i] |= JINJA_GENERATED;
    if (r->out.length > start) r->out.marks[start] |= JINJA_BEGIN;
}

static inline JinjaFlow jinja_run_if(JinjaRun *r, const JinjaNode *node) {
    for (int i = 0; i < node->count; i += 2)
        if (jinja_truth(jinja_eval(r, node->items[i]))) return jinja_run(r, node->items[i + 1]);
    return node->third && !r->failed ? jinja_run(r, node->third) : JINJA_DONE;
}

static inline JinjaFlow jinja_run_kind(JinjaRun *r, const JinjaNode *node) {
    JinjaFlow flow = JINJA_DONE;
    switch (node->kind) {
    case JINJA_TEXT: jinja_put_string(r, node->value.string); break;
    case JINJA_PRINT: jinja_put_value(r, jinja_eval(r, node->left)); break;
    case JINJA_BODY:
        for (int i = 0; i < node->count && flow == JINJA_DONE && !r->failed; i++) flow = jinja_run(r, node->items[i]);
        break;
    case JINJA_IF: return jinja_run_if(r, node);
    case JINJA_FOR: return jinja_run_for(r, node);
    case JINJA_ASSIGN: jinja_assign_target(r, node->left, jinja_eval(r, node->right)); break;
    case JINJA_ASSIGN_BODY: jinja_assign_target(r, node->left, jinja_capture(r, node->right, node->third)); break;
    case JINJA_DEFINE: {
        JinjaMacro *m = (JinjaMacro *)jinja_alloc(r, sizeof *m);
        *m = (JinjaMacro){node, r->scope};
        jinja_assign(r, node->number, (JinjaValue){.kind = JINJA_MACRO, .macro = m});
        break;
    }
    case JINJA_FILTER_BODY: jinja_put_value(r, jinja_capture(r, node->right, node->third)); break;
    case JINJA_BREAK: return JINJA_BREAKS;
    case JINJA_CONTINUE: return JINJA_CONTINUES;
    default: jinja_run_generation(r, node); break;
    }
    return flow;
}

static inline JinjaFlow jinja_run(JinjaRun *r, const JinjaNode *node) {
    if (!jinja_step(r, 1)) return JINJA_DONE;
    if (r->depth >= JINJA_STACK) {
        jinja_fail(r, "evaluations are nested deeper than %d", JINJA_STACK);
        return JINJA_DONE;
    }
    r->depth++;
    r->line = node->line;
    const JinjaFlow flow = jinja_run_kind(r, node);
    r->depth--;
    return flow;
}

/* ---- templates ------------------------------------------------------------------------------------------------- */

static inline void jinja_free(Jinja *j) {
    free(j->names);
    free(j->assigned);
    jinja_run_free(&j->memory);
    *j = (Jinja){0};
}

static inline void jinja_text_free(JinjaText *t) {
    free(t->text);
    free(t->marks);
    *t = (JinjaText){0};
}

/* Whether a constant argument names a test or, for map, a filter that exists. */
static inline bool jinja_check_argument(JinjaParser *p, const JinjaNode *node) {
    const bool attribute = !strcmp(node->name, "selectattr") || !strcmp(node->name, "rejectattr");
    const bool map = !strcmp(node->name, "map");
    if (!attribute && !map && strcmp(node->name, "select") && strcmp(node->name, "reject")) return true;
    if (node->count - node->named <= attribute || node->items[attribute]->kind != JINJA_CONST) return true;
    const JinjaValue name = node->items[attribute]->value;
    char text[64] = "";
    if (name.kind == JINJA_STRING) snprintf(text, sizeof text, "%.*s", (int)name.string->length, name.string->text);
    if (map ? jinja_known_filter(text) : jinja_known_test(text)) return true;
    jinja_error(p, node->line, "the %s '%.60s' is not supported", map ? "filter" : "test", text);
    return false;
}

/* Checks the names of a tree: functions that are called exist. */
static inline bool jinja_check(JinjaParser *p, const JinjaNode *node) {
    static const char *const special[] = {"self", "super", "caller", "varargs", "kwargs", "cycler", "joiner", "lipsum"};
    if (!node) return true;
    if (node->kind == JINJA_NAME && !p->tree->assigned[node->number])
        for (size_t i = 0; i < sizeof special / sizeof *special; i++)
            if (!strcmp(node->name, special[i]))
                return jinja_error(p, node->line, "'%s' is not supported", node->name), false;
    if (node->kind == JINJA_CALL && node->left->kind == JINJA_NAME && !p->tree->assigned[node->left->number] &&
        jinja_known_function(node->left->name) < 0)
        return jinja_error(p, node->line, "the function '%.60s' is not supported", node->left->name), false;
    if (node->kind == JINJA_FILTER && !jinja_check_argument(p, node)) return false;
    for (int i = 0; i < (node->kind == JINJA_SLICE ? 3 : node->count); i++)
        if (!jinja_check(p, node->items[i])) return false;
    return jinja_check(p, node->left) && jinja_check(p, node->right) && jinja_check(p, node->third);
}

/* Copies the source with line breaks as \n and without the last one. */
static inline char *jinja_source(const char *text, size_t *n) {
    char *source = (char *)xmalloc(*n + 1);
    size_t length = 0;
    for (size_t i = 0; i < *n; i++) {
        source[length++] = text[i] == '\r' ? '\n' : text[i];
        if (text[i] == '\r' && i + 1 < *n && text[i + 1] == '\n') i++;
    }
    if (length && source[length - 1] == '\n') length--;
    source[length] = 0;
    *n = length;
    return source;
}

/* Parses a template of n bytes of UTF-8. Fails with its line on anything that is not supported. */
static inline bool jinja_parse(Jinja *j, const char *text, size_t n, Error *e) {
    *j = (Jinja){.memory = {.e = e}};
    if (n > JINJA_TEMPLATE_MAX)
        return error_set(e, "chat template: has %zu bytes, expected at most %d", n, JINJA_TEMPLATE_MAX);
    if (utf8_valid(text, n) < n) return error_set(e, "chat template: byte %zu is not UTF-8", utf8_valid(text, n) + 1);
    char *source = jinja_source(text, &n);
    char *kept = (char *)jinja_alloc(&j->memory, n + 1);
    memcpy(kept, source, n + 1);
    free(source);
    j->names = (const char **)xcalloc(JINJA_NAMES, sizeof *j->names);
    j->assigned = (bool *)xcalloc(JINJA_NAMES, sizeof *j->assigned);
    JinjaParser p = {.tree = j, .source = kept, .slots = (int16_t *)xcalloc(2 * JINJA_NAMES, sizeof *p.slots)};
    if (jinja_lex(&p, n)) j->body = jinja_parse_body(&p, NULL);
    const bool ok = j->body && !j->memory.failed && jinja_check(&p, j->body);
    free(p.tokens);
    free(p.slots);
    j->memory.e = NULL;
    if (!ok) jinja_free(j);
    return ok;
}

static inline void jinja_define(JinjaRun *r, const Jinja *j, const json_t *values, uint8_t mark) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)values, key, value) {
        for (int i = 0; i < j->name_count; i++)
            if (!strcmp(j->names[i], key)) r->globals[i] = jinja_of_json(r, value, mark, 0);
    }
}

/* Renders a conversation.
 * conversation: an object with messages, tools and documents, whose texts get the mark JINJA_MESSAGE.
 * variables: an object with all other names, such as add_generation_prompt; their texts are the template's.
 * date: what strftime_now() formats.
 * out: the text with a mark for each byte; the caller frees it with jinja_text_free(). */
static inline bool jinja_render(const Jinja *j, const json_t *conversation, const json_t *variables,
                                const struct tm *date, JinjaText *out, Error *e) {
    JinjaRun r = {.e = e, .line = 1, .date = *date};
    *out = (JinjaText){0};
    r.globals = (JinjaValue *)jinja_alloc(&r, (size_t)(j->name_count + 1) * sizeof *r.globals);
    for (int i = 0; i < j->name_count; i++) {
        const int function = jinja_known_function(j->names[i]);
        r.globals[i] = jinja_undefined(j->names[i]);
        if (function >= 0) r.globals[i] = (JinjaValue){.kind = JINJA_FUNCTION, .integer = function};
    }
    jinja_define(&r, j, variables, 0);
    jinja_define(&r, j, conversation, JINJA_MESSAGE);
    if (!r.failed && jinja_room(&r, 1)) jinja_run(&r, j->body);
    const bool ok = !r.failed;
    if (ok) {
        *out = r.out;
        out->steps = r.steps;
        r.out = (JinjaText){0};
    }
    jinja_run_free(&r);
    return ok;
}

#endif

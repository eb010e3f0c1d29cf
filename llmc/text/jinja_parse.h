/* jinja_parse.h - parser of chat templates: from text to a tree.
 *
 * The language is Jinja2's as transformers configures it: trim_blocks and lstrip_blocks are on, break and continue
 * exist, {% generation %} ... {% endgeneration %} encloses what the model generates. The parser accepts
 *
 *   {{ expression }}   {# comment #}   the signs - and + next to the braces of a tag
 *   {% if %} {% elif %} {% else %}     {% for a, b in x if y %} {% else %}     {% break %} {% continue %}
 *   {% set a, b = x %} {% set ns.a = x %} {% set a %}...{% endset %} {% set a | filter %}...{% endset %}
 *   {% macro f(a, b=1) %}              {% filter f %}                          {% generation %}
 *   or, and, not, == != < <= > >=, in, not in, is, is not, + - * / // % ** ~, a if b else c,
 *   a.b a[b] a[b:c:d] f(a, b=c) a | f(b), strings, numbers, lists, tuples, maps
 *
 * with Jinja's precedences. Everything else is refused with its name and line, and so are filters, tests, functions and
 * methods that the tables of jinja_filter.h and jinja.h do not have.
 *
 * jinja_parse() of jinja.h calls jinja_lex() and jinja_parse_body().
 */
#ifndef LLMC_TEXT_JINJA_PARSE_H
#define LLMC_TEXT_JINJA_PARSE_H

#include "../base/error.h" /* xrealloc */
#include "../base/text.h"  /* utf8_length, utf8_decode, utf8_encode */
#include "jinja_value.h"   /* JINJA_DEPTH, JinjaRun, jinja_alloc, jinja_put, ... */
#include <ctype.h>

enum {
    JINJA_TEMPLATE_MAX = 1 << 20, /* bytes of a template */
    JINJA_NODE_DEPTH = 200,       /* depth of the tree; a.b.c counts each dot */
    JINJA_NAMES = 4096,           /* distinct names of variables */
};

/* ---- the tree -------------------------------------------------------------------------------------------------- */

typedef enum {
    JINJA_CONST, /* value */
    JINJA_NAME,  /* number */
    JINJA_MAKE_LIST,
    JINJA_MAKE_TUPLE,
    JINJA_MAKE_MAP,  /* items: key, value, key, value */
    JINJA_ATTRIBUTE, /* left . name */
    JINJA_INDEX,     /* left [ right ] */
    JINJA_SLICE,     /* left [ items ], three, each may be NULL */
    JINJA_CALL,      /* left ( items ), the last `named` of them have names */
    JINJA_FILTER,    /* left | name ( items ) */
    JINJA_TEST,      /* left is name ( items ) */
    JINJA_NOT,
    JINJA_NEGATE,
    JINJA_PLUS,
    JINJA_ARITHMETIC, /* items, ops */
    JINJA_CONCAT,     /* items */
    JINJA_COMPARE,    /* items, ops */
    JINJA_AND,
    JINJA_OR,
    JINJA_CHOOSE,   /* left if right else third, which may be NULL */
    JINJA_CAPTURED, /* the text of a filter block */

    JINJA_TEXT,        /* value */
    JINJA_PRINT,       /* left */
    JINJA_BODY,        /* items */
    JINJA_IF,          /* items: condition, body, ...; third: else, may be NULL */
    JINJA_FOR,         /* left: target, right: iterable, third: condition or NULL, items: body, else or NULL */
    JINJA_ASSIGN,      /* left: target, right */
    JINJA_ASSIGN_BODY, /* left: target, right: body, third: filters of CAPTURED or NULL */
    JINJA_DEFINE,      /* macro of `number` and `name`; names: parameters, items: defaults or NULL; right: body */
    JINJA_FILTER_BODY, /* right: body, third: filters of CAPTURED */
    JINJA_BREAK,
    JINJA_CONTINUE,
    JINJA_GENERATION, /* right: body */
} JinjaNodeKind;

typedef enum {
    JINJA_END,
    JINJA_DATA,
    JINJA_PRINT_BEGIN,
    JINJA_PRINT_END,
    JINJA_TAG_BEGIN,
    JINJA_TAG_END,
    JINJA_WORD,
    JINJA_STRING_TOKEN,
    JINJA_INT_TOKEN,
    JINJA_FLOAT_TOKEN,
    JINJA_SIGN, /* an operator; its characters are `op` */
} JinjaTokenKind;

/* An operator is its first character plus 256 times its second. */
#define JINJA_OP2(a, b) ((a) + 256 * (b))
enum { JINJA_IN = JINJA_OP2('i', 'n'), JINJA_NOT_IN = JINJA_OP2('n', 'i') };

typedef struct JinjaNode {
    JinjaNodeKind kind;
    int line, depth;
    int number; /* of a name */
    int count, named;
    const char *name;
    JinjaValue value;
    struct JinjaNode *left, *right, *third, **items;
    const char **names; /* keywords of a call; parameters of a macro */
    int *ops;           /* operators; numbers of a macro's parameters */
} JinjaNode;

typedef struct JinjaToken {
    JinjaTokenKind kind;
    int line, op;
    const char *text;
    size_t length;
    double real;
    int64_t integer;
} JinjaToken;

/* A parsed template. */
typedef struct Jinja {
    JinjaNode *body;
    const char **names; /* of all variables; a name's number is its index */
    bool *assigned;     /* (name_count) whether the template assigns to the name */
    int name_count;
    bool generation; /* the template has {% generation %} */
    JinjaRun memory; /* owns the tree */
} Jinja;

typedef struct JinjaParser {
    Jinja *tree;
    JinjaToken *tokens;
    size_t count, capacity, at;
    int16_t *slots; /* hash table of names: index + 1 */
    int nesting, loops;
    const char *source; /* normalised text */
} JinjaParser;

static inline JinjaNode *jinja_error(JinjaParser *p, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Keeps the first error. Returns NULL. */
static inline JinjaNode *jinja_error(JinjaParser *p, int line, const char *format, ...) {
    char what[300];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    p->tree->memory.line = line;
    jinja_fail(&p->tree->memory, "%s", what);
    return NULL;
}

/* ---- the lexer ------------------------------------------------------------------------------------------------- */

static inline JinjaToken *jinja_token(JinjaParser *p, JinjaTokenKind kind, int line, const char *text, size_t n) {
    if (p->count == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 256;
        p->tokens = (JinjaToken *)xrealloc(p->tokens, p->capacity, sizeof *p->tokens);
    }
    p->tokens[p->count] = (JinjaToken){.kind = kind, .line = line, .text = text, .length = n};
    return &p->tokens[p->count++];
}

/* Returns the length of the white space character at s, as Python's str.isspace() defines it, or 0. */
static inline size_t jinja_space(const char *s, size_t n) {
    const int length = utf8_length(s, n);
    if (!length) return 0;
    const uint32_t c = utf8_decode(s, length);
    const bool space = (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
                       (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
                       c == 0x3000;
    return space ? (size_t)length : 0;
}

/* Returns the length of s without white space at its end. */
static inline size_t jinja_trimmed(const char *s, size_t n) {
    while (n) {
        size_t back = 1;
        while (back < n && back < 4 && ((unsigned char)s[n - back] & 0xC0) == 0x80) back++;
        if (jinja_space(s + n - back, back) != back) break;
        n -= back;
    }
    return n;
}

static inline void jinja_skip_space(const char *s, size_t n, size_t *at, int *line) {
    for (size_t step; *at < n && (step = jinja_space(s + *at, n - *at)) > 0; *at += step) *line += s[*at] == '\n';
}

/* Emits the text before a tag at `end`, without the white space that the tag removes. sign: -, + or 0. */
static inline void jinja_lex_data(JinjaParser *p, size_t begin, size_t end, int line, char sign, bool prints,
                                  bool line_start) {
    const char *s = p->source + begin;
    size_t n = end - begin;
    if (sign == '-') n = jinja_trimmed(s, n);
    else if (sign != '+' && !prints) {
        size_t last = n;
        while (last && s[last - 1] != '\n') last--;
        const size_t kept = jinja_trimmed(s, n);
        if ((last || line_start) && kept <= last) n = last;
    }
    if (n) jinja_token(p, JINJA_DATA, line, s, n);
}

/* Appends the character of an escape sequence at s[*at], after the backslash. */
static inline bool jinja_lex_escape(JinjaParser *p, const char *s, size_t n, size_t *at, int line) {
    static const char *const from = "abfnrtv\\'\"", *const to = "\a\b\f\n\r\t\v\\'\"";
    JinjaRun *r = &p->tree->memory;
    const char c = s[(*at)++], *simple = c ? strchr(from, c) : NULL;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;
    char bytes[4];
    if (c == '\n') return true;
    if (simple) return jinja_put(r, to + (simple - from), 1, 0), true;
    if (c >= '0' && c <= '7') {
        code = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < n && s[*at] >= '0' && s[*at] <= '7'; i++)
            code = 8 * code + (uint32_t)(s[(*at)++] - '0');
    } else if (digits) {
        for (; digits && *at < n && isxdigit((unsigned char)s[*at]); digits--, (*at)++)
            code = 16 * code + (uint32_t)(s[*at] <= '9' ? s[*at] - '0' : (s[*at] | 32) - 'a' + 10);
        if (digits || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
            return jinja_error(p, line, "a string has the escape '\\%c' without a character's number", c), false;
    } else if (c == 'N') return jinja_error(p, line, "the escape '\\N' is not supported"), false;
    else if ((unsigned char)c > 127)
        return jinja_error(p, line, "a backslash before a character beyond ASCII is not supported"), false;
    else {
        const char kept[2] = {'\\', c};
        return jinja_put(r, kept, 2, 0), true; /* Python keeps an unknown escape */
    }
    jinja_put(r, bytes, (size_t)utf8_encode(code, bytes), 0);
    return true;
}

/* Reads a string literal at s[*at]. */
static inline bool jinja_lex_string(JinjaParser *p, const char *s, size_t n, size_t *at, int *line) {
    JinjaRun *r = &p->tree->memory;
    const char quote = s[(*at)++];
    const int first = *line;
    const size_t start = r->out.length;
    while (*at < n && s[*at] != quote && !r->failed) {
        const size_t run = *at;
        while (*at < n && s[*at] != quote && s[*at] != '\\') *line += s[(*at)++] == '\n';
        jinja_put(r, s + run, *at - run, 0);
        if (*at + 1 >= n) break;
        if (s[*at] != '\\') continue;
        ++*at;
        *line += s[*at] == '\n';
        if (!jinja_lex_escape(p, s, n, at, *line)) return false;
    }
    if (*at >= n || s[*at] != quote) return jinja_error(p, first, "a string has no end"), false;
    ++*at;
    const JinjaValue value = jinja_cut(r, start);
    if (r->failed) return false;
    jinja_token(p, JINJA_STRING_TOKEN, first, value.string->text, value.string->length);
    return true;
}

static inline bool jinja_lex_number(JinjaParser *p, const char *s, size_t n, size_t *at, int line) {
    const size_t begin = *at;
    bool real = false;
    char digits[64];
    while (*at < n && isdigit((unsigned char)s[*at])) ++*at;
    const bool after_dot = begin && s[begin - 1] == '.'; /* a.0.1 */
    if (!after_dot && *at + 1 < n && s[*at] == '.' && isdigit((unsigned char)s[*at + 1])) {
        real = true;
        for (++*at; *at < n && isdigit((unsigned char)s[*at]);) ++*at;
    }
    if (!after_dot && *at + 1 < n && (s[*at] | 32) == 'e') {
        const size_t sign = s[*at + 1] == '+' || s[*at + 1] == '-';
        if (*at + 1 + sign < n && isdigit((unsigned char)s[*at + 1 + sign])) {
            real = true;
            for (*at += 1 + sign; *at < n && isdigit((unsigned char)s[*at]);) ++*at;
        }
    }
    const size_t length = *at - begin;
    if (length >= sizeof digits || (*at < n && (isalnum((unsigned char)s[*at]) || s[*at] == '_')) ||
        (!real && length > 1 && s[begin] == '0'))
        return jinja_error(p, line, "the number '%.*s' is not supported", (int)(length < 40 ? length + 1 : 40),
                           s + begin),
               false;
    memcpy(digits, s + begin, length);
    digits[length] = 0;
    errno = 0;
    JinjaToken *t = jinja_token(p, real ? JINJA_FLOAT_TOKEN : JINJA_INT_TOKEN, line, s + begin, length);
    if (real) t->real = strtod(digits, NULL);
    else t->integer = strtoll(digits, NULL, 10);
    return !errno || (jinja_error(p, line, "the number %s is too large", digits), false);
}

/* Reads the tokens of a tag up to its end, whose first character is `close`: } or %. */
static inline bool jinja_lex_tag(JinjaParser *p, const char *s, size_t n, size_t *at, int *line, char close) {
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    char open[JINJA_DEPTH];
    int depth = 0;
    const int first = *line;
    for (;;) {
        jinja_skip_space(s, n, at, line);
        if (*at >= n) return jinja_error(p, first, "a tag has no end"), false;
        const size_t sign = s[*at] == '-' || (s[*at] == '+' && close == '%');
        if (!depth && *at + sign + 1 < n && s[*at + sign] == close && s[*at + sign + 1] == '}') {
            jinja_token(p, close == '%' ? JINJA_TAG_END : JINJA_PRINT_END, *line, s + *at, 2);
            const bool minus = s[*at] == '-';
            *at += sign + 2;
            if (minus) jinja_skip_space(s, n, at, line);
            else if (!sign && close == '%' && *at < n && s[*at] == '\n') ++*at, ++*line;
            return true;
        }
        const char c = s[*at];
        if (isdigit((unsigned char)c)) {
            if (!jinja_lex_number(p, s, n, at, *line)) return false;
        } else if (isalpha((unsigned char)c) || c == '_') {
            const size_t begin = *at;
            while (*at < n && (isalnum((unsigned char)s[*at]) || s[*at] == '_')) ++*at;
            jinja_token(p, JINJA_WORD, *line, s + begin, *at - begin);
        } else if (c == '"' || c == '\'') {
            if (!jinja_lex_string(p, s, n, at, line)) return false;
        } else {
            if (!c || !strchr("+-*/%~[](){}!=<>.:|,", c))
                return jinja_error(p, *line, "unexpected character '%.*s' in a tag",
                                   utf8_length(s + *at, n - *at) ? utf8_length(s + *at, n - *at) : 1, s + *at),
                       false;
            int op = c;
            for (size_t i = 0; i < sizeof two / sizeof *two && *at + 1 < n; i++)
                if (c == two[i][0] && s[*at + 1] == two[i][1]) op = JINJA_OP2(c, two[i][1]);
            if (strchr("([{", c)) {
                if (depth == JINJA_DEPTH) return jinja_error(p, *line, "more than %d brackets", JINJA_DEPTH), false;
                open[depth++] = c;
            }
            if (strchr(")]}", c)) {
                if (!depth || open[depth - 1] != (c == ')' ? '(' : c == ']' ? '[' : '{'))
                    return jinja_error(p, *line, "unexpected '%c'", c), false;
                depth--;
            }
            jinja_token(p, JINJA_SIGN, *line, s + *at, op > 255 ? 2 : 1)->op = op;
            *at += op > 255 ? 2 : 1;
        }
    }
}

/* Splits the source into tokens. */
static inline bool jinja_lex(JinjaParser *p, size_t n) {
    const char *s = p->source;
    int line = 1;
    bool line_start = true;
    for (size_t at = 0; at < n && !p->tree->memory.failed;) {
        size_t tag = at;
        const int first = line;
        while (tag + 1 < n && !(s[tag] == '{' && (s[tag + 1] == '{' || s[tag + 1] == '%' || s[tag + 1] == '#')))
            line += s[tag++] == '\n';
        if (tag + 1 >= n) {
            jinja_token(p, JINJA_DATA, first, s + at, n - at);
            break;
        }
        const char kind = s[tag + 1], next = tag + 2 < n ? s[tag + 2] : 0;
        const char sign = next == '-' || next == '+' ? next : 0;
        jinja_lex_data(p, at, tag, first, sign, kind == '{', line_start);
        at = tag + 2 + (sign != 0);
        if (kind == '#') {
            const char *end = at < n ? (const char *)memmem(s + at, n - at, "#}", 2) : NULL;
            if (!end) return jinja_error(p, line, "a comment has no end"), false;
            for (; s + at < end; at++) line += s[at] == '\n';
            const char before = end > s + tag + 2 + (sign != 0) ? end[-1] : 0;
            at += 2;
            if (before == '-') jinja_skip_space(s, n, &at, &line);
            else if (before != '+' && at < n && s[at] == '\n') at++, line++;
        } else {
            jinja_token(p, kind == '{' ? JINJA_PRINT_BEGIN : JINJA_TAG_BEGIN, line, s + tag, 2);
            if (!jinja_lex_tag(p, s, n, &at, &line, kind == '{' ? '}' : '%')) return false;
        }
        line_start = s[at - 1] == '\n';
    }
    jinja_token(p, JINJA_END, line, "", 0);
    return !p->tree->memory.failed;
}

/* ---- expressions ----------------------------------------------------------------------------------------------- */

/* The tables of what exists are in jinja_filter.h and jinja.h. */
static inline bool jinja_known_filter(const char *name);
static inline bool jinja_known_test(const char *name);
static inline bool jinja_known_method(const char *name);
static inline int jinja_known_function(const char *name);

static inline const JinjaToken *jinja_now(const JinjaParser *p) { return &p->tokens[p->at]; }

static inline bool jinja_is_sign(const JinjaToken *t, int op) { return t->kind == JINJA_SIGN && t->op == op; }

static inline bool jinja_is_word(const JinjaToken *t, const char *word) {
    return t->kind == JINJA_WORD && t->length == strlen(word) && !memcmp(t->text, word, t->length);
}

static inline bool jinja_take(JinjaParser *p, int op) {
    const bool found = jinja_is_sign(jinja_now(p), op);
    p->at += found;
    return found;
}

static inline bool jinja_take_word(JinjaParser *p, const char *word) {
    const bool found = jinja_is_word(jinja_now(p), word);
    p->at += found;
    return found;
}

/* Reports an unexpected token. */
static inline JinjaNode *jinja_unexpected(JinjaParser *p, const char *expected) {
    const JinjaToken *t = jinja_now(p);
    if (t->kind == JINJA_END) return jinja_error(p, t->line, "the template ends, expected %s", expected);
    return jinja_error(p, t->line, "unexpected '%.*s', expected %s", (int)(t->length < 30 ? t->length : 30), t->text,
                       expected);
}

static inline bool jinja_expect(JinjaParser *p, int op) {
    const char want[] = {'\'', (char)op, '\'', 0};
    return jinja_take(p, op) || (jinja_unexpected(p, want), false);
}

static inline JinjaNode *jinja_node(JinjaParser *p, JinjaNodeKind kind, int line) {
    JinjaNode *node = (JinjaNode *)jinja_alloc(&p->tree->memory, sizeof *node);
    *node = (JinjaNode){.kind = kind, .line = line, .depth = 1};
    return node;
}

/* Sets the depth of `node` to be above that of `child`. Returns false beyond the limit or if the child is NULL. */
static inline bool jinja_above(JinjaParser *p, JinjaNode *node, const JinjaNode *child) {
    if (!child) return false;
    if (child->depth >= node->depth) node->depth = child->depth + 1;
    return node->depth <= JINJA_NODE_DEPTH ||
           (jinja_error(p, node->line, "an expression or block is nested deeper than %d", JINJA_NODE_DEPTH), false);
}

/* Appends an item; arrays grow at powers of two. */
static inline bool jinja_item(JinjaParser *p, JinjaNode *node, JinjaNode *item, int op) {
    JinjaRun *r = &p->tree->memory;
    if (!item || !jinja_above(p, node, item)) return false;
    if (!(node->count & (node->count - 1))) {
        const size_t n = node->count ? 2 * (size_t)node->count : 1, old = (size_t)node->count;
        JinjaNode **items = (JinjaNode **)jinja_alloc(r, n * sizeof *items);
        int *ops = (int *)jinja_alloc(r, n * sizeof *ops);
        if (old) memcpy(items, node->items, old * sizeof *items);
        if (old) memcpy(ops, node->ops, old * sizeof *ops);
        node->items = items;
        node->ops = ops;
    }
    node->ops[node->count] = op;
    node->items[node->count++] = item;
    return true;
}

static inline const char *jinja_word_text(JinjaParser *p, const JinjaToken *t) {
    char *text = (char *)jinja_alloc(&p->tree->memory, t->length + 1);
    memcpy(text, t->text, t->length);
    text[t->length] = 0;
    return text;
}

/* Returns the number of a variable's name, or -1. */
static inline int jinja_number_of(JinjaParser *p, const JinjaToken *t) {
    Jinja *tree = p->tree;
    for (uint32_t i = (uint32_t)XXH3_64bits(t->text, t->length);; i++) {
        int16_t *slot = &p->slots[i & (2 * JINJA_NAMES - 1)];
        if (!*slot) {
            if (tree->name_count == JINJA_NAMES)
                return jinja_error(p, t->line, "more than %d names of variables", JINJA_NAMES), -1;
            tree->names[tree->name_count++] = jinja_word_text(p, t);
            *slot = (int16_t)tree->name_count;
        }
        const char *name = tree->names[*slot - 1];
        if (strlen(name) == t->length && !memcmp(name, t->text, t->length)) return *slot - 1;
    }
}

static inline JinjaNode *jinja_parse_expression(JinjaParser *p, bool choose);
static inline JinjaNode *jinja_parse_unary(JinjaParser *p, bool filters);

/* Whether the token ends a tuple. */
static inline bool jinja_ends(const JinjaToken *t) {
    return t->kind == JINJA_TAG_END || t->kind == JINJA_PRINT_END || t->kind == JINJA_END || jinja_is_sign(t, ')') ||
           jinja_is_word(t, "in");
}

/* Parses an expression, or a tuple if there is a comma. empty: () is allowed. */
static inline JinjaNode *jinja_parse_tuple(JinjaParser *p, bool choose, bool empty) {
    const int line = jinja_now(p)->line;
    if (empty && jinja_ends(jinja_now(p))) return jinja_node(p, JINJA_MAKE_TUPLE, line);
    JinjaNode *first = jinja_parse_expression(p, choose);
    if (!first || !jinja_is_sign(jinja_now(p), ',')) return first;
    JinjaNode *tuple = jinja_node(p, JINJA_MAKE_TUPLE, line);
    if (!jinja_item(p, tuple, first, 0)) return NULL;
    while (jinja_take(p, ',') && !jinja_ends(jinja_now(p)))
        if (!jinja_item(p, tuple, jinja_parse_expression(p, choose), 0)) return NULL;
    return tuple;
}

static inline JinjaNode *jinja_constant(JinjaParser *p, JinjaValue value, int line) {
    JinjaNode *node = jinja_node(p, JINJA_CONST, line);
    node->value = value;
    return node;
}

/* Parses [a, b] after the bracket. */
static inline JinjaNode *jinja_parse_list(JinjaParser *p) {
    JinjaNode *list = jinja_node(p, JINJA_MAKE_LIST, jinja_now(p)->line);
    while (!jinja_take(p, ']')) {
        if (list->count && !jinja_expect(p, ',')) return NULL;
        if (jinja_take(p, ']')) break;
        if (!jinja_item(p, list, jinja_parse_expression(p, true), 0)) return NULL;
    }
    return list;
}

/* Parses {a: b} after the brace. */
static inline JinjaNode *jinja_parse_map(JinjaParser *p) {
    JinjaNode *map = jinja_node(p, JINJA_MAKE_MAP, jinja_now(p)->line);
    while (!jinja_take(p, '}')) {
        if (map->count && !jinja_expect(p, ',')) return NULL;
        if (jinja_take(p, '}')) break;
        if (!jinja_item(p, map, jinja_parse_expression(p, true), 0) || !jinja_expect(p, ':') ||
            !jinja_item(p, map, jinja_parse_expression(p, true), 0))
            return NULL;
    }
    return map;
}

static inline JinjaNode *jinja_parse_word(JinjaParser *p) {
    const JinjaToken *t = jinja_now(p);
    p->at++;
    for (int i = 0; i < 2; i++) {
        if (jinja_is_word(t, i ? "true" : "True")) return jinja_constant(p, jinja_bool(true), t->line);
        if (jinja_is_word(t, i ? "false" : "False")) return jinja_constant(p, jinja_bool(false), t->line);
        if (jinja_is_word(t, i ? "none" : "None")) return jinja_constant(p, jinja_none(), t->line);
    }
    JinjaNode *node = jinja_node(p, JINJA_NAME, t->line);
    node->number = jinja_number_of(p, t);
    if (node->number < 0) return NULL;
    node->name = p->tree->names[node->number];
    return node;
}

static inline JinjaNode *jinja_parse_primary(JinjaParser *p) {
    JinjaRun *r = &p->tree->memory;
    const JinjaToken *t = jinja_now(p);
    if (t->kind == JINJA_WORD) return jinja_parse_word(p);
    if (t->kind == JINJA_INT_TOKEN || t->kind == JINJA_FLOAT_TOKEN) {
        p->at++;
        const JinjaValue real = {.kind = JINJA_FLOAT, .real = t->real};
        return jinja_constant(p, t->kind == JINJA_INT_TOKEN ? jinja_int(t->integer) : real, t->line);
    }
    if (t->kind == JINJA_STRING_TOKEN) {
        const size_t start = r->out.length;
        for (; jinja_now(p)->kind == JINJA_STRING_TOKEN; p->at++)
            jinja_put(r, jinja_now(p)->text, jinja_now(p)->length, 0);
        return jinja_constant(p, jinja_cut(r, start), t->line);
    }
    if (p->nesting >= JINJA_DEPTH)
        return jinja_error(p, t->line, "an expression is nested deeper than %d", JINJA_DEPTH);
    p->nesting++;
    JinjaNode *node = NULL;
    if (jinja_take(p, '(')) {
        node = jinja_parse_tuple(p, true, true);
        if (node && !jinja_expect(p, ')')) node = NULL;
    } else if (jinja_take(p, '[')) node = jinja_parse_list(p);
    else if (jinja_take(p, '{')) node = jinja_parse_map(p);
    else jinja_unexpected(p, "an expression");
    p->nesting--;
    return node;
}

/* Parses the arguments of a call after the parenthesis. */
static inline bool jinja_parse_arguments(JinjaParser *p, JinjaNode *node) {
    JinjaRun *r = &p->tree->memory;
    const size_t first = p->at;
    const char *keywords[16];
    while (!jinja_take(p, ')')) {
        if (p->at != first && !jinja_expect(p, ',')) return false;
        if (jinja_take(p, ')')) break;
        const JinjaToken *t = jinja_now(p);
        if (jinja_is_sign(t, '*') || jinja_is_sign(t, JINJA_OP2('*', '*')))
            return jinja_error(p, t->line, "arguments with * or ** are not supported"), false;
        if (t->kind == JINJA_WORD && jinja_is_sign(t + 1, '=')) {
            if (node->named == 16) return jinja_error(p, t->line, "more than 16 keyword arguments"), false;
            keywords[node->named++] = jinja_word_text(p, t);
            p->at += 2;
        } else if (node->named) return jinja_unexpected(p, "a keyword argument"), false;
        if (!jinja_item(p, node, jinja_parse_expression(p, true), 0)) return false;
    }
    node->names = (const char **)jinja_alloc(r, ((size_t)node->named + 1) * sizeof *node->names);
    for (int i = 0; i < node->named; i++) node->names[i] = keywords[i];
    return true;
}

/* Parses a[b] or a[b:c:d] after the bracket. */
static inline JinjaNode *jinja_parse_subscript(JinjaParser *p, JinjaNode *left) {
    const int line = jinja_now(p)->line;
    JinjaNode *node = jinja_node(p, JINJA_INDEX, line), *part[3] = {NULL, NULL, NULL};
    int at = 0;
    while (!jinja_take(p, ']')) {
        if (jinja_take(p, ':')) {
            node->kind = JINJA_SLICE;
            if (++at > 2) return jinja_error(p, line, "a slice has more than three parts");
        } else if (part[at]) return jinja_unexpected(p, "']'");
        else if (!jinja_above(p, node, part[at] = jinja_parse_expression(p, true))) return NULL;
    }
    node->left = left;
    node->right = part[0];
    if (node->kind == JINJA_INDEX && !part[0]) return jinja_error(p, line, "[] has no index");
    node->items = (JinjaNode **)jinja_alloc(&p->tree->memory, sizeof part);
    memcpy(node->items, part, sizeof part);
    return jinja_above(p, node, left) ? node : NULL;
}

/* Parses a call of `left` after the parenthesis and checks that there is such a function or method. */
static inline JinjaNode *jinja_parse_call(JinjaParser *p, JinjaNode *left) {
    JinjaNode *node = jinja_node(p, JINJA_CALL, left->line);
    node->left = left;
    if (left->kind == JINJA_ATTRIBUTE && !jinja_known_method(left->name))
        return jinja_error(p, left->line, "the method '%.60s' is not supported", left->name);
    if (left->kind != JINJA_ATTRIBUTE && left->kind != JINJA_NAME)
        return jinja_error(p, left->line, "only functions, macros and methods can be called");
    return jinja_above(p, node, left) && jinja_parse_arguments(p, node) ? node : NULL;
}

static inline JinjaNode *jinja_parse_postfix(JinjaParser *p, JinjaNode *node) {
    while (node) {
        const JinjaToken *t = jinja_now(p);
        if (jinja_take(p, '.')) {
            const JinjaToken *name = jinja_now(p);
            JinjaNode *left = node;
            node = jinja_node(p, name->kind == JINJA_INT_TOKEN ? JINJA_INDEX : JINJA_ATTRIBUTE, t->line);
            node->left = left;
            if (name->kind == JINJA_INT_TOKEN) node->right = jinja_constant(p, jinja_int(name->integer), t->line);
            else if (name->kind == JINJA_WORD) node->name = jinja_word_text(p, name);
            else return jinja_unexpected(p, "a name after '.'");
            p->at++;
            if (!jinja_above(p, node, left)) return NULL;
        } else if (jinja_is_sign(t, '[') || jinja_is_sign(t, '(')) {
            if (p->nesting >= JINJA_DEPTH)
                return jinja_error(p, t->line, "an expression is nested deeper than %d", JINJA_DEPTH);
            p->nesting++;
            p->at++;
            node = jinja_is_sign(t, '[') ? jinja_parse_subscript(p, node) : jinja_parse_call(p, node);
            p->nesting--;
        } else break;
    }
    return node;
}

/* Parses the name and arguments of a filter after the bar. */
static inline JinjaNode *jinja_parse_filter(JinjaParser *p, JinjaNode *left) {
    const JinjaToken *t = jinja_now(p);
    if (t->kind != JINJA_WORD) return jinja_unexpected(p, "the name of a filter");
    JinjaNode *node = jinja_node(p, JINJA_FILTER, t->line);
    node->left = left;
    node->name = jinja_word_text(p, t);
    p->at++;
    if (!jinja_known_filter(node->name))
        return jinja_error(p, t->line, "the filter '%.60s' is not supported", node->name);
    if (!jinja_above(p, node, left) || (jinja_take(p, '(') && !jinja_parse_arguments(p, node))) return NULL;
    return node;
}

/* Parses a test after `is`. */
static inline JinjaNode *jinja_parse_test(JinjaParser *p, JinjaNode *left) {
    const bool negated = jinja_take_word(p, "not");
    const JinjaToken *t = jinja_now(p), *next = t + 1;
    if (t->kind != JINJA_WORD) return jinja_unexpected(p, "the name of a test");
    JinjaNode *node = jinja_node(p, JINJA_TEST, t->line);
    node->left = left;
    node->name = jinja_word_text(p, t);
    p->at++;
    if (!jinja_known_test(node->name)) return jinja_error(p, t->line, "the test '%.60s' is not supported", node->name);
    if (!jinja_above(p, node, left)) return NULL;
    const bool word = next->kind == JINJA_WORD && !jinja_is_word(next, "else") && !jinja_is_word(next, "or") &&
                      !jinja_is_word(next, "and");
    if (jinja_is_word(next, "is"))
        return jinja_error(p, t->line, "tests that follow one another with 'is' are not supported");
    if (jinja_take(p, '(')) {
        if (!jinja_parse_arguments(p, node)) return NULL;
    } else if (word || next->kind == JINJA_STRING_TOKEN || next->kind == JINJA_INT_TOKEN ||
               next->kind == JINJA_FLOAT_TOKEN || jinja_is_sign(next, '[') || jinja_is_sign(next, '{')) {
        JinjaNode *argument = jinja_parse_primary(p);
        if (!jinja_item(p, node, argument ? jinja_parse_postfix(p, argument) : NULL, 0)) return NULL;
    }
    if (!negated) return node;
    JinjaNode *not = jinja_node(p, JINJA_NOT, t->line);
    not ->left = node;
    return jinja_above(p, not, node) ? not : NULL;
}

/* Parses filters and tests after an operand. */
static inline JinjaNode *jinja_parse_filters(JinjaParser *p, JinjaNode *node) {
    while (node) {
        if (jinja_take(p, '|')) node = jinja_parse_filter(p, node);
        else if (jinja_take_word(p, "is")) node = jinja_parse_test(p, node);
        else if (jinja_is_sign(jinja_now(p), '('))
            return jinja_error(p, node->line, "only functions, macros and methods can be called");
        else break;
    }
    return node;
}

static inline JinjaNode *jinja_parse_unary(JinjaParser *p, bool filters) {
    const JinjaToken *t = jinja_now(p);
    JinjaNode *node;
    if (jinja_is_sign(t, '-') || jinja_is_sign(t, '+')) {
        if (p->nesting >= JINJA_DEPTH)
            return jinja_error(p, t->line, "an expression is nested deeper than %d", JINJA_DEPTH);
        p->at++;
        p->nesting++;
        node = jinja_node(p, t->op == '-' ? JINJA_NEGATE : JINJA_PLUS, t->line);
        node->left = jinja_parse_unary(p, false);
        p->nesting--;
        if (!jinja_above(p, node, node->left)) return NULL;
    } else node = jinja_parse_primary(p);
    node = jinja_parse_postfix(p, node);
    return filters ? jinja_parse_filters(p, node) : node;
}

/* Whether the token is one of the operators of a level; 0: **, 1: * / // %, 2: ~, 3: + -. */
static inline bool jinja_at_level(const JinjaToken *t, int level) {
    if (t->kind != JINJA_SIGN) return false;
    if (level == 0) return t->op == JINJA_OP2('*', '*');
    if (level == 1) return t->op == '*' || t->op == '/' || t->op == '%' || t->op == JINJA_OP2('/', '/');
    return level == 2 ? t->op == '~' : t->op == '+' || t->op == '-';
}

/* Parses operands that the operators of a level join, from left to right. */
static inline JinjaNode *jinja_parse_level(JinjaParser *p, int level) {
    JinjaNode *first = level ? jinja_parse_level(p, level - 1) : jinja_parse_unary(p, true);
    if (!first || !jinja_at_level(jinja_now(p), level)) return first;
    JinjaNode *node = jinja_node(p, level == 2 ? JINJA_CONCAT : JINJA_ARITHMETIC, first->line);
    if (!jinja_item(p, node, first, 0)) return NULL;
    while (jinja_at_level(jinja_now(p), level)) {
        const int op = jinja_now(p)->op;
        p->at++;
        if (!jinja_item(p, node, level ? jinja_parse_level(p, level - 1) : jinja_parse_unary(p, true), op)) return NULL;
    }
    return node;
}

/* Takes a comparison operator. Returns 0 if there is none. */
static inline int jinja_take_comparison(JinjaParser *p) {
    static const int ops[] = {
        JINJA_OP2('=', '='), JINJA_OP2('!', '='), JINJA_OP2('<', '='), JINJA_OP2('>', '='), '<', '>'};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (jinja_take(p, ops[i])) return ops[i];
    if (jinja_take_word(p, "in")) return JINJA_IN;
    if (!jinja_is_word(jinja_now(p), "not") || !jinja_is_word(jinja_now(p) + 1, "in")) return 0;
    p->at += 2;
    return JINJA_NOT_IN;
}

static inline JinjaNode *jinja_parse_compare(JinjaParser *p) {
    JinjaNode *first = jinja_parse_level(p, 3), *node = NULL;
    for (int op; first && (op = jinja_take_comparison(p)) != 0;) {
        if (!node) {
            node = jinja_node(p, JINJA_COMPARE, first->line);
            if (!jinja_item(p, node, first, 0)) return NULL;
        }
        if (!jinja_item(p, node, jinja_parse_level(p, 3), op)) return NULL;
    }
    return node ? node : first;
}

static inline JinjaNode *jinja_parse_not(JinjaParser *p) {
    const int line = jinja_now(p)->line;
    int count = 0;
    while (jinja_take_word(p, "not")) count++;
    JinjaNode *inner = jinja_parse_compare(p);
    for (int i = 0; inner && i < (count > 2 ? 2 - count % 2 : count); i++) { /* not not not x is not x */
        JinjaNode *node = jinja_node(p, JINJA_NOT, line);
        node->left = inner;
        if (!jinja_above(p, node, inner)) return NULL;
        inner = node;
    }
    return inner;
}

/* Parses operands joined by `and` or, if `either`, by `or`. */
static inline JinjaNode *jinja_parse_logic(JinjaParser *p, bool either) {
    const char *word = either ? "or" : "and";
    JinjaNode *first = either ? jinja_parse_logic(p, false) : jinja_parse_not(p);
    if (!first || !jinja_is_word(jinja_now(p), word)) return first;
    JinjaNode *node = jinja_node(p, either ? JINJA_OR : JINJA_AND, first->line);
    if (!jinja_item(p, node, first, 0)) return NULL;
    while (jinja_take_word(p, word))
        if (!jinja_item(p, node, either ? jinja_parse_logic(p, false) : jinja_parse_not(p), 0)) return NULL;
    return node;
}

/* Parses an expression; choose: with `a if b else c`. */
static inline JinjaNode *jinja_parse_expression(JinjaParser *p, bool choose) {
    JinjaNode *node = jinja_parse_logic(p, true);
    while (node && choose && jinja_is_word(jinja_now(p), "if")) {
        JinjaNode *choice = jinja_node(p, JINJA_CHOOSE, node->line);
        p->at++;
        choice->left = node;
        choice->right = jinja_parse_logic(p, true);
        if (!jinja_above(p, choice, choice->left) || !jinja_above(p, choice, choice->right)) return NULL;
        if (jinja_take_word(p, "else")) {
            if (p->nesting >= JINJA_DEPTH)
                return jinja_error(p, node->line, "an expression is nested deeper than %d", JINJA_DEPTH);
            p->nesting++;
            choice->third = jinja_parse_expression(p, true);
            p->nesting--;
            if (!jinja_above(p, choice, choice->third)) return NULL;
        }
        node = choice;
    }
    return node;
}

/* ---- statements ------------------------------------------------------------------------------------------------ */

static inline JinjaNode *jinja_parse_body(JinjaParser *p, const char *const *ends);

static inline bool jinja_tag_end(JinjaParser *p) {
    if (jinja_now(p)->kind != JINJA_TAG_END) return jinja_unexpected(p, "the end of the tag"), false;
    p->at++;
    return true;
}

/* Parses a body up to {% end %}, whose end it takes. */
static inline JinjaNode *jinja_parse_block(JinjaParser *p, const char *end) {
    const char *const ends[] = {end, NULL};
    JinjaNode *body = jinja_tag_end(p) ? jinja_parse_body(p, ends) : NULL;
    p->at += body != NULL;
    return body && jinja_tag_end(p) ? body : NULL;
}

/* Parses the body of a block that is rendered apart; loops outside it cannot be left from inside. */
static inline bool jinja_parse_apart(JinjaParser *p, JinjaNode *node, const char *end) {
    const int loops = p->loops;
    p->loops = 0;
    node->right = jinja_parse_block(p, end);
    p->loops = loops;
    return jinja_above(p, node, node->right);
}

/* Parses the target of an assignment: a name, a tuple of names or, if `spaces`, an attribute of a namespace. */
static inline JinjaNode *jinja_parse_target(JinjaParser *p, bool spaces) {
    const int line = jinja_now(p)->line;
    JinjaNode *tuple = jinja_node(p, JINJA_MAKE_TUPLE, line);
    const bool parenthesis = jinja_take(p, '(');
    for (;;) {
        if (jinja_now(p)->kind != JINJA_WORD) return jinja_unexpected(p, "the name of a variable");
        JinjaNode *node = jinja_parse_word(p);
        if (node && node->kind != JINJA_NAME) return jinja_error(p, line, "a constant cannot be assigned to");
        if (node && !strcmp(node->name, "loop"))
            return jinja_error(p, line, "an assignment to 'loop' is not supported");
        if (node && spaces && jinja_take(p, '.')) {
            JinjaNode *attribute = jinja_node(p, JINJA_ATTRIBUTE, line);
            if (jinja_now(p)->kind != JINJA_WORD) return jinja_unexpected(p, "the name of an attribute");
            attribute->name = jinja_word_text(p, jinja_now(p));
            p->at++;
            attribute->left = node;
            node = attribute;
        } else if (node) p->tree->assigned[node->number] = true;
        if (!node) return NULL;
        const bool comma = jinja_take(p, ',');
        if (!comma && !parenthesis && !tuple->count) return node;
        if (!jinja_item(p, tuple, node, 0)) return NULL;
        if (!comma || jinja_now(p)->kind != JINJA_WORD || jinja_is_word(jinja_now(p), "in")) break;
    }
    if (parenthesis && !jinja_expect(p, ')')) return NULL;
    return parenthesis && tuple->count == 1 ? tuple->items[0] : tuple;
}

static inline JinjaNode *jinja_parse_if(JinjaParser *p, int line) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    JinjaNode *node = jinja_node(p, JINJA_IF, line);
    do {
        if (!jinja_item(p, node, jinja_parse_tuple(p, false, false), 0) || !jinja_tag_end(p) ||
            !jinja_item(p, node, jinja_parse_body(p, ends), 0))
            return NULL;
    } while (jinja_take_word(p, "elif"));
    if (jinja_take_word(p, "else")) {
        node->third = jinja_tag_end(p) ? jinja_parse_body(p, last) : NULL;
        if (!jinja_above(p, node, node->third)) return NULL;
    }
    p->at++;
    return jinja_tag_end(p) ? node : NULL;
}

static inline JinjaNode *jinja_parse_for(JinjaParser *p, int line) {
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    static const JinjaToken loop = {.kind = JINJA_WORD, .text = "loop", .length = 4};
    JinjaNode *node = jinja_node(p, JINJA_FOR, line);
    node->number = jinja_number_of(p, &loop);
    if (node->number < 0) return NULL;
    node->left = jinja_parse_target(p, false);
    if (!node->left) return NULL;
    if (!jinja_take_word(p, "in")) return jinja_unexpected(p, "'in'");
    node->right = jinja_parse_tuple(p, false, false);
    if (!jinja_above(p, node, node->right)) return NULL;
    if (jinja_take_word(p, "if")) {
        node->third = jinja_parse_expression(p, true);
        if (!jinja_above(p, node, node->third)) return NULL;
    }
    if (jinja_is_word(jinja_now(p), "recursive")) return jinja_error(p, line, "a recursive loop is not supported");
    if (!jinja_tag_end(p)) return NULL;
    p->loops++;
    const bool body = jinja_item(p, node, jinja_parse_body(p, ends), 0);
    p->loops--;
    if (!body) return NULL;
    if (jinja_take_word(p, "else") && (!jinja_tag_end(p) || !jinja_item(p, node, jinja_parse_body(p, last), 0)))
        return NULL;
    p->at++;
    return jinja_tag_end(p) ? node : NULL;
}

/* Parses filters of a block's text. */
static inline JinjaNode *jinja_parse_block_filters(JinjaParser *p, bool bar, int line) {
    JinjaNode *filters = jinja_node(p, JINJA_CAPTURED, line);
    while (filters && (!bar || jinja_take(p, '|'))) {
        filters = jinja_parse_filter(p, filters);
        bar = true;
    }
    return filters;
}

static inline JinjaNode *jinja_parse_set(JinjaParser *p, int line) {
    JinjaNode *node = jinja_node(p, JINJA_ASSIGN, line);
    node->left = jinja_parse_target(p, true);
    if (!node->left) return NULL;
    if (jinja_take(p, '=')) {
        node->right = jinja_parse_tuple(p, true, false);
        return jinja_above(p, node, node->right) && jinja_tag_end(p) ? node : NULL;
    }
    node->kind = JINJA_ASSIGN_BODY;
    if (node->left->kind == JINJA_MAKE_TUPLE) return jinja_unexpected(p, "'='");
    node->third = jinja_parse_block_filters(p, true, line);
    return jinja_above(p, node, node->third) && jinja_parse_apart(p, node, "endset") ? node : NULL;
}

/* Whether the default of a macro's parameter is that there is none. */
static inline bool jinja_is_missing(const JinjaNode *node) {
    return node->kind == JINJA_CONST && node->value.kind == JINJA_UNDEFINED;
}

static inline JinjaNode *jinja_parse_macro(JinjaParser *p, int line) {
    JinjaRun *r = &p->tree->memory;
    JinjaNode *node = jinja_node(p, JINJA_DEFINE, line);
    const JinjaToken *name = jinja_now(p);
    const char *names[32];
    if (name->kind != JINJA_WORD) return jinja_unexpected(p, "the name of the macro");
    p->at++;
    node->number = jinja_number_of(p, name);
    node->name = jinja_word_text(p, name);
    if (node->number >= 0) p->tree->assigned[node->number] = true;
    if (node->number < 0 || !jinja_expect(p, '(')) return NULL;
    while (!jinja_take(p, ')')) {
        if (node->count && !jinja_expect(p, ',')) return NULL;
        if (jinja_take(p, ')')) break;
        const JinjaToken *t = jinja_now(p);
        if (t->kind != JINJA_WORD) return jinja_unexpected(p, "the name of a parameter");
        if (node->count == 32) return jinja_error(p, line, "a macro has more than 32 parameters");
        p->at++;
        names[node->count] = jinja_word_text(p, t);
        JinjaNode *missing = jinja_constant(p, jinja_undefined(names[node->count]), line), *value = missing;
        if (jinja_take(p, '=')) value = jinja_parse_expression(p, true);
        else if (node->count && !jinja_is_missing(node->items[node->count - 1]))
            return jinja_error(p, line, "a parameter without a default follows one with a default");
        const int number = jinja_number_of(p, t);
        if (number < 0 || !jinja_item(p, node, value, number)) return NULL;
        p->tree->assigned[number] = true;
    }
    node->names = (const char **)jinja_alloc(r, ((size_t)node->count + 1) * sizeof *node->names);
    for (int i = 0; i < node->count; i++) node->names[i] = names[i];
    return jinja_parse_apart(p, node, "endmacro") ? node : NULL;
}

/* Parses a statement after its first word. */
static inline JinjaNode *jinja_parse_statement(JinjaParser *p, const JinjaToken *t) {
    JinjaNode *node;
    if (jinja_is_word(t, "if")) return jinja_parse_if(p, t->line);
    if (jinja_is_word(t, "for")) return jinja_parse_for(p, t->line);
    if (jinja_is_word(t, "set")) return jinja_parse_set(p, t->line);
    if (jinja_is_word(t, "macro")) return jinja_parse_macro(p, t->line);
    if (jinja_is_word(t, "generation")) {
        p->tree->generation = true;
        node = jinja_node(p, JINJA_GENERATION, t->line);
        return jinja_parse_apart(p, node, "endgeneration") ? node : NULL;
    }
    if (jinja_is_word(t, "filter")) {
        node = jinja_node(p, JINJA_FILTER_BODY, t->line);
        node->third = jinja_parse_block_filters(p, false, t->line);
        return jinja_above(p, node, node->third) && jinja_parse_apart(p, node, "endfilter") ? node : NULL;
    }
    if (jinja_is_word(t, "break") || jinja_is_word(t, "continue")) {
        node = jinja_node(p, jinja_is_word(t, "break") ? JINJA_BREAK : JINJA_CONTINUE, t->line);
        if (!p->loops) return jinja_error(p, t->line, "'%.*s' is outside a loop", (int)t->length, t->text);
        return jinja_tag_end(p) ? node : NULL;
    }
    return jinja_error(p, t->line, "the statement '%.*s' is not supported here", (int)(t->length < 40 ? t->length : 40),
                       t->text);
}

/* Parses text and tags up to one of the statements `ends`, whose word is the next token afterwards; NULL: up to the
 * end of the template. */
static inline JinjaNode *jinja_parse_body(JinjaParser *p, const char *const *ends) {
    JinjaNode *body = jinja_node(p, JINJA_BODY, jinja_now(p)->line);
    if (p->nesting >= JINJA_DEPTH) return jinja_error(p, body->line, "a block is nested deeper than %d", JINJA_DEPTH);
    p->nesting++;
    for (;;) {
        const JinjaToken *t = jinja_now(p);
        JinjaNode *node = NULL;
        if (t->kind == JINJA_END) {
            for (; ends && *ends; ends++)
                if (!ends[1]) return jinja_unexpected(p, *ends);
            break;
        }
        p->at++;
        if (t->kind == JINJA_DATA) {
            node = jinja_node(p, JINJA_TEXT, t->line);
            node->value = jinja_literal(&p->tree->memory, t->text, t->length, 0);
        } else if (t->kind == JINJA_PRINT_BEGIN) {
            node = jinja_node(p, JINJA_PRINT, t->line);
            node->left = jinja_parse_tuple(p, true, false);
            if (!jinja_above(p, node, node->left)) return NULL;
            if (jinja_now(p)->kind != JINJA_PRINT_END) return jinja_unexpected(p, "'}}'");
            p->at++;
        } else {
            const JinjaToken *word = jinja_now(p);
            if (word->kind != JINJA_WORD) return jinja_unexpected(p, "the name of a statement");
            for (const char *const *end = ends; end && *end; end++) {
                if (!jinja_is_word(word, *end)) continue;
                p->nesting--;
                return body;
            }
            p->at++;
            node = jinja_parse_statement(p, word);
        }
        if (!jinja_item(p, body, node, 0)) return NULL;
    }
    p->nesting--;
    return body;
}

#endif

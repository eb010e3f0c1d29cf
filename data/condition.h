/* condition.h - the conditions of data/pick --where, over the fields of a row.
 *
 *     right and finished and len(tokens) < 512
 *     task == 'sort' or (has(level) and not level > 3)
 *     matches(completion, /^\d+$/) and reward >= 0.5
 *
 *   operand      a number, a text in ' or ", true, false, null, a field; a field is a name, a path (reward.answer,
 *                turns.0.text) or, for any other characters, a name in braces ({my field})
 *   len(field)   characters of a text, items of a list or an object; null of null
 *   has(field)   whether the field is there and not null
 *   matches(field, /re/flags)    whether the text holds the pattern (PCRE2; flags i m s x; \/ is a slash)
 *   == != < <= > >=    numbers with numbers, texts with texts (by bytes), true and false by == and != only; a list with a
 *                number by its length
 *   not and or ( )     of true and false, in this order of strength
 *
 * A field that is missing is null. A comparison with null is false, whatever the operator, and null alone is false. Other
 * types are an error that names the line, the field and both types.
 *
 *     Condition c;
 *     bool holds;
 *     if (!condition_parse(&c, "right and reward > 0.5", &e)) usage_error("--where: %s", e.text);
 *     if (!condition_holds(&c, &jsonl, row, &holds, &e)) die("%s", e.text);
 *     condition_free(&c);
 */
#ifndef DATA_CONDITION_H
#define DATA_CONDITION_H

#include "../llmc/base/error.h"            /* Error, error_set, xrealloc, xstrndup */
#include "../llmc/base/jsonl.h"            /* Jsonl, jsonl_error, jsonl_type */
#include "../llmc/base/text.h"             /* TextBuffer, text_append, text_clear, text_free */
#include "../llmc/reward/verify_answer.h"  /* VerifySpan */
#include "../llmc/reward/verify_pattern.h" /* VerifyRegex, verify_regex_free, verify_regex_match, ... */
#include "row_fields.h"                    /* row_get */
#include <ctype.h>

enum { CONDITION_NODES = 4096, CONDITION_DEPTH = 200 };

typedef enum {
    CONDITION_VALUE, /* a constant */
    CONDITION_FIELD,
    CONDITION_LEN,
    CONDITION_HAS,
    CONDITION_MATCHES,
    CONDITION_EQ,
    CONDITION_NE,
    CONDITION_LT,
    CONDITION_LE,
    CONDITION_GT,
    CONDITION_GE,
    CONDITION_NOT,
    CONDITION_AND,
    CONDITION_OR
} ConditionKind;

typedef struct ConditionNode {
    ConditionKind kind;
    json_t *value; /* of a constant */
    char *field;   /* its name */
    bool seen;     /* a row had the field (condition_see()) */
    VerifyRegex regex;
    int left, right; /* operands */
} ConditionNode;

typedef struct Condition {
    ConditionNode *node;
    int count, root;
    const char *at, *text; /* while it is parsed */
    int depth;
} Condition;

static inline void condition_free(Condition *c) {
    for (int i = 0; i < c->count; i++) {
        json_decref(c->node[i].value);
        free(c->node[i].field);
        verify_regex_free(&c->node[i].regex);
    }
    free(c->node);
    *c = (Condition){0};
}

/* ---- parsing: each function returns the index of its node, or -1 after an error -------------------------------- */

static inline int condition_any(Condition *c, Error *e);

/* Sets the error for the place where parsing stands. */
static inline int condition_wrong(const Condition *c, const char *expected, Error *e) {
    if (*c->at) error_set(e, "'%.40s': expected %s", c->at, expected);
    else error_set(e, "ends after '%s': expected %s", c->text, expected);
    return -1;
}

static inline int condition_node(Condition *c, ConditionNode node, Error *e) {
    if (c->count == CONDITION_NODES) {
        json_decref(node.value);
        free(node.field);
        return error_set(e, "has more than %d parts", CONDITION_NODES) - 1;
    }
    c->node = (ConditionNode *)xrealloc(c->node, (size_t)c->count + 1, sizeof *c->node);
    c->node[c->count] = node;
    return c->count++;
}

static inline void condition_blank(Condition *c) { c->at += strspn(c->at, " \t\r\n"); }

static inline bool condition_in_name(char x) { return isalnum((unsigned char)x) || strchr("_.@$", x) || x & 0x80; }

/* The length of the name at s: letters, digits, _ . @ $ and everything that is not ASCII, not beginning with a digit. */
static inline size_t condition_name(const char *s) {
    size_t n = 0;
    if (isdigit((unsigned char)*s) || *s == '.') return 0;
    while (s[n] && condition_in_name(s[n])) n++;
    return n;
}

/* Moves past a word or a sign, if it is next. */
static inline bool condition_take(Condition *c, const char *word) {
    const size_t n = strlen(word);
    condition_blank(c);
    if (strncmp(c->at, word, n) || (isalpha((unsigned char)*word) && c->at[n] && condition_in_name(c->at[n])))
        return false;
    c->at += n;
    return true;
}

/* Reads the name of a field into *name. */
static inline bool condition_field(Condition *c, char **name, Error *e) {
    condition_blank(c);
    const bool braces = *c->at == '{';
    const size_t n = braces ? strcspn(c->at + 1, "}") : condition_name(c->at);
    if (!n || (braces && !c->at[n + 1])) return condition_wrong(c, "the name of a field", e) > 0;
    *name = xstrndup(c->at + braces, n);
    c->at += n + 2 * braces;
    return true;
}

/* Reads the rest of len(field), has(field) or matches(field, /re/). */
static inline int condition_call(Condition *c, ConditionKind kind, Error *e) {
    ConditionNode node = {.kind = kind};
    if (!condition_take(c, "(")) return condition_wrong(c, "'('", e);
    if (!condition_field(c, &node.field, e)) return -1;
    const int index = condition_node(c, node, e);
    if (index < 0) return -1;
    if (kind == CONDITION_MATCHES) {
        if (!condition_take(c, ",")) return condition_wrong(c, "',' and /a pattern/", e);
        condition_blank(c);
        if (!verify_regex_parse(&c->node[index].regex, c->at, &c->at, e)) return -1;
    }
    return condition_take(c, ")") ? index : condition_wrong(c, "')'", e);
}

/* Reads a text in quotes, in which \' \" \\ \n and \t are escapes. */
static inline int condition_text(Condition *c, Error *e) {
    TextBuffer text = {0};
    const char quote = *c->at, *s = c->at + 1;
    text_clear(&text);
    for (; *s && *s != quote; s++) {
        const bool escaped = *s == '\\' && s[1];
        if (escaped) s++;
        const char byte = escaped && *s == 'n' ? '\n' : escaped && *s == 't' ? '\t' : *s;
        text_append(&text, &byte, 1);
    }
    json_t *value = *s ? json_stringn(text.text, text.length) : NULL;
    text_free(&text);
    if (!*s) return error_set(e, "%.40s: the text has no closing %c", c->at, quote) - 1;
    if (!value) return error_set(e, "%.40s: the text is not UTF-8", c->at) - 1;
    c->at = s + 1;
    return condition_node(c, (ConditionNode){.kind = CONDITION_VALUE, .value = value}, e);
}

static inline int condition_operand(Condition *c, Error *e) {
    static const struct {
        const char *name;
        ConditionKind kind;
    } calls[] = {{"len", CONDITION_LEN}, {"has", CONDITION_HAS}, {"matches", CONDITION_MATCHES}};
    static const char *const words[] = {"and", "or", "not"};
    condition_blank(c);
    if (*c->at == '\'' || *c->at == '"') return condition_text(c, e);
    if (condition_take(c, "true")) return condition_node(c, (ConditionNode){.value = json_true()}, e);
    if (condition_take(c, "false")) return condition_node(c, (ConditionNode){.value = json_false()}, e);
    if (condition_take(c, "null")) return condition_node(c, (ConditionNode){.value = json_null()}, e);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const char *before = c->at;
        if (!condition_take(c, calls[i].name)) continue;
        condition_blank(c);
        if (*c->at == '(') return condition_call(c, calls[i].kind, e);
        c->at = before; /* a field of that name */
    }
    if (isdigit((unsigned char)*c->at) || ((*c->at == '-' || *c->at == '.') && isdigit((unsigned char)c->at[1])) ||
        (*c->at == '-' && c->at[1] == '.' && isdigit((unsigned char)c->at[2]))) {
        char *end;
        const double number = strtod(c->at, &end);
        if (!isfinite(number) || (*end && condition_in_name(*end))) return condition_wrong(c, "a number", e);
        c->at = end;
        return condition_node(c, (ConditionNode){.kind = CONDITION_VALUE, .value = json_real(number)}, e);
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const char *before = c->at;
        const bool word = condition_take(c, words[i]);
        c->at = before;
        if (word) return condition_wrong(c, "a field, a number or a text", e);
    }
    ConditionNode node = {.kind = CONDITION_FIELD};
    if (!condition_name(c->at) && *c->at != '{') return condition_wrong(c, "a field, a number or a text", e);
    return condition_field(c, &node.field, e) ? condition_node(c, node, e) : -1;
}

static inline int condition_comparison(Condition *c, Error *e) {
    static const struct {
        const char *sign;
        ConditionKind kind;
    } signs[] = {{"==", CONDITION_EQ}, {"!=", CONDITION_NE}, {"<=", CONDITION_LE},
                 {">=", CONDITION_GE}, {"<", CONDITION_LT},  {">", CONDITION_GT}};
    if (condition_take(c, "(")) {
        const int inner = condition_any(c, e);
        if (inner < 0) return -1;
        return condition_take(c, ")") ? inner : condition_wrong(c, "')'", e);
    }
    const int left = condition_operand(c, e);
    for (size_t i = 0; left >= 0 && i < sizeof signs / sizeof *signs; i++) {
        if (!condition_take(c, signs[i].sign)) continue;
        const int right = condition_operand(c, e);
        if (right < 0) return -1;
        return condition_node(c, (ConditionNode){.kind = signs[i].kind, .left = left, .right = right}, e);
    }
    return left;
}

static inline int condition_not(Condition *c, Error *e) {
    if (++c->depth > CONDITION_DEPTH) return error_set(e, "is nested more than %d levels deep", CONDITION_DEPTH) - 1;
    int node;
    if (condition_take(c, "not")) {
        node = condition_not(c, e);
        if (node >= 0) node = condition_node(c, (ConditionNode){.kind = CONDITION_NOT, .left = node}, e);
    } else node = condition_comparison(c, e);
    c->depth--;
    return node;
}

static inline int condition_and(Condition *c, Error *e) {
    int left = condition_not(c, e);
    while (left >= 0 && condition_take(c, "and")) {
        const int right = condition_not(c, e);
        if (right < 0) return -1;
        left = condition_node(c, (ConditionNode){.kind = CONDITION_AND, .left = left, .right = right}, e);
    }
    return left;
}

static inline int condition_any(Condition *c, Error *e) {
    int left = condition_and(c, e);
    while (left >= 0 && condition_take(c, "or")) {
        const int right = condition_and(c, e);
        if (right < 0) return -1;
        left = condition_node(c, (ConditionNode){.kind = CONDITION_OR, .left = left, .right = right}, e);
    }
    return left;
}

static inline bool condition_parse(Condition *c, const char *text, Error *e) {
    *c = (Condition){.at = text, .text = text};
    c->root = condition_any(c, e);
    condition_blank(c);
    bool ok = c->root >= 0;
    if (ok && *c->at) ok = condition_wrong(c, "'and', 'or' or the end", e) > 0;
    if (!ok) condition_free(c);
    return ok;
}

/* ---- evaluation ------------------------------------------------------------------------------------------------ */

/* The name of a node in messages. */
static inline const char *condition_called(const ConditionNode *n) { return n->field ? n->field : "the condition"; }

/* Returns a new reference to the value of an operand. */
static inline json_t *condition_value(const ConditionNode *n, json_t *row) {
    json_t *value = n->kind == CONDITION_VALUE ? n->value : row_get(row, n->field);
    if (n->kind != CONDITION_LEN) return value ? json_incref(value) : json_null();
    if (!value) return json_null();
    if (json_is_array(value)) return json_integer((json_int_t)json_array_size(value));
    if (json_is_object(value)) return json_integer((json_int_t)json_object_size(value));
    json_int_t characters = 0;
    const char *s = json_string_value(value);
    for (size_t i = 0; s && i < json_string_length(value); i++) characters += (s[i] & 0xC0) != 0x80;
    return s ? json_integer(characters) : json_incref(value);
}

/* Sets the error of two values that cannot be compared. */
static inline bool condition_clash(const Jsonl *j, const ConditionNode *a, const ConditionNode *b, const json_t *x,
                                   const json_t *y, Error *e) {
    const bool first = a->field != NULL;
    return jsonl_error(j, condition_called(first ? a : b), e, "is %s, which cannot be compared so with %s",
                       jsonl_type(first ? x : y), jsonl_type(first ? y : x));
}

static inline bool condition_order(ConditionKind kind, double order) {
    switch (kind) {
    case CONDITION_EQ: return order == 0;
    case CONDITION_NE: return order != 0;
    case CONDITION_LT: return order < 0;
    case CONDITION_LE: return order <= 0;
    case CONDITION_GT: return order > 0;
    default: return order >= 0;
    }
}

/* Bytes of two texts as strcmp() orders them; a text that begins the other one is less. */
static inline int condition_texts(const json_t *x, const json_t *y) {
    const size_t n = json_string_length(x), m = json_string_length(y);
    const int order = memcmp(json_string_value(x), json_string_value(y), n < m ? n : m);
    return order ? order : (n > m) - (n < m);
}

static inline bool condition_compare(const Condition *c, const ConditionNode *n, const Jsonl *j, json_t *row,
                                     bool *holds, Error *e) {
    const ConditionNode *a = &c->node[n->left], *b = &c->node[n->right];
    json_t *x = condition_value(a, row), *y = condition_value(b, row);
    bool ok = true;
    if (json_is_array(x) && json_is_number(y)) {
        json_int_t items = (json_int_t)json_array_size(x);
        json_decref(x);
        x = json_integer(items);
    }
    *holds = false;
    if (json_is_null(x) || json_is_null(y)) *holds = false;
    else if (json_is_integer(x) && json_is_integer(y)) {
        const json_int_t p = json_integer_value(x), q = json_integer_value(y);
        *holds = condition_order(n->kind, (p > q) - (p < q));
    } else if (json_is_number(x) && json_is_number(y)) {
        const double p = json_number_value(x), q = json_number_value(y);
        *holds = condition_order(n->kind, (p > q) - (p < q));
    } else if (json_is_string(x) && json_is_string(y)) *holds = condition_order(n->kind, condition_texts(x, y));
    else if (json_is_boolean(x) && json_is_boolean(y) && n->kind <= CONDITION_NE)
        *holds = condition_order(n->kind, json_is_true(x) != json_is_true(y));
    else ok = condition_clash(j, a, b, x, y, e);
    json_decref(x), json_decref(y);
    return ok;
}

static inline bool condition_matches(const ConditionNode *n, const Jsonl *j, json_t *row, bool *holds, Error *e) {
    const json_t *value = row_get(row, n->field);
    *holds = false;
    if (!value) return true;
    if (!json_is_string(value)) return jsonl_error(j, n->field, e, "is %s, expected a text", jsonl_type(value));
    const VerifySpan text = {json_string_value(value), json_string_length(value)};
    const float found = verify_regex_match(&n->regex, text);
    if (isnan(found)) return jsonl_error(j, n->field, e, "the search for the pattern takes too long");
    *holds = found > 0;
    return true;
}

/* Evaluates the node as true or false. */
static inline bool condition_truth(const Condition *c, int index, const Jsonl *j, json_t *row, bool *holds, Error *e) {
    const ConditionNode *n = &c->node[index];
    switch (n->kind) {
    case CONDITION_HAS: *holds = row_get(row, n->field) != NULL; return true;
    case CONDITION_MATCHES: return condition_matches(n, j, row, holds, e);
    case CONDITION_NOT:
        if (!condition_truth(c, n->left, j, row, holds, e)) return false;
        *holds = !*holds;
        return true;
    case CONDITION_AND:
    case CONDITION_OR:
        if (!condition_truth(c, n->left, j, row, holds, e)) return false;
        return *holds == (n->kind == CONDITION_OR) || condition_truth(c, n->right, j, row, holds, e);
    case CONDITION_VALUE:
    case CONDITION_FIELD:
    case CONDITION_LEN: {
        json_t *value = condition_value(n, row);
        const bool ok = json_is_boolean(value) || json_is_null(value) ||
                        jsonl_error(j, condition_called(n), e, "is %s, expected true or false", jsonl_type(value));
        *holds = json_is_true(value);
        json_decref(value);
        return ok;
    }
    default: return condition_compare(c, n, j, row, holds, e);
    }
}

/* Sets *holds to whether the row meets the condition. j: names the row in messages. */
static inline bool condition_holds(const Condition *c, const Jsonl *j, json_t *row, bool *holds, Error *e) {
    return condition_truth(c, c->root, j, row, holds, e);
}

/* Notes which fields of the condition the row has, so that a name that no row has can be reported. */
static inline void condition_see(Condition *c, json_t *row) {
    for (int i = 0; i < c->count; i++)
        if (c->node[i].field && !c->node[i].seen) c->node[i].seen = row_value(row, c->node[i].field) != NULL;
}

#endif

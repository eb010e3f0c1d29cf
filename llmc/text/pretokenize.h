/* pretokenize.h - splitting of text into pieces that merges do not cross, with a regular expression (PCRE2, JIT).
 *
 * GPT-2's pattern and the patterns in tokenizer.json files assume Unicode 16 and the White_Space property, as tiktoken
 * and Hugging Face's tokenizers implement them. PCRE2's classes differ in two ways, as a comparison of all code points
 * shows. Its letters and numbers are those of the Unicode version it was built with (14 for Debian 12's 10.42). Its \s
 * matches U+180E, which has not been white space since Unicode 6.3. Therefore \s, \S, \p{L}, \p{N}, \p{M}, \p{Lu},
 * \p{Ll}, \p{Lm} and \p{Lo} in a pattern are rewritten before it is compiled: \s as its 25 characters, the categories
 * with the additions of Unicode 15 and 16. A PCRE2 built with Unicode 17 or later recognises more letters than these
 * tools, so it may split the newest scripts differently.
 *
 * The pieces of ASCII characters that the most common patterns make are found without the regular expression, in a
 * fraction of the time. The pieces are the same.
 *
 * Text between two matches is also a piece, and empty matches are ignored, so the pieces always cover the text.
 *
 *     Pretokenizer p;
 *     if (!pretokenizer_open(&p, PRETOKENIZER_GPT2, e)) return false;
 *     for (size_t at = 0, end; at < n; at = end)
 *         if (!pretokenizer_next(&p, text, n, at, &end, e)) return false;
 */
#ifndef LLMC_TEXT_PRETOKENIZE_H
#define LLMC_TEXT_PRETOKENIZE_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "../base/error.h" /* error_set, Error, checked_object */
#include "../base/text.h"  /* TextBuffer, text_append, text_format, text_free, ... */
#include <pcre2.h>

/* Radford et al. 2019, encoder.py. */
#define PRETOKENIZER_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
/* GPT-2's pattern after a split into single digits (a `Digits` pre-tokenizer before `ByteLevel`, as in SmolLM2): a
 * digit is never joined to a preceding space, and it ends a run of spaces just as the end of the text does. */
#define PRETOKENIZER_GPT2_DIGITS                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?![^\\s\\p{N}])|\\s+"

/* The patterns of published models, as they are written in their tokenizer.json. */
#define PRETOKENIZER_END    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PRETOKENIZER_LLAMA3 "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" PRETOKENIZER_END
#define PRETOKENIZER_QWEN2  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" PRETOKENIZER_END
#define PRETOKENIZER_QWEN35                                                                                            \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*"   \
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PRETOKENIZER_UPPER_WORD                                                                                        \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define PRETOKENIZER_LOWER_WORD                                                                                        \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define PRETOKENIZER_SLASHES "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PRETOKENIZER_TEKKEN  PRETOKENIZER_UPPER_WORD "|" PRETOKENIZER_LOWER_WORD "|\\p{N}" PRETOKENIZER_SLASHES
#define PRETOKENIZER_O200K                                                                                             \
    PRETOKENIZER_UPPER_WORD "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" PRETOKENIZER_LOWER_WORD                                   \
                            "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}" PRETOKENIZER_SLASHES

#define PRETOKENIZER_SPACES                                                                                            \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
/* General categories L and N, with the additions of Unicode 15 and 16. */
#define PRETOKENIZER_LETTERS                                                                                           \
    "\\p{L}\\x{1C89}\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"         \
    "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}"          \
    "\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}"          \
    "\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}"                   \
    "\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}"                    \
    "\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}"
#define PRETOKENIZER_NUMBERS                                                                                           \
    "\\p{N}\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}\\x{16130}-\\x{16139}"  \
    "\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}"
/* M, Lu, Ll, Lm and Lo in the same way; Lt has not changed. */
#define PRETOKENIZER_MARKS                                                                                             \
    "\\p{M}\\x{897}\\x{CF3}\\x{ECE}\\x{10D69}-\\x{10D6D}\\x{10EFC}-\\x{10EFF}\\x{11241}\\x{113B8}-\\x{113C0}"          \
    "\\x{113C2}\\x{113C5}\\x{113C7}-\\x{113CA}\\x{113CC}-\\x{113D0}\\x{113D2}\\x{113E1}\\x{113E2}\\x{11F00}"           \
    "\\x{11F01}\\x{11F03}\\x{11F34}-\\x{11F3A}\\x{11F3E}-\\x{11F42}\\x{11F5A}\\x{13440}\\x{13447}-\\x{13455}"          \
    "\\x{1611E}-\\x{1612F}\\x{1E08F}\\x{1E4EC}-\\x{1E4EF}\\x{1E5EE}\\x{1E5EF}"
#define PRETOKENIZER_UPPER "\\p{Lu}\\x{1C89}\\x{A7CB}\\x{A7CC}\\x{A7DA}\\x{A7DC}\\x{10D50}-\\x{10D65}"
#define PRETOKENIZER_LOWER "\\p{Ll}\\x{1C8A}\\x{A7CD}\\x{A7DB}\\x{10D70}-\\x{10D85}\\x{1DF25}-\\x{1DF2A}"
#define PRETOKENIZER_MODIFIERS                                                                                         \
    "\\p{Lm}\\x{10D4E}\\x{10D6F}\\x{16D40}-\\x{16D42}\\x{16D6B}\\x{16D6C}\\x{1E030}-\\x{1E06D}\\x{1E4EB}"
#define PRETOKENIZER_OTHERS                                                                                            \
    "\\p{Lo}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D4D}\\x{10D4F}\\x{10EC2}-\\x{10EC4}\\x{1123F}\\x{11240}"             \
    "\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}"                     \
    "\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}"         \
    "\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}\\x{16D43}-\\x{16D6A}\\x{18CFF}\\x{1B132}\\x{1B155}"                    \
    "\\x{1E4D0}-\\x{1E4EA}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}"

enum { PRETOKENIZER_MATCH_LIMIT = 1 << 24 }; /* limit on the steps of one match, against catastrophic backtracking */

/* What a pattern does with ASCII characters. */
typedef struct PretokenizerShape {
    const char *pattern;
    bool any_case; /* of contractions, such as 's */
    bool prefix; /* a character other than a letter, a digit or a newline may precede letters; newlines follow signs */
    int digits;  /* maximum number of digits of a piece; 0: no limit, and a space may precede them */
    bool before_digit; /* a run of spaces before a digit is whole, as at the end of the text */
} PretokenizerShape;

typedef struct Pretokenizer {
    const PretokenizerShape *shape; /* NULL: unknown */
    pcre2_code *code;               /* NULL: the whole text is one piece */
    pcre2_match_data *match;
    pcre2_match_context *context;
    bool jit;
    size_t from, to; /* match found after the last piece delivered; from == to: none */
} Pretokenizer;

static inline pcre2_match_data *pretokenizer_match_data(void) {
    return (pcre2_match_data *)checked_object(pcre2_match_data_create(1, NULL), "the data of a pattern's match");
}

/* Makes *mine, which another thread may use at the same time as `p`; it has its compiled pattern. */
static inline void pretokenizer_share(Pretokenizer *mine, const Pretokenizer *p) {
    *mine = *p;
    mine->match = p->code ? pretokenizer_match_data() : NULL;
}

/* Frees what pretokenizer_share() has not taken from another one. */
static inline void pretokenizer_unshare(Pretokenizer *mine) {
    pcre2_match_data_free(mine->match);
    *mine = (Pretokenizer){0};
}

static inline void pretokenizer_close(Pretokenizer *p) {
    pcre2_match_context_free(p->context);
    pcre2_match_data_free(p->match);
    pcre2_code_free(p->code);
    *p = (Pretokenizer){0};
}

/* Appends `pattern` with its classes rewritten as described above. */
static inline void pretokenizer_rewrite(const char *pattern, TextBuffer *out) {
    static const struct {
        const char *name, *members;
    } class[] = {{"\\s", PRETOKENIZER_SPACES},        {"\\p{L}", PRETOKENIZER_LETTERS},
                 {"\\p{N}", PRETOKENIZER_NUMBERS},    {"\\p{M}", PRETOKENIZER_MARKS},
                 {"\\p{Lu}", PRETOKENIZER_UPPER},     {"\\p{Ll}", PRETOKENIZER_LOWER},
                 {"\\p{Lm}", PRETOKENIZER_MODIFIERS}, {"\\p{Lo}", PRETOKENIZER_OTHERS}};
    bool inside = false; /* in a bracketed class */
    for (const char *s = pattern; *s;) {
        size_t step = 0;
        for (size_t i = 0; i < sizeof class / sizeof *class && !step; i++)
            if (!strncmp(s, class[i].name, strlen(class[i].name))) {
                text_format(out, inside ? "%s" : "[%s]", class[i].members);
                step = strlen(class[i].name);
            }
        if (!step && !inside && !strncmp(s, "\\S", 2)) {
            text_string(out, "[^" PRETOKENIZER_SPACES "]");
            step = 2;
        }
        if (step) {
            s += step;
            continue;
        }
        step = s[0] == '\\' && s[1] ? 2 : 1;
        if (step == 1 && s[0] == '[' && !inside) {
            inside = true;
            step += s[1] == '^';
            step += s[step] == ']'; /* a bracket in first position is literal */
        } else if (step == 1 && s[0] == ']') inside = false;
        text_append(out, s, step);
        s += step;
    }
}

/* ---- ASCII ----------------------------------------------------------------------------------------------------- */

enum { PRETOKENIZER_SIGN, PRETOKENIZER_LETTER, PRETOKENIZER_DIGIT, PRETOKENIZER_SPACE, PRETOKENIZER_OTHER };

/* The shape of a pattern, or NULL. */
static inline const PretokenizerShape *pretokenizer_shape(const char *pattern) {
    static const PretokenizerShape shapes[] = {{PRETOKENIZER_GPT2, false, false, 0, false},
                                               {PRETOKENIZER_GPT2_DIGITS, false, false, 1, true},
                                               {PRETOKENIZER_LLAMA3, true, true, 3, false},
                                               {PRETOKENIZER_QWEN2, true, true, 1, false}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!strcmp(pattern, shapes[i].pattern)) return &shapes[i];
    return NULL;
}

/* The class of a byte; PRETOKENIZER_OTHER: part of a character that is not ASCII, of any class. */
static inline int pretokenizer_class(char byte) {
    const unsigned char c = (unsigned char)byte, letter = (unsigned char)((c | 32) - 'a');
    if (letter < 26) return PRETOKENIZER_LETTER;
    if (c == ' ' || (c >= 9 && c <= 13)) return PRETOKENIZER_SPACE;
    if (c >= '0' && c <= '9') return PRETOKENIZER_DIGIT;
    return c < 0x80 ? PRETOKENIZER_SIGN : PRETOKENIZER_OTHER;
}

/* Returns the end of the run of a class from byte i on, or 0 if a character that is not ASCII follows it. */
static inline size_t pretokenizer_run(const char *text, size_t n, size_t i, int class) {
    while (i < n && pretokenizer_class(text[i]) == class) i++;
    return i < n && (unsigned char)text[i] >= 0x80 ? 0 : i;
}

/* Returns the length of the contraction at byte i, an apostrophe, or 0. */
static inline size_t pretokenizer_contraction(const char *text, size_t n, size_t i, bool any_case) {
    const char fold = any_case ? 32 : 0;
    const char a = i + 1 < n ? (char)(text[i + 1] | fold) : 0, b = i + 2 < n ? (char)(text[i + 2] | fold) : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* Returns the end of a piece that begins with white space. */
static inline size_t pretokenizer_white(const PretokenizerShape *s, const char *text, size_t n, size_t at) {
    const size_t end = pretokenizer_run(text, n, at, PRETOKENIZER_SPACE);
    size_t newline = end;
    if (s->prefix)
        for (; newline > at; newline--)
            if (text[newline - 1] == '\n' || text[newline - 1] == '\r') return newline;
    if (!end || end == n || (s->before_digit && pretokenizer_class(text[end]) == PRETOKENIZER_DIGIT)) return end;
    return end - at > 1 ? end - 1 : end;
}

/* Returns the end of the piece that begins at byte `at`, or 0 if it depends on a character that is not ASCII. */
static inline size_t pretokenizer_scan(const PretokenizerShape *s, const char *text, size_t n, size_t at) {
    const char c = text[at];
    int class = pretokenizer_class(c);
    if (c == '\'') {
        const size_t length = pretokenizer_contraction(text, n, at, s->any_case);
        if (at + 1 < n && (unsigned char)text[at + 1] >= 0x80) return 0;
        if (length) return at + length;
    }
    const int next = at + 1 < n ? pretokenizer_class(text[at + 1]) : PRETOKENIZER_SPACE;
    const bool space = c == ' ', before = s->prefix ? class == PRETOKENIZER_SIGN ||
                                                          (class == PRETOKENIZER_SPACE && c != '\n' && c != '\r')
                                                    : space;
    if (class == PRETOKENIZER_OTHER || (before && next == PRETOKENIZER_OTHER)) return 0;
    if (class == PRETOKENIZER_LETTER || (before && next == PRETOKENIZER_LETTER))
        return pretokenizer_run(text, n, at + 1, PRETOKENIZER_LETTER);
    if (class == PRETOKENIZER_DIGIT && s->digits) {
        const size_t most = n - at < (size_t)s->digits ? n : at + (size_t)s->digits;
        return pretokenizer_run(text, most, at, PRETOKENIZER_DIGIT);
    }
    if (class == PRETOKENIZER_DIGIT || (space && !s->digits && next == PRETOKENIZER_DIGIT))
        return pretokenizer_run(text, n, at + 1, PRETOKENIZER_DIGIT);
    if (class == PRETOKENIZER_SPACE && !(space && next == PRETOKENIZER_SIGN)) return pretokenizer_white(s, text, n, at);
    size_t end = pretokenizer_run(text, n, at + 1, PRETOKENIZER_SIGN);
    if (s->prefix && end)
        while (end < n && (text[end] == '\n' || text[end] == '\r')) end++;
    return end;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------- */

static inline bool pretokenizer_open(Pretokenizer *p, const char *pattern, Error *e) {
    *p = (Pretokenizer){.shape = pretokenizer_shape(pattern)};
    TextBuffer rewritten = {0};
    pretokenizer_rewrite(pattern, &rewritten);
    int code;
    PCRE2_SIZE offset;
    p->code = pcre2_compile((PCRE2_SPTR)rewritten.text, rewritten.length,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
    text_free(&rewritten);
    if (!p->code) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(code, message, sizeof message);
        return error_set(e, "pre-tokenizer's pattern '%.200s': %s", pattern, (char *)message);
    }
    p->match = pretokenizer_match_data();
    p->context = (pcre2_match_context *)checked_object(pcre2_match_context_create(NULL), "a pattern's limits");
    pcre2_set_match_limit(p->context, PRETOKENIZER_MATCH_LIMIT);
    p->jit =
        pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) == 0; /* not available everywhere; matching works without it */
    return true;
}

/* Forgets the match that has not been delivered, so that any place of a text may be next. */
static inline void pretokenizer_restart(Pretokenizer *p) { p->from = p->to = 0; }

/* Whether the next piece, which begins at byte `at`, depends on the text alone, and not on a match found before. */
static inline bool pretokenizer_fresh(const Pretokenizer *p, size_t at) { return p->from != at || p->to <= at; }

/* Sets *end to the end of the piece that begins at byte `at` < n of well-formed UTF-8 text. Calls must be in order,
 * each at the end of the previous piece; the first one after pretokenizer_restart(), or at byte 0. */
static inline bool pretokenizer_next(Pretokenizer *p, const char *text, size_t n, size_t at, size_t *end, Error *e) {
    *end = n;
    if (!p->code) return true;
    if (at && !pretokenizer_fresh(p, at)) { /* the match after the gap just delivered */
        *end = p->to;
        return true;
    }
    if (p->shape && (*end = pretokenizer_scan(p->shape, text, n, at))) return true;
    *end = n;
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    const int found = p->jit ? pcre2_jit_match(p->code, (PCRE2_SPTR)text, n, at, options, p->match, p->context)
                             : pcre2_match(p->code, (PCRE2_SPTR)text, n, at, options, p->match, p->context);
    if (found == PCRE2_ERROR_NOMATCH) return true;
    if (found < 0) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(found, message, sizeof message);
        return error_set(e, "pre-tokenizer's pattern fails at byte %zu of a text: %s", at, (char *)message);
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(p->match);
    if (span[0] > span[1] || span[0] < at) return error_set(e, "pre-tokenizer's pattern moves backwards with \\K");
    p->from = span[0];
    p->to = span[1];
    *end = p->from > at ? p->from : p->to;
    return true;
}

#endif

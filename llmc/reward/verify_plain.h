/* verify_plain.h - plain text of what is written in LaTeX, Markdown or Unicode.
 *
 * An answer can be written in many ways that differ in their typography only. verify_plain() maps them to one text, in
 * which the readers of numbers (verify_number.h) and of mathematics (verify_math.h) find:
 *
 *   -                 U+2212 and the hyphens, en dash and full-width form of it; the em dash is punctuation, `;`
 *   digits, letters   full-width forms too
 *   *  /  ^           \times \cdot × ·, \div ÷ ⁄, and `**` between digits
 *   \frac             \dfrac \tfrac \cfrac; ½ is `\frac{1}{2}`, x² is `x^{2}`
 *   \sqrt \pi ...     other commands, as they are; √ π ∞ ∪ ≤ ≥ are \sqrt \pi \infty \cup \le \ge
 *   space             \, \; \: \quad ~ and Unicode's; \! \left \right \displaystyle and \boxed{ } are removed
 *   ,                 also `{,}`
 *   bytes below 8     PLAIN_TEXT ... PLAIN_TEXT_END around the content of \text{}, \mathrm{} and the like; \{ and \},
 *                     `\\`, and a degree sign
 *
 * `$` stays, because it is also a currency; the readers skip it. A NUL or another control character becomes DEL, which
 * is part of no number.
 *
 *     TextBuffer plain = {0};
 *     verify_plain(verify_span("\\left(-\\dfrac12\\right)"), &plain);
 *     puts(plain.text);                                                       // (-\frac12)
 *     text_free(&plain);
 */
#ifndef LLMC_REWARD_VERIFY_PLAIN_H
#define LLMC_REWARD_VERIFY_PLAIN_H

#include "../base/text.h"  /* text_append, text_string, TextBuffer, utf8_decode, ... */
#include "verify_answer.h" /* VerifySpan, verify_letter, verify_starts, verify_digit, ... */

enum { PLAIN_OPEN = 1, PLAIN_CLOSE, PLAIN_ROW, PLAIN_TEXT, PLAIN_TEXT_END, PLAIN_DEGREE };

/* What a command or a character is replaced by. */
typedef struct PlainName {
    const char *name, *plain;
} PlainName;

static inline const char *plain_find(const PlainName *table, size_t count, VerifySpan name) {
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i].name) == name.n && !memcmp(table[i].name, name.s, name.n)) return table[i].plain;
    return NULL;
}

/* The replacement of a LaTeX command's name, or NULL if it stays as it is. */
static inline const char *plain_command(VerifySpan name) {
    static const PlainName commands[] = {{"left", ""},         {"right", ""},        {"big", ""},
                                         {"Big", ""},          {"bigg", ""},         {"Bigg", ""},
                                         {"bigl", ""},         {"bigr", ""},         {"Bigl", ""},
                                         {"Bigr", ""},         {"biggl", ""},        {"biggr", ""},
                                         {"displaystyle", ""}, {"textstyle", ""},    {"limits", ""},
                                         {"dfrac", "\\frac"},  {"tfrac", "\\frac"},  {"cfrac", "\\frac"},
                                         {"times", "*"},       {"cdot", "*"},        {"ast", "*"},
                                         {"div", "/"},         {"quad", " "},        {"qquad", " "},
                                         {"enspace", " "},     {"thinspace", " "},   {"space", " "},
                                         {"degree", "\6"},     {"degrees", "\6"},    {"lbrace", "\1"},
                                         {"rbrace", "\2"},     {"leq", "\\le"},      {"geq", "\\ge"},
                                         {"leqslant", "\\le"}, {"geqslant", "\\ge"}, {"neq", "\\ne"},
                                         {"approx", "="},      {"ldots", "..."},     {"dots", "..."},
                                         {"cdots", "..."},     {"implies", ";"},     {"Rightarrow", ";"},
                                         {"lt", "<"},          {"gt", ">"},          {"varnothing", "\\emptyset"},
                                         {"textdollar", "$"},  {"lvert", "|"},       {"rvert", "|"},
                                         {"vert", "|"},        {"mid", "|"},         {"textbackslash", ""},
                                         {"dotsc", "..."},     {"dotsb", "..."},     {"simeq", "="},
                                         {"therefore", " "},   {"lbrack", "["},      {"rbrack", "]"},
                                         {"medspace", " "},    {"negthinspace", ""}, {"hfill", " "}};
    return plain_find(commands, sizeof commands / sizeof *commands, name);
}

/* Whether a command's argument in braces is text. */
static inline bool plain_is_text(VerifySpan name) {
    static const PlainName commands[] = {
        {"text", ""}, {"textbf", ""},     {"textrm", ""}, {"textit", ""}, {"mathrm", ""},     {"mathbf", ""},
        {"mbox", ""}, {"mathit", ""},     {"mathsf", ""}, {"mathtt", ""}, {"emph", ""},       {"texttt", ""},
        {"hbox", ""}, {"bf", ""},         {"rm", ""},     {"textsf", ""}, {"textnormal", ""}, {"operatorname", ""},
        {"bold", ""}, {"boldsymbol", ""}, {"bm", ""},     {"unit", ""}};
    return plain_find(commands, sizeof commands / sizeof *commands, name) != NULL;
}

/* Whether a command is removed with the braces of its argument, but not the content. */
static inline bool plain_is_frame(VerifySpan name) {
    static const PlainName commands[] = {{"boxed", ""},      {"fbox", ""},     {"underline", ""},
                                         {"underbrace", ""}, {"framebox", ""}, {"displaylines", ""}};
    return plain_find(commands, sizeof commands / sizeof *commands, name) != NULL;
}

/* The replacement of a character outside ASCII, or NULL. */
static inline const char *plain_character(uint32_t c, char room[8]) {
    static const struct {
        uint32_t c;
        const char *plain;
    } table[] = {{0xA0, " "},         {0xB0, "\6"},
                 {0xB1, "\\pm"},      {0xB7, "*"},
                 {0xD7, "*"},         {0xF7, "/"},
                 {0x3C0, "\\pi"},     {0x2010, "-"},
                 {0x2011, "-"},       {0x2012, "-"},
                 {0x2013, "-"},       {0x2014, ";"},
                 {0x2015, ";"},       {0x2018, "'"},
                 {0x2019, "'"},       {0x2026, "..."},
                 {0x202F, " "},       {0x2044, "/"},
                 {0x205F, " "},       {0x2060, ""},
                 {0x200B, ""},        {0x200C, ""},
                 {0x200D, ""},        {0xFEFF, ""},
                 {0x2061, ""},        {0x2062, ""},
                 {0xAD, ""},          {0x200E, ""},
                 {0x200F, ""},        {0x2212, "-"},
                 {0x2215, "/"},       {0x2217, "*"},
                 {0x2219, "*"},       {0x221A, "\\sqrt"},
                 {0x221E, "\\infty"}, {0x222A, "\\cup"},
                 {0x2229, "\\cap"},   {0x2208, "\\in"},
                 {0x2248, "="},       {0x2260, "\\ne"},
                 {0x2264, "\\le"},    {0x2265, "\\ge"},
                 {0x22C5, "*"},       {0x3000, " "},
                 {0xFE63, "-"},       {0x2205, "\\emptyset"},
                 {0x2022, ";"},       {0x21D2, ";"},
                 {0x3001, ","},       {0x3002, "."},
                 {0x3B8, "\\theta"},  {0x3B1, "\\alpha"},
                 {0x3B2, "\\beta"},   {0xBA, "\6"},
                 {0x2236, ":"},       {0x207B, "^{-}"},
                 {0x2009, " "},       {0x200A, " "}};
    static const struct {
        uint32_t c;
        char top, bottom;
    } fractions[] = {{0xBC, '1', '4'},   {0xBD, '1', '2'},   {0xBE, '3', '4'},   {0x2150, '1', '7'}, {0x2151, '1', '9'},
                     {0x2153, '1', '3'}, {0x2154, '2', '3'}, {0x2155, '1', '5'}, {0x2156, '2', '5'}, {0x2157, '3', '5'},
                     {0x2158, '4', '5'}, {0x2159, '1', '6'}, {0x215A, '5', '6'}, {0x215B, '1', '8'}, {0x215C, '3', '8'},
                     {0x215D, '5', '8'}, {0x215E, '7', '8'}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].c == c) return table[i].plain;
    if (c >= 0x2000 && c <= 0x2008) return " ";
    if (c >= 0xFF01 && c <= 0xFF5E) {
        room[0] = (char)(c - 0xFF01 + '!');
        room[1] = 0;
        return room;
    }
    for (size_t i = 0; i < sizeof fractions / sizeof *fractions; i++)
        if (fractions[i].c == c) {
            snprintf(room, 8, "\x07%c%c", fractions[i].top, fractions[i].bottom); /* see plain_append() */
            return room;
        }
    return NULL;
}

/* The digit that a superscript character is, or 0. */
static inline char plain_superscript(uint32_t c) {
    if (c == 0xB9) return '1';
    if (c == 0xB2 || c == 0xB3) return (char)('2' + (int)(c - 0xB2));
    if (c == 0x2070 || (c >= 0x2074 && c <= 0x2079)) return (char)('0' + (int)(c - 0x2070));
    return c == 0x207B ? '-' : 0;
}

/* Appends a run of superscript characters as one exponent; returns its length in bytes, or 0. */
static inline size_t plain_exponent(VerifySpan in, size_t i, TextBuffer *out) {
    size_t used = 0;
    for (int n; i + used < in.n && (n = utf8_length(in.s + i + used, in.n - i - used)) > 1; used += (size_t)n) {
        const char digit = plain_superscript(utf8_decode(in.s + i + used, n));
        if (!digit) break;
        if (!used) text_string(out, "^{");
        text_append(out, &digit, 1);
    }
    if (used) text_string(out, "}");
    return used;
}

/* Appends the character at i that is not ASCII; returns its length. */
static inline size_t plain_append(VerifySpan in, size_t i, TextBuffer *out) {
    char room[8];
    const int n = utf8_length(in.s + i, in.n - i);
    if (!n) {
        text_append(out, in.s + i, 1);
        return 1;
    }
    const char *plain = plain_character(utf8_decode(in.s + i, n), room);
    if (!plain) text_append(out, in.s + i, (size_t)n);
    else if (*plain == 7) text_format(out, "\\frac{%c}{%c}", plain[1], plain[2]);
    else text_string(out, plain);
    if (plain && *plain == '\\') text_string(out, " ");
    return (size_t)n;
}

enum { PLAIN_NESTED = 64 }; /* braces whose closing brace is replaced nest at most this deep; deeper ones stay */

typedef struct PlainBraces {
    int depth;                   /* of braces that are open now */
    int count, at[PLAIN_NESTED]; /* depths of the braces that are replaced */
    char close[PLAIN_NESTED];    /* what their closing braces become; 0: nothing */
} PlainBraces;

/* Opens a brace at i whose closing brace becomes `close`. Returns the index after it, or i if there is no brace. */
static inline size_t plain_brace(VerifySpan in, size_t i, char close, PlainBraces *b) {
    size_t j = i;
    while (j < in.n && in.s[j] == ' ') j++;
    if (j >= in.n || in.s[j] != '{' || b->count == PLAIN_NESTED) return i;
    b->at[b->count] = ++b->depth;
    b->close[b->count++] = close;
    return j + 1;
}

/* Appends the command at i, whose backslash is in.s[i]; returns the index after it. */
static inline size_t plain_backslash(VerifySpan in, size_t i, PlainBraces *b, TextBuffer *out) {
    if (i + 1 >= in.n) {
        text_string(out, " ");
        return i + 1;
    }
    const char c = in.s[i + 1];
    if (!verify_letter(c)) {
        static const char from[] = "!,;:> ()[]{}\\%$&#_|", *const to[] = {"",  " ", " ", " ",  " ",  " ",  " ",
                                                                          " ", " ", " ", "\1", "\2", "\3", "%",
                                                                          "$", "&", "#", "_",  "|"};
        const char *found = c ? strchr(from, c) : NULL;
        if (found) text_string(out, to[found - from]);
        return found ? i + 2 : i + 1;
    }
    size_t end = i + 1;
    while (end < in.n && verify_letter(in.s[end])) end++;
    const VerifySpan name = {in.s + i + 1, end - i - 1};
    if (plain_is_text(name)) {
        const size_t next = plain_brace(in, end, PLAIN_TEXT_END, b);
        const char open = PLAIN_TEXT;
        if (next > end) text_append(out, &open, 1);
        return next;
    }
    if (plain_is_frame(name)) return plain_brace(in, end, 0, b);
    const char *plain = plain_command(name);
    if (!plain) {
        text_append(out, in.s + i, end - i);
        return end;
    }
    text_string(out, plain);
    const bool side = (name.n == 4 && !memcmp(name.s, "left", 4)) || (name.n == 5 && !memcmp(name.s, "right", 5));
    return side && end < in.n && in.s[end] == '.' ? end + 1 : end; /* \left. has no delimiter */
}

/* Whether the asterisks in[i, i + 2) are Python's power: they have an operand on both sides. */
static inline bool plain_power(VerifySpan in, size_t i) {
    size_t left = i, right = i + 2;
    while (left && in.s[left - 1] == ' ') left--;
    while (right < in.n && in.s[right] == ' ') right++;
    if (!left || right >= in.n) return false;
    const char a = in.s[left - 1], z = in.s[right];
    return (verify_digit(a) || a == ')' || (verify_letter(a) && (left < 2 || !verify_letter(in.s[left - 2])))) &&
           (verify_digit(z) || z == '(' || z == '-');
}

/* Appends the plain text of `in` to out, which afterwards is not NULL. */
static inline void verify_plain(VerifySpan in, TextBuffer *out) {
    static const char degree = PLAIN_DEGREE, unknown = 0x7F;
    PlainBraces braces = {0};
    text_append(out, "", 0);
    for (size_t i = 0, used; i < in.n;) {
        const char c = in.s[i];
        if (c & 0x80) {
            used = plain_exponent(in, i, out);
            i += used ? used : plain_append(in, i, out);
        } else if (c == '\\') {
            i = plain_backslash(in, i, &braces, out);
        } else if (verify_starts(in, i, "{,}")) {
            text_string(out, ",");
            i += 3;
        } else if (verify_starts(in, i, "^\\circ") || verify_starts(in, i, "^{\\circ}")) {
            text_append(out, &degree, 1);
            i += in.s[i + 1] == '{' ? 8 : 6;
        } else if (verify_starts(in, i, "**")) {
            text_string(out, plain_power(in, i) ? "^" : " ");
            i += 2;
        } else if (c == '{') {
            braces.depth++;
            text_append(out, &c, 1);
            i++;
        } else if (c == '}') {
            const bool replaced = braces.count && braces.at[braces.count - 1] == braces.depth;
            if (replaced) braces.count--;
            if (!replaced) text_append(out, &c, 1);
            else if (braces.close[braces.count]) text_append(out, &braces.close[braces.count], 1);
            braces.depth -= braces.depth > 0;
            i++;
        } else {
            const bool control = (unsigned char)c < 32 && !verify_space(c);
            text_append(out, control ? &unknown : c == '~' || c == '\t' ? " " : &c, 1);
            i++;
        }
    }
}

#endif

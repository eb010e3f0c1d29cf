/* page.h - checks of HTML pages: their structure, and that they load nothing.
 *
 *     assert_page(page, strlen(page));
 */
#ifndef TESTS_PAGE_H
#define TESTS_PAGE_H

#include "files.h" /* occurrences */
#include <jansson.h>

/* Checks that tags open and close in order. The text of script and style elements is skipped. */
static inline void assert_balanced(const char *page) {
    static const char *const lone[] = {"!doctype", "meta", "path", "circle", "line", "br", "input"};
    char stack[64][24];
    int depth = 0;
    for (const char *c = page; (c = strchr(c, '<'));) {
        const bool closing = c[1] == '/';
        char name[24];
        const size_t n = strspn(c + 1 + closing, "!abcdefghijklmnopqrstuvwxyz0123456789");
        assert_true(n > 0 && n < sizeof name); /* a bare < would be unescaped text */
        snprintf(name, sizeof name, "%.*s", (int)n, c + 1 + closing);
        for (char quote = 0; *c && (*c != '>' || quote); c++)
            if (*c == '\'' || *c == '"') quote = !quote ? *c : quote == *c ? 0 : quote;
        assert_int_equal(*c, '>');
        bool alone = c[-1] == '/';
        for (size_t i = 0; i < sizeof lone / sizeof *lone; i++) alone |= !strcmp(name, lone[i]);
        if (alone) continue;
        if (closing) {
            if (!depth || strcmp(stack[depth - 1], name))
                fail_msg("</%s> closes <%s>", name, depth ? stack[depth - 1] : "nothing");
            depth--;
            continue;
        }
        assert_true(depth < 64);
        strcpy(stack[depth++], name);
        if (!strcmp(name, "script") || !strcmp(name, "style")) {
            char end[32];
            snprintf(end, sizeof end, "</%s>", name);
            c = strstr(c, end);
            assert_non_null(c);
        }
    }
    assert_int_equal(depth, 0);
}

/* Checks a whole page of n bytes: valid UTF-8, balanced, without anything that the browser would fetch. */
static inline void assert_page(const char *page, size_t n) {
    assert_int_equal(strlen(page), n);
    assert_balanced(page);
    json_t *utf8 = json_stringn(page, n); /* jansson rejects text that is not UTF-8 */
    assert_non_null(utf8);
    json_decref(utf8);
    static const char *const fetches[] = {"src=", "<link", "@import", "url(", "<iframe", "<img", "fetch(", "XMLHttp"};
    for (size_t i = 0; i < sizeof fetches / sizeof *fetches; i++) assert_null(strstr(page, fetches[i]));
    assert_int_equal(occurrences(page, "href="), occurrences(page, "href='#"));
    assert_int_equal(occurrences(page, "://"), 1); /* the name of the SVG namespace, which is not fetched */
    assert_int_equal(occurrences(page, "default-src 'none'"), 1);
    assert_null(strstr(page, "nan"));
    assert_null(strstr(page, "inf,"));
}

#endif

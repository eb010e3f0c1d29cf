/* page.h - the page for chats that the server shows, as files of its own: chat.html, chat.css and chat.js.
 *
 * When the programs are built, ../report/embed.awk turns them into C strings, in the file serve_page.h of the build folder.
 *
 *     const ServePage *page = serve_page("/");
 *     if (page) puts(page->text());
 */
#ifndef LLMC_SERVE_PAGE_H
#define LLMC_SERVE_PAGE_H

#include <stddef.h>
#include <string.h>

#if __has_include("serve_page.h")
#include "serve_page.h"
#else
#error "serve_page.h is missing: build with make; or run make build/include/serve_page.h and add -Ibuild/include"
#endif

/* The page may load its own files and ask its own server, and nothing else. */
#define SERVE_PAGE_POLICY                                                                                                               \
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; " \
    "frame-ancestors 'none'"

typedef struct ServePage {
    const char *path, *type;
    const char *(*text)(void);
} ServePage;

/* The file at a path of the server, or NULL. */
static inline const ServePage *serve_page(const char *path) {
    static const ServePage pages[] = {{"/", "text/html; charset=utf-8", chat_html},
                                      {"/chat.css", "text/css; charset=utf-8", chat_css},
                                      {"/chat.js", "text/javascript; charset=utf-8", chat_js}};
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
        if (!strcmp(path, pages[i].path)) return &pages[i];
    return NULL;
}

#endif

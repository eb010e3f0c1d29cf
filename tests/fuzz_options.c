/* fuzz_options.c - libFuzzer target: arbitrary bytes as a command line, whose arguments are separated by NULs.
 *
 * A bad command line ends a program with exit(), which jumps back here instead. What is accepted must be in its range.
 */
#include <setjmp.h>
#include <stdlib.h>

static jmp_buf ended;

/* A jump out of exit() leaves what the program would have left to its end. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return 1; }

/* In place of exit(). */
static _Noreturn void fuzz_exit(int status) {
    if (status < 0 || status > 2) abort();
    longjmp(ended, 1);
}
#define exit fuzz_exit
#include "../llmc/base/error.h"   /* xstrndup */
#include "../llmc/base/options.h" /* OptionList, OPTION_CHOICE, OPTION_END, OPTION_FLAG, ... */
#include "fuzz.h"                 /* require */

static struct {
    const char *input;
    OptionList also;
    int64_t steps;
    double rate;
    int kind;
    bool quiet;
} o;

static const Option table[] = {OPTION_GROUP("Group"),
                               OPTION_TEXT("input", 'i', &o.input, "FILE", "a file"),
                               OPTION_LIST("also", 'a', &o.also, "FILE", "more files"),
                               OPTION_INT("max-steps", 'x', &o.steps, 1, 1e9, "a number"),
                               OPTION_REAL("learning-rate", 'l', &o.rate, -2, 3.5, "a real number"),
                               OPTION_CHOICE("kind", 0, &o.kind, "one|two|three", "a choice"),
                               OPTION_FLAG("quiet", 'q', &o.quiet, "a flag"),
                               OPTION_END};
static const OptionAbout about = {"[options]", "Fuzzes."};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    enum { MOST = 64 };
    static FILE *nowhere;
    if (!nowhere) nowhere = fopen("/dev/null", "w");
    stdout = stderr = nowhere;
    char *text = xstrndup((const char *)data, n), *argv[MOST + 2] = {(char *)"fuzz"};
    int argc = 1;
    for (char *at = text; at < text + n && argc <= MOST; at += strlen(at) + 1) argv[argc++] = at;
    o.input = NULL;
    o.quiet = false;
    o.steps = 1;
    o.rate = 0;
    o.kind = 0;
    if (!setjmp(ended)) {
        const int first = options_parse(table, &about, argc, argv);
        require(first >= 1 && first <= argc);
        require(o.steps >= 1 && o.steps <= 1000000000 && o.rate >= -2 && o.rate <= 3.5);
        require(o.kind >= 0 && o.kind < 3);
        options_print(table);
    }
    free(o.also.items);
    o.also = (OptionList){0};
    free(text);
    return 0;
}

/* shell.h - programs that a test runs through a shell, and checks of what they print.
 *
 * The environment variable T, which a setup sets, is the test's directory.
 *
 *     run(0, "./evaluate -c $T/base.bin -i $T/chat.shard");   // `out` and `said` are what the program printed
 *     assert_holds(out, "\"loss\":");
 */
#ifndef TESTS_SHELL_H
#define TESTS_SHELL_H

#include "files.h" /* files_path, files_count, text_of, files_assert_content, ... */

static char *said, *out; /* standard error and standard output of the last run */

static inline void put(const char *name, const char *text) { files_put(files_path(name), text, strlen(text)); }

/* Runs a shell command, in which $T is the test's directory, and checks its exit status. */
static inline void run(int status, const char *command) {
    char line[2000];
    snprintf(line, sizeof line, "(%s) >$T/.out 2>$T/.err", command);
    const int got = system(line);
    free(said), free(out);
    said = text_of(files_path(".err"));
    out = text_of(files_path(".out"));
    if (!WIFEXITED(got) || WEXITSTATUS(got) != status)
        fail_msg("%s: status %d, expected %d: %s", command, WEXITSTATUS(got), status, said);
}

static inline void assert_holds(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* Runs a command that must fail with one line that contains `part` (after warnings about options that a test replaces by
 * giving them again), print nothing on standard output, leave its output, the file $T/OUTPUT, unchanged, and leave no
 * other file. */
static inline void refused_output(const char *output, int status, const char *command, const char *part) {
    put(output, "earlier");
    const int before = files_count();
    run(status, command);
    assert_holds(said, part);
    const char *line = said, *newline = strchr(line, '\n');
    while (newline && newline[1] && memmem(line, (size_t)(newline - line), ": given twice, ", 15)) {
        line = newline + 1;
        newline = strchr(line, '\n');
    }
    if (!newline || newline[1]) fail_msg("%s: not one line: %s", command, said);
    assert_string_equal(out, "");
    files_assert_content(files_path(output), "earlier", 7);
    assert_int_equal(files_count(), before);
    unlink(files_path(output));
}

#endif

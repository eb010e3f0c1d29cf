/* sandbox_command.h - the command line by which an interpreter is started in its sandbox.
 *
 *   bwrap      bubblewrap: new user, pid, ipc, uts, net and cgroup namespaces; /usr and what links into it, read-only; a
 *              /dev, a /proc and a /tmp of its own, of which only the last can be written; uid and gid 65534, no capability
 *   landlock   the interpreter itself; sandbox_process.h restricts it before it starts
 *   none       the interpreter itself
 *   command    `sh -c 'exec COMMAND "$@"' sh` and the interpreter
 *
 *     SandboxCommand c = {0};
 *     sandbox_command_bwrap(&c, "/usr/bin/bwrap", 9, NULL);
 *     sandbox_command_python(&c, "python3", "print(1)", 64, 1024);
 *     for (int k = 0; k < c.count; k++) puts(c.word[k]);
 *     sandbox_command_free(&c);
 *
 * bubblewrap's --unshare-all only tries to make the user and the cgroup namespace; --unshare-user makes it an error if
 * there can be no user namespace. --disable-userns keeps the program from making another one. /proc is read-only, because
 * a process whose user is root outside could write the system's settings there (core_pattern) without any capability.
 */
#ifndef LLMC_SANDBOX_SANDBOX_COMMAND_H
#define LLMC_SANDBOX_SANDBOX_COMMAND_H

#include "../base/error.h" /* xstrdup */
#include "../base/text.h"  /* TextBuffer, text_format, text_free */
#include <assert.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SANDBOX_WORDS = 128, SANDBOX_USER = 65534, SANDBOX_TMP_MIB = 64 };

typedef struct SandboxCommand {
    char *word[SANDBOX_WORDS]; /* ends with NULL */
    int count;
} SandboxCommand;

/* The whole environment of a program in the sandbox; the order of a set's texts is the same in every run. */
static const char *const sandbox_environment[] = {"PATH=/usr/bin:/bin", "HOME=/tmp",        "LANG=C.UTF-8",
                                                  "PYTHONUTF8=1",       "PYTHONHASHSEED=0", NULL};

static inline void sandbox_command_add(SandboxCommand *c, const char *word) {
    assert(c->count < SANDBOX_WORDS - 1);
    c->word[c->count++] = xstrdup(word);
}

/* Adds words that end with NULL. */
static inline void sandbox_command_words(SandboxCommand *c, const char *const *words) {
    for (; *words; words++) sandbox_command_add(c, *words);
}

static inline void sandbox_command_free(SandboxCommand *c) {
    for (int i = 0; i < c->count; i++) free(c->word[i]);
    *c = (SandboxCommand){0};
}

/* Adds the folders of the system that are links into /usr as links, and others read-only. */
static inline void sandbox_command_links(SandboxCommand *c) {
    static const char *const names[] = {"/bin", "/lib", "/lib32", "/lib64", "/libx32"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char target[256];
        const ssize_t n = readlink(names[i], target, sizeof target - 1);
        struct stat about;
        if (n > 0) {
            target[n] = 0;
            sandbox_command_words(c, (const char *const[]){"--symlink", target, names[i], NULL});
        } else if (!stat(names[i], &about)) {
            sandbox_command_words(c, (const char *const[]){"--ro-bind", names[i], names[i], NULL});
        }
    }
}

/* Begins with bubblewrap. filter: the file descriptor of the seccomp filter. folder: one that may be read, in which the
 * program starts; NULL: none. */
static inline void sandbox_command_bwrap(SandboxCommand *c, const char *bwrap, int filter, const char *folder) {
    char user[16], size[32], file[16];
    snprintf(user, sizeof user, "%d", SANDBOX_USER);
    snprintf(size, sizeof size, "%lld", (long long)SANDBOX_TMP_MIB << 20);
    snprintf(file, sizeof file, "%d", filter);
    sandbox_command_words(c,
                          (const char *const[]){bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--uid",
                                                user, "--gid", user, "--hostname", "sandbox", "--die-with-parent",
                                                "--new-session", "--cap-drop", "ALL", "--clearenv", NULL});
    for (int i = 0; sandbox_environment[i]; i++) {
        char name[32];
        const char *value = strchr(sandbox_environment[i], '=') + 1;
        snprintf(name, sizeof name, "%.*s", (int)(value - 1 - sandbox_environment[i]), sandbox_environment[i]);
        sandbox_command_words(c, (const char *const[]){"--setenv", name, value, NULL});
    }
    sandbox_command_words(c, (const char *const[]){"--ro-bind", "/usr", "/usr", NULL});
    sandbox_command_links(c);
    sandbox_command_words(c, (const char *const[]){"--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs",
                                                   "/tmp", "--ro-bind", "/dev/null", "/etc/passwd", NULL});
    if (folder) sandbox_command_words(c, (const char *const[]){"--ro-bind", folder, folder, NULL});
    sandbox_command_words(c, (const char *const[]){"--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/",
                                                   "--chdir", folder ? folder : "/tmp", "--seccomp", file, "--", NULL});
}

/* Begins with a user's command, which must run the words that follow it. */
static inline void sandbox_command_other(SandboxCommand *c, const char *command) {
    TextBuffer text = {0};
    text_format(&text, "exec %s \"$@\"", command);
    sandbox_command_words(c, (const char *const[]){"/bin/sh", "-c", text.text, "sh", NULL});
    text_free(&text);
}

/* Ends with a command for /bin/sh and its limits. processes: how many its user may have, for which the option of ulimit differs
 * between shells; memory: in MiB, unless the limit is lower already. */
static inline void sandbox_command_shell(SandboxCommand *c, const char *command, int64_t processes, int64_t memory) {
    char most[32], size[32];
    snprintf(most, sizeof most, "%lld", (long long)processes);
    snprintf(size, sizeof size, "%lld", (long long)memory << 10);
    sandbox_command_words(
        c, (const char *const[]){"/bin/sh", "-c",
                                 "ulimit -u \"$2\" 2>/dev/null || ulimit -p \"$2\"; ulimit -v \"$3\" 2>/dev/null; "
                                 "exec /bin/sh -c \"$1\"",
                                 "sh", command, most, size, NULL});
}

/* Ends with the interpreter, its program and its limits. processes: how many its user may have; memory: in MiB. */
static inline void sandbox_command_python(SandboxCommand *c, const char *python, const char *program, int64_t processes,
                                          int64_t memory) {
    char most[32], size[32];
    snprintf(most, sizeof most, "%lld", (long long)processes);
    snprintf(size, sizeof size, "%lld", (long long)memory);
    sandbox_command_words(c, (const char *const[]){python, "-S", "-s", "-B", "-c", program, most, size, NULL});
}

#endif

/* sandbox.h - runs programs that a model wrote, which must not reach anything: a pool of interpreters in sandboxes.
 *
 *   --sandbox bwrap      bubblewrap with namespaces of its own and a seccomp filter (sandbox_command.h, sandbox_filter.h)
 *   --sandbox landlock   Landlock rules and a stricter filter, where namespaces are not allowed (sandbox_landlock.h). Weaker:
 *                        the program sees no files of others but shares their process numbers, and may fill the disk
 *   --sandbox none       an ordinary child: the program has the user's rights
 *   --sandbox-cmd        any command that runs the words which follow it in a sandbox
 *
 * sandbox_open() starts a self-test in the sandbox and fails if the sandbox is missing or leaks: there is no step down from
 * one kind to a weaker one. Every process has limits (sandbox_process.h); the caller's time limit ends it by SIGKILL, with
 * everything that it started, and so does the end of the trainer, even by SIGKILL (sandbox_guard.h). If the trainer runs as
 * root, a program runs as user 65534.
 *
 * A sandbox is used once. The pool holds interpreters that were started before they are needed and have run nothing yet
 * (runner.py), so that no state passes from one program to the next and none waits for a start.
 *
 *     Sandbox s;
 *     SandboxSession x;
 *     SandboxOptions options = sandbox_defaults();
 *     if (!sandbox_open(&s, &options, &e)) die("%s", e.text);
 *     json_t *request = json_pack("{s:s,s:s,s:s}", "mode", "program", "language", "python", "source", "print(input())");
 *     sandbox_begin(&s, &x, request, 10);
 *     while (sandbox_serve(&x) == SANDBOX_WAIT) sandbox_wait(&x, 0.1);     // "ready"
 *     sandbox_send(&x, json_pack("{s:s}", "input", "hello\n"));
 *     while (sandbox_serve(&x) == SANDBOX_WAIT) sandbox_wait(&x, 0.1);
 *     printf("%.*s", (int)x.blocks[0].length, x.blocks[0].text);           // hello
 *     sandbox_end(&s, &x);
 *     json_decref(request);
 *     sandbox_close(&s);
 *
 * sandbox_run.h is the simpler interface for one program. A session has file descriptors for poll(), so that many run at
 * the same time: sandbox_process_files(&x.process, files).
 *
 * Messages: to the runner, the length of a JSON text in decimal, a newline, and the text. From it, a line of JSON, of which
 * "bytes", if present, are the lengths of the blocks of bytes that follow. The first message of a session is the request,
 * its answer {"outcome":"ready"} or why the program cannot run; every further one is a step of its mode:
 *
 *   mode        request                                       step                         answer
 *   program     language python|c|command; source or run;     input                        status or signal, or outcome
 *               files {name: text}                                                         output_limit; output, errors
 *   calls       setup, source, after                          call, args; eval;            value; secret, asserts;
 *                                                             check, secret                outcome wrong|error|memory, text
 *   translate                                                 tests; test, entry_point     tests
 */
#ifndef LLMC_SANDBOX_SANDBOX_H
#define LLMC_SANDBOX_SANDBOX_H

#include "../base/clock.h"    /* clock_seconds */
#include "../base/error.h"    /* error_set, Error, xstrdup, checked_object, ... */
#include "../base/options.h"  /* OPTION_INT, OPTION_CHOICE, OPTION_TEXT */
#include "../base/process.h"  /* Process */
#include "../base/text.h"     /* text_free, TextBuffer, TextSlice, text_format, ... */
#include "sandbox_command.h"  /* sandbox_environment, SANDBOX_USER, SandboxCommand, sandbox_command_bwrap, ... */
#include "sandbox_filter.h"   /* SandboxFilter, sandbox_filter_close, sandbox_filter_file, sandbox_filter_open */
#include "sandbox_guard.h"    /* SandboxGuard, sandbox_guard_close, sandbox_guard_open, sandbox_guard_tell */
#include "sandbox_landlock.h" /* sandbox_landlock_open */
#include "sandbox_process.h"  /* SandboxProcess, sandbox_process_read, sandbox_process_shut, ... */
#include "sandbox_runner.h"
#include <dirent.h>
#include <jansson.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define SANDBOX_CHOICES "bwrap|landlock|none"
typedef enum { SANDBOX_BWRAP, SANDBOX_LANDLOCK, SANDBOX_NONE, SANDBOX_COMMAND } SandboxKind;

enum { SANDBOX_KEEP = 1 << 20, SANDBOX_PROCESSES = 64, SANDBOX_BLOCKS = 2, SANDBOX_CORES = 128 };

/* Seconds that a sandbox may take to start; a slower one is a failure of the machine, not of the program. */
static const double SANDBOX_STARTS = 20;

/* Seconds that a compiler may take. */
static const double SANDBOX_COMPILES = 10;

typedef struct SandboxOptions {
    int kind;
    const char *command; /* --sandbox-cmd, or NULL */
    int64_t workers;     /* 0: one for each processor core, up to SANDBOX_CORES */
    int64_t memory;      /* MiB */
} SandboxOptions;

// clang-format off
#define SANDBOX_OPTIONS(o)                                                                                             \
    OPTION_CHOICE("sandbox",         0, &(o).kind,    SANDBOX_CHOICES,                                                 \
                  "where programs written by the model run; none: with your rights"),                                  \
    OPTION_TEXT  ("sandbox-cmd",     0, &(o).command, "PROGRAM",                                                       \
                  "another sandbox: a command that runs the words which follow it"),                                   \
    OPTION_INT   ("sandbox-workers", 0, &(o).workers, 0, 1024,                                                         \
                  "programs that run at the same time; 0: one for each processor core, up to 128"),                    \
    OPTION_INT   ("code-memory",     0, &(o).memory,  64, 1 << 20,                                                     \
                  "address space of a program in the sandbox, in MiB")
// clang-format on

static inline SandboxOptions sandbox_defaults(void) { return (SandboxOptions){.memory = 1024}; }

/* An interpreter in its sandbox. */
typedef struct SandboxWorker {
    SandboxProcess process;
    char folder[64]; /* where the program starts and may write, if that is not a /tmp of its own; "": none */
} SandboxWorker;

typedef struct Sandbox {
    SandboxOptions o;
    SandboxKind kind;
    char *bwrap, *python; /* paths */
    char *folder;         /* of the user's, which programs may read and in which they start; NULL: none */
    SandboxFilter filter;
    SandboxGuard guard;
    int64_t processes;       /* limit of their number */
    SandboxWorker *pool;     /* (2 * o.workers) interpreters that wait, oldest first */
    int ready, target;       /* how many do; how many should */
    int64_t started, misses; /* interpreters; those that were needed before they were ready */
    int64_t users;           /* user numbers given */
} Sandbox;

typedef enum {
    SANDBOX_WAIT,  /* nothing yet */
    SANDBOX_REPLY, /* x->reply and x->blocks have the next message */
    SANDBOX_ENDED, /* the program has ended, or wrote something that is no message */
    SANDBOX_FLOOD, /* it wrote more than is kept */
    SANDBOX_LATE,  /* the session's time is over */
    SANDBOX_BROKEN /* the sandbox did not start: x->failure */
} SandboxEvent;

typedef struct SandboxSession {
    SandboxWorker worker;
    bool ready;   /* the interpreter had started before the session began */
    bool started; /* the runner has said that it waits; until then a failure is not the program's */
    double begin; /* when it was begun; once the runner has started, when that was */
    double limit; /* seconds from then on */
    json_t *reply;
    TextSlice blocks[SANDBOX_BLOCKS]; /* within the process's buffer; valid until the next call */
    size_t taken;                     /* bytes of the last message */
    Error failure;
} SandboxSession;

/* ---- interpreters ------------------------------------------------------------------------------------------------ */

/* The path of a program in the folders of PATH, or NULL; to be freed. */
static inline char *sandbox_find(const char *name) {
    const char *path = getenv("PATH");
    if (!path || !*path) path = "/usr/bin:/bin";
    while (*path) {
        TextBuffer file = {0};
        const size_t n = strcspn(path, ":");
        text_append(&file, path, n);
        text_format(&file, "/%s", name);
        if (n && !access(file.text, X_OK)) return file.text;
        text_free(&file);
        path += n + (path[n] == ':');
    }
    return NULL;
}

/* Removes what a program wrote: folders that it has closed, and paths of any length. */
static inline void sandbox_remove(const char *folder) {
    char *const words[] = {(char *)"sh", (char *)"-c",   (char *)"chmod -R u+rwx \"$1\"; rm -rf \"$1\"",
                           (char *)"sh", (char *)folder, NULL};
    pid_t pid;
    if (!rmdir(folder) || posix_spawn(&pid, "/bin/sh", NULL, NULL, words, environ)) return;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
}

/* Kills the interpreter with all that it started. */
static inline void sandbox_worker_close(SandboxWorker *w) {
    const pid_t group = w->process.pid;
    sandbox_process_kill(&w->process);
    if (*w->folder) {
        for (int i = 0; i < 1000 && group && !kill(-group, 0); i++) usleep(1000);
        sandbox_remove(w->folder);
    }
    w->folder[0] = 0;
}

/* The user that the next program runs as if the trainer is root, else 0. Without namespaces each program has a user of its
 * own, so that the processes of one do not count for the limit of another: of 60000 to 61183, which no account has. */
static inline int sandbox_user(Sandbox *s) {
    if (geteuid() || s->kind == SANDBOX_NONE || s->kind == SANDBOX_COMMAND) return 0;
    return s->kind == SANDBOX_BWRAP ? SANDBOX_USER : 60000 + (int)(s->users++ % 1184);
}

/* Makes the folder of an interpreter. */
static inline bool sandbox_worker_folder(SandboxWorker *w, int user, Error *e) {
    snprintf(w->folder, sizeof w->folder, "/tmp/llmc-sandbox.XXXXXX");
    const bool made = mkdtemp(w->folder);
    if (made && (!user || !chown(w->folder, (uid_t)user, (gid_t)user))) return true;
    error_set(e, "sandbox: %s: %s", w->folder, strerror(errno));
    if (made) rmdir(w->folder);
    w->folder[0] = 0;
    return false;
}

/* The environment of a program in the sandbox, with its own folder for temporary files. Valid until the next call. */
static inline char *const *sandbox_worker_environment(const SandboxWorker *w) {
    static char home[80], temporary[80], *all[16];
    int n = 0;
    snprintf(home, sizeof home, "HOME=%s", w->folder);
    snprintf(temporary, sizeof temporary, "TMPDIR=%s", w->folder);
    for (int i = 0; sandbox_environment[i]; i++)
        all[n++] = strncmp(sandbox_environment[i], "HOME=", 5) ? (char *)sandbox_environment[i] : home;
    all[n++] = temporary;
    all[n] = NULL;
    return all;
}

/* shell: a command for /bin/sh, whose standard error is the caller's; NULL: the interpreter. */
static inline bool sandbox_worker_open(Sandbox *s, SandboxWorker *w, const char *shell, Error *e) {
    SandboxCommand c = {0};
    int filter = -1;
    SandboxStart start = {.environment = (char *const *)sandbox_environment,
                          .memory = s->o.memory << 20,
                          .pass = -1,
                          .user = sandbox_user(s),
                          .rules = -1,
                          .guard = s->guard.file,
                          .errors = shell != NULL};
    *w = (SandboxWorker){.process = {.in = -1, .out = -1, .err = -1}};
    if (s->kind == SANDBOX_BWRAP) {
        filter = start.pass = sandbox_filter_file(&s->filter);
        if (filter < 0) return error_set(e, "sandbox: memfd_create: %s", strerror(errno));
        sandbox_command_bwrap(&c, s->bwrap, filter, s->folder);
    } else {
        if (!sandbox_worker_folder(w, start.user, e)) return false;
        start.folder = s->folder ? s->folder : w->folder;
        start.environment = sandbox_worker_environment(w);
    }
    if (s->kind == SANDBOX_LANDLOCK) {
        start.filter = &s->filter.program;
        start.rules = sandbox_landlock_open(w->folder, s->folder, e);
        if (start.rules < 0) {
            sandbox_worker_close(w);
            return false;
        }
    }
    if (s->kind == SANDBOX_COMMAND) {
        sandbox_command_other(&c, s->o.command);
        start.environment = environ;
        start.memory = 0;
    }
    if (shell) sandbox_command_shell(&c, shell, s->processes, s->o.memory);
    else sandbox_command_python(&c, s->python, runner_py(), s->processes, s->o.memory);
    start.word = c.word;
    Error why;
    const bool ok = sandbox_process_open(&w->process, &start, &why) || error_set(e, "sandbox: %s", why.text);
    sandbox_command_free(&c);
    sandbox_process_shut(&filter);
    sandbox_process_shut(&start.rules);
    if (!ok) sandbox_worker_close(w);
    return ok;
}

/* Starts interpreters until the pool has its number. After a failure sandbox_begin() tries again and reports it. */
static inline void sandbox_fill(Sandbox *s) {
    while (s->ready < s->target) {
        if (!sandbox_worker_open(s, &s->pool[s->ready], NULL, NULL)) return;
        s->ready++;
        s->started++;
    }
}

/* ---- sessions ------------------------------------------------------------------------------------------------------ */

/* Appends a message and writes what the pipe takes. Frees the message. */
static inline void sandbox_send(SandboxSession *x, json_t *message) {
    SandboxProcess *p = &x->worker.process;
    char *text = (char *)checked_object(json_dumps(message, JSON_COMPACT | JSON_ENSURE_ASCII), "a message");
    text_format(&p->send, "%zu\n", strlen(text));
    text_string(&p->send, text);
    free(text);
    json_decref(message);
    sandbox_process_flush(p);
}

/* Begins a session with a request, whose reference stays the caller's. seconds: time for all its steps, from the moment at
 * which the interpreter has started. Never waits. */
static inline void sandbox_begin(Sandbox *s, SandboxSession *x, json_t *request, double seconds) {
    *x = (SandboxSession){
        .begin = clock_seconds(), .limit = seconds, .worker = {.process = {.in = -1, .out = -1, .err = -1}}};
    if (s->ready) {
        x->worker = s->pool[0];
        memmove(s->pool, s->pool + 1, (size_t)--s->ready * sizeof *s->pool);
        sandbox_process_read(&x->worker.process.out, &x->worker.process.got, SANDBOX_KEEP);
        x->ready = x->worker.process.got.length > 0;
        s->misses += !x->ready;
    } else {
        s->misses++;
        s->started++;
        if (!sandbox_worker_open(s, &x->worker, NULL, &x->failure)) return;
    }
    json_t *copy = json_copy(request);
    json_object_set_new(copy, "seconds", json_integer((json_int_t)(seconds + 1)));
    sandbox_send(x, copy);
}

/* Takes the message at the beginning of the process's output: 1, 0 if it is incomplete, or -1 if it is none. */
static inline int sandbox_take(SandboxSession *x) {
    SandboxProcess *p = &x->worker.process;
    size_t all = 0;
    char *end = (char *)memchr(p->got.text, '\n', p->got.length);
    if (!end) return 0;
    const size_t line = (size_t)(end - p->got.text) + 1;
    json_t *reply = json_loadb(p->got.text, line, JSON_ALLOW_NUL, NULL), *bytes = json_object_get(reply, "bytes");
    if (!json_is_object(reply) || json_array_size(bytes) > SANDBOX_BLOCKS) {
        json_decref(reply);
        return -1;
    }
    for (size_t i = 0; i < json_array_size(bytes); i++) {
        const json_int_t n = json_integer_value(json_array_get(bytes, i));
        if (n < 0 || n > SANDBOX_KEEP) {
            json_decref(reply);
            return -1;
        }
        x->blocks[i] = (TextSlice){p->got.text + line + all, (size_t)n};
        all += (size_t)n;
    }
    if (p->got.length < line + all) {
        json_decref(reply);
        return 0;
    }
    x->reply = reply;
    x->taken = line + all;
    return 1;
}

/* Drops the message that was taken before. */
static inline void sandbox_drop(SandboxSession *x) {
    TextBuffer *got = &x->worker.process.got;
    json_decref(x->reply);
    x->reply = NULL;
    if (!x->taken) return;
    got->length -= x->taken;
    memmove(got->text, got->text + x->taken, got->length + 1);
    x->taken = 0;
    for (int i = 0; i < SANDBOX_BLOCKS; i++) x->blocks[i] = (TextSlice){NULL, 0};
}

/* Why an interpreter did not start, from what its sandbox said. */
static inline SandboxEvent sandbox_broken(SandboxSession *x, const char *what) {
    TextBuffer *said = &x->worker.process.said;
    while (said->length && strchr(" \n\t", said->text[said->length - 1])) said->text[--said->length] = 0;
    const char *line = said->length ? strrchr(said->text, '\n') : NULL;
    if (!x->failure.text[0])
        error_set(&x->failure, "%s%s%.300s", what, said->length ? ": " : "",
                  line           ? line + 1
                  : said->length ? said->text
                                 : "");
    return SANDBOX_BROKEN;
}

/* Moves what can be moved without waiting and returns what happened. After SANDBOX_REPLY the next call looks for the next
 * message; after any other event but SANDBOX_WAIT the session is over. */
static inline SandboxEvent sandbox_serve(SandboxSession *x) {
    SandboxProcess *p = &x->worker.process;
    sandbox_drop(x);
    if (!p->pid) return sandbox_broken(x, "cannot start");
    for (;;) {
        sandbox_process_flush(p);
        sandbox_process_read(&p->err, &p->said, 1 << 14);
        sandbox_process_read(&p->out, &p->got, 3 * SANDBOX_KEEP);
        const int taken = sandbox_take(x);
        if (taken > 0 && x->started) return SANDBOX_REPLY;
        if (taken > 0) { /* {"outcome":"waiting"} */
            x->started = true;
            if (!x->ready) x->begin = clock_seconds();
            sandbox_drop(x);
            continue;
        }
        if (taken < 0) return SANDBOX_ENDED;
        if (p->got.length >= 3 * SANDBOX_KEEP) return SANDBOX_FLOOD;
        if (p->out < 0) {
            sandbox_process_read(&p->err, &p->said, 1 << 14);
            return x->started ? SANDBOX_ENDED : sandbox_broken(x, "did not start");
        }
        if (x->started) return clock_seconds() > x->begin + x->limit ? SANDBOX_LATE : SANDBOX_WAIT;
        if (clock_seconds() < x->begin + SANDBOX_STARTS) return SANDBOX_WAIT;
        return sandbox_broken(x, "did not start in time");
    }
}

/* Waits until the session can go on, at most this many seconds. */
static inline void sandbox_wait(SandboxSession *x, double seconds) {
    struct pollfd files[3];
    sandbox_process_files(&x->worker.process, files);
    poll(files, 3, (int)ceil(1e3 * seconds));
}

/* Ends the session: kills the interpreter and starts another one for the pool. */
static inline void sandbox_end(Sandbox *s, SandboxSession *x) {
    sandbox_drop(x);
    sandbox_worker_close(&x->worker);
    sandbox_fill(s);
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static inline void sandbox_close(Sandbox *s) {
    for (int i = 0; i < s->ready; i++) sandbox_worker_close(&s->pool[i]);
    sandbox_guard_close(&s->guard);
    sandbox_filter_close(&s->filter);
    free(s->bwrap), free(s->python), free(s->folder), free(s->pool);
    *s = (Sandbox){0};
}

static inline const char *sandbox_name(const Sandbox *s) {
    static const char *const names[] = {"bwrap", "landlock", "none", "command"};
    return names[s->kind];
}

/* The number of processes and threads of a user, without which a limit of it would count those of other programs. */
static inline int64_t sandbox_count_processes(uid_t user) {
    int64_t count = 0;
    DIR *all = opendir("/proc");
    for (const struct dirent *entry; all && (entry = readdir(all));) {
        char path[300], line[256];
        struct stat about;
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%s/status", entry->d_name);
        FILE *f = stat(path, &about) || about.st_uid != user ? NULL : fopen(path, "r");
        while (f && fgets(line, sizeof line, f))
            if (!strncmp(line, "Threads:", 8)) count += atoll(line + 8);
        if (f) fclose(f);
    }
    if (all) closedir(all);
    return count;
}

/* A socket that listens on the loopback interface, which a program in the sandbox must not reach. */
static inline int sandbox_listen(int *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    const int file = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *port = 9;
    if (file < 0) return -1;
    if (!bind(file, (struct sockaddr *)&address, sizeof address) && !listen(file, 1) &&
        !getsockname(file, (struct sockaddr *)&address, &size))
        *port = ntohs(address.sin_port);
    return file;
}

/* Sets the error of a sandbox that cannot start, with what to do about it. */
static inline bool sandbox_refused(const Sandbox *s, const char *why, Error *e) {
    const char *said = strncmp(why, "did not start: ", 15) ? why : why + 15;
    const bool python = strstr(said, "python3: ") || strstr(said, "ModuleNotFoundError");
    if (python)
        return error_set(e, "sandbox: %s: no python3 in the sandbox (%.200s); install python3", sandbox_name(s), said);
    if (s->kind == SANDBOX_BWRAP) {
        const char *reason =
            strstr(said, "ermission") || strstr(said, "not permitted") ? "Operation not permitted" : said;
        return error_set(e,
                         "sandbox: bwrap: no user namespace here (%.200s); allow them, or --sandbox landlock, or "
                         "--sandbox none to run the model's programs unprotected",
                         reason);
    }
    if (s->kind == SANDBOX_LANDLOCK && !strncmp(said, "sandbox: landlock", 17)) return error_set(e, "%s", said);
    return error_set(e, "sandbox: %s: %.300s", s->kind == SANDBOX_COMMAND ? s->o.command : sandbox_name(s), why);
}

/* Runs the self-test in a sandbox: what must fail in it. */
static inline bool sandbox_test(Sandbox *s, Error *e) {
    SandboxSession x;
    SandboxEvent event;
    int port;
    char *folder = getcwd(NULL, 0);
    const int listener = sandbox_listen(&port);
    json_t *request = json_pack("{s:s,s:b,s:i,s:s,s:b}", "mode", "probe", "closed", s->kind != SANDBOX_COMMAND, "port",
                                port, "folder", folder ? folder : "/", "shown", s->folder != NULL);
    sandbox_begin(s, &x, request, 20);
    while ((event = sandbox_serve(&x)) == SANDBOX_WAIT) sandbox_wait(&x, 0.1);
    bool ok = event == SANDBOX_REPLY;
    if (event == SANDBOX_BROKEN) sandbox_refused(s, x.failure.text, e);
    else if (!ok) error_set(e, "sandbox: %s: the self-test ended without a result", sandbox_name(s));
    const json_t *got = json_object_get(x.reply, "got");
    if (ok && s->kind != SANDBOX_NONE && json_array_size(got))
        ok = error_set(e, "sandbox: %s: a program in it has got %.200s, which must be refused", sandbox_name(s),
                       json_string_value(json_array_get(got, 0)));
    sandbox_end(s, &x);
    json_decref(request);
    sandbox_process_shut((int[]){listener});
    free(folder);
    return ok;
}

/* Allows this process as many open files as its hard limit does, if the interpreters need more than it may have: each
 * has three, and there are up to three for each worker. */
static inline void sandbox_allow_files(int64_t workers) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur >= (rlim_t)(9 * workers + 256)) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* Opens a sandbox and tests it; its pool is empty. folder: Sandbox.folder, which it takes. */
static inline bool sandbox_prepare(Sandbox *s, const SandboxOptions *o, char *folder, Error *e) {
    *s = (Sandbox){.o = *o,
                   .folder = folder,
                   .kind = o->command ? SANDBOX_COMMAND : (SandboxKind)o->kind,
                   .processes = SANDBOX_PROCESSES,
                   .guard = {.file = -1}};
    const int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (!s->o.workers) s->o.workers = cores < SANDBOX_CORES ? cores : SANDBOX_CORES;
    sandbox_allow_files(s->o.workers);
    s->pool = (SandboxWorker *)xcalloc(2 * (size_t)s->o.workers, sizeof *s->pool);
    bool ok = true;
    if (s->kind == SANDBOX_BWRAP) {
        s->bwrap = sandbox_find("bwrap");
        s->python = xstrdup("python3");
        ok = s->bwrap || error_set(e, "sandbox: bwrap: is not installed (Debian: bubblewrap); install it, or --sandbox "
                                      "landlock, or --sandbox none to run the model's programs unprotected");
    } else if (s->kind == SANDBOX_COMMAND) {
        s->python = xstrdup("python3");
    } else {
        s->python = xstrdup("/usr/bin/python3");
        ok = !access(s->python, X_OK) ||
             error_set(e, "sandbox: %s: there is no /usr/bin/python3; install python3", sandbox_name(s));
    }
    if (s->kind != SANDBOX_BWRAP) {
        if (geteuid() || s->kind != SANDBOX_LANDLOCK)
            s->processes += s->o.workers * 3 + sandbox_count_processes(geteuid());
    }
    if (ok && s->kind < SANDBOX_NONE) ok = sandbox_filter_open(&s->filter, s->kind == SANDBOX_LANDLOCK, e);
    ok = ok && sandbox_guard_open(&s->guard, e) && sandbox_test(s, e);
    if (!ok) sandbox_close(s);
    return ok;
}

/* Opens a sandbox, tests it and fills its pool, which holds twice as many interpreters as run at the same time, since one
 * takes longer to start than a short program to run. */
static inline bool sandbox_open(Sandbox *s, const SandboxOptions *o, Error *e) {
    if (!sandbox_prepare(s, o, NULL, e)) return false;
    s->target = (int)(2 * s->o.workers);
    s->misses = s->started = 0;
    if (s->kind == SANDBOX_NONE) warn("--sandbox none: programs written by the model run with your rights");
    sandbox_fill(s);
    return true;
}

/* ---- commands of the user ------------------------------------------------------------------------------------------ */

/* Opens a sandbox for sandbox_start(): programs in it may read the current folder. */
static inline bool sandbox_open_here(Sandbox *s, const SandboxOptions *o, Error *e) {
    if (o->kind == SANDBOX_NONE && !o->command) return error_set(e, "sandbox: none is no sandbox");
    char *folder = getcwd(NULL, 0);
    if (!folder) return error_set(e, "sandbox: the current folder: %s", strerror(errno));
    if (strcmp(folder, "/")) return sandbox_prepare(s, o, folder, e);
    free(folder);
    return error_set(e, "sandbox: programs in it may read the current folder, which is /; start in another one");
}

/* Starts a command of the user's by /bin/sh, which runs until its input ends. Its standard error is the caller's. *p: for
 * process_wait(); the caller ends it by sandbox_stop(). */
static inline bool sandbox_start(Sandbox *s, const char *command, SandboxWorker *w, Process *p, Error *e) {
    *p = (Process){0};
    if (!sandbox_worker_open(s, w, command, e)) return false;
    *p = (Process){.pid = w->process.pid, .leads = true, .in = w->process.in, .out = w->process.out};
    text_free(&w->process.send), text_free(&w->process.got), text_free(&w->process.said);
    return true;
}

/* The command is about to be ended by process_close(), process_kill() or process_failed(). */
static inline void sandbox_ending(const Sandbox *s, const Process *p) {
    if (p->pid) sandbox_guard_tell(s->guard.file, '-', p->pid);
}

/* Removes what a command that has ended wrote. */
static inline void sandbox_stop(SandboxWorker *w) {
    if (*w->folder) sandbox_remove(w->folder);
    w->folder[0] = 0;
}

#endif

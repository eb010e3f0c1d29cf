/* test_sandbox.c - llmc/sandbox: the command line and the filter by themselves, and programs in every kind of sandbox that
 * this machine allows. A machine that refuses namespaces skips the tests that need them, and says so. */

#include "../llmc/base/clock.h"               /* clock_seconds */
#include "../llmc/base/error.h"               /* Error, xstrdup */
#include "../llmc/base/text.h"                /* TextBuffer */
#include "../llmc/sandbox/sandbox.h"          /* sandbox_open, SandboxOptions, sandbox_defaults, SANDBOX_BWRAP, ... */
#include "../llmc/sandbox/sandbox_command.h"  /* SandboxCommand, sandbox_command_free, sandbox_command_python, ... */
#include "../llmc/sandbox/sandbox_filter.h"   /* sandbox_filter_masked, SandboxFilter, sandbox_filter_close, ... */
#include "../llmc/sandbox/sandbox_landlock.h" /* sandbox_landlock_rules, SandboxRules */
#include "../llmc/sandbox/sandbox_outcome.h"  /* SANDBOX_PASS, SANDBOX_ERROR, sandbox_outcome_name, ... */
#include "../llmc/sandbox/sandbox_process.h"  /* sandbox_process_read, sandbox_process_shut */
#include "../llmc/sandbox/sandbox_run.h"      /* SandboxRun, SandboxProgram, sandbox_run_end, sandbox_run_begin, ... */
#include "files.h"                            /* files_assert_error, files_directory, files_path, files_put, ... */

static Sandbox box;

/* Opens the sandbox of a kind, or skips the test. */
static void open_box(int kind) {
    Error e;
    SandboxOptions o = sandbox_defaults();
    o.kind = kind;
    o.workers = 2;
    if (sandbox_open(&box, &o, &e)) return;
    if (kind == SANDBOX_NONE) fail_msg("%s", e.text);
    print_message("test_sandbox: skipped, because this machine refuses it: %s\n", e.text);
    files_assert_error(&e, kind == SANDBOX_BWRAP ? "--sandbox landlock" : "--sandbox");
    skip();
}

static SandboxRun run_of(const SandboxProgram *p) {
    SandboxRun r;
    sandbox_run_begin(&box, &r, p);
    while (!sandbox_run_step(&r)) sandbox_wait(&r.session, 1);
    return r;
}

static SandboxRun run_python(const char *source, const char *input, double seconds) {
    const SandboxProgram p = {.language = "python", .source = source, .input = input, .seconds = seconds};
    return run_of(&p);
}

static void expect(const char *source, double seconds, SandboxOutcome outcome, const char *output) {
    SandboxRun r = run_python(source, "first\nsecond\n", seconds);
    if (r.outcome != outcome)
        fail_msg("%s: %s, not %s; status %d, errors: %s%s", source, sandbox_outcome_name(r.outcome),
                 sandbox_outcome_name(outcome), r.status, r.errors.text, r.failure.text);
    if (output) assert_string_equal(r.output.text, output);
    sandbox_run_end(&box, &r);
}

/* ---- without a sandbox --------------------------------------------------------------------------------------------- */

static int word_at(const SandboxCommand *c, const char *word) {
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->word[i], word)) return i;
    return -1;
}

/* Checks that words stand one after the other on the command line. */
static void assert_words(const SandboxCommand *c, const char *const *words) {
    for (int i = 0; i < c->count; i++) {
        int n = 0;
        while (words[n] && i + n < c->count && !strcmp(c->word[i + n], words[n])) n++;
        if (!words[n]) return;
    }
    fail_msg("the command line lacks %s %s", words[0], words[1] ? words[1] : "");
}

/* The command line of bubblewrap has the protections of its manual page, in the order that it needs. */
static void test_command_line(void **state) {
    (void)state;
    SandboxCommand c = {0};
    sandbox_command_bwrap(&c, "/usr/bin/bwrap", 9, NULL);
    sandbox_command_python(&c, "python3", "pass", 64, 1024);
    static const char *const single[] = {"--unshare-all",     "--unshare-user", "--disable-userns",
                                         "--die-with-parent", "--new-session",  "--clearenv"};
    for (size_t i = 0; i < sizeof single / sizeof *single; i++) assert_true(word_at(&c, single[i]) > 0);
    assert_words(&c, (const char *const[]){"--uid", "65534", "--gid", "65534", NULL});
    assert_words(&c, (const char *const[]){"--cap-drop", "ALL", NULL});
    assert_words(&c, (const char *const[]){"--ro-bind", "/usr", "/usr", NULL});
    assert_words(&c, (const char *const[]){"--size", "67108864", "--tmpfs", "/tmp", NULL});
    assert_words(&c, (const char *const[]){"--remount-ro", "/proc", NULL});
    assert_words(&c, (const char *const[]){"--remount-ro", "/", NULL});
    assert_words(&c, (const char *const[]){"--setenv", "PATH", "/usr/bin:/bin", NULL});
    assert_words(&c, (const char *const[]){"--seccomp", "9", "--", "python3", "-S", "-s", "-B", "-c", "pass", "64",
                                           "1024", NULL});
    assert_int_equal(word_at(&c, "--bind"), -1);
    assert_int_equal(word_at(&c, "--share-net"), -1);
    assert_true(word_at(&c, "--proc") < word_at(&c, "--remount-ro"));
    for (int i = word_at(&c, "--"); i >= 0; i--) { /* nothing of the user's is mounted */
        assert_null(strstr(c.word[i], "home"));
        assert_null(strstr(c.word[i], "/root"));
    }
    assert_null(c.word[c.count]);
    sandbox_command_free(&c);
    sandbox_command_other(&c, "env A='b c'");
    sandbox_command_python(&c, "python3", "pass", 64, 1024);
    assert_words(&c, (const char *const[]){"/bin/sh", "-c", "exec env A='b c' \"$@\"", "sh", "python3", NULL});
    sandbox_command_free(&c);
}

/* A command has the limits of the interpreter also in a sandbox that sets none, as that of a user's command. */
static void test_limits_of_a_command(void **state) {
    (void)state;
    SandboxCommand c = {0};
    int status;
    sandbox_command_shell(&c, "test $(ulimit -v) = 81920 && test $(ulimit -Hv) = 81920", 64, 80);
    const pid_t pid = fork();
    if (!pid) {
        execv(c.word[0], c.word);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    sandbox_command_free(&c);
}

/* A system call under the filter, in a child: its errno, 0 if it succeeds, or minus the signal that ended the child. */
static int filtered(bool strict, long number, long a, long b, long c, long d) {
    SandboxFilter f;
    Error e;
    int status;
    if (!sandbox_filter_open(&f, strict, &e)) fail_msg("%s", e.text);
    const pid_t pid = fork();
    if (!pid) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) _exit(250);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &f.program, 0, 0)) _exit(251);
        const long result = syscall(number, a, b, c, d);
        if ((number == SYS_fork || number == SYS_clone) && !result) _exit(0);
        _exit(result < 0 ? errno : 0);
    }
    sandbox_filter_close(&f);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_filter(void **state) {
    (void)state;
    static const long refused[] = {SYS_socket,       SYS_ptrace,         SYS_mount,           SYS_unshare, SYS_setns,
                                   SYS_bpf,          SYS_io_uring_setup, SYS_keyctl,          SYS_chroot,  SYS_reboot,
                                   SYS_memfd_create, SYS_shmget,         SYS_perf_event_open, SYS_kcmp,    SYS_connect};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(filtered(false, refused[i], 0, 0, 0, 0), EPERM);
    static const long strict[] = {SYS_kill,     SYS_setsid, SYS_setpgid,  SYS_chmod,
                                  SYS_truncate, SYS_tgkill, SYS_fchmodat, SYS_rt_sigqueueinfo};
    for (size_t i = 0; i < sizeof strict / sizeof *strict; i++)
        assert_int_equal(filtered(true, strict[i], 0, 0, 0, 0), EPERM);
    assert_int_equal(filtered(false, SYS_kill, getpid(), 0, 0, 0), 0);
    assert_int_equal(filtered(false, SYS_getpid, 0, 0, 0, 0), 0);
    int ends[2];
    assert_int_equal(filtered(false, SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, (long)ends), 0);
    assert_int_equal(filtered(false, SYS_clone3, 0, 0, 0, 0), ENOSYS);
    assert_int_equal(filtered(false, SYS_clone, SIGCHLD, 0, 0, 0), 0);
    assert_int_equal(filtered(false, SYS_clone, SIGCHLD | CLONE_NEWUSER, 0, 0, 0), EPERM);
    assert_int_equal(filtered(false, SYS_clone, SIGCHLD | CLONE_NEWNET | CLONE_NEWPID, 0, 0, 0), EPERM);
    assert_int_equal(filtered(true, SYS_clone, SIGCHLD | CLONE_PARENT, 0, 0, 0), EPERM);
    /* ioctl's request has 32 bits: one above them must not pass the filter */
    assert_int_equal(filtered(false, SYS_ioctl, 0, 0x5412, 0, 0), EPERM);
    assert_int_equal(filtered(false, SYS_ioctl, 0, 0x100005412, 0, 0), EPERM);
    assert_int_equal(filtered(false, SYS_personality, 0x40000, 0, 0, 0), EPERM);
    assert_int_equal(filtered(true, SYS_prlimit64, 1, RLIMIT_CPU, 0, 0), EPERM);
#ifdef __x86_64__
    assert_int_equal(filtered(false, 0x40000000 | SYS_getpid, 0, 0, 0, 0), -SIGSYS); /* the x32 call of getpid */
#endif
}

/* What each version of Landlock adds (landlock.rst). */
static void test_landlock_versions(void **state) {
    (void)state;
    const SandboxRules one = sandbox_landlock_rules(1), three = sandbox_landlock_rules(3),
                       six = sandbox_landlock_rules(6);
    assert_int_equal(one.files, 0x1FFF);
    assert_int_equal(three.files, 0x7FFF);
    assert_int_equal(six.files, 0xFFFF);
    assert_int_equal(one.network + one.scoped, 0);
    assert_int_equal(six.network, 3);
    assert_int_equal(six.scoped, 3);
}

/* ---- programs ------------------------------------------------------------------------------------------------------ */

static int processes_of(const char *word) {
    char line[200];
    snprintf(line, sizeof line, "test $(grep -zl '%s' /proc/[0-9]*/environ 2>/dev/null | wc -l) = 0", word);
    return system(line);
}

static void programs(int kind) {
    open_box(kind);
    expect("print(input()[::-1], input())", 10, SANDBOX_PASS, "tsrif second\n");
    expect("import sys\nprint('a\\0b'); sys.exit(3)", 10, SANDBOX_ERROR, "a");
    expect("def f(:", 10, SANDBOX_COMPILE, "");
    expect("while True: pass", 0.5, SANDBOX_TIMEOUT, NULL);
    expect("import time; time.sleep(100)", 0.3, SANDBOX_TIMEOUT, NULL);
    expect("x = bytearray(1 << 31)", 10, SANDBOX_MEMORY, "");
    expect("while True: print('y' * 100000)", 10, SANDBOX_OUTPUT_LIMIT, NULL);
    expect("print(len({'a', 'b', 'c'}), list({'a', 'b', 'c'}) == list({'a', 'b', 'c'}))", 10, SANDBOX_PASS, "3 True\n");
    expect("if __name__ == '__main__': print(1)", 10, SANDBOX_PASS, "1\n");
    expect("import threading\nthreading.Thread(target=lambda: print('later')).start()", 10, SANDBOX_PASS, "later\n");
    expect("raise SystemExit('bad')", 10, SANDBOX_ERROR, "");
    SandboxRun r = run_python("1 / 0", "", 10);
    assert_int_equal(r.outcome, SANDBOX_ERROR);
    assert_string_equal(r.errors.text, "Traceback (most recent call last):\n  File \"main.py\", line 1, in <module>\n"
                                       "ZeroDivisionError: division by zero\n");
    sandbox_run_end(&box, &r);

    const char *c =
        "#include <stdio.h>\nint main(void) { int a; return scanf(\"%d\", &a) == 1 && printf(\"%d\", 2 * a) ? 0 : 1; }";
    const SandboxProgram program = {.language = "c", .source = c, .input = "21", .seconds = 10};
    r = run_of(&program);
    if (r.outcome) fail_msg("%s: %s", sandbox_outcome_name(r.outcome), r.errors.text);
    assert_string_equal(r.output.text, "42");
    sandbox_run_end(&box, &r);
    const SandboxProgram broken = {.language = "c", .source = "int main(void) { return x; }", .seconds = 10};
    r = run_of(&broken);
    assert_int_equal(r.outcome, SANDBOX_COMPILE);
    assert_non_null(strstr(r.errors.text, "undeclared"));
    sandbox_run_end(&box, &r);
    json_t *files = json_pack("{s:s,s:s}", "a.txt", "one\n", "sub/b.txt", "two\n");
    const SandboxProgram command = {
        .language = "command", .source = "cat a.txt sub/b.txt", .files = files, .seconds = 10};
    r = run_of(&command);
    assert_string_equal(r.output.text, "one\ntwo\n");
    sandbox_run_end(&box, &r);
    json_decref(files);
}

/* What a program in a sandbox must not be able to do; each prints "out" if it has done it. */
static void escapes(void) {
    char folder[300];
    snprintf(folder, sizeof folder,
             "try: print('out' if open('%s/secret').read() else 'in')\nexcept OSError: print('in')", files_directory);
    files_put(files_path("secret"), "secret", 6);
    static const char *const held[] = {
        "import socket\ntry: socket.socket(); print('out')\nexcept OSError: print('in')",
        "import os\ntry: open('/usr/bin/x', 'w'); print('out')\nexcept OSError: print('in')",
        "import os\ntry: open('/proc/1/environ').read(); print('out' if os.getpid() > 1000 else 'in')\nexcept OSError: print('in')",
        "import os\nprint('in' if set(os.environ) <= {'PATH','HOME','LANG','PYTHONUTF8','PYTHONHASHSEED','TMPDIR','PWD'} else "
        "'out')",
        "import os\nopen_ = []\nfor i in range(3, 1000):\n  try: os.fstat(i); open_.append(i)\n  except OSError: pass\n"
        "print('out' if open_ else 'in')",
        "import os\ntry: os.chroot('.'); print('out')\nexcept OSError: print('in')",
        "import os\nprint('out' if os.getuid() == 0 else 'in')",
        "import ctypes\nprint('out' if ctypes.CDLL(None).unshare(0x10000000) == 0 else 'in')",
    };
    expect(folder, 10, SANDBOX_PASS, "in\n");
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) expect(held[i], 10, SANDBOX_PASS, "in\n");
    /* a descendant that has left its group ends with the run */
    expect("import os, time\nos.environ['LLMC_SANDBOX_ESCAPE'] = '1'\n"
           "if os.fork() == 0:\n  try: os.setsid()\n  except OSError: pass\n"
           "  os.execvp('sleep', ['sleep', '1000'])\ntime.sleep(0.3)",
           10, SANDBOX_PASS, "");
    const double start = clock_seconds();
    while (processes_of("LLMC_SANDBOX_ESCAPE") && clock_seconds() < start + 2) usleep(10000);
    assert_int_equal(processes_of("LLMC_SANDBOX_ESCAPE"), 0);
    /* a fork bomb is over with its time */
    expect("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", 0.5, SANDBOX_TIMEOUT, NULL);
    expect("print('next')", 10, SANDBOX_PASS, "next\n");
}

static void test_bwrap(void **state) {
    (void)state;
    programs(SANDBOX_BWRAP);
    escapes();
    expect("import os\nos.mkfifo('/tmp/x'); print(os.getuid(), os.listdir('/etc'), os.getpid() < 100)", 10,
           SANDBOX_PASS, "65534 ['passwd'] True\n");
    expect("open('/proc/self/oom_score_adj', 'w')", 10, SANDBOX_ERROR, "");
}

static void test_landlock(void **state) {
    (void)state;
    programs(SANDBOX_LANDLOCK);
    escapes();
    expect("import os\ntry: os.kill(os.getppid(), 0); print('out')\nexcept OSError: print('in')", 10, SANDBOX_PASS,
           "in\n");
}

static void test_none(void **state) {
    (void)state;
    programs(SANDBOX_NONE);
}

/* More workers than this process may have files for get its hard limit, and the pool is full. */
static void test_open_files(void **state) {
    (void)state;
    Error e;
    struct rlimit before, few;
    SandboxOptions o = sandbox_defaults();
    o.kind = SANDBOX_NONE;
    o.workers = 10;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = 40;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    const bool ok = sandbox_open(&box, &o, &e);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    if (!ok) fail_msg("%s", e.text);
    assert_int_equal(box.ready, 20);
}

/* A command of the user's is not trusted to be a sandbox: `env` runs the words that follow it, and fails the self-test. */
static void test_command(void **state) {
    (void)state;
    Error e;
    SandboxOptions o = sandbox_defaults();
    o.command = "env A='b c'";
    assert_false(sandbox_open(&box, &o, &e));
    files_assert_error(&e, "sandbox: command: a program in it has got a connection, which must be refused");
    o.command = "false";
    assert_false(sandbox_open(&box, &o, &e));
    files_assert_error(&e, "sandbox: false: did not start");
    o.command = NULL;
    o.kind = SANDBOX_BWRAP;
    char *path = xstrdup(getenv("PATH"));
    setenv("PATH", "/nowhere", 1);
    assert_false(sandbox_open(&box, &o, &e));
    files_assert_error(&e, "sandbox: bwrap: is not installed");
    setenv("PATH", path, 1);
    free(path);
}

/* What Docker's default seccomp profile refuses to a container without further capabilities, of what concerns a sandbox
 * (https://docs.docker.com/engine/security/seccomp/). dev/check_code.sh reads the profile itself. */
static void load_container_filter(void) {
    static const uint64_t spaces =
        CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
    static const char refused[] =
        "acct add_key bpf clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick "
        "get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load "
        "kexec_load keyctl lookup_dcookie mbind mount mount_setattr move_mount move_pages open_by_handle_at open_tree "
        "perf_event_open pidfd_getfd pivot_root process_madvise quotactl quotactl_fd reboot request_key set_mempolicy "
        "setdomainname sethostname setns settimeofday swapoff swapon syslog umount2 unshare userfaultfd vhangup";
    scmp_filter_ctx f = seccomp_init(SCMP_ACT_ALLOW);
    int failure = sandbox_filter_refuse(f, refused);
    if (!failure) failure = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    for (int i = 0; !failure && i < 64; i++)
        if (spaces >> i & 1) failure = sandbox_filter_masked(f, SCMP_SYS(clone), 0, 1ull << i, 1ull << i);
    if (!failure) failure = sandbox_filter_masked(f, SCMP_SYS(personality), 0, ADDR_NO_RANDOMIZE, ADDR_NO_RANDOMIZE);
    if (failure || seccomp_load(f)) _exit(2);
    seccomp_release(f);
}

/* Calls `report` in a child under that filter, and returns what it has written; to be freed. */
static char *in_container(void (*report)(FILE *)) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    const pid_t pid = fork();
    if (!pid) {
        FILE *to = fdopen(ends[1], "w");
        load_container_filter();
        report(to);
        _exit(fclose(to) != 0);
    }
    close(ends[1]);
    TextBuffer text = {0};
    sandbox_process_read(&ends[0], &text, 1 << 16);
    sandbox_process_shut(&ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return text.text;
}

static void report_default(FILE *to) {
    Error e;
    const SandboxOptions o = sandbox_defaults();
    fputs(sandbox_open(&box, &o, &e) ? "it was opened" : e.text, to);
}

/* Where namespaces are refused, the default fails with the line that says what to do, and takes no weaker kind. */
static void test_fails_closed(void **state) {
    (void)state;
    char *text = in_container(report_default);
    assert_string_equal(text,
                        "sandbox: bwrap: no user namespace here (Operation not permitted); allow them, or --sandbox "
                        "landlock, or --sandbox none to run the model's programs unprotected");
    free(text);
}

/* Writes the outcomes and outputs of programs in the sandbox without namespaces. */
static void report_landlock(FILE *to) {
    static const char *const source[] = {
        "print(input())",
        "import socket\ntry: socket.socket(); print('out')\nexcept OSError: print('in')",
        "import os\ntry: open('/usr/bin/x', 'w'); print('out')\nexcept OSError: print('in')",
        "try: open('/etc/passwd'); print('out')\nexcept OSError: print('in')",
        "import os\ntry: os.kill(os.getppid(), 0); print('out')\nexcept OSError: print('in')",
        "import os\nif os.fork() == 0: print('child')\nelse: os.wait()",
        "x = bytearray(1 << 31)",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"};
    Error e;
    SandboxOptions o = sandbox_defaults();
    o.kind = SANDBOX_LANDLOCK;
    o.workers = 1;
    if (!sandbox_open(&box, &o, &e)) {
        fputs(e.text, to);
        return;
    }
    for (size_t i = 0; i < sizeof source / sizeof *source; i++) {
        SandboxRun r = run_python(source[i], "first\n", i == 7 ? 0.5 : 10);
        fprintf(to, "%s %s", sandbox_outcome_name(r.outcome), r.output.length ? r.output.text : "\n");
        sandbox_run_end(&box, &r);
    }
    sandbox_close(&box);
}

/* In a container that refuses namespaces the sandbox without them passes its self-test, runs programs and holds them. */
static void test_landlock_in_container(void **state) {
    (void)state;
    open_box(SANDBOX_LANDLOCK);
    sandbox_close(&box);
    char *text = in_container(report_landlock);
    assert_string_equal(text, "pass first\npass in\npass in\npass in\npass in\npass child\nmemory \ntimeout \n");
    free(text);
}

static int close_box(void **state) {
    (void)state;
    sandbox_close(&box);
    return 0;
}

/* The number of processes whose command line ends with this word. */
static int processes_with(const char *word) {
    int count = 0;
    DIR *all = opendir("/proc");
    for (const struct dirent *entry; all && (entry = readdir(all));) {
        char path[300], line[1 << 16];
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        const int file = entry->d_name[0] < '0' || entry->d_name[0] > '9' ? -1 : open(path, O_RDONLY);
        if (file < 0) continue;
        const ssize_t n = read(file, line, sizeof line - 1), length = (ssize_t)strlen(word);
        close(file);
        count += n > length && !memcmp(line + n - 1 - length, word, (size_t)length);
    }
    if (all) closedir(all);
    return count;
}

/* Programs of a process that is killed, at the start of the sandbox and while they run, end with it. */
static void killed(int kind) {
    Error e;
    SandboxOptions o = sandbox_defaults();
    o.kind = kind;
    o.workers = 2;
    open_box(kind);
    sandbox_close(&box);
    for (int i = 0; i < 4; i++) {
        char word[32];
        o.memory = 700 + getpid() % 1000 + i;
        snprintf(word, sizeof word, "%lld", (long long)o.memory);
        const pid_t pid = fork();
        if (!pid) {
            static SandboxRun r[2];
            const SandboxProgram p = {.language = "python",
                                      .source = "import os, time\nos.fork()\nwhile True: time.sleep(1)",
                                      .seconds = 100};
            if (!sandbox_open(&box, &o, &e)) _exit(1);
            for (int k = 0; k < 2; k++) sandbox_run_begin(&box, &r[k], &p);
            for (;;)
                for (int k = 0; k < 2; k++) sandbox_run_step(&r[k]);
        }
        usleep(i ? 100000u * (unsigned)i * (unsigned)i : 5000);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        const double until = clock_seconds() + 10;
        while (processes_with(word) && clock_seconds() < until) usleep(10000);
        assert_int_equal(processes_with(word), 0);
    }
}

static void test_killed_bwrap(void **state) {
    (void)state;
    killed(SANDBOX_BWRAP);
}

static void test_killed_landlock(void **state) {
    (void)state;
    killed(SANDBOX_LANDLOCK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_command_line),
        cmocka_unit_test(test_limits_of_a_command),
        cmocka_unit_test(test_filter),
        cmocka_unit_test(test_landlock_versions),
        cmocka_unit_test_teardown(test_none, close_box),
        cmocka_unit_test_teardown(test_bwrap, close_box),
        cmocka_unit_test_teardown(test_landlock, close_box),
        cmocka_unit_test_teardown(test_open_files, close_box),
        cmocka_unit_test(test_command),
        cmocka_unit_test(test_fails_closed),
        cmocka_unit_test(test_landlock_in_container),
        cmocka_unit_test_teardown(test_killed_bwrap, close_box),
        cmocka_unit_test_teardown(test_killed_landlock, close_box),
    };
    return cmocka_run_group_tests(tests, files_setup, files_teardown);
}

/* sandbox_landlock.h - the Landlock rules of the sandbox without namespaces: which files a program may read and write.
 *
 * A program may read and execute below /usr and what links into it, read and write below one folder of its own, and use
 * /dev/null, /dev/zero, /dev/random and /dev/urandom. Landlock 4 (Linux 6.7) also refuses TCP, and Landlock 6 (Linux 6.12)
 * signals and abstract sockets to the outside; the seccomp filter refuses them on every kernel. Landlock does not restrict
 * changes of a file's mode, owner, times or attributes, which is why the filter's stricter list has them.
 *
 *     const int rules = sandbox_landlock_open("/tmp/work", NULL, &e);
 *     if (rules < 0) die("%s", e.text);
 *     close(rules);
 *
 * Source: Linux, Documentation/userspace-api/landlock.rst. The header of an older kernel lacks the later fields and flags,
 * so they are defined here.
 */
#ifndef LLMC_SANDBOX_SANDBOX_LANDLOCK_H
#define LLMC_SANDBOX_SANDBOX_LANDLOCK_H

#include "../base/error.h" /* error_set, Error */
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

/* struct landlock_ruleset_attr of version 6. */
typedef struct SandboxRules {
    uint64_t files, network, scoped;
} SandboxRules;

enum {
    SANDBOX_EXECUTE = 1 << 0,
    SANDBOX_WRITE = 1 << 1,
    SANDBOX_READ = 1 << 2,
    SANDBOX_LIST = 1 << 3,
    SANDBOX_TRUNCATE = 1 << 14,
    SANDBOX_IOCTL = 1 << 15
};

/* The version of the kernel's Landlock; 0: there is none, or it is switched off. */
static inline int sandbox_landlock_version(void) {
    const long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return version > 0 ? (int)version : 0;
}

/* What a version can restrict: fields that it does not have stay 0. */
static inline SandboxRules sandbox_landlock_rules(int version) {
    SandboxRules rules = {.files = (1 << 13) - 1};
    if (version >= 2) rules.files |= 1 << 13;
    if (version >= 3) rules.files |= SANDBOX_TRUNCATE;
    if (version >= 4) rules.network = 3;
    if (version >= 5) rules.files |= SANDBOX_IOCTL;
    if (version >= 6) rules.scoped = 3;
    return rules;
}

/* Allows `access` below a path. A path that does not exist is left out. */
static inline bool sandbox_landlock_allow(int rules, const char *path, uint64_t access, Error *e) {
    const int file = open(path, O_PATH | O_CLOEXEC);
    if (file < 0) return errno == ENOENT || error_set(e, "sandbox: landlock: %s: %s", path, strerror(errno));
    const struct landlock_path_beneath_attr below = {.allowed_access = access, .parent_fd = file};
    const bool ok = !syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &below, 0);
    const int failure = errno;
    close(file);
    return ok || error_set(e, "sandbox: landlock: %s: %s", path, strerror(failure));
}

/* Returns a file descriptor with the rules, of which `folder` may be written and `shown`, if it is not NULL, be read; -1 with
 * an error if there can be none. */
static inline int sandbox_landlock_open(const char *folder, const char *shown, Error *e) {
    static const char *const read[] = {"/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32"};
    static const char *const device[] = {"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"};
    const int version = sandbox_landlock_version();
    if (!version) {
        error_set(e,
                  "sandbox: landlock: this kernel has none (%s); use --sandbox bwrap, or --sandbox none to run the "
                  "model's programs unprotected",
                  strerror(errno));
        return -1;
    }
    const SandboxRules all = sandbox_landlock_rules(version);
    const size_t size = version >= 6 ? sizeof all : version >= 4 ? 2 * sizeof all.files : sizeof all.files;
    const int rules = (int)syscall(SYS_landlock_create_ruleset, &all, size, 0);
    if (rules < 0) {
        error_set(e, "sandbox: landlock: %s", strerror(errno));
        return -1;
    }
    bool ok = sandbox_landlock_allow(rules, folder, all.files, e);
    ok = ok && (!shown || sandbox_landlock_allow(rules, shown, SANDBOX_EXECUTE | SANDBOX_READ | SANDBOX_LIST, e));
    for (size_t i = 0; ok && i < sizeof read / sizeof *read; i++)
        ok = sandbox_landlock_allow(rules, read[i], SANDBOX_EXECUTE | SANDBOX_READ | SANDBOX_LIST, e);
    for (size_t i = 0; ok && i < sizeof device / sizeof *device; i++)
        ok = sandbox_landlock_allow(rules, device[i], (SANDBOX_READ | SANDBOX_WRITE | SANDBOX_TRUNCATE) & all.files, e);
    if (ok) return rules;
    close(rules);
    return -1;
}

#endif

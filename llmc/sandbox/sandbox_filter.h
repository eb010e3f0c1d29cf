/* sandbox_filter.h - the seccomp filter of the sandbox, by libseccomp: what a program may not ask the kernel for.
 *
 * Every system call is allowed except those listed here, which fail with EPERM as if the program lacked the right. clone3
 * fails with ENOSYS, so that the C library falls back to clone, whose flags a filter can see. A system call of another
 * architecture (32-bit or x32 code) ends the program. A rule compares the low 32 bits of flags and of ioctl's request, as
 * the kernel does; a rule on all 64 bits could be passed by setting a high one.
 *
 *     SandboxFilter f;
 *     if (!sandbox_filter_open(&f, false, &e)) die("%s", e.text);
 *     sandbox_filter_close(&f);
 *
 * The stricter list is for a sandbox without namespaces, where the processes of the same user are in reach: no signals, no
 * new process groups, no limits, priorities or file attributes of others. Such a program can end itself by abort() all the
 * same, since that ends with an illegal instruction if its signal does not arrive.
 *
 * Source: bubblewrap(1), seccomp(2); Flatpak's filter for the list (common/flatpak-run.c, setup_seccomp()); CVE-2017-5226
 * and CVE-2019-10063 for ioctl.
 */
#ifndef LLMC_SANDBOX_SANDBOX_FILTER_H
#define LLMC_SANDBOX_SANDBOX_FILTER_H

#include "../base/error.h" /* error_set, Error, xmalloc */
#include <linux/filter.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

/* A filter as the kernel reads it. */
typedef struct SandboxFilter {
    struct sock_fprog program;
} SandboxFilter;

/* Calls that are refused whatever their arguments are; separated by spaces. */
#define SANDBOX_REFUSED                                                                                                \
    "socket connect bind listen ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd bpf "       \
    "perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key "          \
    "mount umount umount2 move_mount open_tree fsopen fsmount fsconfig fspick mount_setattr pivot_root chroot "        \
    "unshare setns open_by_handle_at name_to_handle_at init_module finit_module delete_module create_module "          \
    "kexec_load kexec_file_load reboot swapon swapoff settimeofday clock_settime clock_settime64 clock_adjtime "       \
    "adjtimex stime syslog quotactl quotactl_fd acct fanotify_init fanotify_mark lookup_dcookie "                      \
    "memfd_create memfd_secret shmget shmat semget msgget mq_open vhangup iopl ioperm nfsservctl uselib "              \
    "move_pages migrate_pages"

/* Those that the stricter list adds. */
#define SANDBOX_REFUSED_STRICT                                                                                         \
    "setsid setpgid kill tkill tgkill pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo setpriority ioprio_set "     \
    "sched_setaffinity sched_setscheduler sched_setparam sched_setattr process_mrelease "                              \
    "chmod fchmodat fchmodat2 chown lchown fchown fchownat setxattr lsetxattr fsetxattr removexattr lremovexattr "     \
    "fremovexattr utime utimes utimensat futimesat truncate mknod mknodat"

/* Adds a rule for each name of a list. A name that this libseccomp does not have is a call that its kernel may have under
 * a number that is the same on every architecture; fchmodat2 is the only one here that is newer than libseccomp 2.5. */
static inline int sandbox_filter_refuse(scmp_filter_ctx filter, const char *names) {
    int failure = 0;
    while (*names && !failure) {
        char name[32];
        const size_t n = strcspn(names, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, names);
        int call = seccomp_syscall_resolve_name(name);
        if (call == __NR_SCMP_ERROR && !strcmp(name, "fchmodat2")) call = 452;
        if (call != __NR_SCMP_ERROR) failure = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 0);
        names += n + (names[n] == ' ');
    }
    return failure;
}

/* Adds a rule for calls whose argument, under a mask, has this value. */
static inline int sandbox_filter_masked(scmp_filter_ctx filter, int call, unsigned argument, uint64_t mask,
                                        uint64_t value) {
    const struct scmp_arg_cmp compare = {.arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
    return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), call, 1, &compare);
}

/* Adds a rule for calls whose first argument is not 0. */
static inline int sandbox_filter_not_zero(scmp_filter_ctx filter, int call) {
    const struct scmp_arg_cmp compare = {.arg = 0, .op = SCMP_CMP_NE, .datum_a = 0, .datum_b = 0};
    return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), call, 1, &compare);
}

/* Adds rules that depend on arguments. */
static inline int sandbox_filter_arguments(scmp_filter_ctx f, bool strict) {
    static const uint64_t low = 0xFFFFFFFF;
    static const unsigned spaces[] = {CLONE_NEWNS,   CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC,
                                      CLONE_NEWUSER, CLONE_NEWPID,    CLONE_NEWNET};
    static const unsigned requests[] = {0x5412, 0x541C, 0x8901, 0x8902}; /* TIOCSTI TIOCLINUX FIOSETOWN SIOCSPGRP */
    static const unsigned owners[] = {8, 15, 10};                        /* F_SETOWN F_SETOWN_EX F_SETSIG */
    int failure = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    for (size_t i = 0; !failure && i < sizeof spaces / sizeof *spaces; i++)
        failure = sandbox_filter_masked(f, SCMP_SYS(clone), 0, spaces[i], spaces[i]);
    for (size_t i = 0; !failure && i < sizeof requests / sizeof *requests; i++)
        failure = sandbox_filter_masked(f, SCMP_SYS(ioctl), 1, low, requests[i]);
    if (!failure) failure = sandbox_filter_not_zero(f, SCMP_SYS(personality));
    if (!strict) return failure;
    for (size_t i = 0; !failure && i < sizeof owners / sizeof *owners; i++)
        failure = sandbox_filter_masked(f, SCMP_SYS(fcntl), 1, low, owners[i]);
    if (!failure) failure = sandbox_filter_masked(f, SCMP_SYS(clone), 0, CLONE_PARENT, CLONE_PARENT);
    if (!failure) failure = sandbox_filter_not_zero(f, SCMP_SYS(prlimit64));
    return failure;
}

static inline void sandbox_filter_close(SandboxFilter *f) {
    free(f->program.filter);
    *f = (SandboxFilter){0};
}

/* Reads the filter's instructions back from the file that libseccomp has written. */
static inline bool sandbox_filter_read(SandboxFilter *f, int file, Error *e) {
    const off_t size = lseek(file, 0, SEEK_END);
    if (size <= 0 || lseek(file, 0, SEEK_SET)) return error_set(e, "sandbox: seccomp: %s", strerror(errno));
    f->program.len = (unsigned short)((size_t)size / sizeof *f->program.filter);
    f->program.filter = (struct sock_filter *)xmalloc((size_t)size);
    return read(file, f->program.filter, (size_t)size) == size || error_set(e, "sandbox: seccomp: cannot be read back");
}

/* Makes the filter. strict: for a sandbox without namespaces. */
static inline bool sandbox_filter_open(SandboxFilter *f, bool strict, Error *e) {
    *f = (SandboxFilter){0};
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    const int file = filter ? memfd_create("llmc-seccomp", MFD_CLOEXEC) : -1;
    int failure = file < 0 ? -errno : seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!failure) failure = sandbox_filter_refuse(filter, SANDBOX_REFUSED);
    if (!failure && strict) failure = sandbox_filter_refuse(filter, SANDBOX_REFUSED_STRICT);
    if (!failure) failure = sandbox_filter_arguments(filter, strict);
    if (!failure) failure = seccomp_export_bpf(filter, file);
    bool ok = !failure || error_set(e, "sandbox: seccomp: %s", strerror(-failure));
    ok = ok && sandbox_filter_read(f, file, e);
    if (filter) seccomp_release(filter);
    if (file >= 0) close(file);
    if (!ok) sandbox_filter_close(f);
    return ok;
}

/* A file that holds the filter, from its beginning, for `bwrap --seccomp FD`. -1 with errno if there can be none. */
static inline int sandbox_filter_file(const SandboxFilter *f) {
    const size_t size = f->program.len * sizeof *f->program.filter;
    const int file = memfd_create("llmc-seccomp", MFD_CLOEXEC);
    if (file < 0) return -1;
    if (write(file, f->program.filter, size) == (ssize_t)size && !lseek(file, 0, SEEK_SET)) return file;
    close(file);
    return -1;
}

#endif

/* seccomp_profile.c - runs a command as in a container of Docker: under a seccomp profile in Docker's format, and, if the
 * caller is root, without the capabilities that a container lacks.
 *
 *     build/seccomp_profile default.json COMMAND ARGUMENT...
 *
 * Docker's default profile is seccomp/default.json of https://github.com/moby/profiles. Its entries are read for this
 * architecture, for a new kernel, and for the capabilities of a container (moby, oci/caps/defaults.go). Calls that
 * this libseccomp does not know are left out: they are refused like all that no entry allows.
 */
#include "../llmc/base/error.h" /* die, usage_error */
#include <errno.h>
#include <jansson.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
    const char *name;
    int number;
} kept[] = {{"CAP_CHOWN", CAP_CHOWN},
            {"CAP_DAC_OVERRIDE", CAP_DAC_OVERRIDE},
            {"CAP_FSETID", CAP_FSETID},
            {"CAP_FOWNER", CAP_FOWNER},
            {"CAP_MKNOD", CAP_MKNOD},
            {"CAP_NET_RAW", CAP_NET_RAW},
            {"CAP_SETGID", CAP_SETGID},
            {"CAP_SETUID", CAP_SETUID},
            {"CAP_SETFCAP", CAP_SETFCAP},
            {"CAP_SETPCAP", CAP_SETPCAP},
            {"CAP_KILL", CAP_KILL},
            {"CAP_NET_BIND_SERVICE", CAP_NET_BIND_SERVICE},
            {"CAP_AUDIT_WRITE", CAP_AUDIT_WRITE},
            {"CAP_SYS_CHROOT", CAP_SYS_CHROOT}};
enum { KEPT = sizeof kept / sizeof *kept };

#ifdef __aarch64__
#define ARCHITECTURE "arm64"
#else
#define ARCHITECTURE "amd64"
#endif

static bool equals(const json_t *value, const char *text) {
    const char *given = json_string_value(value);
    return given && !strcmp(given, text);
}

static bool has_capability(const json_t *name) {
    for (int i = 0; i < KEPT; i++)
        if (equals(name, kept[i].name)) return true;
    return false;
}

/* Whether an entry is for this architecture and these capabilities. */
static bool applies(const json_t *entry) {
    const json_t *includes = json_object_get(entry, "includes"), *excludes = json_object_get(entry, "excludes");
    const json_t *only = json_object_get(includes, "arches"), *never = json_object_get(excludes, "arches"), *item;
    size_t i;
    bool here = !json_array_size(only);
    json_array_foreach(only, i, item) here = here || equals(item, ARCHITECTURE);
    json_array_foreach(never, i, item) here = here && !equals(item, ARCHITECTURE);
    json_array_foreach(json_object_get(includes, "caps"), i, item) here = here && has_capability(item);
    json_array_foreach(json_object_get(excludes, "caps"), i, item) here = here && !has_capability(item);
    return here;
}

static uint64_t integer(const json_t *object, const char *key) {
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static struct scmp_arg_cmp comparison(const json_t *argument) {
    static const struct {
        const char *name;
        enum scmp_compare op;
    } ops[] = {{"SCMP_CMP_NE", SCMP_CMP_NE},
               {"SCMP_CMP_LT", SCMP_CMP_LT},
               {"SCMP_CMP_LE", SCMP_CMP_LE},
               {"SCMP_CMP_EQ", SCMP_CMP_EQ},
               {"SCMP_CMP_GE", SCMP_CMP_GE},
               {"SCMP_CMP_GT", SCMP_CMP_GT},
               {"SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ}};
    const json_t *op = json_object_get(argument, "op");
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (equals(op, ops[i].name))
            return (struct scmp_arg_cmp){.arg = (unsigned)integer(argument, "index"),
                                         .op = ops[i].op,
                                         .datum_a = integer(argument, "value"),
                                         .datum_b = integer(argument, "valueTwo")};
    die("the profile compares an argument by '%s'", json_is_string(op) ? json_string_value(op) : "");
}

/* The error number under a key, by default EPERM. The kernel knows numbers up to 4095. */
static uint32_t error_number(const json_t *from, const char *key) {
    const json_t *number = json_object_get(from, key);
    const json_int_t value = json_integer_value(number);
    if (!number || json_is_null(number)) return EPERM;
    if (!json_is_integer(number) || value < 0 || value > 4095)
        die("the profile's %s is %s; expected a whole number from 0 to 4095", key,
            json_dumps(number, JSON_ENCODE_ANY | JSON_COMPACT));
    return (uint32_t)value;
}

/* The action under a key of an entry or of the profile: to allow a call, or to refuse it with the error of the second key. */
static uint32_t action_of(const json_t *from, const char *key, const char *number_key) {
    const json_t *action = json_object_get(from, key);
    if (equals(action, "SCMP_ACT_ALLOW")) return SCMP_ACT_ALLOW;
    if (equals(action, "SCMP_ACT_ERRNO")) return SCMP_ACT_ERRNO(error_number(from, number_key));
    die("the profile's %s is '%s'; expected SCMP_ACT_ALLOW or SCMP_ACT_ERRNO", key,
        json_is_string(action) ? json_string_value(action) : "");
}

static void add_entry(scmp_filter_ctx filter, const json_t *entry) {
    const json_t *arguments = json_object_get(entry, "args"), *item;
    struct scmp_arg_cmp compare[6];
    size_t i;
    if (json_array_size(arguments) > 6) die("the profile compares more than 6 arguments");
    json_array_foreach(arguments, i, item) compare[i] = comparison(item);
    const uint32_t what = action_of(entry, "action", "errnoRet");
    json_array_foreach(json_object_get(entry, "names"), i, item) {
        const int call = seccomp_syscall_resolve_name(json_string_value(item));
        if (call == __NR_SCMP_ERROR) continue;
        const int failure = seccomp_rule_add_array(filter, what, call, (unsigned)json_array_size(arguments), compare);
        if (failure) die("%s: %s", json_string_value(item), strerror(-failure));
    }
}

static void drop_capabilities(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    uint64_t mask = 0;
    for (int i = 0; i < KEPT; i++) mask |= 1ull << kept[i].number;
    for (int i = 0; i < 64; i++)
        if (!(mask >> i & 1) && prctl(PR_CAPBSET_READ, i, 0, 0, 0) == 1 && prctl(PR_CAPBSET_DROP, i, 0, 0, 0))
            die("capability %d: %s", i, strerror(errno));
    for (int i = 0; i < 2; i++) data[i].effective = data[i].permitted = (uint32_t)(mask >> 32 * i);
    if (syscall(SYS_capset, &header, data)) die("capset: %s", strerror(errno));
}

int main(int argc, char **argv) {
    json_error_t error;
    size_t i;
    json_t *entry;
    if (argc < 3) usage_error("give a profile and a command");
    json_t *profile = json_load_file(argv[1], 0, &error);
    if (!profile) die("%s: line %d: %s", argv[1], error.line, error.text);
    scmp_filter_ctx filter = seccomp_init(action_of(profile, "defaultAction", "defaultErrnoRet"));
    if (!filter || (!geteuid() && seccomp_attr_set(filter, SCMP_FLTATR_CTL_NNP, 0))) die("seccomp_init");
    json_array_foreach(json_object_get(profile, "syscalls"), i, entry) if (applies(entry)) add_entry(filter, entry);
    const int failure = seccomp_load(filter);
    if (failure) die("seccomp_load: %s", strerror(-failure));
    if (!geteuid()) drop_capabilities();
    seccomp_release(filter);
    json_decref(profile);
    execvp(argv[2], argv + 2);
    die("%s: %s", argv[2], strerror(errno));
}

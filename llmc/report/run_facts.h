/* run_facts.h - what the record of a run says of the process: machine, version, command, files, warnings, time of each
 * phase.
 *
 * The facts are JSON objects, which metrics.h writes as the first and the last record of the metrics file and report.h
 * shows at the top of the page:
 *
 *     {"record":"start","time":...,"program":"train_sft","version":"0.1.0 (562a0c9)",
 *      "command":["./train_sft","-x","9"],"folder":"/home/a","host":"b","processor":"...", and what the trainer adds:
 *      "model", "device", "kernels", "args", "files", "lineage"}
 *     {"record":"end","time":...,"status":"finished","steps":9,"tokens_per_second":...,"peak_memory":...,
 *      "seconds":{"setup":0.2,"training":3.1,...},"warnings":[{"text":"...","times":1}],"final":[...]}
 *
 * The phases divide the whole time of the process, so their seconds have its running time as their sum:
 *
 *     PhaseClock clock = phase_clock_start();
 *     const RunPhase before = phase_enter(&clock, RUN_EVALUATION);
 *     phase_enter(&clock, before);
 *     json_t *seconds = phase_seconds(&clock);
 */
#ifndef LLMC_REPORT_RUN_FACTS_H
#define LLMC_REPORT_RUN_FACTS_H

#include "../base/clock.h"     /* clock_seconds, clock_date */
#include "../base/error.h"     /* checked_object, WarningList, warning_list, xmalloc */
#include "../base/io.h"        /* XXH3_state_t, XXH3_64bits, XXH3_64bits_digest, XXH3_64bits_reset, ... */
#include "../base/json_text.h" /* json_utf8 */
#include "../base/program.h"   /* program_processor */
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- phases ---- */

typedef enum {
    RUN_SETUP, /* reading and checking the inputs, loading the model */
    RUN_SAMPLING,
    RUN_REWARD,
    RUN_TRAINING, /* forward and backward passes, the optimizer */
    RUN_EVALUATION,
    RUN_SAMPLES, /* samples and pairs for the report */
    RUN_SAVING,  /* models, states, metrics, the report */
    RUN_PHASES
} RunPhase;

static inline const char *run_phase_name(RunPhase phase) {
    static const char *const name[RUN_PHASES] = {"setup",      "sampling", "reward", "training",
                                                 "evaluation", "samples",  "saving"};
    return name[phase];
}

typedef struct PhaseClock {
    RunPhase now;
    double since, seconds[RUN_PHASES]; /* clock_seconds() when `now` was entered; time of each phase until then */
} PhaseClock;

/* Seconds since this process was started; 0 if the system does not say, or gives a time that is not within a day. */
static inline double process_age(void) {
    char text[1024];
    unsigned long long ticks = 0;
    FILE *f = fopen("/proc/self/stat", "re");
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    const char *fields = strrchr(text, ')'); /* the name before it may have spaces */
    for (int field = 2; fields && field < 22; field++) fields = strchr(fields + 1, ' ');
    struct timespec up;
    if (!fields || sscanf(fields, "%llu", &ticks) != 1 || clock_gettime(CLOCK_BOOTTIME, &up)) return 0;
    const double age = (double)up.tv_sec + 1e-9 * (double)up.tv_nsec - (double)ticks / (double)sysconf(_SC_CLK_TCK);
    return age > 0 && age < 86400 ? age : 0;
}

/* A clock in the setup phase, which began with the process. */
static inline PhaseClock phase_clock_start(void) {
    return (PhaseClock){.now = RUN_SETUP, .since = clock_seconds() - process_age()};
}

/* Begins another phase and returns the one that ends. */
static inline RunPhase phase_enter(PhaseClock *c, RunPhase phase) {
    const double now = clock_seconds();
    const RunPhase before = c->now;
    c->seconds[before] += now - c->since;
    c->since = now;
    c->now = phase;
    return before;
}

/* The seconds of each phase that was entered, as an object; the caller owns it. */
static inline json_t *phase_seconds(PhaseClock *c) {
    json_t *all = (json_t *)checked_object(json_object(), "a JSON object");
    phase_enter(c, c->now);
    for (int i = 0; i < RUN_PHASES; i++)
        if (c->seconds[i] > 0) json_object_set_new(all, run_phase_name((RunPhase)i), json_real(c->seconds[i]));
    return all;
}

/* ---- the process ---- */

static inline json_t *run_text(const char *text) { return json_utf8(text, strlen(text)); }

/* The command line as an array of its arguments, as the system has it. */
static inline json_t *run_command(void) {
    json_t *all = (json_t *)checked_object(json_array(), "a JSON array");
    FILE *f = fopen("/proc/self/cmdline", "re");
    char *argument = NULL;
    size_t size = 0;
    while (f && getdelim(&argument, &size, 0, f) > 0) json_array_append_new(all, run_text(argument));
    if (f) fclose(f);
    free(argument);
    return all;
}

/* The record of a run's beginning, to which the trainer adds its own facts; the caller owns it. resume_step: -1, or the
 * step from which the run goes on. */
static inline json_t *run_start_record(const char *program, const char *version, int64_t resume_step) {
    char host[256] = "unknown", processor[256], *folder = getcwd(NULL, 0);
    gethostname(host, sizeof host - 1);
    json_t *record = (json_t *)checked_object(json_object(), "a JSON object");
    json_object_set_new(record, "record", json_string("start"));
    json_object_set_new(record, "time", json_real(clock_date()));
    json_object_set_new(record, "program", run_text(program));
    if (resume_step >= 0) json_object_set_new(record, "resumed_step", json_integer(resume_step));
    json_object_set_new(record, "version", run_text(version));
    json_object_set_new(record, "command", run_command());
    json_object_set_new(record, "folder", run_text(folder ? folder : ""));
    json_object_set_new(record, "host", run_text(host));
    json_object_set_new(record, "processor", run_text(program_processor(processor, sizeof processor)));
    free(folder);
    return record;
}

/* The warnings of this process as an array; the caller owns it. */
static inline json_t *run_warnings(void) {
    const WarningList *list = warning_list();
    json_t *all = (json_t *)checked_object(json_array(), "a JSON array");
    for (size_t i = 0; i < list->count; i++)
        json_array_append_new(all, json_pack("{s:o, s:I}", "text", run_text(list->warnings[i].text), "times",
                                             (json_int_t)list->warnings[i].times));
    return all;
}

/* ---- files ---- */

/* Larger files are not hashed: that would delay the start of the run. */
static const long long RUN_HASHED_BYTES = 2LL << 30;

/* XXH3 (64 bits) of a file's bytes, as `xxhsum -H3` prints it; false if it cannot be read. */
static inline bool run_file_hash(const char *path, char text[17]) {
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const size_t size = 1 << 20;
    char *buffer = (char *)xmalloc(size);
    XXH3_state_t *state = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(state);
    for (size_t n; (n = fread(buffer, 1, size, f));) XXH3_64bits_update(state, buffer, n);
    const bool ok = !ferror(f);
    snprintf(text, 17, "%016llx", (unsigned long long)XXH3_64bits_digest(state));
    XXH3_freeState(state);
    free(buffer);
    fclose(f);
    return ok;
}

/* A name for the first n stages of a model's lineage, by which a page finds the run that made the model: XXH3 (64 bits) of
 * their JSON. */
static inline void run_lineage_name(const json_t *lineage, size_t n, char name[17]) {
    json_t *stages = (json_t *)checked_object(json_array(), "a JSON array");
    for (size_t i = 0; i < n && i < json_array_size(lineage); i++)
        json_array_append(stages, json_array_get(lineage, i));
    char *text = (char *)checked_object(json_dumps(stages, JSON_COMPACT | JSON_SORT_KEYS), "a JSON text");
    snprintf(name, 17, "%016llx", (unsigned long long)XXH3_64bits(text, strlen(text)));
    free(text);
    json_decref(stages);
}

/* A file that an option names: {"option","path","bytes","xxh3"}. Standard input ("-"), a folder, a pipe and a device have
 * neither bytes nor a hash; a file of more than RUN_HASHED_BYTES has no hash. The caller owns it. */
static inline json_t *run_file(const char *option, const char *path) {
    char hash[17];
    struct stat about;
    json_t *file = (json_t *)checked_object(json_object(), "a JSON object");
    json_object_set_new(file, "option", run_text(option));
    json_object_set_new(file, "path", run_text(path));
    if (!strcmp(path, "-") || stat(path, &about) || !S_ISREG(about.st_mode)) return file;
    json_object_set_new(file, "bytes", json_integer((json_int_t)about.st_size));
    if (about.st_size <= RUN_HASHED_BYTES && run_file_hash(path, hash))
        json_object_set_new(file, "xxh3", json_string(hash));
    return file;
}

#endif

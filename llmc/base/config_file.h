/* config_file.h - files of options in YAML: one mapping from names to values, as Hugging Face's parsers of --config read.
 *
 *     # run.yaml
 *     learning-rate: 2e-5
 *     input: [a.shard, b.shard]
 *     completion-only-loss: true
 *     val:                            # empty, ~ and null: the option keeps its default
 *     defaults:                       # values of options that do not count as given
 *       seed: 42
 *
 * A value is a scalar or a list of scalars. The mapping `defaults` is the only nested one: a program that keeps its
 * options writes there what its user did not choose. Other nested mappings, nested lists, references, repeated keys and
 * more than one document are refused, each with its line. Values are returned as text; options.h converts them.
 *
 *     ConfigFile file;
 *     if (!config_file_read(&file, "run.yaml", &e)) return false;
 *     for (int i = 0; i < file.count; i++) puts(file.entries[i].key);
 *     config_file_free(&file);
 *
 *     ConfigWriter w;
 *     if (!config_writer_open(&w, "out.yaml", "written by train_sft", &e)) return false;
 *     config_writer_key(&w, "learning-rate");
 *     config_writer_value(&w, "2e-05", false);
 *     if (!config_writer_close(&w, &e)) return false;
 */
#ifndef LLMC_BASE_CONFIG_FILE_H
#define LLMC_BASE_CONFIG_FILE_H

#include "error.h" /* Error, error_set, checked_object, xrealloc, ... */
#include "io.h"    /* writer_write, writer_abort, Writer, file_slurp, ... */
#include <yaml.h>

typedef struct ConfigEntry {
    char *key;
    char **values; /* (count) */
    int count;
    bool list;     /* a list, even of one value */
    bool standard; /* under `defaults` */
    int line;
} ConfigEntry;

typedef struct ConfigFile {
    const char *path;
    char *text;
    ConfigEntry *entries;
    int count;
    bool in_defaults; /* while reading: inside the mapping `defaults` */
} ConfigFile;

enum { CONFIG_FILE_MAX = 1 << 20 }; /* bytes */

static inline void config_file_free(ConfigFile *f) {
    for (int i = 0; i < f->count; i++) {
        for (int k = 0; k < f->entries[i].count; k++) free(f->entries[i].values[k]);
        free(f->entries[i].key), free(f->entries[i].values);
    }
    free(f->entries), free(f->text);
    *f = (ConfigFile){0};
}

/* Reads the next event. The caller deletes it unless the call fails. */
static inline bool config_file_event(ConfigFile *f, yaml_parser_t *p, yaml_event_t *event, Error *e) {
    if (yaml_parser_parse(p, event)) return true;
    const long line = (long)(p->problem_mark.line ? p->problem_mark.line : p->context_mark.line) + 1;
    return error_set(e, "%s:%ld: not YAML: %s", f->path, line, p->problem ? p->problem : "invalid text");
}

static inline bool config_file_refuse(const ConfigFile *f, const yaml_event_t *event, Error *e, const char *what) {
    return error_set(e, "%s:%zu: %s; expected lines such as 'seed: 1' or 'input: [a, b]'", f->path,
                     event->start_mark.line + 1, what);
}

/* Whether a scalar is YAML's null: plain, and empty, ~ or null. */
static inline bool config_file_null(const yaml_event_t *event) {
    const char *text = (const char *)event->data.scalar.value;
    if (event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    return !*text || !strcmp(text, "~") || !strcasecmp(text, "null");
}

/* Adds a scalar to the last entry. */
static inline bool config_file_value(ConfigFile *f, const yaml_event_t *event, Error *e) {
    ConfigEntry *entry = &f->entries[f->count - 1];
    const char *text = (const char *)event->data.scalar.value;
    if (entry->list && config_file_null(event)) return config_file_refuse(f, event, e, "an empty value in a list");
    if (config_file_null(event)) return true;
    entry->values = (char **)xrealloc(entry->values, (size_t)entry->count + 1, sizeof *entry->values);
    entry->values[entry->count++] = xstrdup(text);
    return true;
}

static inline bool config_file_key(ConfigFile *f, const yaml_event_t *event, Error *e) {
    const char *key = (const char *)event->data.scalar.value;
    if (event->type != YAML_SCALAR_EVENT)
        return config_file_refuse(f, event, e, "a key that is not the name of an option");
    for (int i = 0; i < f->count; i++)
        if (!strcmp(f->entries[i].key, key))
            return error_set(e, "%s:%zu: '%s' is already on line %d", f->path, event->start_mark.line + 1, key,
                             f->entries[i].line);
    f->entries = (ConfigEntry *)xrealloc(f->entries, (size_t)f->count + 1, sizeof *f->entries);
    f->entries[f->count++] =
        (ConfigEntry){.key = xstrdup(key), .line = (int)event->start_mark.line + 1, .standard = f->in_defaults};
    return true;
}

/* Takes one event of the file. depth: 0 outside the mapping, 1 in it, 2 in a list. has_key: a value follows. */
static inline bool config_file_take(ConfigFile *f, const yaml_event_t *event, int *depth, bool *has_key, Error *e) {
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        if (!*depth && config_file_null(event)) return true; /* a file of comments only */
        if (!*depth) return config_file_refuse(f, event, e, "text without a key");
        if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length)
            return config_file_refuse(f, event, e, "a NUL character");
        if (*depth == 2) return config_file_value(f, event, e);
        *has_key = !*has_key;
        return *has_key ? config_file_key(f, event, e) : config_file_value(f, event, e);
    case YAML_MAPPING_START_EVENT:
        if (*depth == 1 && *has_key && !f->in_defaults && !strcmp(f->entries[f->count - 1].key, "defaults")) {
            free(f->entries[--f->count].key); /* its own entries follow */
            *has_key = false;
            f->in_defaults = true;
            return true;
        }
        if (*depth || *has_key) return config_file_refuse(f, event, e, "a nested mapping");
        *depth = 1;
        return true;
    case YAML_SEQUENCE_START_EVENT:
        if (*depth == 2) return config_file_refuse(f, event, e, "a nested list");
        if (*depth == 0) return config_file_refuse(f, event, e, "a list without a key");
        if (!*has_key) return config_file_refuse(f, event, e, "a key that is not the name of an option");
        f->entries[f->count - 1].list = true;
        *depth = 2;
        return true;
    case YAML_SEQUENCE_END_EVENT:
        *has_key = false;
        *depth = 1;
        return true;
    case YAML_MAPPING_END_EVENT:
        *depth -= !f->in_defaults;
        f->in_defaults = false;
        return true;
    case YAML_ALIAS_EVENT: return config_file_refuse(f, event, e, "a reference");
    default: return true;
    }
}

/* Reads a file of options. On failure f is empty. */
static inline bool config_file_read(ConfigFile *f, const char *path, Error *e) {
    size_t n;
    yaml_parser_t parser;
    *f = (ConfigFile){.path = path, .text = file_slurp(path, CONFIG_FILE_MAX, &n, e)};
    if (!f->text) return false;
    checked_object(yaml_parser_initialize(&parser) ? &parser : NULL, "a parser of YAML");
    yaml_parser_set_input_string(&parser, (const unsigned char *)f->text, n);
    bool ok = true, has_key = false;
    int depth = 0, documents = 0;
    for (yaml_event_type_t type = YAML_NO_EVENT; ok && type != YAML_STREAM_END_EVENT;) {
        yaml_event_t event;
        ok = config_file_event(f, &parser, &event, e);
        if (!ok) break;
        type = event.type;
        documents += type == YAML_DOCUMENT_START_EVENT;
        if (documents > 1) ok = config_file_refuse(f, &event, e, "a second document");
        else ok = config_file_take(f, &event, &depth, &has_key, e);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    if (!ok) config_file_free(f);
    return ok;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

typedef struct ConfigWriter {
    Writer file;
    yaml_emitter_t emitter;
    bool ok, in_defaults;
    Error failed;
} ConfigWriter;

static inline int config_writer_output(void *data, unsigned char *bytes, size_t n) {
    ConfigWriter *w = (ConfigWriter *)data;
    return writer_write(&w->file, bytes, n, &w->failed);
}

static inline void config_writer_emit(ConfigWriter *w, yaml_event_t *event, int made) {
    if (!w->ok) {
        if (made) yaml_event_delete(event);
        return;
    }
    w->ok = made && yaml_emitter_emit(&w->emitter, event);
    if (!w->ok && !w->failed.text[0])
        error_set(&w->failed, "%s: cannot be written as YAML: %s", w->file.name,
                  w->emitter.problem ? w->emitter.problem : "a value is not UTF-8");
}

/* Begins a file that has this comment on its first line. */
static inline bool config_writer_open(ConfigWriter *w, const char *path, const char *comment, Error *e) {
    *w = (ConfigWriter){.ok = true};
    if (!writer_open(&w->file, path, e)) return false;
    if (!writer_write(&w->file, "# ", 2, e) || !writer_write(&w->file, comment, strlen(comment), e) ||
        !writer_write(&w->file, "\n", 1, e)) {
        writer_abort(&w->file);
        return false;
    }
    checked_object(yaml_emitter_initialize(&w->emitter) ? w : NULL, "an emitter of YAML");
    yaml_emitter_set_output(&w->emitter, config_writer_output, w);
    yaml_emitter_set_unicode(&w->emitter, 1);
    yaml_emitter_set_width(&w->emitter, -1);
    yaml_event_t event;
    config_writer_emit(w, &event, yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING));
    config_writer_emit(w, &event, yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1));
    config_writer_emit(w, &event, yaml_mapping_start_event_initialize(&event, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE));
    return true;
}

/* Whether YAML would read the text as something other than text: a number, a truth value or null. */
static inline bool config_writer_typed(const char *text) {
    static const char *const words[] = {"", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n"};
    char *end;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(text, words[i])) return true;
    strtod(text, &end);
    return !*end;
}

/* Writes a value. text: it is to be read as text, whatever it looks like. */
static inline void config_writer_value(ConfigWriter *w, const char *value, bool text) {
    yaml_event_t event;
    const yaml_scalar_style_t style =
        text && config_writer_typed(value) ? YAML_SINGLE_QUOTED_SCALAR_STYLE : YAML_ANY_SCALAR_STYLE;
    config_writer_emit(w, &event,
                       yaml_scalar_event_initialize(&event, NULL, NULL, (const unsigned char *)value,
                                                    (int)strlen(value), 1, 1, style));
}

static inline void config_writer_key(ConfigWriter *w, const char *key) { config_writer_value(w, key, false); }

/* The values between these two calls are a list. */
static inline void config_writer_list(ConfigWriter *w) {
    yaml_event_t event;
    config_writer_emit(w, &event,
                       yaml_sequence_start_event_initialize(&event, NULL, NULL, 1, YAML_FLOW_SEQUENCE_STYLE));
}
static inline void config_writer_list_end(ConfigWriter *w) {
    yaml_event_t event;
    config_writer_emit(w, &event, yaml_sequence_end_event_initialize(&event));
}

/* The keys and values from here on are those of `defaults`. */
static inline void config_writer_defaults(ConfigWriter *w) {
    yaml_event_t event;
    config_writer_key(w, "defaults");
    config_writer_emit(w, &event, yaml_mapping_start_event_initialize(&event, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE));
    w->in_defaults = true;
}

/* Completes the file. On failure nothing is written. */
static inline bool config_writer_close(ConfigWriter *w, Error *e) {
    yaml_event_t event;
    if (w->in_defaults) config_writer_emit(w, &event, yaml_mapping_end_event_initialize(&event));
    config_writer_emit(w, &event, yaml_mapping_end_event_initialize(&event));
    config_writer_emit(w, &event, yaml_document_end_event_initialize(&event, 1));
    config_writer_emit(w, &event, yaml_stream_end_event_initialize(&event));
    yaml_emitter_delete(&w->emitter);
    if (w->ok && writer_commit(&w->file, e)) return true;
    if (!w->ok) error_set(e, "%s", w->failed.text);
    writer_abort(&w->file);
    return false;
}

#endif

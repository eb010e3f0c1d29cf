/* episode_rows.h - which tools and programs a row of data has.
 *
 * The field `environment` of a row names one of the programs of --tool-cmd, by the "name" of its hello: the row has this
 * program, which may answer whole turns, and the built-in tools. Rows without the field have all programs, which is possible
 * unless there is one that answers whole turns and something else beside it. The field `tools` of a row, a list of names or of
 * schemas, narrows its tools to these.
 *
 *     Tools tools = {0};
 *     ToolPrograms programs = {0};
 *     const PromptText record = {.fields = "{\"tools\": [\"calculator\"]}"};
 *     EpisodeRow row;
 *     if (!tools_add(&tools, "calculator", &e)) die("%s", e.text);
 *     if (!episode_row_read(&tools, &programs, &record, &row, &e)) die("%s", e.text);
 *     if (row.text < 0 && episode_row_has(&row, 0)) printf("may call %s\n", tools.tool[0].name);
 */
#ifndef LLMC_ROLLOUT_EPISODE_ROWS_H
#define LLMC_ROLLOUT_EPISODE_ROWS_H

#include "../base/error.h"         /* error_set, Error */
#include "../base/text.h"          /* TextBuffer, text_format, text_clear, text_string, ... */
#include "../tools/tool_program.h" /* ToolPrograms, ToolProgram */
#include "../tools/tools.h"        /* Tools, TOOL_PROGRAM, Tool, tools_find */
#include "prompts.h"               /* PromptText */
#include <jansson.h>

enum { EPISODE_TOOLS_MAX = 64 };

typedef struct EpisodeRow {
    uint64_t tools;    /* bit i: tool i */
    uint32_t programs; /* bit i: program i */
    int text;          /* the program that answers whole turns; -1: none, calls are read */
} EpisodeRow;

static inline bool episode_row_has(const EpisodeRow *r, int tool) { return r->tools >> tool & 1; }

/* The "name" of a program's hello, or NULL. */
static inline const char *episode_program_name(const ToolProgram *g) {
    return json_string_value(json_object_get(g->hello, "name"));
}

/* Whether rows must name their environment: a program answers whole turns, and there is another or a tool. */
static inline bool episode_rows_choose(const Tools *t, const ToolPrograms *p) {
    int text = 0;
    for (int i = 0; i < p->count; i++) text += p->program[i].text;
    return text > 1 || (text && t->count);
}

/* The names of the environments that rows can name. */
static inline void episode_rows_names(const ToolPrograms *p, TextBuffer *names) {
    text_clear(names);
    for (int i = 0; i < p->count; i++)
        if (episode_program_name(&p->program[i]))
            text_format(names, "%s%s", names->length ? ", " : "", episode_program_name(&p->program[i]));
}

/* Fails if two programs have a name, or if rows must choose and a program has none. */
static inline bool episode_rows_check_names(const Tools *t, const ToolPrograms *p, Error *e) {
    const bool choose = episode_rows_choose(t, p);
    for (int i = 0; i < p->count; i++) {
        const char *name = episode_program_name(&p->program[i]);
        if (!name && choose)
            return error_set(e,
                             "tool program '%.200s': its hello has no \"name\", which rows need (field environment) to "
                             "choose between a program that answers whole turns and another or a tool",
                             p->program[i].command);
        for (int k = 0; name && k < i; k++)
            if (episode_program_name(&p->program[k]) && !strcmp(name, episode_program_name(&p->program[k])))
                return error_set(e, "tool program '%.200s': another has the name '%.80s', too", p->program[i].command,
                                 name);
    }
    return true;
}

/* The program that a row names; -1: there is none of this name. */
static inline int episode_row_program(const ToolPrograms *p, const char *name) {
    for (int i = 0; i < p->count; i++)
        if (episode_program_name(&p->program[i]) && !strcmp(name, episode_program_name(&p->program[i]))) return i;
    return -1;
}

/* The tools of a row's list, of those that it has. */
static inline bool episode_row_tools(const Tools *t, const json_t *list, EpisodeRow *row, Error *e) {
    uint64_t listed = 0;
    if (!json_is_array(list)) return error_set(e, "its field tools is no list");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i), *function = json_object_get(item, "function");
        const json_t *name = json_is_string(item) ? item : json_object_get(function ? function : item, "name");
        const Tool *tool = json_is_string(name) ? tools_find(t, json_string_value(name)) : NULL;
        if (!json_is_string(name)) return error_set(e, "item %zu of its field tools has no name", i + 1);
        if (!tool || !episode_row_has(row, (int)(tool - t->tool)))
            return error_set(e, "its field tools has '%.80s', which %s", json_string_value(name),
                             tool ? "is of another environment" : "neither --tools nor --tool-cmd gives");
        listed |= 1ull << (tool - t->tool);
    }
    row->tools &= listed;
    return true;
}

/* Reads what a row has. r: NULL for a line of text, which has all. */
static inline bool episode_row_read(const Tools *t, const ToolPrograms *p, const PromptText *r, EpisodeRow *row,
                                    Error *e) {
    const char *fields = r && r->fields ? r->fields : "";
    const bool any = strstr(fields, "\"environment\"") || strstr(fields, "\"tools\"");
    json_t *all = any ? json_loads(fields, JSON_ALLOW_NUL, NULL) : NULL;
    const json_t *environment = json_object_get(all, "environment"), *list = json_object_get(all, "tools");
    TextBuffer names = {0};
    bool ok = true;
    *row = (EpisodeRow){.tools = t->count == 64 ? UINT64_MAX : (1ull << t->count) - 1,
                        .programs = (uint32_t)((1ull << p->count) - 1),
                        .text = -1};
    episode_rows_names(p, &names);
    if (names.length && environment && !json_is_string(environment) && !json_is_null(environment))
        ok = error_set(e, "its field environment is no text; the programs of --tool-cmd are: %s", names.text);
    else if (json_is_string(environment) && names.length) {
        const int chosen = episode_row_program(p, json_string_value(environment));
        if (chosen < 0)
            ok = error_set(e, "its environment is '%.80s'; the programs of --tool-cmd are: %s",
                           json_string_value(environment), names.text);
        row->programs = chosen < 0 ? 0 : 1u << chosen;
        for (int i = 0; i < t->count; i++)
            if (t->tool[i].kind == TOOL_PROGRAM && t->tool[i].program != chosen) row->tools &= ~(1ull << i);
    } else if (episode_rows_choose(t, p))
        ok =
            error_set(e, "it has no field environment, which chooses among the programs of --tool-cmd: %s", names.text);
    for (int i = 0; ok && i < p->count; i++)
        if (row->programs >> i & 1 && p->program[i].text) row->text = i;
    if (row->text >= 0) row->tools = 0;
    if (ok && list && !json_is_null(list) && row->text < 0 && t->count) ok = episode_row_tools(t, list, row, e);
    text_free(&names);
    json_decref(all);
    return ok;
}

/* Writes the name of a role of a row's completion: of several programs those that answer whole turns are games of their own, and
 * the role is that of one of them, as in "kuhn/player0". */
static inline void episode_row_role(const Tools *t, const ToolPrograms *p, const PromptText *r, const char *role,
                                    TextBuffer *name) {
    EpisodeRow row;
    Error unused; /* episodes_check() has found it */
    text_clear(name);
    if (p->count > 1 && episode_row_read(t, p, r, &row, &unused) && row.text >= 0 &&
        episode_program_name(&p->program[row.text]))
        text_format(name, "%s/", episode_program_name(&p->program[row.text]));
    text_string(name, role);
}

/* Why a name is no tool of a row: the names that are. */
static inline void episode_row_unknown(const Tools *t, const EpisodeRow *row, const char *name, TextBuffer *why) {
    int n = 0;
    text_clear(why);
    text_format(why, "unknown tool '%.80s'; there are: ", name);
    for (int i = 0; i < t->count; i++)
        if (episode_row_has(row, i)) text_format(why, "%s%s", n++ ? ", " : "", t->tool[i].name);
    if (!n) text_string(why, "none");
}

#endif

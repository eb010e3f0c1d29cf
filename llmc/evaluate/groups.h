/* groups.h - the figures of each task, cluster of tasks and file of a set of prompts.
 *
 *     GroupFigures figures = NULL;          // json_t *figures(context, groups, group, title): those of one group
 *     groups_report(&ev, &prompts, count, true, figures, data);
 */
#ifndef LLMC_EVALUATE_GROUPS_H
#define LLMC_EVALUATE_GROUPS_H

#include "../base/error.h"       /* xmalloc, xstrdup, xcalloc, xrealloc */
#include "../base/text.h"        /* TextBuffer, text_format */
#include "../records/clusters.h" /* clusters_find, CLUSTER_TRAINED, CLUSTER_UNKNOWN, ClusterTrained, ... */
#include "../records/inputs.h"   /* Inputs */
#include "../rollout/prompts.h"  /* Prompts, PromptText */
#include "evaluator.h"           /* Evaluator */

/* The prompts in groups: those of a task, of a cluster of tasks, or of a file. */
typedef struct Groups {
    int64_t prompts;
    int count;
    int *of; /* (prompts) the group of each; -1: none */
    struct Group {
        const char *name;
        char *title;   /* of its table; NULL: no table */
        json_t *facts; /* what is added to its figures; may be NULL */
    } * group;         /* (count) */
} Groups;

/* The figures of the prompts of a group; also prints them as a table unless title is NULL. */
typedef json_t *(*GroupFigures)(const void *context, const Groups *g, int group, const char *title);

static inline Groups groups_new(int64_t prompts) {
    return (Groups){.prompts = prompts, .of = (int *)xcalloc((size_t)prompts + 1, sizeof(int))};
}

/* Adds a group and returns its number. Takes title and facts. */
static inline int groups_add(Groups *g, const char *name, char *title, json_t *facts) {
    g->group = (struct Group *)xrealloc(g->group, (size_t)g->count + 1, sizeof *g->group);
    g->group[g->count] = (struct Group){name, title, facts};
    return g->count++;
}

static inline void groups_free(Groups *g) {
    for (int k = 0; k < g->count; k++) {
        free(g->group[k].title);
        json_decref(g->group[k].facts);
    }
    free(g->of), free(g->group);
}

static inline int groups_by_task(const void *a, const void *b, void *prompts) {
    const PromptText *what = ((const Prompts *)prompts)->what;
    const int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    const int order = strcmp(what[i].task, what[j].task);
    return order ? order : (i > j) - (i < j);
}

/* A group for each task of the first `count` prompts, with tables if there are several. */
static inline Groups groups_of_tasks(const Prompts *p, int64_t count) {
    Groups g = groups_new(count);
    int64_t *order = (int64_t *)xmalloc((size_t)count * sizeof *order);
    for (int64_t i = 0; i < count; i++) order[i] = i;
    qsort_r(order, (size_t)count, sizeof *order, groups_by_task, (void *)p);
    for (int64_t i = 0; i < count; i++) {
        const char *task = p->what[order[i]].task;
        if (!g.count || strcmp(g.group[g.count - 1].name, task) != 0) groups_add(&g, task, NULL, NULL);
        g.of[order[i]] = g.count - 1;
    }
    for (int k = 0; k < g.count && g.count > 1; k++)
        g.group[k].title = xstrdup(*g.group[k].name ? g.group[k].name : "(no task)");
    free(order);
    return g;
}

/* The place of prompt i's cluster of tasks in the shard's list; -1: it has none. */
static inline int groups_cluster(const Prompts *p, int64_t i) {
    const json_t *all = p->shard.clusters;
    const PromptText *what = &p->what[i];
    const char *field = json_string_value(json_object_get(all, "field"));
    if (!strcmp(field, "task")) return *what->task ? clusters_find(all, what->task) : -1;
    json_t *fields = json_loads(what->fields, JSON_ALLOW_NUL, NULL);
    const char *name = json_string_value(json_object_get(fields, field));
    const int place = name ? clusters_find(all, name) : -1;
    json_decref(fields);
    return place;
}

/* Adds the group of a cluster of tasks: whether the model was trained on it, according to its lineage. */
static inline int groups_add_cluster(Groups *g, const json_t *lineage, const char *name) {
    static const char *const texts[] = {"its training does not say whether it has seen them", "seen in training",
                                        "not seen in training"};
    const ClusterTrained was = clusters_trained(lineage, name);
    json_t *seen = was == CLUSTER_UNKNOWN ? json_null() : json_boolean(was == CLUSTER_TRAINED);
    TextBuffer title = {0};
    text_format(&title, "cluster %s, %s", name, texts[was]);
    return groups_add(g, name, title.text, json_pack("{s:o}", "seen", seen));
}

/* A group for each cluster of tasks of the shard that has one of the first `count` prompts. */
static inline Groups groups_of_clusters(const Prompts *p, int64_t count, const json_t *lineage) {
    Groups g = groups_new(count);
    const json_t *names = json_object_get(p->shard.clusters, "clusters");
    int *first =
        (int *)xmalloc((json_array_size(names) + 1) * sizeof *first); /* (names) the group of a cluster, or -1 */
    for (size_t k = 0; k < json_array_size(names); k++) {
        first[k] = -1;
        for (int64_t i = 0; i < count && first[k] < 0; i++)
            if (groups_cluster(p, i) == (int)k)
                first[k] = groups_add_cluster(&g, lineage, json_string_value(json_array_get(names, k)));
    }
    for (int64_t i = 0; i < count; i++) {
        const int place = json_array_size(names) ? groups_cluster(p, i) : -1;
        g.of[i] = place < 0 ? -1 : first[place];
    }
    free(first);
    return g;
}

/* A group for each file. */
static inline Groups groups_of_files(const Prompts *p, int64_t count, const Inputs *files) {
    Groups g = groups_new(count);
    for (int64_t i = 0; i < count; i++) g.of[i] = p->what[i].file;
    for (int k = 0; k < files->count; k++) {
        const char *path = files->path[k];
        groups_add(&g, path, xstrdup(path), json_pack("{s:o}", "data", json_string(path)));
    }
    return g;
}

/* The figures of every group: an object with their names as keys, or an array. Frees the groups. */
static inline json_t *groups_figures(Groups *g, bool named, GroupFigures figures, const void *context) {
    json_t *all = named ? json_object() : json_array();
    for (int k = 0; k < g->count; k++) {
        json_t *row = figures(context, g, k, g->group[k].title);
        if (g->group[k].facts) json_object_update(row, g->group[k].facts);
        if (named) json_object_set_new(all, g->group[k].name, row);
        else json_array_append_new(all, row);
    }
    groups_free(g);
    return all;
}

/* Reports the figures of each task, cluster of tasks and file of the first `count` prompts; those of tasks if `tasks`. */
static inline void groups_report(Evaluator *ev, const Prompts *p, int64_t count, bool tasks, GroupFigures figures,
                                 const void *context) {
    if (tasks) {
        Groups g = groups_of_tasks(p, count);
        json_object_set_new(ev->result, "tasks", groups_figures(&g, true, figures, context));
    }
    if (json_array_size(json_object_get(p->shard.clusters, "clusters"))) {
        Groups g = groups_of_clusters(p, count, ev->model.file.lineage);
        json_object_set_new(ev->result, "clusters", groups_figures(&g, true, figures, context));
    }
    if (ev->inputs.count > 1) {
        Groups g = groups_of_files(p, count, &ev->inputs);
        json_object_set_new(ev->result, "files", groups_figures(&g, false, figures, context));
    }
}

#endif

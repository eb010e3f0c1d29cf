/* clusters.h - the clusters of tasks that a shard has records of, and whether a model was trained on one.
 *
 * A held-out cluster is a group of tasks of which no record was trained on, so that its accuracy is that of a task never seen
 * (Wei et al. 2022, FLAN, section 2.2). A shard says which clusters its records are of, as a JSON object:
 *
 *     {"field": "cluster", "clusters": ["arithmetic", "words"], "without": 0}
 *
 * field     the field of the rows that names the cluster
 * without   the number of records that have none
 *
 * A trainer copies that to its stage in the model's lineage, from which clusters_trained() answers.
 *
 *     json_t *all = clusters_new("cluster");
 *     clusters_add(all, "arithmetic");                               // of a record; NULL: it has none
 *     char *text = clusters_text(all);
 *     json_t *read = clusters_parse(text, &e);                       // NULL: it is not such an object
 *     json_t *lineage = json_array();                                // of the model
 *     const ClusterTrained was = clusters_trained(lineage, "words"); // CLUSTER_TRAINED, _HELD_OUT or _UNKNOWN
 */
#ifndef LLMC_RECORDS_CLUSTERS_H
#define LLMC_RECORDS_CLUSTERS_H

#include "../base/error.h" /* checked_object, Error, error_set */
#include <jansson.h>

enum { CLUSTERS_MAX = 4096, CLUSTERS_TEXT_MAX = 1 << 22 };

typedef enum { CLUSTER_UNKNOWN, CLUSTER_TRAINED, CLUSTER_HELD_OUT } ClusterTrained;

/* An object without clusters. The caller frees it. */
static inline json_t *clusters_new(const char *field) {
    return (json_t *)checked_object(json_pack("{s:s,s:[],s:i}", "field", field, "clusters", "without", 0),
                                    "a JSON object");
}

/* The place of a cluster in the list, or -1. */
static inline int clusters_find(const json_t *all, const char *name) {
    const json_t *list = json_object_get(all, "clusters");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!strcmp(json_string_value(json_array_get(list, i)), name)) return (int)i;
    return -1;
}

/* Counts a record of this cluster, or of none. Returns the cluster's place, -1 for none, or -2 if there are too many. */
static inline int clusters_add(json_t *all, const char *name) {
    json_t *list = json_object_get(all, "clusters");
    if (!name) {
        const json_int_t without = json_integer_value(json_object_get(all, "without"));
        json_object_set_new(all, "without", json_integer(without + 1));
        return -1;
    }
    const int place = clusters_find(all, name);
    if (place >= 0) return place;
    if (json_array_size(list) == CLUSTERS_MAX) return -2;
    json_array_append_new(list, (json_t *)checked_object(json_string(name), "the name of a cluster"));
    return (int)json_array_size(list) - 1;
}

/* Adds what another shard has. */
static inline void clusters_join(json_t *all, const json_t *more) {
    const json_t *list = json_object_get(more, "clusters");
    const json_int_t without =
        json_integer_value(json_object_get(all, "without")) + json_integer_value(json_object_get(more, "without"));
    for (size_t i = 0; i < json_array_size(list); i++) clusters_add(all, json_string_value(json_array_get(list, i)));
    json_object_set_new(all, "without", json_integer(without));
}

/* The text of the object, for a shard. The caller frees it. */
static inline char *clusters_text(const json_t *all) {
    return (char *)checked_object(json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS), "the text of a JSON object");
}

/* Whether a value is such an object. */
static inline bool clusters_valid(const json_t *all) {
    const json_t *list = json_object_get(all, "clusters"), *without = json_object_get(all, "without");
    if (!json_is_string(json_object_get(all, "field")) || !json_is_array(list) ||
        json_array_size(list) > CLUSTERS_MAX || !json_is_integer(without) || json_integer_value(without) < 0)
        return false;
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!json_is_string(json_array_get(list, i))) return false;
    return true;
}

/* Parses the text of a shard, which is not trusted. The caller frees the object. */
static inline json_t *clusters_parse(const char *text, Error *e) {
    json_t *all = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (clusters_valid(all)) return all;
    json_decref(all);
    error_set(e, "the list of clusters is damaged");
    return NULL;
}

/* Whether the stages of a lineage were trained on this cluster. Unknown if there is no stage, or if the records of a stage
 * do not say of which clusters they are. */
static inline ClusterTrained clusters_trained(const json_t *lineage, const char *name) {
    bool known = json_array_size(lineage) > 0;
    for (size_t i = 0; i < json_array_size(lineage); i++) {
        const json_t *stage = json_array_get(lineage, i), *all = json_object_get(stage, "clusters");
        if (!clusters_valid(all)) known = false;
        else if (clusters_find(all, name) >= 0) return CLUSTER_TRAINED;
        else if (json_integer_value(json_object_get(all, "without"))) known = false;
        if (!i && !json_is_null(json_object_get(stage, "parent")))
            known = false; /* the first stage had a model before it */
    }
    return known ? CLUSTER_HELD_OUT : CLUSTER_UNKNOWN;
}

#endif

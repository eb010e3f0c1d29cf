/* letters.h - small shards for runs of all trainers: conversations, preferences and prompts of a few letters, and sums of
 * one digit. */
#ifndef TESTS_LETTERS_H
#define TESTS_LETTERS_H

#include "models.h" /* models_setup */
#include "run.h"    /* sh */
#include "shell.h"  /* put */

#define LETTERS                                                                                                        \
    "./data/make_prefs --rule char=a --letters 4 --split all --prompt-length 2 --min-length 3 --max-length 8 "

/* Writes $T/chat.shard, prefs.shard, prompts.shard, tasks.shard and the file kept, which refused() watches. */
static int letters_setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    setenv("OMP_NUM_THREADS", "2", 1);
    put("kept", "kept");
    sh(LETTERS "--seed 1 --count 120 --format chat | ./data/make_shard --quiet -i - -o $T/chat.shard");
    sh(LETTERS "--seed 1 --count 120 | ./data/make_shard --quiet -i - -o $T/prefs.shard");
    sh(LETTERS "--seed 1 --count 64 --format prompt | ./data/make_shard --quiet -i - -o $T/prompts.shard");
    sh("./data/make_tasks --task add --digits 1 --count 60 --split all -o $T/tasks.shard");
    return 0;
}

#endif

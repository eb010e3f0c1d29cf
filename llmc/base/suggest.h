/* suggest.h - the name that a misspelt word probably stands for: "did you mean".
 *
 *     const char *const names[] = {"max-steps", "max-length", "seed"};
 *     const char *near = suggest("max-setps", names, 3);     // "max-steps"; NULL if no name is near
 *     if (near) printf("did you mean %s?\n", near);
 *
 * The distance is that of optimal string alignment: the number of characters to insert, delete or replace, or of
 * neighbours to swap (Damerau 1964); capital letters count as small ones. A word within a name (steps, max-steps), or a
 * name within a word, counts as near.
 */
#ifndef LLMC_BASE_SUGGEST_H
#define LLMC_BASE_SUGGEST_H

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

enum { SUGGEST_LENGTH = 64 }; /* longer words have no suggestion */

static inline bool suggest_equal(char a, char b) { return tolower((unsigned char)a) == tolower((unsigned char)b); }

static inline int suggest_least(int a, int b) { return a < b ? a : b; }

/* The distance between two words of at most SUGGEST_LENGTH characters. */
static inline int suggest_distance(const char *a, const char *b) {
    const int n = (int)strlen(a), m = (int)strlen(b);
    int row[3][SUGGEST_LENGTH + 1]; /* of the last three characters of a; row i is row[i % 3] */
    for (int k = 0; k <= m; k++) row[0][k] = k;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3];
        const int *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
        now[0] = i;
        for (int k = 1; k <= m; k++) {
            now[k] =
                suggest_least(suggest_least(last[k], now[k - 1]) + 1, last[k - 1] + !suggest_equal(a[i - 1], b[k - 1]));
            if (i > 1 && k > 1 && suggest_equal(a[i - 1], b[k - 2]) && suggest_equal(a[i - 2], b[k - 1]))
                now[k] = suggest_least(now[k], before[k - 2] + 1);
        }
    }
    return row[n % 3][m];
}

/* Returns the one of count names that is nearest to the word, or NULL if none is near: within a third of the word's
 * length, or part of it. */
static inline const char *suggest(const char *word, const char *const *names, int count) {
    const int length = (int)strlen(word), limit = length < 3 ? 1 : 1 + length / 3;
    const char *best = NULL;
    int least = limit + 1;
    if (!length || length > SUGGEST_LENGTH) return NULL;
    for (int i = 0; i < count; i++) {
        const size_t other = strlen(names[i]);
        if (other > SUGGEST_LENGTH) continue;
        int distance = suggest_distance(word, names[i]);
        const bool part = length >= 4 && other >= 4 && (strcasestr(names[i], word) || strcasestr(word, names[i]));
        if (part && distance > limit) distance = limit;
        if (distance >= least) continue;
        least = distance;
        best = names[i];
    }
    return best;
}

#endif

/* fuzz_condition.c - libFuzzer target: conditions of data/pick, and texts as words.
 *
 * The input is a condition, evaluated on a fixed row; the invariants: two evaluations are equal, and a condition in
 * parentheses means the same. The input's halves are also compared by ROUGE-L, which is symmetric and from 0 to 1.
 */
#include "../data/condition.h"  /* condition_free, condition_holds, condition_parse, Condition */
#include "../data/words.h"      /* words_free, words_rouge, words_split, Words */
#include "../llmc/base/error.h" /* Error, xmalloc, xstrndup */
#include "../llmc/base/jsonl.h" /* Jsonl */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const Jsonl place = {.name = "row", .line = 1};
    static json_t *row;
    Condition c, again;
    Error e;
    if (!row) row = json_loads("{\"a\":1,\"b\":\"x\",\"c\":true,\"d\":[1,{\"e\":null}],\"f\":0.5}", 0, NULL);
    char *text = xstrndup((const char *)data, n);
    if (condition_parse(&c, text, &e)) {
        char *wrapped = (char *)xmalloc(strlen(text) + 3);
        sprintf(wrapped, "(%s)", text);
        bool first = false, second = false;
        const bool ok = condition_holds(&c, &place, row, &first, &e);
        if (condition_parse(&again, wrapped, &e)) {
            if (condition_holds(&again, &place, row, &second, &e) != ok || (ok && first != second)) abort();
            condition_free(&again);
        }
        condition_free(&c);
        free(wrapped);
    }
    free(text);
    Words a = {0}, b = {0};
    words_split(&a, (const char *)data, n / 2);
    words_split(&b, (const char *)data + n / 2, n - n / 2);
    const double f = words_rouge(a.word, a.count, b.word, b.count);
    if (!(f >= 0 && f <= 1) || f != words_rouge(b.word, b.count, a.word, a.count)) abort();
    words_free(&a), words_free(&b);
    return 0;
}

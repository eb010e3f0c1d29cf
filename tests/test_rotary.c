/* test_rotary.c - frequencies, cosines and sines of rotary positions against transformers' classes: tests/golden/
 * rotary.json (dev/golden/golden_rotary.py), with the values of published models among others.
 *
 * Configurations are read as a model's config.json is, so that the forms of yarn's factor and defaults are covered. */
#include "../llmc/base/error.h"               /* Error, xmalloc */
#include "../llmc/model/backend.h"            /* Floats, Ints */
#include "../llmc/model/config.h"             /* MODEL_HEAD_MAX, Rope, ModelConfig, ROPE_LLAMA3, ... */
#include "../llmc/model/huggingface_config.h" /* huggingface_config_read */
#include "../llmc/model/rotary.h"             /* rope_frequencies */
#include "cpu_device.h"                       /* B, D, close_device, open_device_one_thread */
#include <math.h>

enum { CASES = 27 };

static json_t *root; /* rotary.json */

static int read_root(void **state) {
    root = json_load_file("tests/golden/rotary.json", 0, NULL);
    return root ? open_device_one_thread(state) : 1;
}
static int close_root(void **state) {
    json_decref(root);
    return close_device(state);
}

/* Fills in the numbers of an array and returns how many there are. */
static int numbers(const json_t *object, const char *key, float *to) {
    const json_t *list = json_object_get(object, key);
    const int n = (int)json_array_size(list);
    assert_in_range(n, 1, MODEL_HEAD_MAX);
    for (int i = 0; i < n; i++) to[i] = (float)json_number_value(json_array_get(list, (size_t)i));
    return n;
}

static const char *name_of(const json_t *k) { return json_string_value(json_object_get(k, "name")); }

/* Reads the configuration of a case. Returns the base that it is about, and the longest sequence of the run. */
static Rope rope_of(const json_t *k, ModelConfig *c, int32_t *length) {
    Error e;
    const char *layers = json_string_value(json_object_get(k, "layers"));
    const json_t *longest = json_object_get(k, "length");
    if (!huggingface_config_read(c, json_object_get(k, "config"), name_of(k), &e)) fail_msg("%s", e.text);
    *length = json_is_null(longest) ? c->context : (int32_t)json_integer_value(longest);
    return layers && !strcmp(layers, "sliding_attention") ? c->local_rope : c->rope;
}

/* How far a frequency may be from transformers' in units of 2^-23, the largest distance of two float32 neighbours
 * relative to their value. The power is within 1 unit of the exact value in PyTorch's vectorised code and within 0.6 in
 * the C library; its reciprocal, and a factor, are rounded on both sides, half a unit each: less than 4, of the
 * frequency itself. With the ramps of llama3 and yarn, these errors and those of four more operations on each side also
 * move the ramp, and the result by as much of the frequency before it was stretched: 8 of that. */
static double allowed(const Rope *r, int rotary, int j, double frequency) {
    if (r->kind == ROPE_LLAMA3 || r->kind == ROPE_YARN) return 8 * 0x1p-23 * pow(r->theta, -2.0 * j / rotary);
    return 4 * 0x1p-23 * frequency;
}

/* Frequencies within rounding, and at least seven of eight bit for bit; the factor of cosines and sines. */
static void test_frequencies(void **state) {
    (void)state;
    const json_t *cases = json_object_get(root, "cases"), *k;
    size_t i;
    json_array_foreach(cases, i, k) {
        ModelConfig c;
        int32_t length;
        float want[MODEL_HEAD_MAX], got[MODEL_HEAD_MAX];
        const Rope r = rope_of(k, &c, &length);
        const int n = numbers(k, "frequency", want);
        const double factor = json_number_value(json_object_get(k, "factor"));
        assert_int_equal(c.rotary, 2 * n);
        const float m = rope_frequencies(&r, c.rotary, length, got);
        int others = 0;
        for (int j = 0; j < n; j++) {
            if (!(fabs((double)got[j] - want[j]) <= allowed(&r, c.rotary, j, want[j])))
                fail_msg("%s: frequency %d is %.9g, transformers has %.9g", name_of(k), j, got[j], want[j]);
            others += got[j] != want[j];
        }
        if (others > n / 8) fail_msg("%s: %d of %d frequencies differ in their last bits", name_of(k), others, n);
        if (!(fabs(m - factor) <= 0x1p-23 * factor))
            fail_msg("%s: cosines times %.9g, transformers has %.9g", name_of(k), m, factor);
    }
    assert_int_equal(i, CASES);
}

/* Cosines and sines of positions up to 131071 from transformers' frequencies. The angle is the product in float32: that
 * in double precision differs by up to 2^-24 of the angle, 0.008 there. PyTorch's cosine is within 3.5 units in the
 * last place of the exact one, 2^-24 below 1, the C library's within 1, and the product with the factor is rounded. */
static void test_table(void **state) {
    (void)state;
    Error e;
    float position[MODEL_HEAD_MAX], pair[MODEL_HEAD_MAX];
    const int N = numbers(root, "positions", position), pairs = numbers(root, "pairs", pair);
    const json_t *cases = json_object_get(root, "cases"), *k;
    size_t i;
    Ints *at = (Ints *)B->alloc(D, (size_t)N * sizeof(int32_t), "positions", &e);
    int32_t whole[MODEL_HEAD_MAX];
    for (int p = 0; p < N; p++) whole[p] = (int32_t)position[p];
    B->upload(D, at, whole, (size_t)N * sizeof(int32_t));
    json_array_foreach(cases, i, k) {
        float frequency[MODEL_HEAD_MAX], cosine[MODEL_HEAD_MAX], sine[MODEL_HEAD_MAX];
        const int half = numbers(k, "frequency", frequency), all = numbers(k, "cosine", cosine);
        const int shown = all / N;
        const double factor = json_number_value(json_object_get(k, "factor"));
        assert_int_equal(numbers(k, "sine", sine), all);
        assert_true(shown > 0 && shown <= pairs && pair[shown - 1] < (float)half);
        const size_t bytes = (size_t)N * 2 * (size_t)half * sizeof(float);
        float *table = (float *)xmalloc(bytes);
        Floats *f = (Floats *)B->alloc(D, (size_t)half * sizeof(float), "frequencies", &e);
        Floats *t = (Floats *)B->alloc(D, bytes, "a table", &e);
        assert_true(at && f && t);
        B->upload(D, f, frequency, (size_t)half * sizeof(float));
        B->rotary_table(D, t, at, f, (float)factor, N, half, 2 * half);
        B->download(D, table, t, bytes);
        for (int p = 0; p < N; p++)
            for (int j = 0; j < shown; j++) {
                const float *row = table + (size_t)p * 2 * (size_t)half + (int)pair[j];
                const double tolerance = 6 * 0x1p-24 * factor;
                if (!(fabs((double)row[0] - cosine[p * shown + j]) <= tolerance &&
                      fabs((double)row[half] - sine[p * shown + j]) <= tolerance))
                    fail_msg("%s: position %d, pair %d: %.9g and %.9g, transformers has %.9g and %.9g", name_of(k),
                             whole[p], (int)pair[j], row[0], row[half], cosine[p * shown + j], sine[p * shown + j]);
            }
        free(table), B->release(D, f), B->release(D, t);
    }
    B->release(D, at);
}

/* Every kind is among the cases, and every field of a Rope matters in one: with another value the frequencies or the
 * factor change. */
static void test_fields(void **state) {
    (void)state;
    const json_t *cases = json_object_get(root, "cases"), *k;
    size_t i;
    int kinds = 0, fields = 0;
    json_array_foreach(cases, i, k) {
        ModelConfig c;
        int32_t length;
        float before[MODEL_HEAD_MAX], after[MODEL_HEAD_MAX];
        const Rope r = rope_of(k, &c, &length);
        const float m = rope_frequencies(&r, c.rotary, length, before);
        kinds |= 1 << r.kind;
        for (int field = 0; field < 9; field++) {
            Rope x = r;
            switch (field) {
            case 0: x.theta *= 2; break;
            case 1: x.factor *= 2; break;
            case 2: x.low *= 2; break;
            case 3: x.high *= 2; break;
            case 4: x.beta_fast *= 2; break;
            case 5: x.beta_slow *= 2; break;
            case 6: x.attention *= 2; break;
            case 7: x.exact = !x.exact; break;
            default: x.original *= 2;
            }
            const bool changed = rope_frequencies(&x, c.rotary, length, after) != m ||
                                 memcmp(before, after, (size_t)c.rotary / 2 * sizeof *before);
            if (changed) fields |= 1 << field;
        }
    }
    assert_int_equal(kinds,
                     1 << ROPE_DEFAULT | 1 << ROPE_LINEAR | 1 << ROPE_LLAMA3 | 1 << ROPE_YARN | 1 << ROPE_LONGROPE);
    assert_int_equal(fields, (1 << 9) - 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_frequencies), cmocka_unit_test(test_table),
                                       cmocka_unit_test(test_fields)};
    return cmocka_run_group_tests_name("rotary", tests, read_root, close_root);
}

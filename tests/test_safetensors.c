/* test_safetensors.c - llmc/model/safetensors.h: files of the safetensors package, files of our own compared with them
 * byte for byte, and files that are wrong. */
#include "../llmc/base/error.h" /* Error, xmalloc */
#include "../llmc/base/half.h"  /* half_from_f16, half_to_f16 */
#include "../llmc/base/io.h"    /* file_slurp */
#include "../llmc/base/text.h"  /* text_append, TextBuffer, text_free, text_string */
#include "files.h"              /* files_path, files_setup, files_teardown */

#include "../llmc/model/safetensors.h" /* safetensors_find, SAFETENSORS_F32, Safetensors, safetensors_add, ... */

static const char *const golden_files[] = {"tests/golden/safetensors/types.safetensors",
                                           "tests/golden/safetensors/round.safetensors"};

/* ---- files of the package ---------------------------------------------------------------------------------------- */

static void types(void **state) {
    (void)state;
    Error e;
    Safetensors s;
    if (!safetensors_open(&s, golden_files[0], &e)) fail_msg("%s", e.text);
    assert_int_equal(s.count, 18);
    assert_string_equal(json_string_value(json_object_get(s.metadata, "format")), "pt");
    const struct {
        const char *name;
        SafetensorsType type;
        int dims;
        uint64_t first, elements;
    } known[] = {{"of.bool", SAFETENSORS_BOOL, 2, 2, 6},
                 {"of.uint8", SAFETENSORS_U8, 2, 2, 6},
                 {"of.int8", SAFETENSORS_I8, 2, 2, 6},
                 {"of.float8_e5m2", SAFETENSORS_F8_E5M2, 2, 2, 6},
                 {"of.float8_e4m3fn", SAFETENSORS_F8_E4M3, 2, 2, 6},
                 {"of.int16", SAFETENSORS_I16, 2, 2, 6},
                 {"of.float16", SAFETENSORS_F16, 2, 2, 6},
                 {"of.bfloat16", SAFETENSORS_BF16, 2, 2, 6},
                 {"of.int32", SAFETENSORS_I32, 2, 2, 6},
                 {"of.float32", SAFETENSORS_F32, 2, 2, 6},
                 {"of.float64", SAFETENSORS_F64, 2, 2, 6},
                 {"of.int64", SAFETENSORS_I64, 2, 2, 6},
                 {"layers.10.w", SAFETENSORS_F32, 1, 4, 4},
                 {"layers.2.w", SAFETENSORS_F32, 1, 3, 3},
                 {"scalar", SAFETENSORS_F32, 0, 0, 1},
                 {"empty", SAFETENSORS_F32, 2, 3, 0},
                 {"quote \" and \\ and \n and é", SAFETENSORS_F32, 1, 1, 1},
                 {"last", SAFETENSORS_U8, 1, 5, 5}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const SafeTensor *t = safetensors_find(&s, known[i].name);
        if (!t) fail_msg("no %s", known[i].name);
        assert_int_equal(t->type, known[i].type);
        assert_int_equal(t->dims, known[i].dims);
        assert_int_equal(t->elements, known[i].elements);
        if (t->dims) assert_int_equal(t->shape[0], known[i].first);
        float x[6];
        if (!safetensors_type_is_float(t->type) || t->dims != 2 || !t->elements) continue;
        safetensors_floats(t, 0, x, 6);
        for (int k = 0; k < 6; k++) assert_true(x[k] == (float)k);
        safetensors_floats(t, 4, x, 2);
        assert_true(x[0] == 4 && x[1] == 5);
    }
    assert_null(safetensors_find(&s, "layers.3.w"));
    assert_null(safetensors_find(&s, ""));
    assert_null(safetensors_find(&s, "zzz"));
    safetensors_close(&s);
}

/* float16 and bfloat16 to float32 and back, compared with torch. */
static void rounding(void **state) {
    (void)state;
    Error e;
    Safetensors s;
    float x[512], half[512], brain[512];
    if (!safetensors_open(&s, golden_files[1], &e)) fail_msg("%s", e.text);
    const SafeTensor *f32 = safetensors_find(&s, "f32"), *f16 = safetensors_find(&s, "f16");
    const SafeTensor *bf16 = safetensors_find(&s, "bf16");
    const size_t n = f32->elements;
    assert_true(n > 200 && n < 512);
    safetensors_floats(f16, 0, half, n);
    safetensors_floats(bf16, 0, brain, n);
    safetensors_floats(safetensors_find(&s, "from_f16"), 0, x, n);
    for (size_t i = 0; i < n; i++)
        if (!(isnan(x[i]) && isnan(half[i]))) assert_memory_equal(&half[i], &x[i], 4);
    safetensors_floats(safetensors_find(&s, "from_bf16"), 0, x, n);
    for (size_t i = 0; i < n; i++)
        if (!(isnan(x[i]) && isnan(brain[i]))) assert_memory_equal(&brain[i], &x[i], 4);
    safetensors_floats(f32, 0, x, n);
    for (size_t i = 0; i < n; i++) {
        uint16_t got, want;
        const bool fits = safetensors_convert(SAFETENSORS_F16, &x[i], &got, 1);
        memcpy(&want, f16->data + 2 * i, 2);
        if (isnan(x[i])) assert_true(isnan(half_from_f16(got)));
        else assert_int_equal(got, want);
        assert_int_equal(fits, !isfinite(x[i]) || isfinite(half[i]));
        safetensors_convert(SAFETENSORS_BF16, &x[i], &got, 1);
        memcpy(&want, bf16->data + 2 * i, 2);
        if (!isnan(x[i])) assert_int_equal(got, want);
    }
    for (uint32_t h = 0; h < 65536; h++) { /* every float16 */
        const float value = half_from_f16((uint16_t)h);
        if (isnan(value)) assert_true(isnan(half_from_f16(half_to_f16(value))));
        else assert_int_equal(half_to_f16(value), h);
    }
    safetensors_close(&s);
}

/* Writes what was read, announced in another order; the package decided the bytes. */
static void written(void **state) {
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        Error e;
        Safetensors s;
        SafetensorsWriter w = {0};
        if (!safetensors_open(&s, golden_files[k], &e)) fail_msg("%s", e.text);
        for (size_t i = s.count; i-- > 0;)
            safetensors_add(&w, s.tensor[i].name, s.tensor[i].type, s.tensor[i].dims, s.tensor[i].shape);
        const char *path = files_path("copy.safetensors");
        if (!safetensors_begin(&w, path, s.metadata, &e)) fail_msg("%s", e.text);
        for (size_t i = 0; i < w.count; i++) {
            const SafeTensor *t = safetensors_find(&s, w.tensor[i].name);
            assert_true(safetensors_put(&w, t->data, t->end - t->begin, &e));
        }
        if (!safetensors_commit(&w, &e)) fail_msg("%s", e.text);
        safetensors_abort(&w);
        size_t n, m;
        char *got = file_slurp(path, 1 << 20, &n, &e), *want = file_slurp(golden_files[k], 1 << 20, &m, &e);
        assert_int_equal(n, m);
        assert_memory_equal(got, want, n);
        free(got), free(want), safetensors_close(&s);
    }
}

/* ---- files that are wrong ---------------------------------------------------------------------------------------- */

static void refuse(const char *name, const void *bytes, size_t n, const char *part) {
    Safetensors s;
    Error e = {""};
    char *copy = (char *)xmalloc(n); /* of exactly n bytes, for the sanitizer */
    memcpy(copy, bytes, n);
    if (safetensors_memory(&s, "f", copy, n, &e)) fail_msg("%s is read", name);
    if (!strstr(e.text, part)) fail_msg("%s: %s", name, e.text);
    assert_null(strchr(e.text, '\n'));
    free(copy);
}

/* A file with this header and n bytes of data. */
static void refuse_header(const char *header, size_t n, const char *part) {
    TextBuffer b = {0};
    const uint64_t length = strlen(header);
    text_append(&b, (const char *)&length, 8);
    text_string(&b, header);
    for (size_t i = 0; i < n; i++) text_append(&b, "x", 1);
    refuse(header, b.text, b.length, part);
    text_free(&b);
}

#define ENTRY(name, dtype, shape, begin, end)                                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void refusals(void **state) {
    (void)state;
    refuse("nothing", "", 0, "has 0 bytes");
    refuse("seven bytes", "\2\0\0\0\0\0\0", 7, "has 7 bytes");
    refuse("a header beyond the end", "\3\0\0\0\0\0\0\0{}", 10, "header of 3 bytes");
    refuse("a huge header", "\377\377\377\377\377\377\377\377{}", 10, "not a safetensors file");
    refuse("100,000,001 bytes", "\001\341\365\005\0\0\0\0{}", 10, "the limit is 100000000");
    refuse("an empty header", "\0\0\0\0\0\0\0\0", 8, "begin with '{'");
    refuse("a NUL", "\3\0\0\0\0\0\0\0{}\0", 11, "contains a NUL byte");
    refuse_header(" {}", 0, "begin with '{'");
    refuse_header("[]", 0, "begin with '{'");
    refuse_header("{", 0, "header, column");
    refuse_header("{}x", 0, "header, column");
    refuse_header("{\"a\":\"\xff\"}", 0, "header, column");
    refuse_header("{}", 1, "the file has 1");
    refuse_header("{\"__metadata__\":{\"a\":1}}", 0, "a is not a text");
    refuse_header("{\"__metadata__\":[]}", 0, "not a JSON object");
    refuse_header("{\"a\":1}", 0, "a: entry is not");
    refuse_header("{" ENTRY("a", "F32", "[1]", "0", "4") "," ENTRY("a", "F32", "[1]", "0", "4") "}", 4, "duplicate");
    refuse_header("{" ENTRY("a", "F31", "[1]", "0", "4") "}", 4, "unknown dtype \"F31\"");
    refuse_header("{" ENTRY("a", "F32", "[2]", "0", "4") "}", 4, "has 4 bytes, its shape and dtype need 8");
    refuse_header("{" ENTRY("a", "F4", "[3]", "0", "1") "}", 1, "not a whole number of bytes");
    refuse_header("{" ENTRY("a", "F32", "[-1]", "0", "4") "}", 4, "not a list of at most 8 sizes");
    refuse_header("{" ENTRY("a", "F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, "not a list of at most 8 sizes");
    refuse_header("{" ENTRY("a", "F32", "[4294967296,4294967296,2]", "0", "4") "}", 4, "not a whole number");
    refuse_header("{" ENTRY("a", "F32", "[1]", "4", "0") "}", 4, "bytes 4 to 0");
    refuse_header("{" ENTRY("a", "F32", "[1]", "0", "4") "}", 3, "the file has 3 bytes of data");
    refuse_header("{" ENTRY("a", "F32", "[1]", "0", "4") "}", 5, "the file has 5");
    refuse_header("{" ENTRY("a", "F32", "[1]", "4", "8") "}", 8, "a: begins at byte 4");
    refuse_header("{" ENTRY("a", "F32", "[1]", "0", "4") "," ENTRY("b", "F32", "[1]", "8", "12") "}", 12,
                  "b: begins at byte 8 of the data, the tensor before it ends at 4");
    refuse_header("{" ENTRY("a", "F32", "[2]", "0", "8") "," ENTRY("b", "F32", "[1]", "4", "8") "}", 8,
                  "b: begins at byte 4 of the data, the tensor before it ends at 8");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "unknown field \"x\"");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets is not");
    refuse_header("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "has no dtype");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape is not");
    Safetensors s;
    Error e;
    const char empty[] = "\2\0\0\0\0\0\0\0{}"; /* no tensor is allowed */
    assert_true(safetensors_memory(&s, "f", empty, 10, &e) && s.count == 0 && !safetensors_find(&s, "a"));
    safetensors_close(&s);
    assert_false(safetensors_open(&s, "tests/golden", &e));
    assert_non_null(strstr(e.text, "not a regular file"));
    assert_false(safetensors_open(&s, "/dev/null", &e));
    assert_false(safetensors_open(&s, files_path("absent"), &e));
    assert_non_null(strstr(e.text, "cannot open"));
}

/* Reads everything that a file contains; the sanitizer finds a read outside it. */
static void read_all(const void *bytes, size_t n) {
    Safetensors s;
    Error e = {""};
    char *copy = (char *)xmalloc(n);
    memcpy(copy, bytes, n);
    if (safetensors_memory(&s, "f", copy, n, &e)) {
        for (size_t i = 0; i < s.count; i++) {
            const SafeTensor *t = &s.tensor[i];
            volatile uint8_t sum = 0;
            for (uint64_t k = 0; k < t->end - t->begin; k++) sum = (uint8_t)(sum + t->data[k]);
            assert_ptr_equal(safetensors_find(&s, t->name), t);
        }
        safetensors_close(&s);
    } else assert_true(strlen(e.text) > 5 && !strchr(e.text, '\n'));
    free(copy);
}

static void mutations(void **state) {
    (void)state;
    Error e;
    size_t n;
    char *file = file_slurp(golden_files[0], 1 << 20, &n, &e);
    for (size_t i = 0; i <= n; i++) read_all(file, i);
    uint64_t x = 1;
    for (int turn = 0; turn < 20000; turn++) {
        char kept[4];
        size_t at[4];
        for (int k = 0; k < 4; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            at[k] = (x >> 33) % (k % 2 ? n : 1500);
            kept[k] = file[at[k]];
            file[at[k]] = k == 3 ? "0123456789[]{},:\""[(x >> 20) % 17] : (char)(x >> 25);
        }
        read_all(file, n);
        for (int k = 3; k >= 0; k--) file[at[k]] = kept[k];
    }
    free(file);
}

/* Many tensors with long names are read in a time that does not grow with their square. */
static void many(void **state) {
    (void)state;
    Error e;
    Safetensors s;
    SafetensorsWriter w = {0};
    char name[64];
    enum { COUNT = 200000 };
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "model.layers.%d.weight", i);
        safetensors_add(&w, name, SAFETENSORS_F16, 1, (const uint64_t[]){1});
    }
    assert_true(safetensors_begin(&w, files_path("many.safetensors"), NULL, &e));
    for (int i = 0; i < COUNT; i++) assert_true(safetensors_put(&w, "ab", 2, &e));
    assert_true(safetensors_commit(&w, &e));
    if (!safetensors_open(&s, files_path("many.safetensors"), &e)) fail_msg("%s", e.text);
    assert_int_equal(s.count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "model.layers.%d.weight", i);
        assert_non_null(safetensors_find(&s, name));
    }
    safetensors_close(&s);
}

static void writer_errors(void **state) {
    (void)state;
    Error e;
    SafetensorsWriter w = {0};
    const float big[] = {1, 70000};
    safetensors_add(&w, "a", SAFETENSORS_F16, 1, (const uint64_t[]){2});
    assert_true(safetensors_begin(&w, files_path("f16.safetensors"), NULL, &e));
    assert_false(safetensors_put_floats(&w, "a", SAFETENSORS_F16, big, 2, &e));
    assert_non_null(strstr(e.text, "a: has a value that F16 cannot store"));
    safetensors_abort(&w);
    assert_int_equal(access(files_path("f16.safetensors"), F_OK), -1);
    safetensors_add(&w, "a", SAFETENSORS_F32, 1, (const uint64_t[]){1});
    safetensors_add(&w, "a", SAFETENSORS_F32, 1, (const uint64_t[]){1});
    assert_false(safetensors_begin(&w, files_path("two.safetensors"), NULL, &e));
    assert_non_null(strstr(e.text, "two tensors are named a"));
    safetensors_add(&w, "a", SAFETENSORS_F32, 1, (const uint64_t[]){UINT64_MAX / 4});
    assert_false(safetensors_begin(&w, files_path("large.safetensors"), NULL, &e));
    safetensors_add(&w, "a", SAFETENSORS_F32, 1, (const uint64_t[]){1});
    assert_true(safetensors_begin(&w, "/dev/full", NULL, &e) &&
                safetensors_put_floats(&w, "a", SAFETENSORS_F32, big, 1, &e));
    assert_false(safetensors_commit(&w, &e));
    assert_non_null(strstr(e.text, "No space left"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(types),        cmocka_unit_test(rounding),
                                       cmocka_unit_test(written),      cmocka_unit_test(refusals),
                                       cmocka_unit_test(mutations),    cmocka_unit_test(many),
                                       cmocka_unit_test(writer_errors)};
    return cmocka_run_group_tests(tests, files_setup, files_teardown);
}

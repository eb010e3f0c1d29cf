/* test_quantized.c - block types: decoding and encoding equal the gguf package's bit for bit; all 16-bit floats. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"      /* xmalloc */
#include "../llmc/base/half.h"       /* half_to_f16, half_to_bf16, half_from_bf16, half_from_f16, ... */
#include "../llmc/model/backend.h"   /* QuantType, QUANT_F32, QUANT_Q4_0, QUANT_Q8_0, ... */
#include "../llmc/model/quantized.h" /* QUANT_BLOCK, quant_gguf_name, quant_decode, quant_info, ... */
#include "golden.h"                  /* Golden, golden_count, golden_floats, golden, ... */

static QuantType type_of(const Golden *g) {
    QuantType type = QUANT_F32;
    assert_true(quant_of_gguf((uint32_t)atoi(g->name), &type));
    assert_string_equal(quant_info(type)->name, g->family);
    assert_string_equal(quant_gguf_name((uint32_t)atoi(g->name)), g->family);
    return type;
}

static uint8_t *bytes_of(const Golden *g) {
    const int n = golden_count(g, "bytes");
    uint8_t *bytes = (uint8_t *)xmalloc((size_t)n);
    for (int i = 0; i < n; i++) bytes[i] = (uint8_t)golden(g, "bytes")[i];
    return bytes;
}

static void check_decoding(const Golden *g) {
    const QuantType type = type_of(g);
    const size_t n = (size_t)golden_count(g, "values"), bytes = (size_t)golden_count(g, "bytes");
    assert_int_equal(quant_bytes(type, n), bytes);
    uint8_t *blocks = bytes_of(g), *unaligned = (uint8_t *)xmalloc(bytes + 1);
    float *expected = golden_floats(g, "values"), *got = (float *)xmalloc(n * sizeof *got);
    quant_decode(type, blocks, got, n);
    assert_memory_equal(got, expected, n * sizeof *got);
    memcpy(unaligned + 1, blocks, bytes);
    memset(got, 0xff, n * sizeof *got);
    quant_decode(type, unaligned + 1, got, n);
    assert_memory_equal(got, expected, n * sizeof *got);
    free(blocks), free(unaligned), free(expected), free(got);
}

static void check_encoding(const Golden *g) {
    const QuantType type = type_of(g);
    const size_t n = (size_t)golden_count(g, "values"), bytes = (size_t)golden_count(g, "bytes");
    uint8_t *expected = bytes_of(g), *got = (uint8_t *)xmalloc(bytes);
    float *values = golden_floats(g, "values");
    assert_int_equal(quant_bytes(type, n), bytes);
    assert_true(quant_info(type)->encodes);
    quant_encode(type, values, got, n);
    assert_memory_equal(got, expected, bytes);
    free(expected), free(got), free(values);
}

static void blocks_equal_gguf(void **state) {
    (void)state;
    int decoded = 0, encoded = 0;
    FILE *f = golden_open("gguf_quants.txt");
    for (Golden g; golden_next(f, &g); golden_free(&g)) {
        if (!strcmp(g.kind, "decode")) {
            check_decoding(&g);
            decoded++;
        } else {
            check_encoding(&g);
            encoded++;
        }
    }
    fclose(f);
    assert_int_equal(decoded, QUANT_COUNT - 1); /* all but float32 */
    assert_int_equal(encoded, 4);
}

/* The value of a float16, from its definition. */
static double half_value(unsigned h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                             : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                            : ldexp(fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void every_float16(void **state) {
    (void)state;
    for (unsigned h = 0; h < 1 << 16; h++) {
        const double value = half_value(h);
        const float got = half_from_f16((uint16_t)h);
        assert_true(isnan(value) ? isnan(got) : got == value && !signbit(got) == !signbit(value));
        if (!isnan(value)) assert_int_equal(half_to_f16(got), h);
    }
    assert_true(isnan(half_from_f16(half_to_f16(NAN))));
}

/* Between two neighbours: the nearer one, and the even one of two that are equally near. */
static void rounding_to_16_bits(void **state) {
    (void)state;
    for (unsigned h = 0; h < 0x7bff; h++) {
        const float low = (float)half_value(h), high = (float)half_value(h + 1), middle = (low + high) / 2;
        assert_int_equal(half_to_f16(middle), h % 2 ? h + 1 : h);
        assert_int_equal(half_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(half_to_f16(-nextafterf(middle, INFINITY)), (h + 1) | 0x8000);
    }
    for (unsigned h = 0; h < 0x7f7f; h++) {
        const float low = half_from_bf16((uint16_t)h), high = half_from_bf16((uint16_t)(h + 1));
        const float middle = (float)(((double)low + high) / 2);
        assert_int_equal(half_to_bf16(middle), h % 2 ? h + 1 : h);
        assert_int_equal(half_to_bf16(nextafterf(middle, 0)), h);
        assert_int_equal(half_to_bf16(-nextafterf(middle, INFINITY)), (h + 1) | 0x8000);
    }
    assert_int_equal(half_to_f16(65519.9f), 0x7bff);
    assert_int_equal(half_to_f16(65520), 0x7c00);
    assert_int_equal(half_to_f16(-1e30f), 0xfc00);
    assert_int_equal(half_to_bf16(INFINITY), 0x7f80);
    assert_true(isnan(half_from_bf16(half_to_bf16(half_float(0x7f800001u)))));
}

/* The largest values that quant_limit() allows are stored finite; Q8_0 is off by at most half a step. */
static void limits(void **state) {
    (void)state;
    const QuantType types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        float x[QUANT_BLOCK], y[QUANT_BLOCK];
        uint8_t b[4 * QUANT_BLOCK];
        for (int i = 0; i < QUANT_BLOCK; i++) x[i] = (i % 2 ? -1 : 1) * quant_limit(types[t]) * ((float)(32 - i) / 32);
        quant_encode(types[t], x, b, QUANT_BLOCK);
        quant_decode(types[t], b, y, QUANT_BLOCK);
        const double step = types[t] == QUANT_Q8_0   ? 65504.0 / 2
                            : types[t] == QUANT_Q4_0 ? 65504.0
                            : types[t] == QUANT_F32  ? 0
                                                     : fabs((double)x[0]) / 256;
        for (int i = 0; i < QUANT_BLOCK; i++) assert_true(fabs((double)y[i] - x[i]) <= step);
    }
}

static void names(void **state) {
    (void)state;
    QuantType type;
    assert_false(quant_of_gguf(9, &type));
    assert_false(quant_of_gguf(UINT32_MAX, &type));
    assert_string_equal(quant_gguf_name(16), "IQ2_XXS");
    assert_string_equal(quant_gguf_name(39), "MXFP4");
    assert_null(quant_gguf_name(4));
    assert_null(quant_gguf_name(1000));
    assert_false(quant_info(QUANT_Q6_K)->encodes);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(blocks_equal_gguf), cmocka_unit_test(every_float16),
                                       cmocka_unit_test(rounding_to_16_bits), cmocka_unit_test(limits),
                                       cmocka_unit_test(names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

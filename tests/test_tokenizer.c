/* test_tokenizer.c - tokenizers: GPT-2's ids for text of all kinds, from both forms of vocabulary, against tiktoken and
 * Hugging Face (dev/golden/golden_tokenizer.py); round trips of arbitrary bytes; blobs; bad files. */
#include "../llmc/base/error.h"           /* Error, xmalloc, die, xstrdup, ... */
#include "../llmc/base/io.h"              /* file_slurp, XXH3_64bits_withSeed */
#include "../llmc/base/jsonl.h"           /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/text.h"            /* TextBuffer, text_free, token_list_free, TokenList, ... */
#include "../llmc/text/nfc.h"             /* Nfc, nfc_append, nfc_free, nfc_quick */
#include "../llmc/text/pretokenize.h"     /* pretokenizer_next, pretokenizer_open, Pretokenizer, ... */
#include "../llmc/text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_encode, tokenizer_hash, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open, TOKENIZER_SIGN */
#include "../llmc/text/tokenizer_gguf.h"  /* TokenizerGguf, tokenizer_open_gguf, GGUF_TOKEN_NORMAL, ... */
#include "../llmc/text/tokenizer_write.h" /* tokenizer_edit_json, tokenizer_edit_config, tokenizer_to_json */
#include "files.h"                        /* files_path, files_put, files_assert_error, files_noise, ... */
#include <time.h>

static Tokenizer gpt2;
static char *vocab_json, *merges_txt; /* paths */

/* ---- GPT-2's files, rebuilt from the merges -------------------------------------------------------------------- */

/* bytes_to_unicode() of GPT-2's encoder.py: byte k in its order, as UTF-8. */
static void gpt2_byte(int k, char utf8[4]) {
    int order[256], point[256], n = 0, next = 256;
    for (int pass = 0; pass < 2; pass++)
        for (int b = 0; b < 256; b++) {
            const bool prints = (b > 32 && b < 127) || (b > 160 && b != 173);
            if (prints == !pass) {
                order[n++] = b;
                point[b] = prints ? b : next++;
            }
        }
    utf8_encode((uint32_t)point[order[k]], utf8);
}

static json_t *gpt2_vocab(const char *merges) {
    json_t *vocab = json_object();
    int id = 0;
    for (; id < 256; id++) {
        char token[5] = {0};
        gpt2_byte(id, token);
        json_object_set_new(vocab, token, json_integer(id));
    }
    for (const char *line = strchr(merges, '\n') + 1; *line; line = strchr(line, '\n') + 1) {
        char token[512], *space;
        snprintf(token, sizeof token, "%.*s", (int)strcspn(line, "\n"), line);
        space = strchr(token, ' ');
        memmove(space, space + 1, strlen(space));
        json_object_set_new(vocab, token, json_integer(id++));
    }
    json_object_set_new(vocab, "<|endoftext|>", json_integer(id));
    return vocab;
}

static int setup(void **state) {
    Error e;
    size_t n;
    if (files_setup(state)) return 1;
    vocab_json = xstrdup(files_path("vocab.json"));
    merges_txt = xstrdup(files_path("merges.txt"));
    char *merges = file_slurp("tests/golden/tokenizer_gpt2_merges.txt.zst", 1 << 20, &n, &e);
    if (!merges) die("%s", e.text);
    files_put(merges_txt, merges, n);
    json_t *vocab = gpt2_vocab(merges);
    if (json_dump_file(vocab, vocab_json, 0)) return 1;
    json_decref(vocab);
    free(merges);
    char spec[512];
    snprintf(spec, sizeof spec, "%s:%s", vocab_json, merges_txt);
    if (!tokenizer_open(&gpt2, spec, &e)) die("%s", e.text);
    return 0;
}

static int teardown(void **state) {
    tokenizer_free(&gpt2);
    free(vocab_json);
    free(merges_txt);
    return files_teardown(state);
}

static void put_text(const char *path, const char *text) { files_put(path, text, strlen(text)); }

static void assert_round_trip(const Tokenizer *t, const char *text, size_t n) {
    Error e;
    TokenList ids = {0};
    TextBuffer back = {0};
    if (!tokenizer_encode(t, text, n, false, &ids, &e)) fail_msg("%s", e.text);
    tokenizer_decode(t, ids.ids, ids.count, false, &back);
    assert_int_equal(back.length, n);
    assert_memory_equal(back.text, text, n);
    assert_int_equal(back.text[n], 0);
    token_list_free(&ids);
    text_free(&back);
}

/* ---- golden values --------------------------------------------------------------------------------------------- */

static void assert_ids(const Tokenizer *t, const json_t *row, bool specials) {
    Error e;
    TokenList ids = {0};
    const json_t *text = json_object_get(row, "text"), *want = json_object_get(row, "ids");
    const char *name = json_string_value(json_object_get(row, "name"));
    if (!tokenizer_encode(t, json_string_value(text), json_string_length(text), specials, &ids, &e))
        fail_msg("%s: %s", name, e.text);
    for (size_t i = 0; i < json_array_size(want) && i < (size_t)ids.count; i++)
        if (ids.ids[i] != json_integer_value(json_array_get(want, i)))
            fail_msg("%s: token %zu is %d, expected %d", name, i, ids.ids[i],
                     (int)json_integer_value(json_array_get(want, i)));
    if ((size_t)ids.count != json_array_size(want))
        fail_msg("%s: %d tokens, expected %zu", name, ids.count, json_array_size(want));
    token_list_free(&ids);
    assert_round_trip(t, json_string_value(text), json_string_length(text));
}

/* Returns the id of an ordinary token. */
static int32_t ordinary_id(const Tokenizer *t, const char *bytes) { return tokenizer_find(t, bytes, strlen(bytes)); }

static void test_gpt2_texts(void **state) {
    (void)state;
    Error e;
    Jsonl j;
    json_t *row;
    int more, cases = 0;
    assert_int_equal(gpt2.vocab, 50257);
    assert_int_equal(gpt2.eos, 50256);
    assert_true(jsonl_open(&j, "tests/golden/tokenizer_gpt2.jsonl", false, &e));
    for (; (more = jsonl_next(&j, &row, &e)) > 0; cases++) assert_ids(&gpt2, row, false);
    if (more) fail_msg("%s", e.text);
    assert_true(cases >= 190);
    jsonl_close(&j);
}

/* Every Unicode code point, each between letters, spaces and digits, and doubled. */
static void test_gpt2_all_planes(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/tokenizer_gpt2_planes.txt", "r");
    assert_non_null(f);
    unsigned first;
    int count, blocks = 0;
    unsigned long long hash;
    for (; fscanf(f, "%x %d %llx", &first, &count, &hash) == 3; blocks++) {
        TextBuffer text = {0};
        TokenList ids = {0};
        Error e;
        text_clear(&text);
        for (unsigned c = first; c < first + 4096; c++) {
            char u[5] = {0};
            if (c >= 0xD800 && c < 0xE000) continue;
            const size_t n = (size_t)utf8_encode(c, u);
            text_string(&text, "x");
            text_append(&text, u, n);
            text_string(&text, " ");
            text_append(&text, u, n);
            text_string(&text, "7");
            text_append(&text, u, n);
            text_append(&text, u, n);
            text_string(&text, "\n");
        }
        assert_true(tokenizer_encode(&gpt2, text.text, text.length, false, &ids, &e));
        unsigned long long fnv = 0xCBF29CE484222325;
        for (int i = 0; i < ids.count; i++)
            for (int b = 0; b < 4; b++) fnv = (fnv ^ ((unsigned)ids.ids[i] >> 8 * b & 255)) * 0x100000001B3;
        if (ids.count != count || fnv != hash) fail_msg("code points from U+%04X differ", first);
        text_free(&text);
        token_list_free(&ids);
    }
    assert_int_equal(blocks, 0x110);
    fclose(f);
}

/* A tokenizer.json as `tokenizers` wrote it, with five pre-tokenizers, with ignore_merges on and off. */
static void test_tokenizer_json(void **state) {
    (void)state;
    Error e;
    Jsonl j;
    json_t *row, *last = json_null(), *root = json_load_file("tests/golden/tokenizer_small.json", 0, NULL);
    Tokenizer t = {0};
    int more, cases = 0, tokenizers = 0;
    assert_non_null(root);
    assert_true(jsonl_open(&j, "tests/golden/tokenizer_small.jsonl.zst", false, &e));
    for (; (more = jsonl_next(&j, &row, &e)) > 0; cases++) {
        json_t *settings = json_object_get(row, "settings");
        if (!json_equal(settings, last)) {
            json_decref(last);
            last = json_deep_copy(settings);
            json_object_set(root, "pre_tokenizer", json_object_get(settings, "pre_tokenizer"));
            json_object_set(json_object_get(root, "model"), "ignore_merges",
                            json_object_get(settings, "ignore_merges"));
            assert_int_equal(json_dump_file(root, files_path("tokenizer.json"), 0), 0);
            tokenizer_free(&t);
            if (!tokenizer_open(&t, files_path("tokenizer.json"), &e)) fail_msg("%s", e.text);
            assert_int_equal(t.vocab, json_integer_value(json_object_get(row, "vocab")));
            assert_int_equal(t.eos, 0);
            tokenizers++;
        }
        assert_ids(&t, row, true);
    }
    if (more) fail_msg("%s", e.text);
    assert_int_equal(tokenizers, 10);
    assert_true(cases > 300);
    tokenizer_free(&t);
    jsonl_close(&j);
    json_decref(last);
    json_decref(root);
}

/* ---- the forms of published tokenizers ------------------------------------------------------------------------- */

/* Compares the ids of a text with the list in `field`. */
static void assert_encodes(const Tokenizer *t, const char *form, const json_t *row, const char *field, int how) {
    Error e;
    TokenList ids = {0};
    TextBuffer text = {0};
    const json_t *want = json_object_get(row, field);
    const char *input = json_string_value(json_object_get(row, "text"));
    if (!tokenizer_encode(t, input, json_string_length(json_object_get(row, "text")), how, &ids, &e))
        fail_msg("%s: '%s': %s", form, input, e.text);
    for (int32_t i = 0; i < ids.count; i++) {
        if (ids.ids[i] == json_integer_value(json_array_get(want, (size_t)i))) continue;
        tokenizer_decode(t, ids.ids, i, true, &text);
        fail_msg("%s: '%s': %s: token %d is %d, expected %d, after '%s'", form, input, field, i, ids.ids[i],
                 (int)json_integer_value(json_array_get(want, (size_t)i)), text.text);
    }
    if ((size_t)ids.count != json_array_size(want))
        fail_msg("%s: '%s': %s: %d tokens, expected %zu", form, input, field, ids.count, json_array_size(want));
    token_list_free(&ids);
    text_free(&text);
}

/* Compares the text of the expected ids, decoded at once and token by token. */
static void assert_decodes(const Tokenizer *t, const char *form, const json_t *row) {
    TokenList ids = {0};
    TextBuffer text = {0}, parts = {0};
    size_t i;
    json_t *id;
    json_array_foreach(json_object_get(row, "ids"), i, id) token_list_append(&ids, (int32_t)json_integer_value(id));
    const char *want = json_string_value(json_object_get(row, "decoded"));
    if (!want) {
        token_list_free(&ids);
        return;
    }
    tokenizer_decode(t, ids.ids, ids.count, false, &text);
    if (text.length != json_string_length(json_object_get(row, "decoded")) || memcmp(text.text, want, text.length))
        fail_msg("%s: decoded '%s', expected '%s'", form, text.text, want);
    bool started = false;
    for (int32_t k = 0; k < ids.count; k++) tokenizer_decode_more(t, ids.ids + k, 1, false, &started, &parts);
    assert_int_equal(parts.length, text.length);
    assert_true(!text.length || !memcmp(parts.text, text.text, text.length));
    token_list_free(&ids);
    text_free(&text);
    text_free(&parts);
}

/* The tokenizer written as tokenizer.json and opened again, in place of it. */
static void rewrite(Tokenizer *t, const char *form) {
    Error e;
    TextBuffer json = {0};
    const uint64_t hash = tokenizer_hash(t);
    if (!tokenizer_to_json(t, &json, &e)) fail_msg("%s: %s", form, e.text);
    files_put(files_path("written.json"), json.text, json.length);
    text_free(&json);
    tokenizer_free(t);
    if (!tokenizer_open(t, files_path("written.json"), &e)) fail_msg("%s: %s", form, e.text);
    if (tokenizer_hash(t) != hash) fail_msg("%s: differs after it was written", form);
}

/* Text that continues text gets no space before it, and decoding in parts omits only the first one. */
static void assert_continues(const Tokenizer *t, const char *form) {
    Error e;
    TokenList ids = {0};
    TextBuffer text = {0};
    assert_true(tokenizer_encode(t, "one", 3, 0, &ids, &e));
    assert_true(tokenizer_encode(t, " two", 4, TOKENIZER_CONTINUES, &ids, &e));
    assert_true(tokenizer_encode(t, "<|user|>\n ", 10, TOKENIZER_CONTINUES | TOKENIZER_SPECIALS, &ids, &e));
    assert_true(tokenizer_encode(t, " \nx", 3, TOKENIZER_CONTINUES, &ids, &e)); /* rstrip */
    tokenizer_decode(t, ids.ids, ids.count, true, &text);
    const bool prefix =
        t->flags & TOKENIZER_PREPEND || (t->flags & TOKENIZER_PREFIX && !(t->flags & TOKENIZER_PREFIX_FIRST));
    const char *want = prefix ? "one two<|user|> x" : "one two<|user|>x";
    if (strcmp(text.text, want)) fail_msg("%s: '%s', expected '%s'", form, text.text, want);
    token_list_free(&ids);
    text_free(&text);
}

/* Whether GGUF keeps all that matters for this text: no added token with flags is in it, and no token is made that is
 * an added one in the original, but in GGUF is also the result of merges. */
static bool expressible(const Tokenizer *gguf, const char *form, const json_t *row) {
    static const char *const parts[] = {"<|user|>", "<l>", "<w>", "["};
    const char *text = json_string_value(json_object_get(row, "text"));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(text, parts[i])) return false;
    Error e;
    TokenList ids = {0};
    const int32_t spaces = tokenizer_special(gguf, TOKENIZER_SIGN TOKENIZER_SIGN);
    assert_true(spaces >= 0);
    assert_true(tokenizer_encode(gguf, text, json_string_length(json_object_get(row, "text")), 1, &ids, &e));
    bool found = false;
    for (int32_t i = 0; i < ids.count; i++) found |= ids.ids[i] == spaces;
    token_list_free(&ids);
    return !found && strcmp(form, "unknown_bytes") != 0;
}

/* Opens the tokenizer from its arrays in GGUF. Returns false if GGUF cannot express it. */
static bool through_gguf(const Tokenizer *t, const char *form, Tokenizer *out) {
    static const struct {
        const char *form, *refusal;
    } refused[] = {{"llama2_across", "not those of scores"}, {"mistral", "not those of scores"},
                   {"metaspace", "splits text at spaces"},   {"metaspace_never", "not those of scores"},
                   {"gemma_words", "splits text at spaces"}, {"unknown_fused", "not those of scores"},
                   {"unknown", "not those of scores"}};
    Error e;
    TokenizerGgufArrays arrays;
    *out = (Tokenizer){0};
    const bool made = tokenizer_to_gguf(t, &arrays, &e);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!strcmp(form, refused[i].form)) {
            assert_false(made);
            files_assert_error(&e, refused[i].refusal);
            return false;
        }
    if (!made) fail_msg("%s: %s", form, e.text);
    if (!tokenizer_open_gguf(out, &arrays.g, "form.gguf", &e)) fail_msg("%s: %s", form, e.text);
    tokenizer_gguf_free(&arrays);
    assert_int_equal(out->vocab, t->vocab);
    assert_int_equal(out->bos, t->bos);
    assert_int_equal(out->add_bos, t->add_bos);
    return true;
}

/* Every form against `tokenizers`: opened from its tokenizer.json, stored as a blob, written as tokenizer.json, and
 * through the arrays of GGUF. */
static void test_forms(void **state) {
    (void)state;
    Error e;
    Jsonl j;
    json_t *row;
    Tokenizer t = {0}, gguf = {0};
    char form[64] = "";
    int more, forms = 0, ggufs = 0, cases = 0, same = 0;
    assert_true(jsonl_open(&j, "tests/golden/tokenizer_forms.jsonl.zst", false, &e));
    while ((more = jsonl_next(&j, &row, &e)) > 0) {
        const json_t *json = json_object_get(row, "json");
        if (json) {
            void *blob;
            size_t n;
            snprintf(form, sizeof form, "%s", json_string_value(json_object_get(row, "name")));
            assert_int_equal(json_dump_file(json, files_path("form.json"), 0), 0);
            tokenizer_free(&t);
            if (!tokenizer_open(&t, files_path("form.json"), &e)) fail_msg("%s: %s", form, e.text);
            assert_true(tokenizer_store(&t, &blob, &n, &e));
            tokenizer_free(&t);
            if (!tokenizer_load(&t, blob, n, &e)) fail_msg("%s: %s", form, e.text);
            free(blob);
            rewrite(&t, form);
            assert_continues(&t, form);
            tokenizer_free(&gguf);
            ggufs += through_gguf(&t, form, &gguf);
            forms++;
            continue;
        }
        assert_encodes(&t, form, row, "ids", TOKENIZER_SPECIALS);
        if (json_is_array(json_object_get(row, "plain"))) assert_encodes(&t, form, row, "plain", 0);
        assert_decodes(&t, form, row);
        if (gguf.vocab && expressible(&gguf, form, row)) {
            assert_encodes(&gguf, form, row, "ids", TOKENIZER_SPECIALS);
            same++;
        }
        cases++;
    }
    if (more) fail_msg("%s", e.text);
    assert_int_equal(forms, 17);
    assert_int_equal(ggufs, 10);
    assert_true(cases > 1500);
    assert_true(same > 900);
    tokenizer_free(&t);
    tokenizer_free(&gguf);
    jsonl_close(&j);
}

/* ---- several threads ------------------------------------------------------------------------------------------- */

enum { LONG_TEXT = 300000 }; /* bytes: some chunks */

/* Words, numbers and spaces of several scripts in a random order. broken: also bytes that belong to no character. */
static void long_text(TextBuffer *out, uint64_t seed, bool broken) {
    static const char *const parts[] = {" the",       " of",  "and ", "  ",   "\n",   "\n\n  ",       "'s",
                                        "12",         "3456", "é",    "漢字", "🙂", "\xE2\x96\x81", " \xE2\x96\x81in",
                                        "<|im_end|>", "...",  "->",   "\t",   "A",    "bc",           "\xFF",
                                        "\xC3"};
    const uint32_t count = sizeof parts / sizeof *parts - (broken ? 0 : 2);
    text_clear(out);
    for (uint32_t i = 0; out->length < LONG_TEXT; i++) {
        const uint32_t pick = (uint32_t)(XXH3_64bits_withSeed(&i, sizeof i, seed) >> 33);
        if (pick % 997) text_string(out, parts[pick % count]);
        else
            for (int k = 0; k < 300; k++) text_string(out, "a"); /* a long word */
    }
}

/* A text gives the same tokens whether one thread encodes it or several do. */
static void assert_threads(const Tokenizer *t, const char *form, const TextBuffer *text) {
    Error e;
    TokenList one = {0}, many = {0};
    Tokenizer other = tokenizer_share(t);
    tokenizer_use_threads(&other, 3);
    assert_true(tokenizer_is_long(&other, text->length));
    assert_true(tokenizer_encode(t, text->text, text->length, 0, &one, &e));
    assert_true(tokenizer_encode(&other, text->text, text->length, 0, &many, &e));
    if (many.count != one.count || memcmp(many.ids, one.ids, (size_t)one.count * sizeof *one.ids))
        fail_msg("%s: several threads give %d tokens, one gives %d", form, many.count, one.count);
    tokenizer_unshare(&other);
    token_list_free(&one);
    token_list_free(&many);
}

static void test_threads(void **state) {
    (void)state;
    Error e;
    Jsonl j;
    json_t *row;
    Tokenizer t;
    TextBuffer text = {0}, broken = {0};
    int forms = 0;
    long_text(&text, 1, false);
    long_text(&broken, 2, true);
    assert_true(jsonl_open(&j, "tests/golden/tokenizer_forms.jsonl.zst", false, &e));
    while (jsonl_next(&j, &row, &e) > 0) {
        const json_t *json = json_object_get(row, "json");
        if (!json) continue;
        const char *form = json_string_value(json_object_get(row, "name"));
        assert_int_equal(json_dump_file(json, files_path("form.json"), 0), 0);
        assert_true(tokenizer_open(&t, files_path("form.json"), &e));
        assert_threads(&t, form, &text);
        assert_threads(&t, form, &broken);
        tokenizer_free(&t);
        forms++;
    }
    assert_int_equal(forms, 17);
    jsonl_close(&j);
    assert_true(tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e));
    assert_threads(&t, "small", &text);
    assert_threads(&t, "small", &broken);
    tokenizer_free(&t);
    text_free(&broken);
    text_free(&text);
}

/* A pattern whose pieces never begin at the same places if a text is begun elsewhere, and one that fails at some place. */
static void test_threads_of_patterns(void **state) {
    (void)state;
    Error e, other;
    Tokenizer t;
    TextBuffer text = {0};
    TokenList ids = {0};
    static const char *const patterns[] = {"[a-z]{7}", "b(?=(?:a+)+[cd])|a"};
    for (int i = 0; i < 2; i++) {
        json_t *root = json_load_file("tests/golden/tokenizer_small.json", 0, NULL);
        json_object_set_new(root, "pre_tokenizer",
                            json_pack("{s:s,s:[{s:s,s:{s:s},s:s,s:b},{s:s,s:b,s:b}]}", "type", "Sequence",
                                      "pretokenizers", "type", "Split", "pattern", "Regex", patterns[i], "behavior",
                                      "Isolated", "invert", 0, "type", "ByteLevel", "add_prefix_space", 0, "use_regex",
                                      0));
        assert_int_equal(json_dump_file(root, files_path("form.json"), 0), 0);
        json_decref(root);
        if (!tokenizer_open(&t, files_path("form.json"), &e)) fail_msg("%s", e.text);
        text_clear(&text);
        while (text.length < LONG_TEXT + 120000) text_string(&text, "a");
        if (!i) {
            assert_threads(&t, patterns[i], &text);
            assert_true(tokenizer_encode(&t, "aaaaaaaa", 8, 0, &ids, &e)); /* the pieces matter */
            const int32_t pieces = ids.count;
            ids.count = 0;
            assert_true(tokenizer_encode(&t, "aaaaaaa", 7, 0, &ids, &e));
            assert_int_equal(pieces, ids.count + 1);
        } else {
            text.text[LONG_TEXT - 4000] = 'b';
            assert_false(tokenizer_encode(&t, text.text, text.length, 0, &ids, &e));
            tokenizer_use_threads(&t, 3);
            assert_false(tokenizer_encode(&t, text.text, text.length, 0, &ids, &other));
            assert_string_equal(e.text, other.text);
        }
        tokenizer_free(&t);
    }
    token_list_free(&ids);
    text_free(&text);
}

/* ---- normalisation --------------------------------------------------------------------------------------------- */

typedef struct Points {
    uint32_t *list;
    size_t count;
} Points;

static void add_points(Points *p, unsigned first, unsigned last) {
    p->list = xrealloc(p->list, p->count + last - first + 1, sizeof *p->list);
    while (first <= last) p->list[p->count++] = first++;
}

static void put_point(TextBuffer *b, uint32_t c) {
    char utf8[4];
    text_append(b, utf8, (size_t)utf8_encode(c, utf8));
}

/* Continues a hash with the normal form of the text and a newline. */
static uint64_t hash_normal(uint64_t hash, const TextBuffer *text) {
    static Nfc scratch;
    TextBuffer normal = {0};
    if (nfc_quick(text->text, text->length)) text_append(&normal, text->text, text->length);
    else nfc_append(&scratch, text->text, text->length, &normal);
    text_string(&normal, "\n");
    for (size_t i = 0; i < normal.length; i++) hash = (hash ^ (unsigned char)normal.text[i]) * 0x100000001B3;
    text_free(&normal);
    nfc_free(&scratch);
    return hash;
}

static uint64_t hash_block(const Points *points, size_t first) {
    uint64_t hash = 0xCBF29CE484222325;
    TextBuffer text = {0};
    for (size_t i = first; i < first + 4096 && i < points->count; i++) {
        text_clear(&text);
        put_point(&text, points->list[i]);
        text_string(&text, "\xCC\x81\xCC\xA3");
        put_point(&text, points->list[i]);
        text_string(&text, " a");
        put_point(&text, points->list[i]);
        text_string(&text, "\xCD\x85");
        put_point(&text, points->list[i]);
        hash = hash_normal(hash, &text);
    }
    text_free(&text);
    return hash;
}

static uint64_t normal_state = 1;

static uint32_t normal_number(size_t below) {
    normal_state = normal_state * 6364136223846793005 + 1442695040888963407;
    return (uint32_t)((normal_state >> 33) % below);
}

static uint64_t hash_random(const Points *changing) {
    uint64_t hash = 0xCBF29CE484222325;
    TextBuffer text = {0};
    for (int k = 0; k < 1000; k++) {
        text_clear(&text);
        for (uint32_t n = 1 + normal_number(12); n > 0; n--) {
            const uint32_t kind = normal_number(8);
            put_point(&text, kind > 1 ? changing->list[normal_number(changing->count)]
                             : kind   ? 0x300 + normal_number(0x46)
                                      : 0x61 + normal_number(26));
        }
        hash = hash_normal(hash, &text);
    }
    text_free(&text);
    return hash;
}

/* Every character with marks, and random texts of those that normalisation may change. */
static void test_nfc(void **state) {
    (void)state;
    Error e;
    size_t n;
    int blocks = 0, texts = 0;
    Points points = {0}, changing = {0};
    add_points(&points, 1, 0xD7FF);
    add_points(&points, 0xE000, 0x2FFFF);
    add_points(&points, 0xE0000, 0xE0FFF);
    char *golden = file_slurp("tests/golden/tokenizer_nfc.txt.zst", 1 << 20, &n, &e), *rest = golden, *line;
    assert_non_null(golden);
    while ((line = strsep(&rest, "\n")) && *line) {
        unsigned a, b;
        unsigned long long hash;
        if (sscanf(line, "changing %x %x", &a, &b) == 2) add_points(&changing, a, b);
        else if (sscanf(line, "block %x %llx", &a, &hash) == 2) {
            if (hash_block(&points, a) != hash) fail_msg("characters from U+%04X differ", points.list[a]);
            blocks++;
        } else if (sscanf(line, "random %x %llx", &a, &hash) == 2) {
            if (hash_random(&changing) != hash) fail_msg("random text %u differs", a);
            texts++;
        } else fail_msg("line '%s'", line);
    }
    assert_int_equal(blocks, 49);
    assert_int_equal(texts, 20);
    free(golden);
    free(points.list);
    free(changing.list);

    /* bytes outside characters are kept, and nothing is combined across them */
    Nfc scratch = {0};
    TextBuffer out = {0};
    const char broken[] = "e\xFF\xCC\x81 e\xCC\x81\xCC \xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8\xED\xA0\x80\0a\xCC\x80";
    nfc_append(&scratch, broken, sizeof broken - 1, &out);
    const char want[] = "e\xFF\xCC\x81 \xC3\xA9\xCC \xEA\xB0\x81\xED\xA0\x80\0\xC3\xA0";
    assert_int_equal(out.length, sizeof want - 1);
    assert_memory_equal(out.text, want, sizeof want - 1);
    nfc_free(&scratch);
    text_free(&out);
}

/* ---- arbitrary bytes ------------------------------------------------------------------------------------------- */

static void test_any_bytes(void **state) {
    (void)state;
    Error e;
    TokenList ids = {0};
    Tokenizer bytes;
    assert_true(tokenizer_bytes(&bytes, &e));
    assert_int_equal(bytes.vocab, 260);
    assert_int_equal(bytes.eos, 256);
    uint8_t *noise = files_noise(100000);
    for (size_t n = 0; n < 100000; n = 3 * n / 2 + 1) {
        assert_round_trip(&gpt2, (const char *)noise, n);
        assert_round_trip(&bytes, (const char *)noise, n);
    }
    for (size_t i = 0; i < 100000; i++) noise[i] &= noise[i / 2] | 0x5F; /* more of it is well formed */
    assert_round_trip(&gpt2, (const char *)noise, 100000);
    free(noise);

    /* invalid bytes are a piece of their own: half an emoji keeps its token, and the text around it is unchanged */
    assert_true(tokenizer_encode(&gpt2, " the\xF0\x9F the", 10, false, &ids, &e));
    assert_int_equal(ids.count, 3);
    assert_int_equal(ids.ids[0], 262);
    assert_int_equal(ids.ids[1], 8582);
    assert_int_equal(ids.ids[2], 262);
    static const char *const broken[] = {
        "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80",  "\xE2\x82",        "\xF8\x88\x80\x80", "\x80", "\xFF\xFE",
        "a\xC3",    "\xC3(",        "\xE2\x28\xA1 \xE2", "\xF0\x80\x80\x80"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        assert_true(utf8_valid(broken[i], strlen(broken[i])) < strlen(broken[i]));
        assert_round_trip(&gpt2, broken[i], strlen(broken[i]));
    }
    assert_int_equal(utf8_valid("\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80\xC2\x80 abcdefgh\0x", 24), 24);
    token_list_free(&ids);
    tokenizer_free(&bytes);
}

/* A megabyte without a place to split must take n log n time, not n squared (minutes). */
static void test_long_pieces(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    static const char *const units[] = {"a", "1", " ", "ab", "\xE7\x9A\x84", "\xFF", "=", "na"};
    char *text = xmalloc(N);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        const size_t unit = strlen(units[u]), n = N / unit * unit;
        for (size_t i = 0; i < n; i++) text[i] = units[u][i % unit];
        const clock_t start = clock();
        assert_round_trip(&gpt2, text, n);
        const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 5) fail_msg("a megabyte of '%s' took %.1f s", units[u], seconds);
    }
    free(text);
}

/* The same for the other forms, whose pieces may be as long as the text. */
static void test_long_texts_of_forms(void **state) {
    (void)state;
    enum { N = 1 << 18 };
    static const char *const units[] = {
        "a",       "A",   " ",    "ab ",       "\xE7\x9A\x84", "\xFF",         "\xCC\x81", "\n", "e\xCC\xA7\xCC\x81",
        "<think>", "<w>", " <l>", "<|user|> ", "<s",           "\xE2\x96\x81", "'s"};
    Error e;
    Jsonl j;
    json_t *row;
    int more;
    char *text = xmalloc(N);
    assert_true(jsonl_open(&j, "tests/golden/tokenizer_forms.jsonl.zst", false, &e));
    while ((more = jsonl_next(&j, &row, &e)) > 0) {
        const json_t *json = json_object_get(row, "json");
        if (!json) continue;
        Tokenizer t;
        TokenList ids = {0};
        assert_int_equal(json_dump_file(json, files_path("form.json"), 0), 0);
        assert_true(tokenizer_open(&t, files_path("form.json"), &e));
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            for (size_t i = 0, unit = strlen(units[u]); i < N; i++) text[i] = units[u][i % unit];
            const clock_t start = clock();
            ids.count = 0;
            if (!tokenizer_encode(&t, text, N, 1, &ids, &e)) fail_msg("'%s': %s", units[u], e.text);
            const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
            if (seconds > 2)
                fail_msg("%s: 256 KiB of '%s' took %.1f s", json_string_value(json_object_get(row, "name")), units[u],
                         seconds);
        }
        token_list_free(&ids);
        tokenizer_free(&t);
    }
    if (more) fail_msg("%s", e.text);
    free(text);
    jsonl_close(&j);
}

/* If memory cannot be made executable, PCRE2 interprets patterns: the same results, slower. */
static void test_without_jit(void **state) {
    enum { N = 1 << 18 };
    const bool jit = gpt2.scratch->pieces.jit;
    const PretokenizerShape *shape = gpt2.scratch->pieces.shape;
    gpt2.scratch->pieces.jit = false;
    gpt2.scratch->pieces.shape = NULL;
    test_gpt2_texts(state);
    char *text = xmalloc(N);
    for (const char *c = "a 1\n."; *c; c++) {
        memset(text, *c, N);
        assert_round_trip(&gpt2, text, N);
        text[N - 1] = 'x';
        assert_round_trip(&gpt2, text, N);
    }
    free(text);
    gpt2.scratch->pieces.jit = jit;
    gpt2.scratch->pieces.shape = shape;
}

/* Pieces of ASCII characters that are found without the regular expression: those that it finds, in all texts of up to
 * five of these characters. */
static void test_shapes(void **state) {
    (void)state;
    static const char *const patterns[] = {PRETOKENIZER_GPT2, PRETOKENIZER_GPT2_DIGITS, PRETOKENIZER_LLAMA3,
                                           PRETOKENIZER_QWEN2};
    static const char *const parts[] = {"ſ", "s", "'", "\n", "1", ".", "R", "e", "l", "\t", "é", "\r", " ", "\xC2\xA0"};
    enum { PARTS = sizeof parts / sizeof *parts };
    Error e;
    for (int i = 0; i < 4; i++) {
        Pretokenizer p;
        TextBuffer text = {0};
        assert_true(pretokenizer_open(&p, patterns[i], &e));
        const PretokenizerShape *shape = p.shape;
        assert_non_null(shape);
        for (int k = 0; k < 3 * PARTS * PARTS * PARTS * PARTS; k++) {
            text_clear(&text);
            for (int rest = k; rest; rest /= PARTS) text_string(&text, parts[rest % PARTS]);
            for (size_t at = 0, end, other; at < text.length; at = end) {
                p.shape = shape;
                assert_true(pretokenizer_next(&p, text.text, text.length, at, &end, &e));
                p.shape = NULL;
                assert_true(pretokenizer_next(&p, text.text, text.length, at, &other, &e));
                if (end != other)
                    fail_msg("%s: '%s': a piece ends at %zu, not %zu", patterns[i], text.text, end, other);
            }
        }
        text_free(&text);
        pretokenizer_close(&p);
    }
}

/* ---- special tokens -------------------------------------------------------------------------------------------- */

static void test_specials(void **state) {
    (void)state;
    Error e;
    Tokenizer t;
    TokenList ids = {0};
    TextBuffer text = {0};
    assert_true(tokenizer_bytes(&t, &e));
    assert_int_equal(tokenizer_special(&t, "<|im_end|>"), 258);
    assert_int_equal(tokenizer_special(&t, "<|im"), -1);
    assert_int_equal(tokenizer_special(&t, "a"), -1);
    const char *s = "a<|im_end|><|im_end|<|pad|>";
    assert_true(tokenizer_encode(&t, s, strlen(s), false, &ids, &e));
    assert_int_equal(ids.count, strlen(s));
    ids.count = 0;
    assert_true(tokenizer_encode(&t, s, strlen(s), true, &ids, &e));
    assert_int_equal(ids.count, 1 + 1 + 9 + 1);
    assert_int_equal(ids.ids[1], 258);
    assert_int_equal(ids.ids[11], 259);
    tokenizer_decode(&t, ids.ids, ids.count, true, &text);
    assert_string_equal(text.text, s);
    text_clear(&text);
    tokenizer_decode(&t, ids.ids, ids.count, false, &text);
    assert_string_equal(text.text, "a<|im_end|");
    text_clear(&text);
    tokenizer_decode(&t, (const int32_t[]){-1, 'x', 260, INT32_MAX}, 4, true, &text);
    assert_string_equal(text.text, "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD");

    /* new ones take the next ids, once; the longest one at a position counts */
    assert_true(tokenizer_add_special(&t, "<|im_end|>", &e));
    assert_int_equal(t.vocab, 260);
    assert_true(tokenizer_add_special(&t, "<|im_end|>\n", &e));
    assert_true(tokenizer_add_special(&t, "<|", &e));
    assert_int_equal(t.vocab, 262);
    ids.count = 0;
    assert_true(tokenizer_encode(&t, "<|im_end|>\n<|im_end|> <|", 24, true, &ids, &e));
    assert_int_equal(ids.count, 4);
    assert_int_equal(ids.ids[0], 260);
    assert_int_equal(ids.ids[1], 258);
    assert_int_equal(ids.ids[3], 261);
    assert_false(tokenizer_add_special(&t, "", &e));
    files_assert_error(&e, "has 0 bytes");
    assert_false(tokenizer_add_special(&t, "x", &e));
    files_assert_error(&e, "ordinary token");
    tokenizer_free(&t);
    token_list_free(&ids);
    text_free(&text);
}

/* Opens tokenizer.json after the tokens of t were added to it. */
static Tokenizer edited(const Tokenizer *t, const char *json, size_t n) {
    Error e;
    Tokenizer out;
    TextBuffer text = {0};
    if (!tokenizer_edit_json(t, json, n, &text, &e)) fail_msg("%s", e.text);
    files_put(files_path("edited.json"), text.text, text.length);
    text_free(&text);
    if (!tokenizer_open(&out, files_path("edited.json"), &e)) fail_msg("%s", e.text);
    return out;
}

/* New tokens take the ids of reserved tokens, then ids without a token, then the next ones, here and in the files. */
static void test_new_tokens(void **state) {
    (void)state;
    Error e;
    Tokenizer t, back;
    size_t n;
    TextBuffer text = {0};
    char *small = file_slurp("tests/golden/tokenizer_small.json", 1 << 20, &n, &e);
    json_t *root = json_loadb(small, n, 0, NULL), *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    assert_non_null(vocab);
    assert_true(tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e));
    assert_true(tokenizer_edit_json(&t, small, n, &text, &e)); /* nothing to add: the same bytes */
    assert_int_equal(text.length, n);
    assert_memory_equal(text.text, small, n);
    tokenizer_free(&t);
    free(small);

    json_array_append_new(
        json_object_get(root, "added_tokens"),
        json_pack("{s:i,s:s,s:b}", "id", 603, "content", "<|reserved_special_token_7|>", "special", 1));
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:i,s:s,s:b}", "id", 604, "content", "<unused12>", "special", 0));
    json_array_append_new(
        json_object_get(root, "added_tokens"),
        json_pack("{s:i,s:s,s:b}", "id", 606, "content", "<|reserved_special_token_x|>", "special", 1));
    json_object_set_new(vocab, "<unused12>", json_integer(604));
    char *json = json_dumps(root, 0);
    put_text(files_path("reserved.json"), json);
    assert_true(tokenizer_open(&t, files_path("reserved.json"), &e));
    assert_int_equal(t.vocab, 607);
    static const char *const names[] = {"<|a|>", "<|b is longer|>", "<|c|>", "<|d|>"};
    static const int32_t ids[] = {603, 604, 605, 607};
    for (int i = 0; i < 4; i++) {
        assert_true(tokenizer_add_special(&t, names[i], &e));
        assert_int_equal(tokenizer_special(&t, names[i]), ids[i]);
        assert_int_equal(t.special[ids[i]], 1);
    }
    assert_int_equal(tokenizer_special(&t, "<unused12>"), -1);
    assert_int_equal(tokenizer_special(&t, "<|reserved_special_token_x|>"), 606);
    text_clear(&text);
    tokenizer_decode(&t, (const int32_t[]){603, 604, 605, 606, 607, 600}, 6, true, &text);
    assert_string_equal(text.text, "<|a|><|b is longer|><|c|><|reserved_special_token_x|><|d|><|im_start|>");

    back = edited(&t, json, strlen(json));
    assert_int_equal(back.vocab, 608);
    for (int i = 0; i < 4; i++) assert_int_equal(tokenizer_special(&back, names[i]), ids[i]);
    assert_true(tokenizer_hash(&back) == tokenizer_hash(&t));
    tokenizer_free(&back);

    const char *config = "{\"a\":1,\"added_tokens_decoder\":{\"603\":{\"content\":\"<|reserved_special_token_7|>\"}}}";
    text_clear(&text);
    assert_true(tokenizer_edit_config(&t, config, strlen(config), &text, &e));
    json_t *edited_config = json_loads(text.text, 0, NULL),
           *decoder = json_object_get(edited_config, "added_tokens_decoder");
    assert_int_equal(json_object_size(decoder), 4 + 4 + 1);
    assert_string_equal(json_string_value(json_object_get(json_object_get(decoder, "603"), "content")), "<|a|>");
    assert_true(json_is_true(json_object_get(json_object_get(decoder, "605"), "special")));
    json_decref(edited_config);
    text_clear(&text);
    assert_true(tokenizer_edit_config(&t, "{ }", 3, &text, &e));
    assert_string_equal(text.text, "{ }");
    assert_false(tokenizer_edit_json(&t, "{}", 2, &text, &e));
    files_assert_error(&e, "has no model.vocab");
    assert_false(tokenizer_edit_json(&t, "{", 1, &text, &e));
    files_assert_error(&e, "tokenizer.json: line 1");
    text_free(&text);
    tokenizer_free(&t);
    json_decref(root);
    free(json);
}

/* ---- blobs ----------------------------------------------------------------------------------------------------- */

static void test_blob(void **state) {
    (void)state;
    Error e;
    Tokenizer back, bytes;
    void *blob, *again;
    size_t n, m;
    assert_true(tokenizer_store(&gpt2, &blob, &n, &e));
    assert_true(tokenizer_load(&back, blob, n, &e));
    assert_true(tokenizer_store(&back, &again, &m, &e));
    assert_int_equal(n, m);
    assert_memory_equal(blob, again, n);
    assert_true(tokenizer_hash(&gpt2) == tokenizer_hash(&back));
    assert_true(tokenizer_bytes(&bytes, &e));
    assert_true(tokenizer_hash(&gpt2) != tokenizer_hash(&bytes));
    TokenList a = {0}, b = {0};
    const char *s = "The quick brown fox's 1234 jumps\n\n  over";
    assert_true(tokenizer_encode(&gpt2, s, strlen(s), false, &a, &e));
    assert_true(tokenizer_encode(&back, s, strlen(s), false, &b, &e));
    assert_int_equal(a.count, b.count);
    assert_memory_equal(a.ids, b.ids, (size_t)a.count * sizeof *a.ids);
    token_list_free(&a);
    token_list_free(&b);
    tokenizer_free(&back);

    files_put(files_path("gpt2.blob"), blob, n);
    assert_true(tokenizer_open(&back, files_path("gpt2.blob"), &e));
    assert_true(tokenizer_hash(&gpt2) == tokenizer_hash(&back));
    tokenizer_free(&back);

    /* truncated, and with every bit of the header and some of the rest flipped */
    for (size_t cut = 0; cut < n; cut = 5 * cut / 4 + 1) assert_false(tokenizer_load(&back, blob, cut, &e));
    free(blob);
    free(again);
    assert_true(tokenizer_store(&bytes, &blob, &n, &e));
    for (size_t bit = 0; bit < 8 * n; bit++) {
        ((uint8_t *)blob)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (tokenizer_load(&back, blob, n, &e)) tokenizer_free(&back);
        else files_assert_error(&e, "tokenizer");
        ((uint8_t *)blob)[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(tokenizer_load(&back, blob, n, &e));
    tokenizer_free(&back);
    tokenizer_free(&bytes);
    free(blob);
}

/* ---- invalid files --------------------------------------------------------------------------------------------- */

static void assert_refused(const char *spec, const char *part) {
    Tokenizer t;
    Error e;
    assert_false(tokenizer_open(&t, spec, &e));
    files_assert_error(&e, part);
    assert_null(t.bytes);
}

static void test_directories(void **state) {
    (void)state;
    Tokenizer t;
    Error e;
    assert_refused(files_path("none"), "no such tokenizer");
    assert_int_equal(mkdir(files_path("dir"), 0755), 0);
    assert_refused(files_path("dir"), "contains neither");
    assert_int_equal(symlink(vocab_json, files_path("dir/encoder.json")), 0);
    assert_int_equal(symlink(merges_txt, files_path("dir/vocab.bpe")), 0);
    assert_true(tokenizer_open(&t, files_path("dir"), &e));
    assert_true(tokenizer_hash(&t) == tokenizer_hash(&gpt2));
    tokenizer_free(&t);
    assert_int_equal(symlink(vocab_json, files_path("dir/vocab.json")), 0);
    assert_refused(files_path("dir/vocab.json"), "has no 'model'");
    files_put(files_path("dir/merges.txt"), "", 0);
    assert_true(tokenizer_open(&t, files_path("dir"), &e)); /* vocab.json and merges.txt come first */
    assert_int_equal(t.merge_count, 0);
    tokenizer_free(&t);
}

/* A folder as Hugging Face has it: the files name the tokens with a meaning. */
static void test_folder(void **state) {
    (void)state;
    Error e;
    Tokenizer t;
    TokenList ids = {0};
    size_t n;
    char *json = file_slurp("tests/golden/tokenizer_small.json", 1 << 20, &n, &e);
    assert_non_null(json);
    assert_int_equal(mkdir(files_path("hf"), 0755), 0);
    files_put(files_path("hf/tokenizer.json"), json, n);
    free(json);
    assert_true(tokenizer_open(&t, files_path("hf"), &e)); /* no other file */
    const int32_t start = tokenizer_special(&t, "<|im_start|>"), end = tokenizer_special(&t, "<|im_end|>");
    assert_int_equal(t.vocab, 603);
    assert_int_equal(t.eos, 0);
    assert_int_equal(t.end_count, 1);
    assert_int_equal(t.bos, -1);
    tokenizer_free(&t);

    put_text(files_path("hf/special_tokens_map.json"), "{\"eos_token\":{\"content\":\"<|im_start|>\"}}");
    assert_true(tokenizer_open(&t, files_path("hf"), &e));
    assert_int_equal(t.eos, start);
    tokenizer_free(&t);

    put_text(files_path("hf/tokenizer_config.json"),
             "{\"eos_token\":\"<|im_end|>\",\"bos_token\":{\"content\":\"<|im_start|>\"},\"add_bos_token\":true,"
             "\"unk_token\":\"<|endoftext|>\",\"pad_token\":\" the\",\"added_tokens_decoder\":{"
             "\"601\":{\"content\":\"<|im_end|>\",\"special\":true,\"rstrip\":true},"
             "\"603\":{\"content\":\"<think>\",\"special\":false}}}");
    put_text(files_path("hf/generation_config.json"), "{\"eos_token_id\":[601,0]}");
    put_text(files_path("hf/config.json"), "{\"eos_token_id\":600}");
    assert_true(tokenizer_open(&t, files_path("hf"), &e));
    assert_int_equal(t.vocab, 604);
    assert_int_equal(t.eos, end);
    assert_int_equal(t.bos, start);
    assert_int_equal(t.unknown, -1);
    assert_true(t.add_bos);
    assert_int_equal(t.end_count, 3);
    assert_true(tokenizer_is_end(&t, 601) && tokenizer_is_end(&t, 0) && tokenizer_is_end(&t, 600));
    assert_false(tokenizer_is_end(&t, 602));
    assert_true(tokenizer_encode(&t, "<think>a<|im_end|> \n b", 22, TOKENIZER_SPECIALS | TOKENIZER_DOCUMENT, &ids, &e));
    const int32_t want[] = {start, 603, ordinary_id(&t, "a"), end, ordinary_id(&t, "b")};
    assert_int_equal(ids.count, 5);
    assert_memory_equal(ids.ids, want, sizeof want);
    assert_true(tokenizer_encode(&t, "<think>", 7, TOKENIZER_CONTINUES | TOKENIZER_DOCUMENT, &ids, &e)); /* no bos */
    assert_int_equal(ids.count, 6);
    assert_int_equal(ids.ids[5], 603);
    assert_false(t.special[603]);
    token_list_free(&ids);
    tokenizer_free(&t);

    const struct {
        const char *file, *text, *message;
    } bad[] = {
        {"hf/config.json", "{\"eos_token_id\":\"x\"}", "config.json: eos_token_id is not a token"},
        {"hf/config.json", "{\"eos_token_id\":[-1]}", "config.json: eos_token_id is not a token"},
        {"hf/config.json", "{\"eos_token_id\":604}", "end token 604 is outside"},
        {"hf/config.json", "{\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", "more than 8 end tokens"},
        {"hf/config.json", "{\"eos_token_id\":1,}", "config.json: line 1"},
        {"hf/tokenizer_config.json", "{\"eos_token\":\"<none>\"}", "eos_token '<none>' is not in the vocabulary"},
        {"hf/tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"a\"}}}", "'x' is not a token"},
        {"hf/tokenizer_config.json", "{\"added_tokens_decoder\":{\"600\":{\"content\":\"a\"}}}", "has the id 600"},
        {"hf/tokenizer_config.json", "{\"added_tokens_decoder\":{\"5\":7}}", "'5' is not a token"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_text(files_path("hf/tokenizer_config.json"), "{}");
        put_text(files_path("hf/config.json"), "{}");
        put_text(files_path(bad[i].file), bad[i].text);
        assert_refused(files_path("hf"), bad[i].message);
    }

    /* vocab.json without tokenizer.json, of another class than GPT-2's; a SentencePiece model alone */
    unlink(files_path("hf/tokenizer.json"));
    unlink(files_path("hf/generation_config.json"));
    unlink(files_path("hf/special_tokens_map.json"));
    put_text(files_path("hf/config.json"), "{}");
    put_text(files_path("hf/tokenizer.model"), "x");
    assert_refused(files_path("hf"), "tokenizer.model is not read");
    assert_int_equal(symlink(vocab_json, files_path("hf/vocab.json")), 0);
    assert_int_equal(symlink(merges_txt, files_path("hf/merges.txt")), 0);
    put_text(files_path("hf/tokenizer_config.json"), "{\"tokenizer_class\":\"Qwen2Tokenizer\"}");
    assert_refused(files_path("hf"), "needed for the class Qwen2Tokenizer");
    put_text(files_path("hf/tokenizer_config.json"), "{\"tokenizer_class\":\"GPT2Tokenizer\"}");
    assert_true(tokenizer_open(&t, files_path("hf"), &e));
    assert_true(tokenizer_hash(&t) == tokenizer_hash(&gpt2));
    tokenizer_free(&t);
}

static void test_bad_vocab(void **state) {
    (void)state;
    char spec[1200];
    const char *json = files_path("bad.json"), *merges = files_path("bad.txt");
    snprintf(spec, sizeof spec, "%s:%s", json, merges);
    const struct {
        const char *json, *merges, *message;
    } cases[] = {
        {"{\"a\":0", "", "line 1, column 6"},
        {"[]", "", "is not a JSON object"},
        {"{\"a\":-1}", "", "id of token 'a'"},
        {"{\"a\":1.5}", "", "id of token 'a'"},
        {"{\"a\":4194304}", "", "id of token 'a'"},
        {"{\"a\":99999999999}", "", "id of token 'a'"},
        {"{\"a\":0,\"b\":0}", "", "have the same id 0"},
        {"{\"a\":0,\"a\":1}", "", "duplicate"},
        {"{\"a\":0}", "", "byte 0x0A has no token"},
        {"{\"\\u2581the\":0}", "", "U+2581 represents no byte"},
        {"{\"a\":0}", "#version: 0.2\nab\n", "line 2: 'ab'"},
        {"{\"a\":0}", "a  b\n", "expected two tokens"},
        {"{\"a\":0}", "a b\n", "token 'b' is not in the vocabulary"},
        {"{\"a\":0,\"b\":1}", "a b\n", "token 'ab' is not in the vocabulary"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        files_put(json, cases[i].json, strlen(cases[i].json));
        files_put(merges, cases[i].merges, strlen(cases[i].merges));
        assert_refused(spec, cases[i].message);
    }
    files_put(json, "{\"a\":0}", 7);
    files_put(merges, "a\0b", 3);
    assert_refused(spec, "NUL");
    unlink(merges);
    assert_refused(spec, "bad.txt: cannot open");
}

static void test_bad_tokenizer_json(void **state) {
    (void)state;
    const struct {
        const char *path, *field, *value, *message;
    } cases[] = {
        {"model", "type", "\"WordPiece\"", "model is WordPiece"},
        {"model", "byte_fallback", "true", "model.byte_fallback is set"},
        {"model", "dropout", "0.1", "model.dropout is set"},
        {"model", "end_of_word_suffix", "\"</w>\"", "end_of_word_suffix is set"},
        {"model", "merges", "7", "merges is not a list"},
        {"model", "merges", "[7]", "expected a string or a pair"},
        {"model", "merges", "[[\"a\",\"b\",\"c\"]]", "expected a string or a pair"},
        {"model", "vocab", "[]", "vocab is not an object"},
        {NULL, "normalizer", "{\"type\":\"Lowercase\"}", "normalizer Lowercase"},
        {NULL, "pre_tokenizer", "null", "pre_tokenizer is of no type"},
        {NULL, "pre_tokenizer", "{\"type\":\"Whitespace\"}", "pre_tokenizer is Whitespace"},
        {NULL, "pre_tokenizer", "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "add_prefix_space"},
        {NULL, "pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\"},{\"type\":\"ByteLevel\"}]}",
         "Split before ByteLevel is not supported with these"},
        {NULL, "pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\"},{\"type\":\"ByteLevel\"}]}",
         "Punctuation before ByteLevel"},
        {NULL, "pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\"},{\"type\":\"Digits\"},{\"type\":\"ByteLevel\"}]}",
         "Sequence of 3 parts (Split, Digits, ...)"},
        {NULL, "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[]}", "pre_tokenizer is Sequence"},
        {NULL, "normalizer", "{\"type\":\"Prepend\",\"prepend\":\"\u2581\"}",
         "Prepend is not supported without Replace"},
        {NULL, "normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"b\"}",
         "normalizer Replace is not supported, or not with these settings"},
        {NULL, "post_processor", "{\"type\":\"BertProcessing\"}", "post_processor BertProcessing"},
        {NULL, "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<none>\"}}]}",
         "'<none>' is not in the vocabulary"},
        {NULL, "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<|im_end|>\"}},{\"SpecialToken\":{\"id\":"
         "\"<|im_end|>\"}}]}",
         "2 tokens before the text"},
        {NULL, "decoder", "{\"type\":\"WordPiece\"}", "decoder WordPiece"},
        {NULL, "pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":"
         "\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"use_regex\":false}]}",
         "pattern '(a'"},
        {NULL, "added_tokens", "[{\"id\":1,\"content\":\"<x>\"}]", "has the id 1"},
        {NULL, "added_tokens", "[{\"id\":900}]", "no string in 'content'"},
        {NULL, "model", "null", "has no 'model'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *root = json_load_file("tests/golden/tokenizer_small.json", 0, NULL);
        json_t *value = json_loads(cases[i].value, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        json_object_set_new(cases[i].path ? json_object_get(root, cases[i].path) : root, cases[i].field, value);
        assert_int_equal(json_dump_file(root, files_path("bad.json"), 0), 0);
        assert_refused(files_path("bad.json"), cases[i].message);
        json_decref(root);
    }
}

/* The arrays of a small byte-level tokenizer; `text` is the storage. */
static TokenizerGguf small_gguf(char text[600], TextSlice tokens[260], int32_t types[260]) {
    TokenizerGguf g = tokenizer_gguf_empty();
    for (int i = 0; i < 256; i++) {
        tokens[i].text = text;
        char utf8[5] = {0};
        gpt2_byte(i, utf8);
        tokens[i].length = strlen(utf8);
        memcpy(text, utf8, 4);
        text += tokens[i].length;
        types[i] = GGUF_TOKEN_NORMAL;
    }
    static const struct {
        const char *name;
        int32_t type;
    } rest[] = {{"ab", GGUF_TOKEN_NORMAL},
                {"<|endoftext|>", GGUF_TOKEN_CONTROL},
                {"<think>", GGUF_TOKEN_USER_DEFINED},
                {"[PAD259]", GGUF_TOKEN_USER_DEFINED}}; /* counts as unused */
    for (int i = 0; i < 4; i++) {
        tokens[256 + i] = (TextSlice){rest[i].name, strlen(rest[i].name)};
        types[256 + i] = rest[i].type;
    }
    static const TextSlice merges[] = {{"a b", 3}};
    g.model = "gpt2";
    g.pre = "qwen2";
    g.tokens = tokens;
    g.types = types;
    g.count = 260;
    g.merges = merges;
    g.merge_count = 1;
    g.eos = 257;
    return g;
}

static void refuse_gguf(const TokenizerGguf *g, const char *message) {
    Error e;
    Tokenizer t;
    assert_false(tokenizer_open_gguf(&t, g, "x.gguf", &e));
    files_assert_error(&e, message);
    assert_non_null(strstr(e.text, "x.gguf: "));
    assert_null(t.bytes);
}

static void test_gguf(void **state) {
    (void)state;
    Error e;
    Tokenizer t;
    TokenList ids = {0};
    char text[600];
    TextSlice tokens[260];
    int32_t types[260];
    TokenizerGguf good = small_gguf(text, tokens, types), g = good;
    assert_true(tokenizer_open_gguf(&t, &g, "x.gguf", &e));
    assert_int_equal(t.vocab, 260);
    assert_int_equal(t.flags, TOKENIZER_NFC);
    assert_true(tokenizer_encode(&t, "ab<think>e\xCC\x81<|endoftext|>[PAD259]", 33, 1, &ids, &e));
    assert_int_equal(ids.count, 1 + 1 + 2 + 1 + 8);
    assert_int_equal(ids.ids[0], 256);
    assert_int_equal(ids.ids[1], 258);
    assert_int_equal(ids.ids[4], 257);
    token_list_free(&ids);
    tokenizer_free(&t);

    /* ends: eos, eot, and the special tokens that end a turn */
    g.bos = 257;
    g.add_bos = 1;
    g.eot = 256;
    g.eos = 258;
    assert_true(tokenizer_open_gguf(&t, &g, "x.gguf", &e));
    assert_true(t.add_bos);
    assert_int_equal(t.eos, 258);
    assert_int_equal(t.end_count, 3);
    assert_true(tokenizer_is_end(&t, 256) && tokenizer_is_end(&t, 257) && tokenizer_is_end(&t, 258));
    tokenizer_free(&t);

    const float scores[260] = {0}, nan[260] = {0.0f / 0.0f};
    static const TextSlice bad_merge[] = {{"a c", 3}}, nul_merge[] = {{"a\0b", 3}}, no_merge[] = {{"ab", 2}};
    // clang-format off
    g = good; g.model = NULL;               refuse_gguf(&g, "no tokenizer.ggml.model");
    g = good; g.model = "bert";             refuse_gguf(&g, "model is 'bert'");
    g = good; g.pre = NULL;                 refuse_gguf(&g, "no tokenizer.ggml.pre");
    g = good; g.pre = "default";            refuse_gguf(&g, "pre is 'default'");
    g = good; g.add_space_prefix = 1;       refuse_gguf(&g, "add_space_prefix is not supported");
    g = good; g.count = 0;                  refuse_gguf(&g, "has 0 tokens");
    g = good; g.count = 1ll << 40;          refuse_gguf(&g, "1099511627776 tokens");
    g = good; g.merge_count = -1;           refuse_gguf(&g, "has -1 merges");
    g = good; g.merges = NULL;              refuse_gguf(&g, "has 1 merges");
    g = good; g.merges = bad_merge;         refuse_gguf(&g, "token 'ac' is not in the vocabulary");
    g = good; g.merges = nul_merge;         refuse_gguf(&g, "contains a NUL");
    g = good; g.merges = no_merge;          refuse_gguf(&g, "expected two tokens");
    g = good; g.eos = 260;                  refuse_gguf(&g, "token is 260");
    g = good; g.bos = -2;                   refuse_gguf(&g, "token is -2");
    g = good; g.add_bos = 1;                refuse_gguf(&g, "beginning of text is token -1");
    g = good; g.model = "llama";            refuse_gguf(&g, "no tokenizer.ggml.scores");
    g = good; g.model = "llama"; g.scores = nan;    refuse_gguf(&g, "expected at most 512 and a number");
    g = good; g.model = "llama"; g.scores = scores; refuse_gguf(&g, "neither tokens for bytes nor an unknown token");
    // clang-format on
    const struct {
        int id;
        TextSlice token;
        int32_t type;
        const char *message;
    } bad[] = {{5, {"x", 1}, 7, "is of type 7"},
               {5, {"x", 1}, 0, "is of type 0"},
               {5, {"a\0", 2}, 1, "is not UTF-8"},
               {5, {"\xFF", 1}, 1, "is not UTF-8"},
               {5, {text, 1 << 20}, 1, "is not UTF-8 of at most 65535 bytes"},
               {5, {"", 0}, 3, "a name of 0 bytes"},
               {5, {"ab", 2}, 1, "is 'ab', as is another"},
               {5, {"\xE2\x96\x81", 3}, 1, "represents no byte"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const TextSlice kept = tokens[bad[i].id];
        tokens[bad[i].id] = bad[i].token;
        types[bad[i].id] = bad[i].type;
        refuse_gguf(&good, bad[i].message);
        tokens[bad[i].id] = kept;
        types[bad[i].id] = GGUF_TOKEN_NORMAL;
    }
}

/* A pattern that backtracks without end is stopped. */
static void test_runaway_pattern(void **state) {
    (void)state;
    Error e;
    Pretokenizer p;
    size_t end;
    char text[4000];
    assert_true(pretokenizer_open(&p, "(?:a+)+[bc]", &e));
    memset(text, 'a', sizeof text);
    assert_false(pretokenizer_next(&p, text, sizeof text, 0, &end, &e));
    files_assert_error(&e, "fails at byte 0");
    pretokenizer_close(&p);
    assert_false(pretokenizer_open(&p, "[z-a]", &e));
    files_assert_error(&e, "[z-a]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2_texts),
        cmocka_unit_test(test_gpt2_all_planes),
        cmocka_unit_test(test_tokenizer_json),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_nfc),

        cmocka_unit_test(test_any_bytes),
        cmocka_unit_test(test_long_pieces),
        cmocka_unit_test(test_long_texts_of_forms),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_threads_of_patterns),
        cmocka_unit_test(test_without_jit),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_new_tokens),
        cmocka_unit_test(test_blob),
        cmocka_unit_test(test_directories),
        cmocka_unit_test(test_folder),

        cmocka_unit_test(test_bad_vocab),
        cmocka_unit_test(test_bad_tokenizer_json),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_runaway_pattern),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, setup, teardown);
}

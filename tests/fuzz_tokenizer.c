/* fuzz_tokenizer.c - libFuzzer target: arbitrary bytes as a tokenizer blob, as tokenizer.json, as vocab.json with
 * merges.txt, as the arrays of GGUF, as the files of a folder, as a pattern and as text to encode. A tokenizer that
 * opens must decode to the text that it encoded, unless it changes texts (tokenizer.h), and must be stored and written.
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined tests/fuzz_tokenizer.c \
 *         -lzstd -lpcre2-8 -ljansson -lutf8proc -lxxhash -lm
 *     ./a.out -max_len=4096 corpus/ tests/corpus/tokenizer/
 *
 * The first byte selects what the other bytes are.
 */
#include "../llmc/base/error.h"           /* Error, xstrdup, xstrndup */
#include "../llmc/base/text.h"            /* TextBuffer, TextSlice, text_free, text_clear, ... */
#include "../llmc/text/pretokenize.h"     /* pretokenizer_open */
#include "../llmc/text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_bytes, tokenizer_encode, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open, tokenizer_open_files */
#include "../llmc/text/tokenizer_gguf.h"  /* tokenizer_open_gguf, TokenizerGguf, TokenizerGgufArrays, ... */
#include "../llmc/text/tokenizer_write.h" /* tokenizer_to_config, tokenizer_to_json */
#include "fuzz.h"                         /* require, require_error */
#include <sys/stat.h>
#include <sys/mman.h>

/* Whether decoding gives the text that was encoded. */
static bool keeps_text(const Tokenizer *t) {
    if (t->flags & (TOKENIZER_NFC | TOKENIZER_CHARACTERS)) return false;
    for (int i = 0; i < 256; i++)
        if (t->scratch->bpe.byte_id[i] < 0 || t->scratch->bpe.byte_id[i] == t->unknown) return false;
    for (int32_t i = 0; i < t->added_count; i++) {
        const TokenizerAdded *a = &t->added[i];
        if (a->flags & (ADDED_LSTRIP | ADDED_RSTRIP) || t->start[a->id + 1] - t->start[a->id] != strlen(a->name) ||
            memcmp(t->bytes + t->start[a->id], a->name, strlen(a->name)))
            return false;
    }
    return true;
}

/* Encodes and decodes the text. A pattern from a file may exceed its match limit; nothing else may fail. */
static void round_trip(const Tokenizer *t, const char *text, size_t n) {
    const bool exact = keeps_text(t);
    Error e = {""};
    TokenList ids = {0};
    TextBuffer back = {0};
    for (int specials = 0; specials < 2; specials++) {
        ids.count = 0;
        text_clear(&back);
        if (!tokenizer_encode(t, text, n, specials, &ids, &e)) {
            require_error(&e);
            continue;
        }
        for (int32_t i = 0; i < ids.count; i++) {
            require(ids.ids[i] >= 0 && ids.ids[i] < t->vocab);
            require(specials || !t->special[ids.ids[i]] || ids.ids[i] == t->unknown);
        }
        tokenizer_decode(t, ids.ids, ids.count, true, &back);
        require(!exact || (back.length == n && !memcmp(back.text, text, n)));
        const int32_t first = ids.count;
        require(tokenizer_encode(t, text, n, specials | TOKENIZER_CONTINUES, &ids, &e) || exact || !first || e.text[0]);
    }
    token_list_free(&ids);
    text_free(&back);
}

/* Writes the tokenizer as tokenizer.json and as GGUF's arrays, and opens these. */
static void write_forms(const Tokenizer *t, const char *text, size_t n) {
    Error e = {""};
    TextBuffer json = {0};
    TokenizerGgufArrays arrays;
    Tokenizer back;
    if (tokenizer_to_json(t, &json, &e)) {
        const int fd = memfd_create("json", 0);
        char path[64];
        require(fd >= 0 && write(fd, json.text, json.length) == (ssize_t)json.length);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (tokenizer_open(&back, path, &e)) {
            round_trip(&back, text, n);
            tokenizer_free(&back);
        } else require_error(&e);
        close(fd);
    } else require_error(&e);
    text_clear(&json);
    tokenizer_to_config(t, &json);
    if (tokenizer_to_gguf(t, &arrays, &e)) {
        if (tokenizer_open_gguf(&back, &arrays.g, "written", &e)) {
            round_trip(&back, text, n);
            tokenizer_free(&back);
        } else require_error(&e);
        tokenizer_gguf_free(&arrays);
    } else require_error(&e);
    text_free(&json);
}

/* A tokenizer that opened must encode, and must be the same after a round trip through its blob. */
static void use(Tokenizer *t) {
    static const char text[] =
        "Hello there,\n\n  it's 123 a\0b \xC3\xA9 e\xCC\x81 \xE2\x96\x81 \xFF\xF0\x9F <s> <|endoftext|> aaaa";
    Error e = {""};
    Tokenizer back;
    void *blob, *again;
    size_t n, m;
    round_trip(t, text, sizeof text - 1);
    require(tokenizer_store(t, &blob, &n, &e));
    require(tokenizer_load(&back, blob, n, &e));
    require(tokenizer_store(&back, &again, &m, &e));
    require(n == m && !memcmp(blob, again, n));
    round_trip(&back, text, sizeof text - 1);
    write_forms(t, text, sizeof text - 1);
    tokenizer_free(&back);
    tokenizer_free(t);
    free(blob);
    free(again);
}

/* Writes the bytes to a file and returns its path, to be freed. */
static char *file_of(const uint8_t *data, size_t n, int *fd) {
    char path[64];
    *fd = memfd_create("fuzz", 0);
    require(*fd >= 0 && write(*fd, data, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", *fd);
    return xstrdup(path);
}

static void open_files(const uint8_t *data, size_t n, bool pair) {
    Error e = {""};
    Tokenizer t;
    int fd[2] = {-1, -1};
    const uint8_t *cut = pair ? (const uint8_t *)memchr(data, 0, n) : NULL;
    const size_t first = cut ? (size_t)(cut - data) : n;
    char *json = file_of(data, first, &fd[0]), *merges = NULL;
    TextBuffer spec = {0};
    text_string(&spec, json);
    if (pair) {
        merges = file_of(cut ? cut + 1 : data, cut ? n - first - 1 : 0, &fd[1]);
        text_format(&spec, ":%s", merges);
    }
    if (pair ? (memset(&t, 0, sizeof t), tokenizer_open_files(&t, json, merges, &e))
             : tokenizer_open(&t, spec.text, &e))
        use(&t);
    else {
        require_error(&e);
        tokenizer_free(&t);
    }
    for (int i = 0; i < 2; i++)
        if (fd[i] >= 0) close(fd[i]);
    free(json);
    free(merges);
    text_free(&spec);
}

/* Arrays from lines: the form, tokens (each after its type), an empty line, merges. */
static void open_arrays(const uint8_t *data, size_t n) {
    enum { MAX = 512 };
    Error e = {""};
    Tokenizer t;
    TextSlice tokens[MAX], merges[MAX];
    int32_t types[MAX];
    float scores[MAX];
    TokenizerGguf g = tokenizer_gguf_empty();
    const uint8_t form = n ? *data : 0;
    const char *at = (const char *)data + (n > 0), *end = (const char *)data + n;
    bool second = false;
    while (at < end && g.count < MAX && g.merge_count < MAX) {
        const char *line = (const char *)memchr(at, '\n', (size_t)(end - at));
        const size_t length = (size_t)((line ? line : end) - at);
        if (!length) second = true;
        else if (second) merges[g.merge_count++] = (TextSlice){at, length};
        else {
            types[g.count] = *at - '0';
            scores[g.count] = (float)(int8_t)at[length - 1];
            tokens[g.count++] = (TextSlice){at + 1, length - 1};
        }
        at += length + 1;
    }
    static const char *const models[] = {"gpt2", "llama", "gemma4"};
    g.model = models[form % 3];
    g.pre = tokenizer_gguf_pre[form / 3 % 8].name;
    g.architecture = form & 128 ? "phi3" : "llama";
    g.tokens = tokens;
    g.types = types;
    g.scores = scores;
    g.merges = merges;
    g.bos = form & 64 ? 0 : -1;
    g.unknown = form & 32 ? 0 : -1;
    if (tokenizer_open_gguf(&t, &g, "fuzz.gguf", &e)) use(&t);
    else require_error(&e);
}

/* A folder in which one file has these bytes. */
static void open_folder(const uint8_t *data, size_t n) {
    static const char *const names[] = {"tokenizer_config.json", "generation_config.json", "special_tokens_map.json"};
    static char folder[64], source[4096];
    Error e = {""};
    Tokenizer t;
    char path[128];
    if (!*folder) {
        snprintf(folder, sizeof folder, "/tmp/fuzz_tokenizer.%d", (int)getpid());
        require(!mkdir(folder, 0700) && getcwd(source, sizeof source - 64));
        strcat(source, "/tests/golden/tokenizer_small.json");
        snprintf(path, sizeof path, "%s/tokenizer.json", folder);
        require(!symlink(source, path));
    }
    snprintf(path, sizeof path, "%s/%s", folder, names[n ? data[0] % 3 : 0]);
    FILE *f = fopen(path, "wb");
    require(f != NULL);
    if (n > 1) fwrite(data + 1, 1, n - 1, f);
    fclose(f);
    if (tokenizer_open(&t, folder, &e)) use(&t);
    else require_error(&e);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static Tokenizer small; /* 600 tokens, or the byte tokenizer if the file is missing */
    static bool ready;
    Error e = {""};
    if (!ready) {
        require(tokenizer_open(&small, "tests/golden/tokenizer_small.json", &e) || tokenizer_bytes(&small, &e));
        ready = true;
    }
    if (!n) return 0;
    const uint8_t mode = *data++;
    n--;
    Tokenizer t;
    switch (mode % 7) {
    case 0:
        if (tokenizer_load(&t, data, n, &e)) use(&t);
        else require_error(&e);
        break;
    case 1: open_files(data, n, false); break;
    case 2: open_files(data, n, true); break;
    case 4: open_arrays(data, n); break;
    case 5: open_folder(data, n); break;
    case 3: round_trip(&small, (const char *)data, n); break;
    default: {
        static const char text[] = "Hello there,\n\n  it's 123 \xC3\xA9\xC3\xA9 \xFF aaaaaaaa";
        char *pattern = xstrndup((const char *)data, n);
        Tokenizer bytes;
        require(tokenizer_bytes(&bytes, &e));
        if (*pattern && pretokenizer_open(&bytes.scratch->pieces, pattern, &e)) {
            bytes.pattern = xstrdup(pattern);
            round_trip(&bytes, text, sizeof text - 1);
        } else if (*pattern) require_error(&e);
        tokenizer_free(&bytes);
        free(pattern);
    }
    }
    return 0;
}

/* fuzz_tokenizer.c - libFuzzer target: arbitrary bytes as a tokenizer blob, as tokenizer.json, as vocab.json with
 * merges.txt, as a pattern and as text to encode. A tokenizer that opens must decode to the text that it encoded.
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined tests/fuzz_tokenizer.c \
 *         -lzstd -lpcre2-8 -ljansson -lutf8proc -lxxhash -lm
 *     ./a.out -max_len=4096 corpus/ tests/corpus/tokenizer/
 *
 * The first byte selects what the other bytes are.
 */
#include "../llmc/base/error.h"           /* Error, xstrdup, xstrndup */
#include "../llmc/base/text.h"            /* TextBuffer, text_free, TokenList, text_clear, ... */
#include "../llmc/text/pretokenize.h"     /* pretokenizer_open */
#include "../llmc/text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_bytes, tokenizer_load, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open, tokenizer_open_files */
#include <sys/mman.h>

static void require(bool holds) {
    if (!holds) abort();
}

static void require_error(const Error *e) { require(strlen(e->text) > 10 && !strchr(e->text, '\n')); }

/* Encodes and decodes the text. A pattern from a file may exceed its match limit; nothing else may fail. */
static void round_trip(const Tokenizer *t, const char *text, size_t n) {
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
            require(specials || !t->special[ids.ids[i]]);
        }
        tokenizer_decode(t, ids.ids, ids.count, true, &back);
        require(back.length == n && !memcmp(back.text, text, n));
    }
    token_list_free(&ids);
    text_free(&back);
}

/* A tokenizer that opened must encode, and must be the same after a round trip through its blob. */
static void use(Tokenizer *t) {
    static const char text[] = "Hello there,\n\n  it's 123 a\0b \xC3\xA9 \xFF\xF0\x9F <|endoftext|> aaaa";
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
    switch (mode % 5) {
    case 0:
        if (tokenizer_load(&t, data, n, &e)) use(&t);
        else require_error(&e);
        break;
    case 1: open_files(data, n, false); break;
    case 2: open_files(data, n, true); break;
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

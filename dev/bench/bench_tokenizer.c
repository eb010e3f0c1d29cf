/* bench_tokenizer.c - benchmark of tokenizer encoding and decoding in one thread.
 *
 *     build/bench_tokenizer SPEC FILE [SECONDS [IDS]]
 *
 * SPEC is as in make_shard --tokenizer, FILE any text. Passes run for SECONDS seconds (default 1). Prints one line of
 * JSON: MB/s of text in the best pass, bytes and tokens. The ids are written to the file IDS as int32, where
 * dev/bench/bench_tokenizer.py compares them.
 */
#include "../../llmc/base/clock.h"
#include "../../llmc/base/options.h"
#include "../../llmc/text/tokenizer.h"
#include "../../llmc/text/tokenizer_files.h"

int main(int argc, char **argv) {
    Error e;
    Tokenizer t;
    TokenList ids = {0};
    TextBuffer back = {0};
    size_t n;
    if (argc < 3 || argc > 5) usage_error("expected SPEC FILE [SECONDS [IDS]]");
    const double opened = clock_seconds(), limit = argc > 3 ? strtod(argv[3], NULL) : 1;
    if (!tokenizer_open(&t, argv[1], &e)) die("%s", e.text);
    const double open_ms = 1e3 * (clock_seconds() - opened);
    char *text = file_slurp(argv[2], 1u << 30, &n, &e);
    if (!text) die("%s", e.text);
    double encode = 1e30, decode = 1e30;
    const double start = clock_seconds();
    do {
        ids.count = 0;
        back.length = 0;
        const double a = clock_seconds();
        if (!tokenizer_encode(&t, text, n, false, &ids, &e)) die("%s", e.text);
        const double b = clock_seconds();
        tokenizer_decode(&t, ids.ids, ids.count, true, &back);
        const double c = clock_seconds();
        if (b - a < encode) encode = b - a;
        if (c - b < decode) decode = c - b;
    } while (clock_seconds() - start < limit);
    if (back.length != n || memcmp(back.text, text, n)) die("%s: decoding does not reproduce the text", argv[2]);
    printf("{\"encode_mb_s\":%.1f,\"decode_mb_s\":%.1f,\"open_ms\":%.1f,\"bytes\":%zu,\"tokens\":%d}\n",
           1e-6 * (double)n / encode, 1e-6 * (double)n / decode, open_ms, n, ids.count);
    Writer w;
    if (argc > 4 && (!writer_open(&w, argv[4], &e) ||
                     !writer_write(&w, ids.ids, (size_t)ids.count * sizeof *ids.ids, &e) || !writer_commit(&w, &e)))
        die("%s", e.text);
    tokenizer_free(&t);
    token_list_free(&ids);
    text_free(&back);
    free(text);
    return 0;
}

/* file_kind.h - what a file is, from its first bytes, and what to do with it: for messages about a wrong file.
 *
 *     char text[FILE_KIND_TEXT];
 *     if (file_kind_text("PAR1", 4, text)) puts(text);        // a Parquet file; convert it to JSON lines: python3 -c ...
 */
#ifndef LLMC_BASE_FILE_KIND_H
#define LLMC_BASE_FILE_KIND_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
    MAGIC_CHECKPOINT = 20240326,
    MAGIC_TOKENS = 20240520,
    MAGIC_TOKENS_WIDE = 20240801,
    MAGIC_RECORDS = 20261124,
    MAGIC_REF_LOGPS = 20261125,
    MAGIC_TEACHER = 20261126
};
enum { FILE_KIND_BYTES = 16, FILE_KIND_TEXT = 300 }; /* bytes to look at; size of a text */

/* Kinds whose first bytes are fixed. */
typedef struct FileKind {
    const char *bytes;
    int n, at; /* length and place of the bytes */
    const char *name, *help;
} FileKind;

static const FileKind file_kinds[] = {
    {"PAR1", 4, 0, "a Parquet file",
     "convert it to JSON lines: python3 -c 'import pandas, sys; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], "
     "orient=\"records\", lines=True)' IN OUT"},
    {"ARROW1", 6, 0, "an Arrow file",
     "convert it to JSON lines: python3 -c 'import datasets, sys; datasets.Dataset.from_file(sys.argv[1]).to_json(sys.argv[2])' "
     "IN OUT"},
    {"GGUF", 4, 0, "a GGUF model", "models are given to -c/--checkpoint"},
    {"PK\3\4", 4, 0, "a zip archive (or a PyTorch, NumPy or Excel file)", "unpack or convert it first"},
    {"\x1F\x8B", 2, 0, "a gzip file inside a compressed file", "unpack it with gzip -d"},
    {"\x28\xB5\x2F\xFD", 4, 0, "a zstd file inside a compressed file", "unpack it with zstd -d"},
    {"BZh", 3, 0, "a bzip2 file", "unpack it with bzip2 -d"},
    {"\xFD"
     "7zXZ",
     5, 0, "an xz file", "unpack it with xz -d"},
    {"7z\xBC\xAF\x27\x1C", 6, 0, "a 7-Zip archive", "unpack it first"},
    {"SQLite format 3", 15, 0, "an SQLite database",
     "export its rows as JSON lines; a corpus of data/make_corpus is for --tools search=FILE"},
    {"\x89HDF", 4, 0, "an HDF5 file", "export its rows as JSON lines"},
    {"\x93NUMPY", 6, 0, "a NumPy array", "convert it first"},
    {"%PDF", 4, 0, "a PDF document", "extract its text first"},
    {"\x89PNG", 4, 0, "a PNG image", NULL},
    {"\xFF\xD8\xFF", 3, 0, "a JPEG image", NULL},
    {"\x7F"
     "ELF",
     4, 0, "a program or a library", NULL},
    {"\xFF\xFE", 2, 0, "a text in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 IN > OUT"},
    {"\xFE\xFF", 2, 0, "a text in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 IN > OUT"},
    {"<!DOCTYPE", 9, 0, "a page of HTML", "was the page of the file downloaded instead of the file?"},
    {"<!doctype", 9, 0, "a page of HTML", "was the page of the file downloaded instead of the file?"},
    {"<html", 5, 0, "a page of HTML", "was the page of the file downloaded instead of the file?"},
    {"<HTML", 5, 0, "a page of HTML", "was the page of the file downloaded instead of the file?"},
    {"<?xml", 5, 0, "an XML document", "convert it to JSON lines"},
    {"version https://", 16, 0, "a pointer of Git LFS, not the file itself", "fetch it with git lfs pull"},
    {"\x80\4\x95", 3, 0, "a Python pickle", "convert it first"},
    {"{\"", 2, 8, "a model in safetensors", "models are given to -c/--checkpoint"},
};

/* What a file of this magic number is, or NULL. */
static inline const char *magic_name(int32_t magic) {
    switch (magic) {
    case MAGIC_CHECKPOINT: return "a checkpoint";
    case MAGIC_TOKENS:
    case MAGIC_TOKENS_WIDE: return "a token shard";
    case MAGIC_RECORDS: return "a record shard";
    case MAGIC_REF_LOGPS: return "a file of reference log-probabilities";
    case MAGIC_TEACHER: return "a teacher's table";
    case 20240328: return "an llm.c tokenizer";
    case 20240522: return "an llm.c evaluation set";
    case 20240527: return "an llm.c optimizer state";
    default: return NULL;
    }
}

/* Whether bytes 8 of n begin the header of a safetensors file: its length, below 2^32, precedes it. */
static inline bool file_kind_safetensors(const uint8_t *bytes, size_t n) {
    return n >= 10 && !bytes[4] && !bytes[5] && !bytes[6] && !bytes[7];
}

/* Describes a file that is neither text nor JSON by its first bytes, n >= FILE_KIND_BYTES unless it is shorter, with what
 * helps. False, and text is "", if it is not known. */
static inline bool file_kind_text(const void *data, size_t n, char text[FILE_KIND_TEXT]) {
    const uint8_t *bytes = (const uint8_t *)data;
    int32_t magic = 0;
    text[0] = 0;
    if (n >= 4) memcpy(&magic, bytes, 4);
    if (magic_name(magic)) {
        snprintf(text, FILE_KIND_TEXT, "%s", magic_name(magic));
        return true;
    }
    for (size_t i = 0; i < sizeof file_kinds / sizeof *file_kinds; i++) {
        const FileKind *k = &file_kinds[i];
        if (n < (size_t)(k->at + k->n) || memcmp(bytes + k->at, k->bytes, (size_t)k->n)) continue;
        if (k->at && !file_kind_safetensors(bytes, n)) continue;
        snprintf(text, FILE_KIND_TEXT, "%s%s%s", k->name, k->help ? "; " : "", k->help ? k->help : "");
        return true;
    }
    if (n >= 4 && bytes[0] && !bytes[1] && bytes[2] && !bytes[3])
        snprintf(text, FILE_KIND_TEXT, "a text in UTF-16; convert it: iconv -f UTF-16LE -t UTF-8 IN > OUT");
    else if (n >= 4 && !bytes[0] && bytes[1] && !bytes[2] && bytes[3])
        snprintf(text, FILE_KIND_TEXT, "a text in UTF-16; convert it: iconv -f UTF-16BE -t UTF-8 IN > OUT");
    return text[0] != 0;
}

/* Describes any file by its first bytes, for a program that does not read text; never empty. */
static inline const char *file_kind_any(const void *data, size_t n, char text[FILE_KIND_TEXT]) {
    const uint8_t *bytes = (const uint8_t *)data;
    size_t at = n >= 3 && !memcmp(bytes, "\xEF\xBB\xBF", 3) ? 3 : 0, printed = 0;
    if (file_kind_text(data, n, text)) return text;
    while (at < n && bytes[at] && strchr(" \t\r\n", bytes[at])) at++;
    for (size_t i = at; i < n; i++)
        printed += bytes[i] >= 32 || bytes[i] == '\t' || bytes[i] == '\n' || bytes[i] == '\r';
    if (!n) snprintf(text, FILE_KIND_TEXT, "an empty file");
    else if (at < n && (bytes[at] == '{' || bytes[at] == '[') && printed == n - at)
        snprintf(text, FILE_KIND_TEXT, "JSON; make a shard of it: data/make_shard -i FILE -o SHARD");
    else if (printed == n - at)
        snprintf(text, FILE_KIND_TEXT, "text; make a shard of it: data/make_shard -i FILE -o SHARD");
    else snprintf(text, FILE_KIND_TEXT, "a file of an unknown kind");
    return text;
}

#endif

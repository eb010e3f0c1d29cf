/* make_corpus.c - makes the corpus of the tool `search` of documents in JSON lines: an SQLite database with a full-text index.
 *
 *   {"title","text"}     a document; `id`, if present, must be unique and is not stored
 *   {"contents"}         as in the corpora of Search-R1: the title, a newline and the text
 *
 * A document is divided into passages of at most --chunk-words words, runs of characters that are not white space, of
 * which each but the first begins with the last --overlap words of the one before; all have the document's title. Search-R1's
 * passages of Wikipedia have 100 words. A passage is the document's text from its first word to its last, white space
 * included. llmc/tools/search.h describes the table.
 *
 * The same documents and options give the same bytes, with one version of SQLite.
 */
#include "../llmc/base/error.h"     /* Error, usage_error, die, NORETURN, ... */
#include "../llmc/base/io.h"        /* Writer, writer_abort, writer_commit, writer_open */
#include "../llmc/base/jsonl.h"     /* jsonl_error, Jsonl, jsonl_value_text, jsonl_close, ... */
#include "../llmc/base/options.h"   /* OPTION_GROUP, OPTION_INT, OPTION_END, OPTION_FLAG, ... */
#include "../llmc/base/output.h"    /* output_add, OUTPUT_READ, OUTPUT_WRITTEN, OutputPaths, ... */
#include "../llmc/records/inputs.h" /* Inputs, inputs_close, inputs_open, inputs_whole */
#include "../llmc/tools/search.h"   /* SEARCH_TABLE */
#include <jansson.h>
#include <sqlite3.h>

static struct {
    OptionList inputs;
    const char *output;
    int64_t words, overlap;
    bool skip_bad;
} o = {.words = 100};

static const OptionAbout about = {
    "[options]", "Makes a corpus of documents in JSON lines, for --tools search=FILE.\n\n"
                 "  make_corpus -i docs.jsonl -o corpus.db\n"
                 "  make_corpus -i a.jsonl.gz -i b.jsonl --chunk-words 200 --overlap 20 -o corpus.db\n"
                 "  show corpus.db\n\n"
                 "A document has a text and may have a title and an id; or contents, as in Search-R1's corpora."};

static const Option table[] = {
    OPTION_GROUP("Documents"),
    OPTION_LIST(
        "input", 'i', &o.inputs, "FILE",
        "JSON lines with {title, text} or {contents}, also .gz or .zst, or a pattern; - is standard input; may be repeated"),
    OPTION_FLAG("skip-bad", 0, &o.skip_bad, "count and skip lines that are not documents instead of stopping"),
    OPTION_GROUP("Passages"),
    OPTION_INT("chunk-words", 0, &o.words, 0, 1000000, "maximum words of a passage; 0: a document is one passage"),
    OPTION_INT("overlap", 0, &o.overlap, 0, 999999, "words with which a passage repeats the end of the one before it"),
    OPTION_GROUP("Output"),
    OPTION_TEXT("output", 'o', &o.output, "FILE", "the corpus, an SQLite database"),
    OPTION_END};

/* ---- the database ---------------------------------------------------------------------------------------------- */

typedef struct Corpus {
    sqlite3 *db;
    sqlite3_stmt *passage, *id;
    Writer file; /* its lock, its temporary name and its renaming */
    int64_t documents, passages, untitled;
    json_t *unread; /* names of fields that are not stored */
} Corpus;

/* Ends the program, without an output. */
NORETURN static void fail(Corpus *c, const char *why) {
    Error e;
    error_set(&e, "%s", why);
    sqlite3_close(c->db);
    writer_abort(&c->file);
    die("%s", e.text);
}

/* Ends the program with SQLite's reason. what: open or write */
NORETURN static void fail_database(Corpus *c, const char *what) {
    Error e;
    error_set(&e, "%s: cannot %s: %s", o.output, what, sqlite3_errmsg(c->db));
    fail(c, e.text);
}

static void execute(Corpus *c, const char *sql) {
    if (sqlite3_exec(c->db, sql, NULL, NULL, NULL) != SQLITE_OK) fail_database(c, "write");
}

static sqlite3_stmt *prepare(Corpus *c, const char *sql) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(c->db, sql, -1, &statement, NULL) != SQLITE_OK) fail_database(c, "write");
    return statement;
}

/* Opens the database under a temporary name. The temporary tables, of ids, are in memory. */
static void corpus_open(Corpus *c) {
    Error e;
    const size_t n = strlen(o.output);
    if (!strcmp(o.output, "-")) usage_error("-o: a corpus is read in place; give the name of a file");
    if (n > 4 && !strcmp(o.output + n - 4, ".zst"))
        usage_error("-o: a corpus is read in place and cannot be compressed");
    *c = (Corpus){.unread = json_object()};
    if (!writer_open(&c->file, o.output, &e)) die("%s", e.text);
    if (!c->file.temporary) fail(c, "-o: a corpus must be a regular file");
    if (sqlite3_open_v2(c->file.temporary, &c->db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) fail_database(c, "open");
    execute(
        c,
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY; PRAGMA encoding = 'UTF-8'");
    execute(c, SEARCH_TABLE);
    execute(c, "CREATE TEMP TABLE ids(id PRIMARY KEY) WITHOUT ROWID; BEGIN");
    c->passage = prepare(c, "INSERT INTO docs(title, text) VALUES (?1, ?2)");
    c->id = prepare(c, "INSERT INTO ids VALUES (?1)");
}

static void corpus_close(Corpus *c) {
    Error e;
    sqlite3_finalize(c->passage);
    sqlite3_finalize(c->id);
    execute(c, "INSERT INTO docs(docs) VALUES ('optimize'); COMMIT");
    if (sqlite3_close(c->db) != SQLITE_OK) fail_database(c, "write");
    c->db = NULL;
    if (!writer_commit(&c->file, &e)) die("%s", e.text);
}

/* Runs a statement whose values are bound. Returns its code if it is `allowed`, or SQLITE_DONE. */
static int run(Corpus *c, sqlite3_stmt *statement, int allowed) {
    const int code = sqlite3_step(statement);
    sqlite3_reset(statement);
    if (code != SQLITE_DONE && code != allowed) fail_database(c, "write");
    return code;
}

/* ---- documents ------------------------------------------------------------------------------------------------- */

static void add_passage(Corpus *c, const char *title, const char *text, size_t n) {
    sqlite3_bind_text(c->passage, 1, title, -1, SQLITE_STATIC);
    sqlite3_bind_text64(c->passage, 2, text, n, SQLITE_STATIC, SQLITE_UTF8);
    run(c, c->passage, SQLITE_DONE);
    c->passages++;
}

static bool blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Divides a text into passages. */
static void add_document(Corpus *c, const char *title, const char *text) {
    const size_t n = strlen(text);
    const int64_t most = o.words ? o.words : INT64_MAX;
    c->documents++;
    c->untitled += !*title;
    for (size_t start = 0;;) { /* of a passage: the first byte of its first word */
        size_t end = start, next = start;
        int64_t words = 0;
        while (end < n && words < most) {
            size_t word = end;
            while (word < n && blank(text[word])) word++;
            if (word == n) break;
            if (words == most - o.overlap) next = word;
            end = word;
            while (end < n && !blank(text[end])) end++;
            words++;
        }
        size_t left = end;
        while (left < n && blank(text[left])) left++;
        while (blank(text[start])) start++;
        add_passage(c, title, text + start, end - start);
        if (left == n) return;
        start = o.overlap ? next : left;
    }
}

/* Names the fields of a row that are not stored. */
static void note_fields(Corpus *c, const json_t *row, bool contents) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)row, key, value) {
        const bool read_it = contents ? !strcmp(key, "contents") : !strcmp(key, "title") || !strcmp(key, "text");
        if (!read_it) json_object_set_new(c->unread, key, json_null());
    }
}

/* Checks that no other document has this id. */
static bool check_id(Corpus *c, const Jsonl *j, const json_t *id, Error *e) {
    if (!id || json_is_null(id)) return true;
    if (!json_is_string(id) && !json_is_integer(id))
        return jsonl_error(j, "id", e, "%s, expected a text or a whole number", jsonl_type(id));
    if (json_is_string(id)) sqlite3_bind_text(c->id, 1, json_string_value(id), -1, SQLITE_STATIC);
    else sqlite3_bind_int64(c->id, 1, json_integer_value(id));
    return run(c, c->id, SQLITE_CONSTRAINT) == SQLITE_DONE ||
           jsonl_error(j, "id", e, "an earlier document has the same id");
}

static bool add_row(Corpus *c, const Jsonl *j, const json_t *row, Error *e) {
    const json_t *given = json_object_get(row, "text"), *whole = json_object_get(row, "contents"),
                 *title = json_object_get(row, "title");
    const bool contents = !given && whole;
    const char *field = contents ? "contents" : "text";
    if (!given && !whole) return jsonl_error(j, NULL, e, "has no field 'text'");
    const char *text = jsonl_value_text(j, contents ? whole : given, field, e), *name = "";
    if (!text) return false;
    if (!contents && title && !json_is_null(title) && !(name = jsonl_value_text(j, title, "title", e))) return false;
    char *first = NULL;
    if (contents) {
        const size_t n = strcspn(text, "\n");
        name = first = xstrndup(text, n);
        text += n + (text[n] == '\n');
    }
    bool ok = text[strspn(text, " \t\n\v\f\r")] || jsonl_error(j, field, e, "has no word of text");
    ok = ok && check_id(c, j, json_object_get(row, "id"), e);
    if (ok) add_document(c, name, text);
    if (ok) note_fields(c, row, contents);
    free(first);
    return ok;
}

static int64_t read_file(Corpus *c, const char *path) {
    Error e;
    Jsonl j;
    json_t *row;
    int more;
    if (!jsonl_open(&j, path, o.skip_bad, &e)) fail(c, e.text);
    while ((more = jsonl_next(&j, &row, &e)) > 0)
        if (!add_row(c, &j, row, &e) && !jsonl_skip(&j, &e)) break;
    if (more) fail(c, e.text);
    const int64_t skipped = j.skipped;
    if (skipped) warn("%lld lines are no documents and are left out, such as: %s", (long long)skipped, j.first.text);
    jsonl_close(&j);
    return skipped;
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

/* Prints what was made. */
static void summary(const Corpus *c, int64_t skipped) {
    fprintf(stderr, "make_corpus: %s: %lld documents, %lld passages", o.output, (long long)c->documents,
            (long long)c->passages);
    if (c->untitled) fprintf(stderr, " | %lld documents without a title", (long long)c->untitled);
    if (skipped) fprintf(stderr, " | %lld lines left out", (long long)skipped);
    const char *key, *separator = " | fields that are not stored: ";
    json_t *value;
    json_object_foreach(c->unread, key, value) {
        fprintf(stderr, "%s%s", separator, key);
        separator = ", ";
    }
    fputc('\n', stderr);
}

int main(int argc, char **argv) {
    Error e;
    Corpus corpus;
    OutputPaths files = {0};
    Inputs inputs;
    int64_t skipped = 0;
    options_parse_all(table, &about, argc, argv);
    if (!o.inputs.count) usage_error("-i/--input is required");
    if (!o.output) usage_error("-o/--output is required");
    if (o.words ? o.overlap >= o.words : o.overlap > 0) usage_error("--overlap must be below --chunk-words");
    if (!inputs_open(&inputs, "-i/--input", &o.inputs, &e) || !inputs_whole(&inputs, "-i/--input", false, &e))
        usage_error("%s", e.text);
    output_add(&files, "output", o.output, OUTPUT_WRITTEN);
    for (int i = 0; i < inputs.count; i++) output_add(&files, "input", inputs.path[i], OUTPUT_READ);
    if (!output_distinct(&files, &e)) usage_error("%s", e.text);
    if (!output_lock(&files, &e)) die("%s", e.text);
    corpus_open(&corpus);
    for (int i = 0; i < inputs.count; i++) skipped += read_file(&corpus, inputs.path[i]);
    if (!corpus.documents) fail(&corpus, "there is no document in the input");
    corpus_close(&corpus);
    summary(&corpus, skipped);
    json_decref(corpus.unread);
    output_free(&files), inputs_close(&inputs);
    return 0;
}

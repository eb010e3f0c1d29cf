/* show.c - viewer of shards, models and training states: header, readable records, and statistics of all records.
 *
 * Tokens that are trained on are green on a terminal and enclosed in ⟦ and ⟧ elsewhere; special tokens are cyan.
 * Control characters and invalid UTF-8 in the data are printed as escapes such as \x1b.
 */
#include "../llmc/base/error.h"            /* die, Error, usage_error, xmalloc, ... */
#include "../llmc/base/file_kind.h"        /* FILE_KIND_BYTES, FILE_KIND_TEXT, MAGIC_CHECKPOINT, MAGIC_RECORDS, ... */
#include "../llmc/base/io.h"               /* Reader, reader_close, reader_memory, reader_open, ... */
#include "../llmc/base/json_text.h"        /* json_utf8, json_dump_short */
#include "../llmc/base/options.h"          /* OPTION_FLAG, OPTION_GROUP, OPTION_INT, OptionUse, ... */
#include "../llmc/base/output.h"           /* output_add, OUTPUT_READ, OUTPUT_WRITTEN, OutputPaths, ... */
#include "../llmc/base/terminal.h"         /* terminal_colors */
#include "../llmc/base/text.h"             /* TextBuffer, text_free, text_clear, text_append, ... */
#include "../llmc/model/checkpoint.h"      /* CheckpointReader, checkpoint_blob, checkpoint_section, ... */
#include "../llmc/model/config.h"          /* ModelConfig */
#include "../llmc/model/model_container.h" /* Container, container_begins, container_close, container_open */
#include "../llmc/model/model_state.h"     /* MODEL_STATE_OPTIMIZER */
#include "../llmc/model/safetensors.h"     /* SAFETENSORS_HEADER_MAX, SafeTensor, Safetensors, ... */
#include "../llmc/model/tensors.h"         /* GPT2_FILE_TENSORS, TENSOR_COUNT, TensorInfo, model_tensors */
#include "../llmc/records/shard.h"         /* RECORD_UNPAIRED, RECORD_PREFERENCE, Record, RECORD_CHAT, ... */
#include "../llmc/records/teacher_table.h" /* TeacherTable, TeacherRow, teacher_row_bytes, teacher_table_close, ... */
#include "../llmc/records/tokens.h"        /* TokenShard, token_at, tokens_close, tokens_magic, ... */
#include "../llmc/report/compare.h"        /* compare_write */
#include "../llmc/report/rollouts.h"       /* Rollouts, rollouts_begins, rollouts_free, rollouts_parse */
#include "../llmc/report/runs.h"           /* Runs, runs_free, runs_match, runs_order, ... */
#include "../llmc/text/chat.h"             /* ChatTemplate, chat_template_free, chat_template_parse, ... */
#include "../llmc/text/tokenizer.h"        /* tokenizer_decode, Tokenizer, tokenizer_free, tokenizer_load, ... */
#include "../llmc/text/tokenizer_files.h"  /* tokenizer_open */
#include "../llmc/tools/search.h"          /* Search, SearchCounts, search_begins, search_close, ... */
#include "show_rollouts.h"                 /* RolloutView, rollouts_print */
#include <jansson.h>
#include <signal.h>

static struct {
    const char *tokenizer, *report;
    int64_t records, start, step, prompt;
    bool all, tokens, stats, json, tensors;
    int color;
} o = {.records = 3, .step = -1, .prompt = -1, .stats = true};

static const Option options[] = {
    OPTION_GROUP("Records"),
    OPTION_INT("records", 'n', &o.records, 0, 1e15, "number of records to print"),
    OPTION_INT("start", 0, &o.start, 0, 1e15, "index of the first record to print, counted from 0"),
    OPTION_FLAG("all", 0, &o.all, "print all records"),
    OPTION_FLAG("tokens", 0, &o.tokens, "print one token per line: position, id, mask, text"),
    OPTION_FLAG("json", 0, &o.json, "print only the records, as JSON lines"),
    OPTION_CHOICE("color", 0, &o.color, "auto|always|never",
                  "color the output; auto colors it on a terminal, unless NO_COLOR is set"),
    OPTION_GROUP("Rollouts of a training run"),
    OPTION_INT("step", 0, &o.step, 0, 1e15, "print the groups of this step (default: the last one)"),
    OPTION_INT("prompt", 0, &o.prompt, 0, 1e15, "print the groups of the prompt with this prompt_id"),
    OPTION_GROUP("Metrics of training runs"),
    OPTION_TEXT(
        "report", 0, &o.report, "FILE",
        "write a page with the curves of all metrics files that are given, their options that differ, if they are stages "
        "of one model's training the stages in their order, and what evaluate printed of their models and the rollouts of one of the runs"),
    OPTION_GROUP("Other options"),
    OPTION_FLAG("stats", 0, &o.stats, "print statistics of all records"),
    OPTION_FLAG("tensors", 0, &o.tensors, "print shape, root mean square and largest value of each tensor of a model"),
    OPTION_TEXT("tokenizer", 't', &o.tokenizer, "SPEC",
                "tokenizer for files without one; same syntax as make_shard --tokenizer"),
    OPTION_END};

static const OptionAbout about = {
    "[options] FILE...",
    "Shows a record shard, a token shard, a model or a training state, of this project's safetensors or of\n"
    "llm.c's format (- for standard input; may be zstd), a teacher's table of train_sft, the rollouts of a training run,\n"
    "or a corpus of make_corpus.\n"
    "With --report, writes a page about the training runs whose metrics files are given.\n"
    "\n"
    "examples:\n"
    "  show chat.shard                     header, three records with their masks, statistics\n"
    "  show --records 1 --start 41 --tokens chat.shard\n"
    "  show --all --json tasks.shard | jq .answer\n"
    "  show --tokenizer gpt2/ book.bin\n"
    "  show --tensors model.bin\n"
    "  show --step 40 rollouts.jsonl       the groups of step 40, completions side by side\n"
    "  show --report page.html a.jsonl b.jsonl a_heldout.json b_heldout.json"};

static Tokenizer tokenizer;
static bool has_tokenizer, color;
static int32_t stop = -1; /* the token that ends an assistant's turn */

/* ---- printing -------------------------------------------------------------------------------------------------- */

typedef enum { LOOK_PLAIN, LOOK_TRAINED, LOOK_SPECIAL, LOOK_TITLE } Look;

static const char *look_code(Look look) {
    static const char *const codes[] = {"", "\033[32m", "\033[36m", "\033[1m"};
    return color ? codes[look] : "";
}

static const char *look_end(Look look) { return color && look != LOOK_PLAIN ? "\033[0m" : ""; }

/* Prints text as text_visible() has it. */
static void print_text(const char *text, size_t n, bool newlines) {
    TextBuffer out = {0};
    text_append(&out, "", 0);
    text_visible(&out, text, n, newlines);
    fwrite(out.text, 1, out.length, stdout);
    text_free(&out);
}

static bool is_special(int32_t id) { return has_tokenizer && id >= 0 && id < tokenizer.vocab && tokenizer.special[id]; }

/* Prints the tokens' text, or their ids if there is no tokenizer. */
static void print_ids(const int32_t *ids, int32_t n, Look look) {
    TextBuffer text = {0};
    for (int32_t i = 0; i < n;) {
        int32_t end = i + 1;
        while (end < n && is_special(ids[end]) == is_special(ids[i])) end++;
        const Look here = is_special(ids[i]) && look == LOOK_PLAIN ? LOOK_SPECIAL : look;
        fputs(look_code(here), stdout);
        text_clear(&text);
        if (has_tokenizer) tokenizer_decode(&tokenizer, ids + i, end - i, true, &text);
        else
            for (int32_t k = i; k < end; k++) text_format(&text, "%s%d", k > 0 ? " " : "", ids[k]);
        print_text(text.text, text.length, true);
        fputs(look_end(here), stdout);
        i = end;
    }
    text_free(&text);
}

/* Prints tokens and highlights the trained ones. */
static void print_masked(const int32_t *ids, const uint8_t *mask, int32_t n) {
    for (int32_t i = 0; i < n;) {
        int32_t end = i + 1;
        while (end < n && !mask[end] == !mask[i]) end++;
        if (mask[i] && !color) fputs("⟦", stdout);
        print_ids(ids + i, end - i, mask[i] ? LOOK_TRAINED : LOOK_PLAIN);
        if (mask[i] && !color) fputs("⟧", stdout);
        i = end;
    }
}

/* Prints the tokens of a solution with the label after each step. */
static void print_steps(const int32_t *ids, const uint8_t *labels, int32_t n) {
    for (int32_t i = 0; i < n;) {
        int32_t end = i;
        while (end < n && !labels[end]) end++;
        end += end < n;
        print_ids(ids + i, end - i, LOOK_PLAIN);
        if (labels[end - 1])
            printf("%s⟦%.3g⟧%s", look_code(LOOK_TRAINED), step_share((uint8_t)(labels[end - 1] - 1)),
                   look_end(LOOK_TRAINED));
        i = end;
    }
}

static void print_table(const int32_t *ids, const uint8_t *mask, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        TextBuffer text = {0};
        text_clear(&text);
        if (has_tokenizer) tokenizer_decode(&tokenizer, ids + i, 1, true, &text);
        const Look look = mask && mask[i] ? LOOK_TRAINED : is_special(ids[i]) ? LOOK_SPECIAL : LOOK_PLAIN;
        printf("%6d %7d ", i, ids[i]);
        if (mask) printf("%3d ", mask[i]);
        printf("%s\"", look_code(look));
        print_text(text.text, text.length, false);
        printf("\"%s\n", look_end(look));
        text_free(&text);
    }
}

PRINTF_LIKE(1, 2) static void print_title(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs(look_code(LOOK_TITLE), stdout);
    vprintf(format, args);
    fputs(look_end(LOOK_TITLE), stdout);
    putchar('\n');
    va_end(args);
}

static void print_named(const char *name, const char *text) {
    if (!*text) return;
    printf("%s%s:%s ", look_code(LOOK_TITLE), name, look_end(LOOK_TITLE));
    print_text(text, strlen(text), true);
    putchar('\n');
}

/* ---- records --------------------------------------------------------------------------------------------------- */

static int32_t trained(const Record *r) {
    int32_t n = 0;
    for (int32_t i = 0; i < r->count; i++) n += r->mask[i] != 0;
    return n;
}

static void print_part(const char *name, const int32_t *ids, int32_t n) {
    print_title("%s (%d tokens):", name, n);
    if (o.tokens) print_table(ids, NULL, n);
    else print_ids(ids, n, LOOK_PLAIN);
    putchar('\n');
}

/* Prints a preference record: a pair or a longer ranking. */
static void print_ranking(int64_t i, const Record *r) {
    const bool pair = r->completions == 2;
    const int32_t *ids = r->tokens + r->prompt;
    if (pair) print_title("-- record %lld: %d tokens, margin %g", (long long)i, r->count, (double)r->margin);
    else
        print_title("-- record %lld: %d tokens, %d completions from the best to the worst", (long long)i, r->count,
                    r->completions);
    print_part("prompt", r->tokens, r->prompt);
    for (int32_t k = 0; k < r->completions; ids += r->length[k], k++) {
        char name[32];
        snprintf(name, sizeof name, "completion %d", k + 1);
        print_part(!pair ? name : k ? "rejected" : "chosen", ids, r->length[k]);
    }
    if (r->gold) print_part("reference", ids, r->gold);
}

static void print_record(const Shard *s, int64_t i, const Record *r) {
    switch (s->kind) {
    case RECORD_CHAT:
        print_title("-- record %lld: %d tokens, %d of them trained on", (long long)i, r->count, trained(r));
        if (o.tokens) print_table(r->tokens, r->mask, r->count);
        else print_masked(r->tokens, r->mask, r->count);
        break;
    case RECORD_PROMPT:
        print_title("-- record %lld: prompt of %d tokens", (long long)i, r->count);
        if (o.tokens) print_table(r->tokens, NULL, r->count);
        else print_ids(r->tokens, r->count, LOOK_PLAIN);
        putchar('\n');
        print_named("task", r->task);
        print_named("answer", r->answer);
        print_named("fields", r->fields);
        return;
    case RECORD_PREFERENCE: print_ranking(i, r); return;
    case RECORD_STEP:
        print_title("-- record %lld: prompt of %d tokens, solution of %d in %d steps", (long long)i, r->prompt,
                    r->count - r->prompt, trained(r));
        if (o.tokens) print_table(r->tokens, r->mask, r->count);
        else print_steps(r->tokens, r->mask, r->count);
        break;
    case RECORD_UNPAIRED:
        print_title("-- record %lld: prompt of %d tokens, completion of %d: %s", (long long)i, r->prompt,
                    r->count - r->prompt, r->label ? "good" : "bad");
        if (o.tokens) print_table(r->tokens, NULL, r->count);
        else {
            print_ids(r->tokens, r->prompt, LOOK_PLAIN);
            if (!color) fputs("⟦", stdout);
            print_ids(r->tokens + r->prompt, r->count - r->prompt, LOOK_TRAINED);
            if (!color) fputs("⟧", stdout);
        }
        break;
    }
    putchar('\n');
}

static json_t *json_ids(const int32_t *ids, int32_t n) {
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* Returns the tokens' text as a JSON string, with U+FFFD in place of invalid UTF-8. */
static json_t *json_text(const int32_t *ids, int32_t n) {
    TextBuffer text = {0};
    if (!has_tokenizer) return json_null();
    text_clear(&text);
    tokenizer_decode(&tokenizer, ids, n, true, &text);
    json_t *value = json_utf8(text.text, text.length);
    text_free(&text);
    return value;
}

/* Sets the fields of a preference record, in the form of the row that it was made of. */
static void set_ranking(json_t *row, const Record *r) {
    json_t *texts = json_array(), *lengths = json_ids(&r->prompt, 1);
    const int32_t *ids = r->tokens + r->prompt;
    for (int32_t k = 0; k < r->completions; ids += r->length[k], k++) {
        json_array_append_new(texts, json_text(ids, r->length[k]));
        json_array_append_new(lengths, json_integer(r->length[k]));
    }
    json_object_set_new(row, "prompt", json_text(r->tokens, r->prompt));
    if (r->completions == 2) {
        json_object_set(row, "chosen", json_array_get(texts, 0));
        json_object_set(row, "rejected", json_array_get(texts, 1));
        json_object_set_new(row, "margin", json_real((double)r->margin));
    } else json_object_set(row, "completions", texts);
    if (r->gold) {
        json_object_set_new(row, "reference", json_text(ids, r->gold));
        json_array_append_new(lengths, json_integer(r->gold));
    }
    json_object_set_new(row, "lengths", lengths);
    json_decref(texts);
}

static void print_json(const Shard *s, const Record *r) {
    json_t *row = json_object();
    if (s->kind == RECORD_PREFERENCE) set_ranking(row, r);
    else if (s->kind == RECORD_PROMPT) {
        json_object_set_new(row, "prompt", json_string(r->text));
        json_object_set_new(row, "task", json_string(r->task));
        json_object_set_new(row, "answer", json_string(r->answer));
        if (*r->fields) json_object_set_new(row, "fields", json_loads(r->fields, JSON_ALLOW_NUL, NULL));
    } else if (s->kind == RECORD_UNPAIRED) {
        json_object_set_new(row, "prompt", json_text(r->tokens, r->prompt));
        json_object_set_new(row, "completion", json_text(r->tokens + r->prompt, r->count - r->prompt));
        json_object_set_new(row, "label", json_boolean(r->label));
    } else json_object_set_new(row, "text", json_text(r->tokens, r->count));
    if (r->mask) {
        json_t *mask = json_array();
        for (int32_t i = 0; i < r->count; i++) json_array_append_new(mask, json_integer(r->mask[i]));
        json_object_set_new(row, s->kind == RECORD_CHAT ? "mask" : "labels", mask);
    }
    if (s->kind == RECORD_STEP || s->kind == RECORD_UNPAIRED)
        json_object_set_new(row, "prompt_tokens", json_integer(r->prompt));
    json_object_set_new(row, "tokens", json_ids(r->tokens, r->count));
    char *text = json_dump_short(row, JSON_COMPACT);
    puts(text);
    free(text);
    json_decref(row);
}

/* ---- statistics ------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void print_lengths(const char *what, int32_t *lengths, int64_t n) {
    if (!n) return;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += lengths[i];
    qsort(lengths, (size_t)n, sizeof *lengths, by_value);
    printf("%s: mean %.1f, shortest %d, median %d, 90 %% within %d, 99 %% within %d, longest %d tokens\n", what,
           sum / (double)n, lengths[0], lengths[n / 2], lengths[n * 9 / 10], lengths[n * 99 / 100], lengths[n - 1]);
}

/* Counts of names. */
typedef struct Tally {
    json_t *counts;
} Tally;

static void tally(Tally *t, const char *name) {
    if (!t->counts) t->counts = json_object();
    json_object_set_new(t->counts, name, json_integer(json_integer_value(json_object_get(t->counts, name)) + 1));
}

static void print_tally(Tally *t, const char *what) {
    const char *name;
    json_t *count;
    if (!t->counts) return;
    printf("%s:", what);
    json_object_foreach(t->counts, name, count)
        printf(" %s %lld", *name ? name : "(none)", (long long)json_integer_value(count));
    putchar('\n');
    json_decref(t->counts);
}

static void shard_stats(const Shard *s, Record *r) {
    Error e;
    int32_t *lengths = xmalloc((size_t)(s->count + 1) * 3 * sizeof *lengths), *second = lengths + s->count + 1,
            *third = second + s->count + 1;
    int64_t golds = 0, marked = 0, empty = 0, unstopped = 0, longer = 0, answers = 0, steps = 0, good = 0;
    int32_t most = 2; /* completions of a record */
    Tally tasks = {0}, labels = {0};
    for (int64_t i = 0; i < s->count; i++) {
        if (!shard_record(s, i, r, &e)) die("%s", e.text);
        lengths[i] = s->kind == RECORD_PREFERENCE ? r->prompt : r->count;
        second[i] = r->completions ? r->length[0] : 0;
        third[i] = r->completions ? r->length[r->completions - 1] : 0;
        if (r->completions > most) most = r->completions;
        golds += r->gold > 0;
        if (s->kind == RECORD_CHAT) {
            int32_t last = r->count;
            while (last > 0 && !r->mask[last - 1]) last--;
            marked += trained(r);
            empty += !last;
            unstopped += last && stop >= 0 && r->tokens[last - 1] != stop;
        }
        longer += second[i] > third[i];
        good += r->label;
        if (s->kind == RECORD_UNPAIRED) {
            lengths[i] = r->prompt;
            second[i] = r->count - r->prompt;
        }
        if (s->kind == RECORD_PROMPT) {
            tally(&tasks, r->task);
            answers += *r->answer != 0;
        }
        if (s->kind == RECORD_STEP)
            for (int32_t k = 0; k < r->count; k++)
                if (r->mask[k]) {
                    char label[16];
                    snprintf(label, sizeof label, "%.3g", step_share((uint8_t)(r->mask[k] - 1)));
                    tally(&labels, label);
                    steps++;
                }
    }
    print_title("-- all %lld records", (long long)s->count);
    print_lengths(s->kind == RECORD_PREFERENCE || s->kind == RECORD_UNPAIRED ? "prompts" : "lengths", lengths,
                  s->count);
    if (s->kind == RECORD_UNPAIRED && s->count) {
        print_lengths("completions", second, s->count);
        printf("good: %lld of %lld, %.1f %%\n", (long long)good, (long long)s->count,
               100.0 * (double)good / (double)s->count);
    }
    if (s->kind == RECORD_PREFERENCE && s->count) {
        const char *best = most > 2 ? "best" : "chosen", *worst = most > 2 ? "worst" : "rejected";
        if (most > 2) printf("completions of a record: up to %d\n", most);
        if (golds) printf("with a gold answer: %lld\n", (long long)golds);
        print_lengths(best, second, s->count);
        print_lengths(worst, third, s->count);
        printf("%s is longer than %s in %.1f %%\n", best, worst, 100.0 * (double)longer / (double)s->count);
    }
    if (s->kind == RECORD_CHAT && s->count) {
        printf("trained on: %lld of %lld tokens, %.1f %%\n", (long long)marked, (long long)s->total_tokens,
               100.0 * (double)marked / (double)(s->total_tokens ? s->total_tokens : 1));
        printf("empty masks: %lld; last trained token is not the stop token: %lld\n", (long long)empty,
               (long long)unstopped);
    }
    if (s->kind == RECORD_PROMPT) {
        print_tally(&tasks, "tasks");
        printf("with an answer: %lld\n", (long long)answers);
    }
    if (s->kind == RECORD_STEP && s->count) {
        print_tally(&labels, "labels");
        printf("steps: %.1f per record\n", (double)steps / (double)s->count);
    }
    free(lengths);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static void use_tokenizer(const void *blob, size_t n, const char *name) {
    Error e;
    if (o.tokenizer) {
        if (!tokenizer_open(&tokenizer, o.tokenizer, &e)) die("%s", e.text);
        has_tokenizer = true;
    } else if (n) {
        if (!tokenizer_load(&tokenizer, blob, n, &e)) die("%s: %s", name, e.text);
        has_tokenizer = true;
    }
}

static void print_tokenizer(void) {
    if (!has_tokenizer) {
        puts("tokenizer: none; give one with --tokenizer");
        return;
    }
    printf("tokenizer: %d tokens, %d merges, special:", tokenizer.vocab, tokenizer.merge_count);
    int shown = 0;
    for (int32_t id = 0; id < tokenizer.vocab && shown < 8; id++)
        if (tokenizer.special[id]) {
            size_t n;
            const char *token = tokenizer_token(&tokenizer, id, &n);
            printf(" ");
            print_text(token, n, false);
            printf(" %d", id);
            shown++;
        }
    puts(tokenizer.special_count > shown ? " ..." : "");
}

/* Prints the clusters of tasks that a shard's records are of, if it says so. */
static void print_clusters(const json_t *all) {
    const json_t *names = json_object_get(all, "clusters");
    const json_int_t without = json_integer_value(json_object_get(all, "without"));
    if (!json_array_size(names)) return;
    printf("clusters (field %s):", json_string_value(json_object_get(all, "field")));
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        printf(i ? ", " : " ");
        print_text(name, strlen(name), false);
    }
    if (without) printf("; %lld records have none", (long long)without);
    putchar('\n');
}

static void print_template(const char *text) {
    Error e;
    ChatTemplate c;
    if (!chat_template_parse(&c, text, &e)) die("%s", e.text);
    printf("chat template: ");
    print_text(c.spec, strlen(c.spec), false);
    if (has_tokenizer) {
        stop = chat_stop_token(&c, &tokenizer);
        printf("; an assistant's turn ends with token %d ", stop);
        print_ids(&stop, 1, LOOK_PLAIN);
    }
    putchar('\n');
    chat_template_free(&c);
}

static void show_shard(Reader *in) {
    Error e;
    Shard s;
    Record r = {0};
    if (!shard_read(&s, in, &e)) die("%s", e.text);
    if (o.start > s.count)
        die("%s: --start is %lld, expected at most %lld, the number of records", s.name, (long long)o.start,
            (long long)s.count);
    use_tokenizer(s.tokenizer, s.tokenizer_bytes, s.name);
    if (!o.json) {
        print_title("%s: record shard, kind %s", s.name, record_kind_name(s.kind));
        printf("records: %lld, tokens: %lld, vocabulary: %d (%d bytes per token)\n", (long long)s.count,
               (long long)s.total_tokens, s.vocab, s.token_bytes);
        print_tokenizer();
        print_template(s.chat_template);
        print_clusters(s.clusters);
    }
    const int64_t end = o.all || o.records > s.count - o.start ? s.count : o.start + o.records;
    for (int64_t i = o.start; i < end; i++) {
        if (!shard_record(&s, i, &r, &e)) die("%s", e.text);
        if (o.json) print_json(&s, &r);
        else print_record(&s, i, &r);
    }
    if (o.stats && !o.json) shard_stats(&s, &r);
    record_free(&r);
    shard_close(&s);
}

/* Returns the end of the document that begins at token i: the position of the next end-of-text token. */
static int64_t document_end(const TokenShard *t, int64_t i) {
    int64_t end = i + 1;
    while (end < t->count && !((has_tokenizer || t->meaning.vocab) &&
                               token_at(t, end) == (t->meaning.vocab ? t->meaning.start : tokenizer.eos)))
        end++;
    return end;
}

static void show_tokens(Reader *in) {
    Error e;
    TokenShard t;
    if (!tokens_read(&t, in, 0, &e)) die("%s", e.text);
    use_tokenizer(NULL, 0, in->name);
    if (!o.json) {
        print_title("%s: token shard", in->name);
        printf("tokens: %lld, highest id: %d", (long long)t.count, t.count ? t.highest : 0);
        if (t.meaning.vocab)
            printf(", vocabulary: %d, documents begin with token %d", t.meaning.vocab, t.meaning.start);
        putchar('\n');
        print_tokenizer();
    }
    int32_t *ids = xmalloc((size_t)(t.count + 1) * sizeof *ids),
            *lengths = xmalloc((size_t)(t.count + 1) * sizeof *ids);
    for (int64_t i = 0; i < t.count; i++) ids[i] = token_at(&t, i);
    int64_t documents = 0;
    for (int64_t i = 0, end; i < t.count; i = end, documents++) {
        end = document_end(&t, i);
        lengths[documents] = (int32_t)(end - i);
        if (documents < o.start || (!o.all && documents - o.start >= o.records)) continue;
        if (o.json) {
            json_t *row = json_object();
            json_object_set_new(row, "text", json_text(ids + i, (int32_t)(end - i)));
            json_object_set_new(row, "tokens", json_ids(ids + i, (int32_t)(end - i)));
            json_dumpf(row, stdout, JSON_COMPACT);
            json_decref(row);
        } else {
            const int32_t shown = (int32_t)(end - i > 1000 && !o.all ? 1000 : end - i);
            print_title("-- document %lld: %lld tokens%s", (long long)documents, (long long)(end - i),
                        shown < end - i ? ", the first 1000 (--all shows all)" : "");
            if (o.tokens) print_table(ids + i, NULL, shown);
            else print_ids(ids + i, shown, LOOK_PLAIN);
        }
        putchar('\n');
    }
    if (o.stats && !o.json) {
        print_title("-- all %lld documents", (long long)documents);
        print_lengths("lengths", lengths, documents);
    }
    free(ids);
    free(lengths);
    tokens_close(&t);
}

/* Reads all weights, tensor by tensor, and prints statistics. */
static void show_weights(CheckpointReader *c) {
    Error e;
    TensorInfo info[TENSOR_COUNT];
    float piece[4096];
    size_t strange = 0, total = 0;
    model_tensors(&c->config, info);
    for (int k = 0; k < GPT2_FILE_TENSORS; k++) {
        double squares = 0, largest = 0;
        for (size_t left = info[k].size, n; left; left -= n) {
            n = left < 4096 ? left : 4096;
            if (!checkpoint_weights(c, piece, n, info[k].name, &e)) die("%s", e.text);
            for (size_t i = 0; i < n; i++) {
                strange += !isfinite(piece[i]);
                squares += (double)piece[i] * (double)piece[i];
                largest = fabs((double)piece[i]) > largest ? fabs((double)piece[i]) : largest;
            }
        }
        total += info[k].size;
        if (o.tensors)
            printf("%-10s %4zu x %6zu x %5zu   root mean square %-10.4g largest %.4g\n", info[k].name, info[k].layers,
                   info[k].rows, info[k].columns, sqrt(squares / (double)info[k].size), largest);
    }
    printf("parameters: %zu (%s); not finite: %zu\n", total, c->bf16 ? "bf16" : "float32", strange);
}

static void show_section(CheckpointReader *c, const char *tag, uint64_t bytes) {
    Error e;
    const bool text = !strcmp(tag, "CHAT") || !strcmp(tag, "LINE") || !strcmp(tag, "TRNS") || !strcmp(tag, "RNRM");
    printf("section %s: %llu bytes\n", tag, (unsigned long long)bytes);
    if (!text && strcmp(tag, "TOKN")) return;
    size_t n;
    char *blob = checkpoint_blob(c, 1 << 28, &n, tag, &e);
    if (!blob) die("%s", e.text);
    if (!strcmp(tag, "CHAT")) print_template(blob);
    else if (text)
        print_named(!strcmp(tag, "LINE") ? "lineage" : !strcmp(tag, "RNRM") ? "reward model" : "trainer", blob);
    else {
        use_tokenizer(blob, n, c->in.name);
        print_tokenizer();
    }
    free(blob);
}

static void print_shape(const ModelConfig *g) {
    printf(
        "layers %d, width %d, heads %d of %d channels (keys and values %d), hidden %d, context %d, vocabulary %d (padded %d)\n",
        g->layers, g->width, g->heads, g->head_size, g->kv_heads, g->hidden, g->context, g->vocab, g->padded_vocab);
}

static void show_checkpoint(Reader *in) {
    Error e;
    CheckpointReader c = {.in = *in};
    char tag[5];
    uint64_t bytes;
    if (o.json) usage_error("--json: a checkpoint has no records");
    if (!checkpoint_start(&c, &e)) die("%s", e.text);
    print_title("%s: checkpoint", c.in.name);
    print_shape(&c.config);
    show_weights(&c);
    for (;;) {
        if (!checkpoint_section(&c, tag, &bytes, &e)) die("%s", e.text);
        if (!*tag) break;
        show_section(&c, tag, bytes);
    }
    *in = c.in;
}

/* Reads the tensors of a model's file, but the checksum, and prints statistics. */
static void show_tensors(const Safetensors *s) {
    float piece[4096];
    size_t strange = 0, total = 0;
    for (size_t k = 0; k < s->count; k++) {
        const SafeTensor *t = &s->tensor[k];
        double squares = 0, largest = 0;
        if (!safetensors_type_is_float(t->type)) continue;
        for (uint64_t at = 0; at < t->elements; at += 4096) {
            const size_t n = t->elements - at < 4096 ? (size_t)(t->elements - at) : 4096;
            safetensors_floats(t, at, piece, n);
            for (size_t i = 0; i < n; i++) {
                strange += !isfinite(piece[i]);
                squares += (double)piece[i] * (double)piece[i];
                largest = fabs((double)piece[i]) > largest ? fabs((double)piece[i]) : largest;
            }
        }
        if (!container_begins(t->name, MODEL_STATE_OPTIMIZER)) total += t->elements;
        if (!o.tensors) continue;
        printf("%-48s %-4s", t->name, safetensors_type_name(t->type));
        for (int i = 0; i < t->dims; i++) printf(i ? " x %llu" : " %llu", (unsigned long long)t->shape[i]);
        printf("   root mean square %-10.4g largest %.4g\n", sqrt(squares / (double)t->elements), largest);
    }
    printf("parameters: %zu; not finite: %zu\n", total, strange);
}

/* Shows a model or a training state in a safetensors file. memory: its bytes, which are taken over; NULL: it is mapped. */
static void show_model(const char *path, char *memory, size_t n) {
    Error e;
    Container c;
    if (o.json) usage_error("--json: a model has no records");
    if (!container_open(&c, path, memory, n, &e)) die("%s", e.text);
    print_title("%s: %s", path, c.adapters ? "training state of adapters" : c.trainer ? "training state" : "model");
    print_shape(&c.model.config);
    show_tensors(&c.model.file[0]);
    if (c.model.lineage) {
        char *lineage = json_dumps(c.model.lineage, JSON_COMPACT);
        print_named("lineage", lineage);
        free(lineage);
    }
    if (c.trainer) print_named("trainer", c.trainer);
    if (c.model.reward) print_named("reward model", c.model.reward);
    if (c.tokenizer) {
        use_tokenizer(c.tokenizer, c.tokenizer_bytes, path);
        print_tokenizer();
    }
    ChatTemplate chat;
    if (c.model.chat_template && chat_template_parse(&chat, c.model.chat_template, &e)) {
        chat_template_free(&chat);
        print_template(c.model.chat_template);
    } else if (c.model.chat_template) print_named("chat template", c.model.chat_template);
    container_close(&c);
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

enum { FIRST_BYTES = 16 }; /* that tell what a file is */

/* Reads the first bytes of the file or memory block; there may be fewer, and the others are 0. *stream: it has to be read from
 * the front. */
static size_t read_first(const char *path, const char *memory, size_t n, char first[FIRST_BYTES], bool *stream) {
    Error e;
    Reader r;
    bool failed = false;
    memset(first, 0, FIRST_BYTES);
    if (!(memory ? reader_memory(&r, memory, n, &e) : reader_open(&r, path, &e))) die("%s", e.text);
    const size_t got = reader_peek(&r, first, FIRST_BYTES, &failed, &e);
    if (failed) die("%s", e.text);
    *stream = reader_left(&r) < 0;
    reader_close(&r);
    return got;
}

/* Whether these are the first bytes of a safetensors file, which begins with the size of its header. */
static bool is_model(const char first[FIRST_BYTES]) {
    uint64_t header;
    memcpy(&header, first, sizeof header);
    return header <= SAFETENSORS_HEADER_MAX && first[8] == '{';
}

/* Shows a file of rollouts. */
static void show_rollouts(const char *path, const char *memory, size_t n) {
    Error e;
    Reader in;
    Rollouts r = {0};
    const char *why = "not used for rollouts";
    const OptionUse use[] = {{&o.stats, false, why}, {&o.tensors, false, why}, {&o.tokenizer, false, why}};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (!(memory ? reader_memory(&in, memory, n, &e) : reader_open(&in, path, &e))) die("%s", e.text);
    if (!rollouts_parse(&r, &in, INT64_MAX, &e)) die("%s", e.text);
    if (r.cut) warn("%s: its end is cut off and left out", path);
    const RolloutView view = {.step = o.step,
                              .prompt = o.prompt,
                              .start = o.start,
                              .most = o.all ? INT64_MAX : o.records,
                              .tokens = o.tokens,
                              .json = o.json,
                              .color = color};
    if (!rollouts_print(&r, &view, path, &e)) die("%s", e.text);
    rollouts_free(&r);
    reader_close(&in);
}

/* Prints passages of a corpus. */
static void print_passages(const Search *s, int64_t passages) {
    Error e;
    TextBuffer passage = {0};
    size_t title = 0;
    const int64_t end = o.all || o.records > passages - o.start ? passages : o.start + o.records;
    for (int64_t i = o.start; i < end; i++) {
        const int got = search_passage(s, i, &passage, &title, &e);
        if (got < 0) die("%s", e.text);
        if (!got) die("%s: has no passage %lld", s->path, (long long)i);
        const char *text = passage.text + title;
        if (o.json) {
            json_t *row = json_pack("{s:o,s:o}", "title", json_utf8(passage.text, title), "text",
                                    json_utf8(text, passage.length - title));
            char *line = checked_object(json_dumps(row, JSON_COMPACT), "a line of JSON");
            puts(line);
            free(line);
            json_decref(row);
            continue;
        }
        printf("%s-- passage %lld: ", look_code(LOOK_TITLE), (long long)i);
        print_text(passage.text, title, false);
        printf("%s\n", look_end(LOOK_TITLE));
        print_text(text, passage.length - title, true);
        putchar('\n');
    }
    text_free(&passage);
}

/* Shows a corpus, which is read in place. */
static void show_corpus(const char *path, bool in_memory) {
    Error e;
    SearchCounts c;
    const char *why = "not used for a corpus";
    const OptionUse use[] = {{&o.tokens, false, why},
                             {&o.tensors, false, why},
                             {&o.step, false, why},
                             {&o.prompt, false, why},
                             {&o.tokenizer, false, why}};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (in_memory) die("%s: a corpus is read in place; give the name of its file", path);
    Search *s = search_open(path, &e);
    if (!s || !search_count(s, &c, &e)) die("%s", e.text);
    if (!o.json) {
        printf("%s: corpus of the tool search\n", path);
        printf("passages: %lld, titles: %lld, bytes of text: %lld\n", (long long)c.passages, (long long)c.titles,
               (long long)c.bytes);
    }
    print_passages(s, c.passages);
    search_close(s);
}

/* ---- teachers' tables -------------------------------------------------------------------------------------------- */

/* One target of a teacher's table. */
typedef struct TableTarget {
    TeacherRow row;
    float *logp;    /* (K) */
    int32_t *token; /* (K) */
    int32_t count;  /* K */
} TableTarget;

static void print_target(int64_t i, const TableTarget *t) {
    const int32_t shown = t->count < 5 || o.all ? t->count : 5;
    print_title("-- target %lld: log-probability %.4f, entropy %.4f, not listed %.3g", (long long)i,
                (double)t->row.logp, (double)t->row.entropy, exp((double)t->row.rest));
    for (int32_t k = 0; k < shown; k++) {
        printf("%s%.4f ", k ? "  " : "", exp((double)t->logp[k]));
        print_ids(t->token + k, 1, LOOK_PLAIN);
    }
    puts(shown < t->count ? " ..." : "");
}

static void print_target_json(int table, int64_t i, const TableTarget *t) {
    json_t *row = json_pack("{s:i,s:I,s:f,s:f,s:f}", "table", table, "target", (json_int_t)i, "logp",
                            (double)t->row.logp, "entropy", (double)t->row.entropy, "rest", exp((double)t->row.rest));
    json_t *top = json_array(), *texts = json_array();
    for (int32_t k = 0; k < t->count; k++) {
        json_array_append_new(top, json_pack("[i,f]", (int)t->token[k], (double)t->logp[k]));
        json_array_append_new(texts, json_text(t->token + k, 1));
    }
    json_object_set_new(row, "top", top);
    if (has_tokenizer) json_object_set_new(row, "texts", texts);
    else json_decref(texts);
    json_dumpf(row, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(row);
}

/* Prints some targets of table k and the means of all. */
static void show_targets(const TeacherTable *f, int k, TableTarget *t) {
    Error e;
    const int64_t count = (int64_t)f->table[k].targets;
    double logp = 0, entropy = 0, rest = 0;
    if (!o.json)
        printf("table %d: %lld targets, %zu bytes each\n", k, (long long)count, teacher_row_bytes(f->vocab, f->count));
    for (int64_t i = 0; i < count; i++) {
        if (!teacher_table_row(f, k, (uint64_t)i, &t->row, t->logp, t->token, &e)) die("%s", e.text);
        logp += (double)t->row.logp;
        entropy += (double)t->row.entropy;
        rest += exp((double)t->row.rest);
        if (i < o.start || (!o.all && i - o.start >= o.records)) continue;
        if (o.json) print_target_json(k, i, t);
        else print_target(i, t);
    }
    if (!o.stats || o.json) return;
    const double n = (double)count;
    print_title("-- all %lld targets: log-probability %.4f, entropy %.4f, not listed %.3g", (long long)count, logp / n,
                entropy / n, rest / n);
    putchar('\n');
}

static void show_teacher(Reader *in) {
    Error e;
    TeacherTable f;
    if (!teacher_table_read(&f, in, &e)) die("%s", e.text);
    use_tokenizer(f.tokenizer, f.tokenizer_bytes, f.name);
    if (!o.json) {
        print_title("%s: a teacher's table", f.name);
        printf("tokens of a list: %d, vocabulary: %d, temperature: %g, weights of the teacher: %016llx\n", f.count,
               f.vocab, (double)f.temperature, (unsigned long long)f.model);
        print_tokenizer();
    }
    TableTarget t = {.logp = (float *)xmalloc((size_t)f.count * sizeof(float)),
                     .token = (int32_t *)xmalloc((size_t)f.count * sizeof(int32_t)),
                     .count = f.count};
    for (int k = 0; k < f.tables; k++) show_targets(&f, k, &t);
    free(t.logp), free(t.token);
    teacher_table_close(&f);
}

/* Ends the program with a message that says what the file is. */
NORETURN static void wrong_file(Reader *r, const char *path) {
    Error e;
    uint8_t bytes[FILE_KIND_BYTES];
    char text[FILE_KIND_TEXT];
    bool failed = false;
    const size_t n = reader_full(r, bytes, sizeof bytes, &failed, &e);
    if (failed) die("%s", e.text);
    die("%s: this is %s, expected a record shard, a token shard, a model, a training state, a teacher's table or a corpus",
        strcmp(path, "-") ? path : "standard input", file_kind_any(bytes, n, text));
}

/* Writes the page about the runs of several metrics files. */
static void show_runs(char **paths, int count) {
    Error e;
    Runs runs = {0};
    OutputPaths files = {0};
    const char *why = "not used with --report";
    const OptionUse use[] = {{&o.records, false, why}, {&o.start, false, why},   {&o.all, false, why},
                             {&o.tokens, false, why},  {&o.json, false, why},    {&o.color, false, why},
                             {&o.stats, false, why},   {&o.tensors, false, why}, {&o.tokenizer, false, why},
                             {&o.step, false, why},    {&o.prompt, false, why}};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (!count) usage_error("--report: expected one metrics file or more");
    output_add(&files, "report", o.report, OUTPUT_WRITTEN);
    for (int i = 0; i < count; i++) output_add(&files, "report", paths[i], OUTPUT_READ);
    if (!output_distinct(&files, &e))
        usage_error("--report: %s is one of the files that are read; give another path", o.report);
    output_free(&files);
    for (int i = 0; i < count; i++)
        if (!runs_read(&runs, paths[i], &e)) die("%s", e.text);
    if (!runs.count) die("--report: there is no metrics file among the files");
    runs_order(&runs);
    if (!runs_match(&runs, &e)) die("%s", e.text);
    for (int i = 0; i < runs.count; i++)
        if (runs.runs[i].cut) warn("%s: its last line is cut off and left out", runs.runs[i].name);
    if (!compare_write(&runs, o.report, &e)) die("%s", e.text);
    runs_free(&runs);
}

int main(int argc, char **argv) {
    Error e;
    Reader in;
    struct stat st;
    const int first = options_parse(options, &about, argc, argv);
    if (o.report) {
        show_runs(argv + first, argc - first);
        return 0;
    }
    if (first + 1 != argc)
        usage_error(first < argc ? "expected one FILE argument, got several" : "a FILE argument is required");
    signal(SIGPIPE, SIG_DFL);
    color = o.color == 1 || (o.color == 0 && terminal_colors(STDOUT_FILENO));
    const char *path = argv[first];
    char *memory = NULL;
    size_t n = 0;
    /* a source that cannot be read twice is kept in memory */
    if (!strcmp(path, "-") || (!stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)))
        if (!(memory = file_slurp(path, SIZE_MAX / 4, &n, &e))) die("%s", e.text);
    char first_bytes[FIRST_BYTES];
    int32_t magic;
    bool stream;
    const bool whole = read_first(path, memory, n, first_bytes, &stream) == FIRST_BYTES;
    const bool rollouts = whole && rollouts_begins(first_bytes), corpus = whole && search_begins(first_bytes);
    memcpy(&magic, first_bytes, sizeof magic);
    if (rollouts || corpus) {
        if (rollouts) show_rollouts(path, memory, n);
        else show_corpus(path, memory != NULL);
        free(memory);
        if (fflush(stdout) || ferror(stdout)) die("standard output: cannot write: %s", strerror(errno));
        return 0;
    }
    const OptionUse use[] = {{&o.step, false, "used only for rollouts"}, {&o.prompt, false, "used only for rollouts"}};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (is_model(first_bytes)) {
        if (stream) { /* compressed */
            Reader all;
            if (!(memory ? reader_memory(&all, memory, n, &e) : reader_open(&all, path, &e))) die("%s", e.text);
            char *plain = reader_rest(&all, SIZE_MAX / 4, &n, &e);
            reader_close(&all);
            if (!plain) die("%s", e.text);
            free(memory);
            memory = plain;
        }
        show_model(path, memory, n);
    } else {
        if (!(memory ? reader_memory(&in, memory, n, &e) : reader_open(&in, path, &e))) die("%s", e.text);
        if (magic == MAGIC_RECORDS) show_shard(&in);
        else if (tokens_magic(magic)) show_tokens(&in);
        else if (magic == MAGIC_TEACHER) show_teacher(&in);
        else if (magic == MAGIC_CHECKPOINT) show_checkpoint(&in);
        else wrong_file(&in, path);
        reader_close(&in);
        free(memory);
    }
    if (has_tokenizer) tokenizer_free(&tokenizer);
    if (fflush(stdout) || ferror(stdout)) die("standard output: cannot write: %s", strerror(errno));
    return 0;
}

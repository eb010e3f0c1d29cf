/* make_prefs.c - synthetic preferences with a known ground truth: pairs, rankings, labelled completions and stepwise
 * solutions.
 *
 * A hidden rule (llmc/reward/gold.h) scores each completion, and the one with the higher score is preferred. Labels can
 * be made noisy: flipped at a given rate, or drawn from a Bradley-Terry model of the scores (rankings: Plackett-Luce). With
 * --score the same program is a reward program that scores completions by the rule, so reward models and the policies
 * trained on them can be measured against the ground truth.
 *
 *   --format     one JSON object per line
 *   preference   {"prompt","chosen","rejected"}; --margin adds "margin", the difference of the scores
 *   ranking      {"prompt","completions"}           --num-completions of them, from the best to the worst
 *   unpaired     {"prompt","completion","label"}    label: true above the median score (rule sum: if the sum is right)
 *   step         {"prompt","completions","labels"}  a sum, solved step by step; all steps after a wrong one are wrong
 *   chat         {"prompt","completion"}            unfiltered completions, to train an initial policy
 *   prompt       {"prompt"}; rule sum adds "answer" and "task"
 *
 * With the rule `sum`, a prompt is a sum; a completion is a number or, with --steps, a solution with one step per line.
 * Half of the completions are wrong. With every other rule a prompt is a few letters and a colon ("cab:") and a
 * completion is a string of letters; its length and each letter are drawn uniformly. Record i is a function of (seed,
 * i). One prompt in ten is held out, whatever the seed.
 */
#include "../llmc/base/error.h"     /* usage_error, die, Error, error_set */
#include "../llmc/base/io.h"        /* writer_write, Writer, XXH3_64bits, writer_abort, ... */
#include "../llmc/base/json_text.h" /* json_dump_short, json_number_text */
#include "../llmc/base/options.h"   /* OPTION_INT, OPTION_FLAG, OPTION_GROUP, OPTION_CHOICE, ... */
#include "../llmc/base/random.h"    /* Random, random_below, random_between, RANDOM_TASK, ... */
#include "../llmc/reward/gold.h"    /* gold_score, GOLD_SUM, Gold, gold_parse */
#include <jansson.h>
#include <signal.h>

enum { SPLIT_TRAIN, SPLIT_HELDOUT, SPLIT_ALL };
enum { FORMAT_PREFERENCE, FORMAT_RANKING, FORMAT_UNPAIRED, FORMAT_STEP, FORMAT_CHAT, FORMAT_PROMPT };
enum { DRAWS_MAX = 10000, MEDIAN_DRAWS = 1001, STEPS_MAX = 64, ANSWER_MAX = 4096, RANKED_MAX = 64 };

static struct {
    const char *rule, *output;
    int64_t count, seed, completions, letters, prompt_length, min_length, max_length, digits, terms;
    int split, format;
    double flip, temperature;
    bool margin, steps, score;
} o = {.rule = "char",
       .output = "-",
       .count = 1000,
       .seed = 1,
       .completions = 4,
       .letters = 6,
       .prompt_length = 4,
       .min_length = 1,
       .max_length = 12,
       .digits = 2,
       .terms = 2};

static const OptionAbout about = {
    "[options]",
    "Writes synthetic preferences with a known ground truth, as JSON lines for make_shard.\n\n"
    "  make_prefs --count 2000 --rule char | make_shard -i - -o prefs.shard\n"
    "  make_prefs --count 200 --rule char --split heldout | make_shard -i - -o heldout.shard\n"
    "  make_prefs --count 2000 --rule char:1,length:-0.5 --flip 0.2 --margin\n"
    "  make_prefs --count 1000 --format ranking --num-completions 6 | make_shard -i - -o rankings.shard\n"
    "  make_prefs --rule sum --format step --terms 4 --count 2000 | make_shard -i - -o steps.shard\n"
    "  train_grpo ... --reward-cmd 'make_prefs --score --rule char'\n\n"
    "A rule is a weighted sum of char (number of times the prompt's first letter occurs in the completion), char=x,\n"
    "length, repeats and sum (1 if the sum is right)."};

static const Option table[] = {
    OPTION_GROUP("Preferences"),
    OPTION_TEXT("rule", 0, &o.rule, "SPEC", "rule that scores completions, such as char:1,length:-0.5"),
    OPTION_CHOICE("format", 0, &o.format, "preference|ranking|unpaired|step|chat|prompt", "contents of a line"),
    OPTION_INT("num-completions", 0, &o.completions, 2, RANKED_MAX, "ranking: completions of a line"),
    OPTION_REAL("flip", 0, &o.flip, 0, 1, "fraction of the labels to flip"),
    OPTION_REAL(
        "temperature", 0, &o.temperature, 0, 1e6,
        "prefer with probability sigmoid(difference of scores / X); 0: prefer the higher score; ranking: the next one "
        "with probability proportional to exp(score / X)"),
    OPTION_FLAG("margin", 0, &o.margin, "write the difference of the scores as the margin of each pair"),
    OPTION_FLAG("steps", 0, &o.steps, "rule sum: write solutions with one step per line"),
    OPTION_FLAG("score", 0, &o.score,
                "act as a program for --reward-cmd: read one JSON object and print one score per line"),
    OPTION_INT("count", 0, &o.count, 1, 1e9, "number of lines"),
    OPTION_INT("seed", 0, &o.seed, 0, 9e15, "random seed; the same seed and options give the same bytes"),
    OPTION_CHOICE("split", 0, &o.split, "train|heldout|all",
                  "split to draw from; one prompt in ten is held out, whatever the seed"),
    OPTION_GROUP("Prompts and completions"),
    OPTION_INT("letters", 0, &o.letters, 2, 26, "size of the alphabet, starting at a"),
    OPTION_INT("prompt-length", 0, &o.prompt_length, 2, ANSWER_MAX, "characters of a prompt, including its colon"),
    OPTION_INT("min-length", 0, &o.min_length, 1, ANSWER_MAX, "minimum characters of a completion"),
    OPTION_INT("max-length", 0, &o.max_length, 1, ANSWER_MAX, "maximum characters of a completion"),
    OPTION_INT("digits", 0, &o.digits, 1, 9, "rule sum: maximum digits of an operand"),
    OPTION_INT("terms", 0, &o.terms, 2, STEPS_MAX, "rule sum: number of operands"),
    OPTION_GROUP("Output"),
    OPTION_TEXT("output", 'o', &o.output, "FILE", "output file; - is standard output, .zst compresses"),
    OPTION_END};

static Gold gold;
static bool sums; /* the rule contains `sum`: prompts are sums */

/* ---- prompts and completions ------------------------------------------------------------------------------------ */

typedef struct Prompt {
    char text[ANSWER_MAX + 1];
    int64_t term[STEPS_MAX]; /* operands, if it is a sum */
} Prompt;

static int64_t operand(Random *r) {
    int64_t end = 1;
    for (int64_t i = 0; i < o.digits; i++) end *= 10;
    return random_between(r, 0, end - 1);
}

static char letter(Random *r) { return (char)('a' + random_below(r, (uint64_t)o.letters)); }

static void draw_prompt(Prompt *p, Random *r) {
    char *at = p->text;
    if (!sums) {
        for (int64_t i = 0; i + 1 < o.prompt_length; i++) *at++ = letter(r);
        strcpy(at, ":");
        return;
    }
    for (int64_t i = 0; i < o.terms; i++) {
        p->term[i] = operand(r);
        at += sprintf(at, "%lld%c", (long long)p->term[i], i + 1 < o.terms ? '+' : '=');
    }
}

/* Draws a prompt of the split; false if DRAWS_MAX draws gave none. */
static bool draw(Prompt *p, Random *r) {
    for (int i = 0; i < DRAWS_MAX; i++) {
        draw_prompt(p, r);
        const bool held_out = XXH3_64bits(p->text, strlen(p->text)) % 10 == 0;
        if (o.split == SPLIT_ALL || held_out == (o.split == SPLIT_HELDOUT)) return true;
    }
    return false;
}

/* Draws a wrong number near the right one: off by up to ten, or by a multiple of ten up to a hundred. */
static int64_t wrong_number(int64_t right, Random *r) {
    for (;;) {
        const int64_t off = random_between(r, -10, 10) * (random_below(r, 4) ? 1 : 10);
        if (off && right + off >= 0) return right + off;
    }
}

static int64_t sum_of(const Prompt *p) {
    int64_t sum = 0;
    for (int64_t i = 0; i < o.terms; i++) sum += p->term[i];
    return sum;
}

/* Writes step i of a solution whose first wrong step is `wrong`: total plus the next term, as "8+5=13". */
static void draw_step(const Prompt *p, int64_t i, int64_t wrong, int64_t *total, char *step, Random *r) {
    const int64_t right = *total + p->term[i], said = i == wrong ? wrong_number(right, r) : right;
    sprintf(step, "%lld+%lld=%lld", (long long)*total, (long long)p->term[i], (long long)said);
    *total = said;
}

/* Draws the index of the first wrong step; with probability 1/2 there is none, and it is the number of terms. */
static int64_t draw_wrong_step(Random *r) { return random_below(r, 2) ? random_between(r, 1, o.terms - 1) : o.terms; }

/* Draws a solution as one text with one step per line; it is wrong with probability 1/2. */
static void draw_steps(const Prompt *p, char *answer, Random *r) {
    const int64_t wrong = draw_wrong_step(r);
    int64_t total = p->term[0];
    answer[0] = 0;
    for (int64_t i = 1; i < o.terms; i++) {
        draw_step(p, i, wrong, &total, strchr(answer, 0), r);
        strcat(answer, "\n");
    }
}

static void draw_answer(const Prompt *p, char *answer, Random *r) {
    if (o.steps) draw_steps(p, answer, r);
    else if (sums) {
        const bool right = random_below(r, 2);
        sprintf(answer, "%lld", (long long)(right ? sum_of(p) : wrong_number(sum_of(p), r)));
    } else {
        const int64_t n = random_between(r, o.min_length, o.max_length);
        for (int64_t i = 0; i < n; i++) answer[i] = letter(r);
        answer[n] = 0;
    }
}

/* ---- labels ---------------------------------------------------------------------------------------------------- */

static bool flipped(Random *r) { return random_real(r) < o.flip; }

/* Whether a completion whose score is higher by `difference` is preferred. */
static bool preferred(double difference, Random *r) {
    const double u = random_real(r);
    return o.temperature > 0 ? u < 1 / (1 + exp(-difference / o.temperature)) : difference > 0;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Threshold that the score of a good completion exceeds: the median score of completions over prompts of all splits. If
 * no score exceeds the median, it is the next lower score (for the rule sum: 0, because right answers score 1). */
static double threshold_score(void) {
    static double score[MEDIAN_DRAWS];
    char answer[ANSWER_MAX + 1];
    Prompt p;
    for (int i = 0; i < MEDIAN_DRAWS; i++) {
        Random r = random_start(0, RANDOM_TASK + (uint64_t)i);
        draw_prompt(&p, &r);
        draw_answer(&p, answer, &r);
        score[i] = gold_score(&gold, p.text, answer);
    }
    qsort(score, MEDIAN_DRAWS, sizeof *score, by_size);
    int i = MEDIAN_DRAWS / 2;
    if (score[i] == score[MEDIAN_DRAWS - 1])
        while (i > 0 && score[i] == score[MEDIAN_DRAWS - 1]) i--;
    return score[i];
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

typedef struct Tally {
    int64_t flips, good, labels;
} Tally;

/* Draws a pair of completions with different scores; NULL if all scores are equal. */
static json_t *preference_line(const Prompt *p, Random *r, Tally *t) {
    char answer[2][ANSWER_MAX + 1];
    double difference = 0;
    for (int i = 0; i < DRAWS_MAX && difference == 0; i++) {
        for (int k = 0; k < 2; k++) draw_answer(p, answer[k], r);
        difference = gold_score(&gold, p->text, answer[0]) - gold_score(&gold, p->text, answer[1]);
    }
    if (difference == 0) return NULL;
    const bool first = preferred(difference, r), turn = flipped(r);
    const int chosen = first != turn ? 0 : 1;
    t->flips += (difference > 0) != (chosen == 0);
    json_t *line =
        json_pack("{s:s, s:s, s:s}", "prompt", p->text, "chosen", answer[chosen], "rejected", answer[1 - chosen]);
    if (o.margin) json_object_set_new(line, "margin", json_real(fabs(difference)));
    return line;
}

/* A completion of a ranking. */
typedef struct RankedAnswer {
    char answer[ANSWER_MAX + 1];
    double score, key; /* the ranking has the largest key first */
} RankedAnswer;

static int by_key(const void *a, const void *b) {
    const double x = ((const RankedAnswer *)a)->key, y = ((const RankedAnswer *)b)->key;
    return (x < y) - (x > y);
}

/* Draws completions with different scores; false if DRAWS_MAX draws gave too few. */
static bool draw_ranked(const Prompt *p, RankedAnswer *all, Random *r) {
    int64_t n = 0;
    for (int i = 0; i < DRAWS_MAX && n < o.completions; i++) {
        draw_answer(p, all[n].answer, r);
        all[n].score = gold_score(&gold, p->text, all[n].answer);
        int64_t k = 0;
        while (k < n && all[k].score != all[n].score) k++;
        n += k == n;
    }
    return n == o.completions;
}

/* Draws a ranking; NULL if there are not enough different scores. With a temperature T, score / T plus Gumbel noise sorts
 * the completions as a Plackett-Luce model of score / T would (Yellott 1977). */
static json_t *ranking_line(const Prompt *p, Random *r, Tally *t) {
    RankedAnswer *all = xcalloc((size_t)o.completions, sizeof *all);
    json_t *line = NULL;
    if (draw_ranked(p, all, r)) {
        for (int64_t k = 0; k < o.completions; k++)
            all[k].key = o.temperature > 0 ? all[k].score / o.temperature - log(-log1p(-random_real(r))) : all[k].score;
        qsort(all, (size_t)o.completions, sizeof *all, by_key);
        json_t *completions = json_array();
        for (int64_t k = 0; k < o.completions; k++) {
            json_array_append_new(completions, json_string(all[k].answer));
            for (int64_t i = 0; i < k; i++) t->flips += all[i].score < all[k].score;
        }
        line = json_pack("{s:s, s:o}", "prompt", p->text, "completions", completions);
    }
    free(all);
    return line;
}

static json_t *unpaired_line(const Prompt *p, double threshold, Random *r, Tally *t) {
    char answer[ANSWER_MAX + 1];
    draw_answer(p, answer, r);
    const double score = gold_score(&gold, p->text, answer);
    bool good = preferred(score - threshold, r);
    if (flipped(r)) good = !good;
    t->flips += good != (score > threshold);
    t->good += good;
    t->labels++;
    return json_pack("{s:s, s:s, s:b}", "prompt", p->text, "completion", answer, "label", good);
}

static json_t *step_line(const Prompt *p, Random *r, Tally *t) {
    json_t *steps = json_array(), *labels = json_array();
    const int64_t wrong = draw_wrong_step(r);
    int64_t total = p->term[0];
    for (int64_t i = 1; i < o.terms; i++) {
        char step[128];
        draw_step(p, i, wrong, &total, step, r);
        const bool turn = flipped(r), good = (i < wrong) != turn;
        json_array_append_new(steps, json_string(step));
        json_array_append_new(labels, json_boolean(good));
        t->flips += turn;
        t->good += good;
        t->labels++;
    }
    return json_pack("{s:s, s:o, s:o}", "prompt", p->text, "completions", steps, "labels", labels);
}

static json_t *chat_line(const Prompt *p, Random *r) {
    char answer[ANSWER_MAX + 1];
    draw_answer(p, answer, r);
    return json_pack("{s:s, s:s}", "prompt", p->text, "completion", answer);
}

static json_t *prompt_line(const Prompt *p) {
    char answer[32];
    if (!sums) return json_pack("{s:s}", "prompt", p->text);
    sprintf(answer, "%lld", (long long)sum_of(p));
    return json_pack("{s:s, s:s, s:s}", "prompt", p->text, "answer", answer, "task", "add");
}

static json_t *any_line(const Prompt *p, double threshold, Random *r, Tally *t) {
    switch (o.format) {
    case FORMAT_PREFERENCE: return preference_line(p, r, t);
    case FORMAT_RANKING: return ranking_line(p, r, t);
    case FORMAT_UNPAIRED: return unpaired_line(p, threshold, r, t);
    case FORMAT_STEP: return step_line(p, r, t);
    case FORMAT_CHAT: return chat_line(p, r);
    default: return prompt_line(p);
    }
}

static void write_lines(void) {
    Error e;
    Writer out;
    Tally t = {0};
    Prompt p;
    const double threshold = o.format == FORMAT_UNPAIRED ? threshold_score() : 0;
    if (!writer_open(&out, o.output, &e)) die("%s", e.text);
    for (int64_t i = 0; i < o.count; i++) {
        Random r = random_start((uint64_t)o.seed, RANDOM_TASK + (uint64_t)i);
        json_t *line = draw(&p, &r) ? any_line(&p, threshold, &r, &t) : NULL;
        char *text = line ? json_dump_short(line, JSON_COMPACT) : NULL;
        const bool ok = text
                            ? writer_write(&out, text, strlen(text), &e) && writer_write(&out, "\n", 1, &e)
                            : error_set(&e,
                                        "record %lld: %d draws gave no prompt of the split or too few completions that "
                                        "--rule scores differently; raise the lengths",
                                        (long long)i, DRAWS_MAX);
        free(text), json_decref(line);
        if (ok) continue;
        writer_abort(&out);
        die("%s", e.text);
    }
    if (!writer_commit(&out, &e)) die("%s", e.text);
    fprintf(stderr, "make_prefs: %s: %lld lines, rule %s", out.name ? out.name : o.output, (long long)o.count, o.rule);
    if (o.format <= FORMAT_STEP) fprintf(stderr, " | %lld labels against the rule", (long long)t.flips);
    if (t.labels) fprintf(stderr, " | good %.1f %%", 100.0 * (double)t.good / (double)t.labels);
    fputc('\n', stderr);
}

/* ---- scoring --------------------------------------------------------------------------------------------------- */

/* Reads one JSON object with a completion per line of standard input; prints one score per line. */
static void score_lines(void) {
    char *line = NULL;
    size_t size = 0;
    for (ssize_t n; (n = getline(&line, &size, stdin)) > 0;) {
        json_t *row = json_loadb(line, (size_t)n, 0, NULL);
        const char *prompt = json_string_value(json_object_get(row, "prompt"));
        const char *completion = json_string_value(json_object_get(row, "completion"));
        if (prompt && completion) {
            char score[32];
            json_number_text(gold_score(&gold, prompt, completion), score);
            puts(score);
        } else puts("null"); /* not a completion: no score */
        json_decref(row);
        if (fflush(stdout)) die("standard output: cannot write: %s", strerror(errno));
    }
    free(line);
}

int main(int argc, char **argv) {
    Error e;
    options_parse_all(table, &about, argc, argv);
    if (!gold_parse(&gold, o.rule, &e)) usage_error("--%s", e.text);
    for (int i = 0; i < gold.count; i++) sums |= gold.part[i].kind == GOLD_SUM;
    if (o.min_length > o.max_length) usage_error("--min-length is above --max-length");
    if (o.format == FORMAT_STEP && !sums) usage_error("--format step: only sums have steps; give --rule sum");
    if (option_given(&o.completions) && o.format != FORMAT_RANKING)
        usage_error("--num-completions requires --format ranking");
    if (o.format == FORMAT_RANKING && o.flip > 0) usage_error("--flip: a ranking is not flipped; use --temperature");
    if (o.margin && o.format != FORMAT_PREFERENCE) usage_error("--margin requires --format preference");
    if (o.format > FORMAT_STEP && (o.flip > 0 || o.temperature > 0))
        usage_error("--flip and --temperature: --format chat and prompt have no labels");
    if (o.steps && !sums) usage_error("--steps requires --rule sum");
    if (o.format == FORMAT_STEP && o.temperature > 0)
        usage_error("--temperature: steps are either right or wrong; use --flip");
    signal(SIGPIPE, SIG_IGN);
    if (o.score) score_lines();
    else write_lines();
    return 0;
}

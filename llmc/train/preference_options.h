/* preference_options.h - options of the losses on preferences, their defaults and checks.
 *
 * --loss-type is a list of losses on pairs, each with a weight, or one loss on single completions (kto,
 * apo_zero_unpaired). An invalid list or an option that no selected loss uses ends the program with status 2.
 *
 *     static struct { PreferenceOptions l; } o;
 *     static const Option options[] = {PREFERENCE_OPTIONS(o.l), OPTION_END};
 *     o.l = preference_options();
 *     options_parse(options, &about, argc, argv);
 *     preference_options_parse(&o.l);
 *     preference_options_check(&o.l, options);
 */
#ifndef LLMC_TRAIN_PREFERENCE_OPTIONS_H
#define LLMC_TRAIN_PREFERENCE_OPTIONS_H

#include "../base/error.h"      /* usage_error, warn */
#include "../base/options.h"    /* OPTION_REAL, OPTION_TEXT, option_choice_index, option_given, ... */
#include "../loss/kto.h"        /* KTO_LOSS_CHOICES, KtoConfig, KtoLoss, kto_balance, ... */
#include "../loss/preference.h" /* preference_has, PreferenceConfig, PREFERENCE_LOSS_CHOICES, PREFERENCE_CPO, ... */

typedef struct PreferenceOptions {
    const char *losses, *weights;
    double rpo_alpha;
    int divergence;
    PreferenceConfig pair;
    KtoConfig kto;
    bool unpaired; /* the loss is one on single, labelled completions */
    bool single;   /* Nash-MD: pairs without a rejected completion */
} PreferenceOptions;

static inline PreferenceOptions preference_options(void) {
    return (PreferenceOptions){.losses = "sigmoid", .pair = preference_config(), .kto = kto_config()};
}

// clang-format off
#define PREFERENCE_OPTIONS(o)                                                                                          \
    OPTION_GROUP("Loss"),                                                                                              \
    OPTION_TEXT  ("loss-type",               0, &(o).losses,                 "LIST",                                   \
                  PREFERENCE_LOSS_CHOICES "; or " KTO_LOSS_CHOICES),                                                   \
    OPTION_TEXT  ("loss-weights",            0, &(o).weights,                "LIST",                                   \
                  "weight of each loss in the list; 1 each if not given"),                                             \
    OPTION_REAL  ("beta",                    0, &(o).pair.beta,              1e-9, 1e6,                                \
                  "strength of the KL penalty; larger stays closer to the reference; tpo, tpo-l: 0.01 if not given"),                                 \
    OPTION_REAL  ("label-smoothing",         0, &(o).pair.label_smoothing,   0, 0.499,                                 \
                  "probability that a label is wrong; with sigmoid this is conservative DPO"),                         \
    OPTION_CHOICE("f-divergence-type",       0, &(o).divergence,             DIVERGENCE_CHOICES,                       \
                  "divergence that penalises leaving the reference"),                                                  \
    OPTION_REAL  ("f-alpha-divergence-coef", 0, &(o).pair.divergence_alpha,  -100, 100, "alpha of alpha_divergence"),  \
    OPTION_REAL  ("ld-alpha",                0, &(o).pair.ld_alpha,          0, 1,                                     \
                  "LD-DPO: weight of tokens past the shorter completion's length; 1 disables it"),                     \
    OPTION_FLAG  ("use-weighting",           0, &(o).pair.use_weighting,                                               \
                  "WPO: weight pairs by their likelihood under the policy"),                                           \
    OPTION_REAL  ("rpo-alpha",               0, &(o).rpo_alpha,              0, 1e6,                                   \
                  "add the SFT loss with this weight"),                                                                \
    OPTION_REAL  ("discopop-tau",            0, &(o).pair.discopop_tau,      1e-6, 1e6,                                \
                  "discopop: temperature of the mixture"),                                                             \
    OPTION_REAL  ("dpop-lambda",             0, &(o).pair.dpop_lambda,       0, 1e6,                                   \
                  "dpop: penalty on a chosen completion less likely than under the reference"),                        \
    OPTION_REAL  ("simpo-gamma",             0, &(o).pair.simpo_gamma,       -1e6, 1e6, "simpo: target reward margin"),\
    OPTION_REAL  ("cpo-alpha",               0, &(o).pair.cpo_alpha,         0, 1e6, "cpo: weight of the SFT term"),   \
    OPTION_REAL  ("tpo-alpha",               0, &(o).pair.tpo_alpha,         0, 1e6,                                   \
                  "tpo, tpo-l: weight of the SFT term on the gold answer; 0 needs none"),                              \
    OPTION_REAL  ("tpo-l-gamma",             0, &(o).pair.tpo_l_gamma,       -1e6, 1e6, "tpo-l: target reward margin"),\
    OPTION_REAL  ("alpha",                   0, &(o).pair.alpha,             -100, 100,                                \
                  "simpo, cpo: AlphaPO's shape of the reward; 0 uses the log-probability"),                            \
    OPTION_REAL  ("desirable-weight",        0, &(o).kto.desirable_weight,   0, 1e6,                                   \
                  "kto: weight of good completions"),                                                                  \
    OPTION_REAL  ("undesirable-weight",      0, &(o).kto.undesirable_weight, 0, 1e6, "kto: weight of bad completions")
// clang-format on

/* Reads the next word of a comma-separated list. Returns false at its end. */
static inline bool preference_word(const char **list, char *word, size_t size) {
    const size_t n = strcspn(*list, ",");
    if (!**list) return false;
    snprintf(word, size, "%.*s", (int)(n < size ? n : size - 1), *list);
    *list += n + ((*list)[n] == ',');
    return true;
}

/* Reads --loss-type and --loss-weights. */
static inline void preference_options_parse(PreferenceOptions *o) {
    const char *list = o->losses, *weights = o->weights ? o->weights : "";
    char word[40], number[40];
    int words = 0;
    while (preference_word(&list, word, sizeof word)) {
        const int unpaired = option_choice_index(KTO_LOSS_CHOICES, word),
                  loss = option_choice_index(PREFERENCE_LOSS_CHOICES, word);
        double weight = 1;
        if (unpaired < 0 && loss < 0)
            usage_error("--loss-type: '%s' is not one of " PREFERENCE_LOSS_CHOICES "|" KTO_LOSS_CHOICES, word);
        if (o->weights) {
            char *end = number;
            if (preference_word(&weights, number, sizeof number)) weight = strtod(number, &end);
            if (end == number || *end || !(weight >= 0 && weight <= 1e6))
                usage_error("--loss-weights: a number from 0 to 1e6 is needed for %s", word);
        }
        if (unpaired >= 0) {
            o->unpaired = true;
            o->kto.loss = (KtoLoss)unpaired;
        } else preference_add(&o->pair, (PreferenceLoss)loss, weight);
        words++;
    }
    if (!words) usage_error("--loss-type: the list is empty");
    if (*weights) usage_error("--loss-weights: more weights than losses");
    if (o->unpaired && (words > 1 || o->weights))
        usage_error("--loss-type: kto and apo_zero_unpaired cannot be combined with other losses or weighted");
    if (o->rpo_alpha > 0) preference_add(&o->pair, PREFERENCE_SFT, o->rpo_alpha);
    bool tpo = !o->unpaired;
    for (int i = 0; i < o->pair.losses; i++) tpo = tpo && preference_is_tpo(o->pair.loss[i]);
    if (tpo && !option_given(&o->pair.beta)) o->pair.beta = 0.01; /* TRL's default */
    o->kto.beta = o->pair.beta;
    o->pair.divergence = (Divergence)o->divergence;
}

/* Whether the losses use the log-probabilities of a reference. */
static inline bool preference_options_reference(const PreferenceOptions *o) {
    return o->unpaired || preference_needs_reference(&o->pair);
}

/* Whether one of the losses uses --label-smoothing. */
static inline bool preference_smooths(const PreferenceConfig *c) {
    for (int i = 0; i < c->losses; i++) switch (c->loss[i]) {
        case PREFERENCE_SIGMOID:
        case PREFERENCE_SIGMOID_NORM:
        case PREFERENCE_EXO_PAIR:
        case PREFERENCE_ROBUST:
        case PREFERENCE_AOT:
        case PREFERENCE_AOT_UNPAIRED:
        case PREFERENCE_SIMPO:
        case PREFERENCE_CPO:
        case PREFERENCE_TPO:
        case PREFERENCE_TPO_L: return true;
        default: break;
        }
    return false;
}

/* Whether all losses take --f-divergence-type. */
static inline bool preference_diverges(const PreferenceConfig *c) {
    for (int i = 0; i < c->losses; i++)
        if (!preference_takes_divergence(c->loss[i])) return false;
    return true;
}

/* Rejects options that none of the selected losses uses. table: all options. */
static inline void preference_options_check(const PreferenceOptions *o, const Option *table) {
    const PreferenceConfig *c = &o->pair;
    const bool pairs = !o->unpaired, simpo = preference_has(c, PREFERENCE_SIMPO),
               cpo = preference_has(c, PREFERENCE_CPO);
    static const char unpaired[] = "used only with --loss-type " KTO_LOSS_CHOICES;
    const OptionUse use[] = {
        {&c->beta, !pairs || c->losses > 1 || !preference_has(c, PREFERENCE_SFT), "not used by --loss-type sft"},
        {&o->rpo_alpha, pairs, "used only with losses on pairs"},
        {&c->label_smoothing, preference_smooths(c),
         "used only with --loss-type sigmoid, sigmoid_norm, exo_pair, robust, aot, aot_unpaired, simpo, cpo, tpo, "
         "tpo-l"},
        {&c->discopop_tau, preference_has(c, PREFERENCE_DISCOPOP), "used only with --loss-type discopop"},
        {&c->dpop_lambda, preference_has(c, PREFERENCE_DPOP), "used only with --loss-type dpop"},
        {&c->simpo_gamma, simpo, "used only with --loss-type simpo"},
        {&c->cpo_alpha, cpo, "used only with --loss-type cpo"},
        {&c->tpo_alpha, preference_has(c, PREFERENCE_TPO) || preference_has(c, PREFERENCE_TPO_L),
         "used only with --loss-type tpo or tpo-l"},
        {&c->tpo_l_gamma, preference_has(c, PREFERENCE_TPO_L), "used only with --loss-type tpo-l"},
        {&c->alpha, simpo || cpo, "used only with --loss-type simpo or cpo"},
        {&o->kto.desirable_weight, o->unpaired, unpaired},
        {&o->kto.undesirable_weight, o->unpaired, unpaired},
        {&c->ld_alpha, pairs && preference_needs_reference(c), "used only with losses on pairs that use a reference"},
        {&c->use_weighting, pairs && !preference_sorts(c), "used only with losses on pairs other than aot"},
        {&o->divergence, pairs && preference_diverges(c),
         "used only with --loss-type sigmoid, sigmoid_norm, hinge, ipo, ipo_sum, exo_pair, robust, discopop, sft"},
        {&c->divergence_alpha, c->divergence == DIVERGENCE_ALPHA,
         "used only with --f-divergence-type alpha_divergence"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (preference_has(c, PREFERENCE_EXO_PAIR) && !(c->label_smoothing > 0))
        usage_error("--loss-type exo_pair: needs --label-smoothing above 0; its paper uses 1e-3");
}

/* Warns if all of n completions have the same label, or if the weighted ratio of good to bad ones is outside the range
 * that KTO's authors recommend. name: of the shard. */
static inline void preference_options_balance(const PreferenceOptions *o, const char *name, int64_t good, int64_t n) {
    const double balance = kto_balance(&o->kto, (double)good, (double)(n - good));
    if (!good || good == n)
        warn("%s: all %lld completions are %s: there is nothing to distinguish", name, (long long)n,
             good ? "good" : "bad");
    else if (balance < 1 || balance > 4.0 / 3)
        warn("%s: %lld good and %lld bad completions: their weighted ratio is %.2f, recommended is 1 to 1.33", name,
             (long long)good, (long long)(n - good), balance);
}

#endif

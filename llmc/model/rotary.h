/* rotary.h - frequencies of rotary positions (RoPE), and how they are stretched to longer contexts.
 *
 * Channel pair j of R rotated channels turns by the angle position f_j (Su et al. 2021, arXiv:2104.09864), where
 *
 *     kind       frequency f_j, from b_j = theta^(-2j/R)                          factor m of cosine and sine
 *     default    b_j                                                              1
 *     linear     b_j / factor                                                     1
 *     llama3     b_j if 2 pi / b_j < O / high, b_j / factor if it is > O / low,   1
 *                else (1 - t) b_j / factor + t b_j with
 *                t = (O b_j / (2 pi) - low) / (high - low)
 *     yarn       (1 - r_j) b_j + r_j b_j / factor with the ramp r_j below         0.1 ln(factor) + 1
 *     longrope   b_j / list_j                                                     sqrt(1 + ln(factor) / ln(O))
 *
 * O is the context of the model before it was stretched. yarn (Peng et al. 2023, arXiv:2309.00071, section 3.2): r_j
 * rises from 0 to 1 between the pairs that turn beta_fast and beta_slow times within O. longrope (Ding et al. 2024,
 * arXiv:2402.13753) has two lists: the short one serves sequences of up to O tokens, the long one longer ones. A list
 * serves all positions of a sequence, so keys that were cached by one are of no use with the other; and all sequences of a
 * run, so that the sampler and the trainer, which pack sequences of any lengths, compute the same. The longest sequence of
 * the run selects it (model_set_longest() of model.h), as the length that is served does in vLLM; transformers selects it
 * anew for each batch.
 *
 * Frequencies and angles are float32, as in every implementation of these models (modeling_rope_utils.py of
 * transformers): models are trained with these roundings.
 *
 *     float f[MODEL_HEAD_MAX / 2];
 *     const float m = rope_frequencies(&config.rope, config.rotary, config.context, f);
 */
#ifndef LLMC_MODEL_ROTARY_H
#define LLMC_MODEL_ROTARY_H

#include "config.h" /* Rope, ROPE_LONGROPE, ROPE_YARN, ROPE_DEFAULT, ... */
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* Returns frequency b of llama3's scaling. */
static inline float rope_llama3(const Rope *r, float b) {
    const float turns = (float)r->original * b / 6.283185307179586f; /* within the original context */
    if (turns > r->high) return b;
    if (turns < r->low) return b / r->factor;
    const float t = (turns - r->low) / (r->high - r->low);
    return (1 - t) * b / r->factor + t * b;
}

/* Returns the pair, as a real number, that turns `turns` times within the original context. */
static inline double rope_pair_of_turns(const Rope *r, int rotary, double turns) {
    return rotary * log(r->original / (turns * 6.283185307179586)) / (2 * log((double)r->theta));
}

/* Returns yarn's ramp at pair j: 0 for pairs that keep their frequency, 1 for those whose frequency is divided. */
static inline float rope_yarn_ramp(const Rope *r, int rotary, int j) {
    double low = rope_pair_of_turns(r, rotary, r->beta_fast), high = rope_pair_of_turns(r, rotary, r->beta_slow);
    if (!r->exact) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, rotary - 1);
    if (low == high) high += 0.001;
    return fminf(fmaxf(((float)j - (float)low) / (float)(high - low), 0), 1);
}

/* Returns the frequency of pair j with yarn. power: theta^(2j/R). */
static inline float rope_yarn(const Rope *r, int rotary, int j, float power) {
    const float keep = 1 - rope_yarn_ramp(r, rotary, j);
    return 1 / (r->factor * power) * (1 - keep) + 1 / power * keep;
}

/* Returns the factor of cosines and sines: Rope.attention if the model has it, else the formula of the kind. */
static inline float rope_attention_factor(const Rope *r) {
    if (r->kind != ROPE_YARN && r->kind != ROPE_LONGROPE) return 1;
    if (r->attention > 0) return r->attention;
    if (r->factor <= 1) return 1;
    if (r->kind == ROPE_YARN) return (float)(0.1 * log((double)r->factor) + 1);
    return (float)sqrt(1 + log((double)r->factor) / log((double)r->original));
}

/* True if the length of the longest sequence changes the frequencies. */
static inline bool rope_has_lists(const Rope *r) {
    const size_t bytes = (size_t)r->list_count * sizeof *r->short_list;
    return r->kind == ROPE_LONGROPE && memcmp(r->short_list, r->long_list, bytes) != 0;
}

/* Computes the frequencies f[rotary / 2] in radians per position. longest: tokens of the run's longest sequence, which
 * selects the list of longrope. Returns the factor m. */
static inline float rope_frequencies(const Rope *r, int rotary, int32_t longest, float *f) {
    const float *list = longest <= r->original ? r->short_list : r->long_list;
    for (int j = 0; j < rotary / 2; j++) {
        const float power = powf(r->theta, (float)(2 * j) / (float)rotary), b = 1 / power;
        switch (r->kind) {
        case ROPE_DEFAULT: f[j] = b; break;
        case ROPE_LINEAR: f[j] = b / r->factor; break;
        case ROPE_LLAMA3: f[j] = rope_llama3(r, b); break;
        case ROPE_YARN: f[j] = rope_yarn(r, rotary, j, power); break;
        case ROPE_LONGROPE: f[j] = 1 / (list[j] * power); break;
        }
    }
    return rope_attention_factor(r);
}

#endif

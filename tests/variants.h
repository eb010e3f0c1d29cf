/* variants.h - small models that have the properties of other families than GPT-2.
 *
 *     variant   properties                                                                             as in
 *     0         grouped heads, wider than the residual stream together; a gate; an output matrix       all
 *     1         and rotary positions, layer 1 without them; RMSNorm; no biases                         SmolLM3
 *     2         and norms before and after, norms of heads, windows with a base of their own, caps     Gemma
 *     3         and norms after only, norms of whole rows, a part of the channels rotated              OLMo 2, Phi-3
 */
#ifndef TESTS_VARIANTS_H
#define TESTS_VARIANTS_H

#include "../llmc/model/backend.h" /* MLP_GEGLU, MLP_SWIGLU, NORM_RMS */
#include "../llmc/model/config.h"  /* Rope, LAYER_NO_ROPE, LAYER_WINDOW, ModelConfig, ... */

enum { VARIANTS = 4 };

/* Turns a small GPT-2 configuration with 4 heads into a variant. */
static void variant_of(ModelConfig *c, int variant) {
    c->kv_heads = 2;
    c->head_size = c->width / c->heads + 4;
    c->tied = 0;
    c->mlp = MLP_SWIGLU;
    c->attproj_bias = 0;
    c->mlp_bias = 0;
    if (variant == 0) return;
    c->norm = NORM_RMS;
    c->norm_eps = 1e-3f;
    c->position = POSITION_ROTARY;
    c->rotary = c->head_size;
    c->rope = (Rope){.theta = 100};
    c->qkv_bias = variant == 3;
    if (variant == 1) c->layer[1] = LAYER_NO_ROPE;
    if (variant == 2) {
        c->norm_place = NORM_BOTH;
        c->norm_plus_one = 1;
        c->qk_norm = QK_NORM_HEAD;
        c->window = 5;
        c->layer[0] = LAYER_WINDOW;
        c->local_rope = (Rope){.theta = 10};
        c->mlp = MLP_GEGLU;
        c->embed_scale = 3;
        c->score_scale = 0.25f;
        c->score_cap = 2;
        c->logit_cap = 3;
        c->tied = 1;
    }
    if (variant == 3) {
        c->norm_place = NORM_POST;
        c->qk_norm = QK_NORM_ROW;
        c->rotary = 6;
    }
}

#endif

/* sampling.h - settings of sampling, for vocabularies of 257 tokens: the cases of the tests of both backends. */
#ifndef TESTS_SAMPLING_H
#define TESTS_SAMPLING_H

typedef struct How {
    float temperature, top_p, min_p, penalty;
    int top_k;
} How;

// clang-format off
static const How HOW[] = {
    /* temperature top_p  min_p  penalty top_k */
    {  1,          1,     0,     1,      0    },
    {  0.5f,       1,     0,     1,      0    },
    {  1,          0.9f,  0,     1,      0    },
    {  1,          0.3f,  0,     1,      0    },
    {  1,          1,     0,     1,      5    },
    {  1,          1,     0,     1,      1    },
    {  1,          1,     0.1f,  1,      0    },
    {  1.7f,       0.8f,  0.02f, 1,      40   },
    {  1,          1,     0,     1.3f,   0    },
    {  0.8f,       0.95f, 0,     1.5f,   50   },
    {  0,          1,     0,     1,      0    }, /* greedy */
    {  0,          1,     0,     2,      0    },
    {  1,          1e-6f, 0,     1,      0    }, /* a single token is kept */
    {  1,          1,     1,     1,      0    }, /* the most likely tokens are kept */
    {  1,          0.99f, 0,     1,      256  },
    {  1,          1,     0,     1,      257  }, /* the whole vocabulary */
    {  1,          1,     0,     0.7f,   0    },
    {  3,          0.999f, 0,    1,      1000 }, /* more than the vocabulary has */
};
// clang-format on

#endif

/* agent_options.h - options of a program that calls the model by itself: --agent-cmd and those that go with it.
 *
 *     static AgentOptions o;
 *     static const Option options[] = {AGENT_OPTIONS(o), OPTION_END};
 *     o = agent_defaults();                                                // before options_parse()
 *     agent_refuse_unused(&o, options);
 */
#ifndef LLMC_SERVE_AGENT_OPTIONS_H
#define LLMC_SERVE_AGENT_OPTIONS_H

#include "../base/options.h" /* OPTION_REAL, OPTION_GROUP, OPTION_INT, OPTION_TEXT, ... */

typedef struct AgentOptions {
    const char *command; /* NULL: there is none */
    int64_t workers;     /* programs that run at once; 0: as many as slots, at most AGENT_WORKERS */
    double timeout, max_failures;
} AgentOptions;

enum { AGENT_WORKERS = 32 };

static inline AgentOptions agent_defaults(void) { return (AgentOptions){.timeout = 600, .max_failures = 0.1}; }

// clang-format off
#define AGENT_OPTIONS(o)                                                                                               \
    OPTION_GROUP("Agents"),                                                                                            \
    OPTION_TEXT("agent-cmd",          0, &(o).command,      "PROGRAM",                                                 \
                "program that is run once per completion and calls the model by OpenAI's API"),                        \
    OPTION_INT ("agent-workers",      0, &(o).workers,      0, 64,                                                     \
                "copies of --agent-cmd that run at once; 0: as many as --slots, at most 32"),                          \
    OPTION_REAL("agent-timeout",      0, &(o).timeout,      0.01, 1e6, "seconds for one run of --agent-cmd"),          \
    OPTION_REAL("max-agent-failures", 0, &(o).max_failures, 0, 1,                                                      \
                "end the run if --agent-cmd failed for more than this fraction of the completions")
// clang-format on

/* Rejects options without effect. */
static inline void agent_refuse_unused(const AgentOptions *o, const Option *table) {
    static const char only[] = "used only with --agent-cmd";
    const bool on = o->command != NULL;
    const OptionUse use[] = {{&o->workers, on, only}, {&o->timeout, on, only}, {&o->max_failures, on, only}};
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

#endif

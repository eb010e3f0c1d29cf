/* cost_model.c - predicted step time and memory per rank for models of 124 M to 8 B parameters on 1 to 1024 H100s.
 *
 *     build/cost_model                      the table of dev/COST_MODEL.md, for H100s in machines of eight
 *     build/cost_model --tokens 2097152     the same with another number of tokens per step
 *     build/cost_model --lora-rank 16       the same for adapters on all linear layers
 *     build/cost_model --lora-rank 16 --quantize q4_0     and weights of 4 bits
 *     build/cost_model --model qwen3-8b     one model
 *
 * The formulas are in cost_model.h; dev/COST_MODEL.md interprets the table.
 */
#include "../llmc/base/error.h"      /* usage_error */
#include "../llmc/base/options.h"    /* OPTION_INT, OPTION_REAL, OPTION_CHOICE, OPTION_GROUP, ... */
#include "../llmc/model/backend.h"   /* Backend */
#include "../llmc/model/config.h"    /* ModelConfig, LORA_ALL, LoraConfig */
#include "../llmc/model/workspace.h" /* kv_bytes, workspace_bytes */
#include "cost_model.h"              /* CostMachine, CostRun, CostStep, cost_memory, ... */
#include "shapes.h"                  /* SHAPE_CHOICES, SHAPE_gpt2_124m, SHAPE_gpt2_1558m, SHAPE_llama_1b, ... */

static struct {
    int64_t tokens, micro, per_machine, answer, prompts, group, rank;
    int quantize, model, dtype;
    double flops, share, inside, between, overlap, memory, read;
} o;

static const Option options[] = {
    OPTION_GROUP("Step"),
    OPTION_INT("tokens", 0, &o.tokens, 1, 1LL << 40, "tokens per step, on all ranks"),
    OPTION_INT("micro-tokens", 0, &o.micro, 1, 1 << 24, "tokens per micro-batch of one rank"),
    OPTION_INT("lora-rank", 0, &o.rank, 0, 1024, "train adapters of this rank; 0 trains all weights"),
    OPTION_CHOICE("quantize", 0, &o.quantize, "none|q8_0|q4_0",
                  "type of the matrices of linear layers, with --lora-rank"),
    OPTION_CHOICE("model", 0, &o.model, "all|" SHAPE_CHOICES, "the model of the table"),
    OPTION_CHOICE("dtype", 0, &o.dtype, "bf16|float32", "type of weights and activations, as on a GPU or on the CPU"),
    OPTION_GROUP("Rollouts"),
    OPTION_INT("answer", 0, &o.answer, 1, 1 << 20, "tokens of the longest completion"),
    OPTION_INT("prompts", 0, &o.prompts, 1, 1 << 20, "prompts per generation"),
    OPTION_INT("group", 0, &o.group, 1, 4096, "completions per prompt"),
    OPTION_GROUP("GPU and network"),
    OPTION_REAL("flops", 0, &o.flops, 1, 1e6, "vendor peak of a GPU, dense bf16 TFLOP/s"),
    OPTION_REAL("share", 0, &o.share, 0.01, 1, "fraction of the peak that training reaches"),
    OPTION_REAL("read", 0, &o.read, 0.001, 1e3, "memory read bandwidth of decode, TB/s"),
    OPTION_INT("gpus", 0, &o.per_machine, 1, 64, "GPUs per machine"),
    OPTION_REAL("inside", 0, &o.inside, 0.001, 1e5, "GB/s per rank in a sum within a machine (NCCL's bus bandwidth)"),
    OPTION_REAL("between", 0, &o.between, 0.001, 1e5, "GB/s per rank in a sum between machines"),
    OPTION_REAL("overlap", 0, &o.overlap, 0, 1, "fraction of the sums that overlaps with the backward pass"),
    OPTION_REAL("memory", 0, &o.memory, 1, 1e4, "memory of a GPU, GB"),
    OPTION_END};

static const OptionAbout about = {"[options]", "Predicts step time and memory per rank; see dev/COST_MODEL.md."};

static const int shapes[] = {SHAPE_gpt2_124m, SHAPE_gpt2_1558m, SHAPE_qwen3_0_6b, SHAPE_llama_1b, SHAPE_qwen3_8b};

static ModelConfig config_of(int shape) {
    ModelConfig c = shape_config(shape, 1024);
    if (o.rank) c.lora = (LoraConfig){.rank = (int32_t)o.rank, .targets = LORA_ALL, .scale = 1};
    return c;
}

/* NCCL uses trees for AllReduce and rings for ReduceScatter and AllGather; a ring's latency grows with the number of
 * machines, a tree's with its logarithm. */
static CostMachine machine_of(int ranks, int zero) {
    const bool alone = ranks <= o.per_machine;
    const double machines = (double)ranks / (double)o.per_machine;
    return (CostMachine){.flops = o.flops * 1e12 * o.share,
                         .bandwidth = 1e9 * (alone ? o.inside : o.between),
                         .latency = alone  ? 20e-6
                                    : zero ? 20e-6 + 4e-6 * machines
                                           : 20e-6 + 10e-6 * log2(machines),
                         .overlap = o.overlap,
                         .weight_bytes = o.dtype ? 4 : 2};
}

static const Backend bf16 = {.weight_size = 2, .act_size = 2}, float32 = {.weight_size = 4, .act_size = 4};

static const Backend *backend_of(void) { return o.dtype ? &float32 : &bf16; }

/* Seconds of sampling: every decode step reads the weights once and the keys and values of every running completion.
 * The longest completion sets the number of steps, whatever the number of ranks. */
static double rollout_seconds(const ModelConfig *c, const CostRun *r, const CostMachine *m) {
    const double answers = ceil((double)o.prompts / r->ranks) * (double)o.group, read = o.read * 1e12;
    /* bytes, half full on average */
    const double cache = answers * 0.5 * (double)o.answer * (double)kv_bytes(c, backend_of(), 1);
    const double reading = (cost_read(m, r) + cache) / read, computing = 2 * r->parameters * answers / m->flops;
    return (double)o.answer * (reading > computing ? reading : computing);
}

/* Bytes of activations of a micro-batch, with --recompute 1. */
static double activations(const ModelConfig *c) {
    return (double)workspace_bytes(c, backend_of(), (int)o.micro, (int)o.micro, (int)o.micro, true, 1);
}

/* Prints the row of a shape on this many ranks. */
static void print_row(int shape, int ranks) {
    const ModelConfig c = config_of(shape);
    int zero = 0;
    CostRun r;
    CostMachine m;
    double bytes;
    const double micros = fmax(1, ceil((double)o.tokens / ranks / (double)o.micro));
    do { /* the lowest level that fits */
        r = cost_run(&c, (double)o.tokens, micros, ranks, zero);
        if (o.quantize) cost_quantize(&r, &c, o.quantize == 1 ? 34.0 / 32 : 18.0 / 32);
        m = machine_of(ranks, zero);
        bytes = cost_memory(&m, &r) + activations(&c);
    } while (bytes > o.memory * 0.92e9 && ranks > 1 && zero++ < 2);
    const bool fits = bytes <= o.memory * 0.92e9;
    const CostStep s = cost_step(&m, &r);
    const double sampling = rollout_seconds(&c, &r, &m);
    printf("| %s | %d | %d | %.*f | %s | %.1f | %.1f | %.1f | %.1f | %.0f %% | %.1f | %.0f %% |\n", shape_name(shape),
           ranks, fits ? zero : 2, bytes < 1e9 ? 3 : 1, bytes * 1e-9, fits ? "yes" : "no", 1e3 * s.compute,
           1e3 * s.sums, 1e3 * s.exposed, 1e3 * s.step, 100 * s.compute / s.step, sampling,
           100 * sampling / (sampling + s.step));
}

int main(int argc, char **argv) {
    o.tokens = 1 << 20;
    o.micro = 8192;
    o.answer = 1024;
    o.prompts = 512;
    o.group = 8;
    o.flops = 989;
    o.share = 0.45;
    o.read = 2.7;
    o.per_machine = 8;
    o.inside = 360;
    o.between = 320;
    o.overlap = 0.8;
    o.memory = 80;
    options_parse_all(options, &about, argc, argv);
    if (o.quantize && !o.rank) usage_error("--quantize: requires --lora-rank");
    printf("| model | ranks | zero | GB per rank | fits | compute ms | sums ms | not hidden ms | step ms | efficiency |"
           " sampling s | sampling share |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    static const int sizes[] = {1, 8, 64, 256, 1024};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t k = 0; !o.model && k < sizeof sizes / sizeof *sizes; k++) print_row(shapes[i], sizes[k]);
    for (size_t k = 0; o.model && k < sizeof sizes / sizeof *sizes; k++) print_row(o.model - 1, sizes[k]);
    return 0;
}

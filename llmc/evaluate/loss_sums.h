/* loss_sums.h - sums of a loss over targets and over units, and the figures made of them.
 *
 *     LossSums all = {0};
 *     loss_add(&all, &sums);
 *     loss_report(&ev, &all, "records", 1.5);       // after 1.5 seconds
 *
 * A unit is a record of a chat shard or a window of a token shard. The error is the standard error of a ratio of sums over
 * units.
 */
#ifndef LLMC_EVALUATE_LOSS_SUMS_H
#define LLMC_EVALUATE_LOSS_SUMS_H

#include "evaluator.h" /* evaluator_number, evaluator_count, Evaluator */

/* Sums over the targets; sums over units (records or windows) for the standard error. */
typedef struct LossSums {
    double nats, right, entropy, targets;
    double text_nats, bytes;          /* of ordinary tokens, if there is a tokenizer */
    double squares[3];                /* sums over units of nats^2, nats * targets, targets^2 */
    int64_t units, cut, rows;         /* units with a target; truncated records; tokens processed */
    int32_t *unit, unit_of_batch;     /* (targets of the batch) unit of each; number of units in the batch */
    double *unit_nats, *unit_targets; /* (units of the batch) */
} LossSums;

/* Adds the sums over another file. */
static inline void loss_add(LossSums *all, const LossSums *l) {
    all->nats += l->nats;
    all->right += l->right;
    all->entropy += l->entropy;
    all->targets += l->targets;
    all->text_nats += l->text_nats;
    all->bytes += l->bytes;
    for (int i = 0; i < 3; i++) all->squares[i] += l->squares[i];
    all->units += l->units;
    all->cut += l->cut;
    all->rows += l->rows;
}

/* Reports the loss and the other figures. The error is the standard error of a ratio of sums over units. */
static inline void loss_report(Evaluator *ev, const LossSums *l, const char *units, double seconds) {
    const double N = l->targets, U = (double)l->units, loss = l->nats / N;
    const double spread = l->squares[0] - 2 * loss * l->squares[1] + loss * loss * l->squares[2];
    const double error = U > 1 ? sqrt(fmax(spread, 0) * U / (U - 1)) / N : NAN;
    const double bits = l->bytes > 0 ? l->text_nats / M_LN2 / l->bytes : NAN;
    fputs("|                  |          value |      error |\n", stderr);
    fputs("|------------------|----------------|------------|\n", stderr);
    fprintf(stderr, "| %-16s | %14.5f | %10.5f |\n", "loss", loss, error);
    fprintf(stderr, "| %-16s | %14.4f | %10.4f |\n", "perplexity", exp(loss), exp(loss) * error);
    if (isfinite(bits)) fprintf(stderr, "| %-16s | %14.5f |            |\n", "bits per byte", bits);
    fprintf(stderr, "| %-16s | %12.2f %% |            |\n", "token accuracy", 100 * l->right / N);
    fprintf(stderr, "| %-16s | %14.5f |            |\n", "entropy", l->entropy / N);
    fprintf(stderr, "%lld %s, %.0f tokens predicted, %lld processed in %.2f s, %.0f tok/s\n", (long long)l->units,
            units, N, (long long)l->rows, seconds, (double)l->rows / seconds);
    evaluator_number(ev->result, "loss", loss);
    evaluator_number(ev->result, "loss_error", error);
    evaluator_number(ev->result, "perplexity", exp(loss));
    evaluator_number(ev->result, "bits_per_byte", bits);
    evaluator_number(ev->result, "token_accuracy", l->right / N);
    evaluator_number(ev->result, "entropy", l->entropy / N);
    evaluator_count(ev->result, "tokens", (int64_t)N);
    evaluator_count(ev->result, units, l->units);
    json_object_set_new(ev->result, "bytes", ev->model.text.present ? json_integer((json_int_t)l->bytes) : json_null());
}

#endif

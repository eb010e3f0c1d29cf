/* launch.h - detection of the launcher: none, MPI, or torchrun-style environment variables.
 *
 *   mpirun, mpiexec   OMPI_COMM_WORLD_RANK/SIZE (Open MPI), PMI_RANK/SIZE (MPICH and derivatives)
 *   srun              SLURM_PROCID, SLURM_STEP_NUM_TASKS; the ranks connect through MPI (srun --mpi=pmix)
 *   torchrun          RANK, WORLD_SIZE, LOCAL_RANK; the ranks connect through MASTER_ADDR:MASTER_PORT
 *
 * This header only reads the environment; dist.h connects the ranks.
 */
#ifndef LLMC_BASE_LAUNCH_H
#define LLMC_BASE_LAUNCH_H

#include <stdlib.h>

typedef enum { LAUNCH_ALONE, LAUNCH_MPI, LAUNCH_VARIABLES } LaunchKind;

typedef struct Launch {
    LaunchKind kind;
    int rank, ranks, local_rank;
} Launch;

/* Returns an environment variable as a number, or `otherwise` if it is not set. */
static inline int launch_variable(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value && *value ? atoi(value) : otherwise;
}

static inline Launch launch_of_environment(void) {
    static const struct {
        LaunchKind kind;
        const char *rank, *ranks, *local_rank;
    } known[] = {{LAUNCH_MPI, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
                 {LAUNCH_MPI, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
                 {LAUNCH_VARIABLES, "RANK", "WORLD_SIZE", "LOCAL_RANK"},
                 {LAUNCH_MPI, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const int rank = launch_variable(known[i].rank, -1), ranks = launch_variable(known[i].ranks, 0);
        if (ranks > 1 && rank >= 0 && rank < ranks) {
            const Launch found = {known[i].kind, rank, ranks, launch_variable(known[i].local_rank, 0)};
            return found;
        }
    }
    const Launch alone = {LAUNCH_ALONE, 0, 1, 0};
    return alone;
}

#endif

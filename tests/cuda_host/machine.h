/* machine.h - declarations shared by the parts of the harness but not visible to kernels. */
#ifndef CUDA_HOST_MACHINE_H
#define CUDA_HOST_MACHINE_H

#include "cuda_host.h"
#include <vector>

#pragma GCC visibility push(hidden)
struct CudaHostShared { /* a variable in shared memory */
    uintptr_t address;
    size_t size;
    std::string name;
};
const std::vector<CudaHostShared> &cuda_host_shared(void);
const CudaHostLaunch *cuda_host_running(void);
uint32_t cuda_host_warp_epoch(void); /* whole-warp barriers passed so far by the running thread's warp */
void cuda_host_fill(void *memory, size_t bytes, int byte);

bool cuda_host_race_detector(void);
void cuda_host_race_launch(const CudaHostLaunch &launch);
void cuda_host_race_block(void);
void cuda_host_race_allocated(void *memory, size_t bytes);
void cuda_host_race_freed(void *memory);
#pragma GCC visibility pop

#endif

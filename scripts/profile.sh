#!/bin/sh
# profile.sh - prints instructions for profiling with Nsight. `make profile` builds llmc_cuda.so with an NVTX range for each
# operation of backend.h; a plain `make llmc_cuda.so` after touching llmc/cuda/cuda.cu removes the ranges.
cat <<'END'
llmc_cuda.so now marks each operation with an NVTX range.

Time of a step (timeline, and totals for each operation and kernel):
  nsys profile -t cuda,nvtx,cublas --cuda-graph-trace=node -o run ./train_sft --device cuda -c model.bin -i chat.shard -x 20 -o /dev/null
  nsys stats -r nvtx_sum,cuda_gpu_kern_sum,cuda_gpu_mem_time_sum run.nsys-rep

Decode, which uses CUDA graphs (launches per step, gaps between kernels):
  nsys profile -t cuda,nvtx --cuda-graph-trace=node -o decode \
    ./generate --device cuda -c model.bin --num-samples 64 -g 256 "..."

One kernel family without a model (roofline, stalls, occupancy):
  make build/cuda_attention
  ncu --set full -k regex:attention -c 5 -o attention build/cuda_attention 3

One operation within a run (operations are named as in backend.h):
  ncu --nvtx --nvtx-include "layernorm_backward/" --set full -c 10 -o norm ./train_sft --device cuda -c model.bin -i chat.shard -x 2 -o /dev/null
END

#!/bin/sh
# profile.sh - prints how to look into a run with Nsight; `make profile` has built llmc_cuda.so with NVTX ranges, one for
# each operation of backend.h. Plain `make llmc_cuda.so` after touching llmc/cuda/cuda.cu takes them out again.
cat <<'END'
llmc_cuda.so now marks each operation with an NVTX range.

Where the time of a step goes (timeline, and sums for each operation and kernel):
  nsys profile -t cuda,nvtx,cublas --cuda-graph-trace=node -o run ./train_sft --device cuda -c model.bin -i chat.shard -x 20 -o /dev/null
  nsys stats -r nvtx_sum,cuda_gpu_kern_sum,cuda_gpu_mem_time_sum run.nsys-rep

Decode, where the graphs are (launches a step, gaps between kernels):
  nsys profile -t cuda,nvtx --cuda-graph-trace=node -o decode ./generate --device cuda -c model.bin -n 64 -g 256 "..."

One kernel family against the hardware (roofline, stalls, occupancy), without a model around it:
  make build/cuda_attention
  ncu --set full -k regex:attention -c 5 -o attention build/cuda_attention 3

One operation inside a run (the names are those of backend.h):
  ncu --nvtx --nvtx-include "layernorm_backward/" --set full -c 10 -o norm ./train_sft --device cuda -c model.bin -i chat.shard -x 2 -o /dev/null
END

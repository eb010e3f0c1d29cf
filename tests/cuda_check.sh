#!/bin/bash
# cuda_check.sh [--record] - compares the compiled CUDA kernels with a recorded budget. Needs nvcc, but no GPU.
#
# For each GPU architecture in ARCHS (80 90 100), compiles llmc/cuda/cuda.cu with the flags of llmc_cuda.so and checks
#
#   budget   Registers, bytes spilled, stack and static shared memory of each kernel (ptxas -v; the maximum over a
#            template's instances) must not exceed its line in tests/cuda_budget.txt. Instances whose last parameter is
#            true, for windows, caps and other options, have a line of their own, marked with +. A kernel without a line
#            fails as well. Other versions of nvcc allocate registers differently: then the comparison is skipped, with a
#            message.
#   code     The instructions that make a kernel fast must be in its SASS (cuobjdump): tensor cores, wide loads and
#            stores, asynchronous copies. The table is below. Without cuobjdump (in the toolkit's full install;
#            scripts/setup.sh --dev installs it from PyPI) this check is skipped, with a message.
#
# --record writes a new budget. Exit status 0, or 1 with one line for each difference.
cd "$(dirname "$0")/.." || exit 1
archs=${ARCHS:-80 90 100} budget=tests/cuda_budget.txt build=${BUILD:-build}/cuda_check failures=0 record=0
case ${1-} in
'') ;;
--record) record=1 ;;
*) echo "usage: [ARCHS='80 90'] tests/cuda_check.sh [--record]" >&2 && exit 2 ;;
esac

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [ ! -x "$nvcc" ]; then
    echo "cuda_check: nvcc not found: registers, spills and instructions of the kernels were not checked" >&2
    exit 0
fi
version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
recorded=$(sed -n 's/^# nvcc //p' $budget 2>/dev/null)
for folder in build/cuda_tools/nvidia/*/bin; do [ -d "$folder" ] && PATH=$PATH:$PWD/$folder; done
cuobjdump=${CUOBJDUMP:-$(command -v cuobjdump || echo "$(dirname "$nvcc")/cuobjdump")}
mkdir -p "$build"

# kernel, minimum number of its template's instances with the opcode, opcode (awk regular expression)
code_table() {
    cat <<'TABLE'
attention_forward_mma_kernel  16  ^HMMA\.16816\.F32\.BF16
attention_forward_mma_kernel  16  ^LDSM\.16\.M88\.4
attention_forward_mma_kernel  16  ^LDSM\.16\.MT88\.4
attention_forward_mma_kernel  16  ^LDGSTS.*\.128
attention_keys_mma_kernel     8   ^HMMA\.16816\.F32\.BF16
attention_keys_mma_kernel     8   ^LDGSTS.*\.128
attention_keys_mma_kernel     8   ^STG\.E.*\.128
attention_queries_mma_kernel  8   ^HMMA\.16816\.F32\.BF16
attention_queries_mma_kernel  8   ^LDGSTS.*\.128
attention_queries_mma_kernel  8   ^STG\.E.*\.128
attention_decode_kernel       32  ^LDG\.E.*\.128
attention_delta_kernel        2   ^LDG\.E.*\.128
add_kernel                    2   ^LDG\.E.*\.128
add_kernel                    2   ^STG\.E.*\.128
adamw_kernel                  2   ^LDG\.E.*\.128
adamw_kernel                  2   ^STG\.E.*\.128
bias_kernel                   2   ^STG\.E.*\.128
column_sum_kernel             2   ^LDG\.E.*\.128
embed_forward_kernel          2   ^LDG\.E.*\.128
embed_forward_kernel          2   ^STG\.E.*\.128
gather_kernel                 2   ^STG\.E.*\.128
gelu_backward_kernel          2   ^LDG\.E.*\.128
gelu_backward_kernel          2   ^STG\.E.*\.128
gelu_forward_kernel           2   ^STG\.E.*\.128
head_kernel                   4   ^LDG\.E.*\.128
head_kernel                   4   ^STG\.E.*\.128
kv_store_kernel               2   ^STG\.E.*\.128
norm_backward_kernel     40  ^LDG\.E.*\.128
norm_backward_kernel     40  ^STG\.E.*\.128
norm_warp_kernel         10  ^LDG\.E.*\.128
norm_warp_kernel         10  ^STG\.E.*\.128
norm_block_kernel        2   ^STG\.E.*\.128
rotary_backward_kernel        4   ^LDG\.E.*\.128
rotary_backward_kernel        4   ^STG\.E.*\.128
rotary_forward_kernel         4   ^LDG\.E.*\.128
rotary_forward_kernel         4   ^STG\.E.*\.128
sample_kernel                 1   ^LDG\.E.*\.128
scatter_kernel                5   ^LDG\.E.*\.128
square_sum_kernel             1   ^LDG\.E.*\.128
value_forward_kernel          2   ^LDG\.E.*\.128
TABLE
}

fail() {
    echo "cuda_check: $*" >&2
    failures=$((failures + 1))
}

# Reads ptxas -v. Prints kernel, registers, bytes spilled, stack and shared memory, each the maximum over its instances.
worst() {
    sed -n "s/.*Compiling entry function '\([^']*\)'.*/K \1/p
            s/.* \([0-9]*\) bytes stack frame, \([0-9]*\) bytes spill stores, \([0-9]*\) bytes spill loads.*/S \1 \2 \3/p
            /: Used [0-9]* registers/p" | c++filt | awk '
        function most(to, name, x) { if (x + 0 > to[name] + 0) to[name] = x }
        /^K / {
            name = $0
            option = name ~ /(true|\(bool\)1)>\(/ ? "+" : ""
            sub(/^K ((static|void) )*/, "", name)
            sub(/[<(].*/, "", name)
            name = name option
            next
        }
        /^S / { most(stack, name, $2); most(spilled, name, $3 + $4); next }
        {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^registers/) most(registers, name, $(i - 1))
                if ($i ~ /^smem/) most(shared, name, $(i - 2))
            }
        }
        END {
            for (name in registers)
                printf "%s %d %d %d %d\n", name, registers[name], spilled[name], stack[name], shared[name]
        }' | sort
}

# Reads cuobjdump -sass. Prints kernel, instance and opcode.
opcodes() {
    sed -n 's/.*Function : \(.*\)/F \1/p
            s/^[ \t]*\/\*[0-9a-f]\{4,\}\*\/ *\(@!*U*P[0-9T]* *\)*\([A-Z0-9_.]*\).*/O \2/p' | c++filt | awk '
        /^F / { delete seen; name = $0; sub(/^F ((static|void) )*/, "", name); instance = name; sub(/[<(].*/, "", name); gsub(/ /, "", instance); next }
        !seen[$2]++ { print name, instance, $2 }'
}

check_budget() { # architecture
    local arch=$1
    worst <"$build/sm_$arch.log" >"$build/sm_$arch.found"
    [ -s "$build/sm_$arch.found" ] || fail "sm_$arch: ptxas reported no kernel"
    [ $record = 1 ] || [ "$version" != "$recorded" ] && return
    while read -r line; do fail "$line"; done < <(awk -v arch="$arch" '
        FNR == NR { if ($1 == arch) { known[$2] = 1; for (i = 3; i <= 6; i++) limit[$2, i] = $i } next }
        !($1 in known) { print "sm_" arch ": " $1 " is not in the budget; run with --record to add it"; next }
        {
            split("registers,bytes spilled,bytes of stack,bytes of shared memory", what, ",")
            for (i = 2; i <= 5; i++)
                if ($i > limit[$1, i + 1]) print "sm_" arch ": " $1 ": " $i " " what[i - 1] ", budget " limit[$1, i + 1]
        }' <(grep -v '^#' $budget) "$build/sm_$arch.found")
}

check_code() { # architecture
    local arch=$1 kernel least opcode found
    "$cuobjdump" -sass "$build/sm_$arch.cubin" 2>/dev/null | opcodes >"$build/sm_$arch.opcodes"
    [ -s "$build/sm_$arch.opcodes" ] || { fail "sm_$arch: cuobjdump printed no instructions"; return; }
    while read -r kernel least opcode; do
        found=$(awk -v kernel="$kernel" -v opcode="${opcode//\\/\\\\}" '
            $1 == kernel && $NF ~ opcode && !seen[$2]++ { n++ } END { print n + 0 }' "$build/sm_$arch.opcodes")
        [ "$found" -ge "$least" ] || fail "sm_$arch: $kernel: $opcode in $found instances, expected $least"
    done < <(code_table)
}

compile() { # architecture
    "$nvcc" -std=c++17 -O3 -cubin -arch="sm_$1" -Xptxas -v llmc/cuda/cuda.cu -o "$build/sm_$1.cubin" >"$build/sm_$1.log" 2>&1 ||
        rm -f "$build/sm_$1.cubin"
}

# recompile only if a source has changed, and all architectures at a time
for arch in $archs; do
    if [ ! -e "$build/sm_$arch.cubin" ] || [ -n "$(find llmc \( -name '*.cu' -o -name '*.cuh' \) -newer "$build/sm_$arch.cubin")" ]; then
        compile "$arch" &
    fi
done
wait

for arch in $archs; do
    [ -e "$build/sm_$arch.cubin" ] ||
        { tail -n 20 "$build/sm_$arch.log" >&2; fail "sm_$arch: nvcc failed"; continue; }
    check_budget "$arch"
    if [ -x "$cuobjdump" ]; then check_code "$arch"; fi
    echo "sm_$arch: $(wc -l <"$build/sm_$arch.found") kernels, maximum registers $(awk '$2 > m { m = $2; k = $1 } END { print m, "(" k ")" }' "$build/sm_$arch.found"), bytes spilled $(awk '{ s += $3 } END { print s + 0 }' "$build/sm_$arch.found")"
done
[ $record = 1 ] || [ "$version" = "$recorded" ] ||
    echo "cuda_check: the budget was recorded with nvcc $recorded, this is $version: registers and spills were not compared" >&2
[ -x "$cuobjdump" ] || echo "cuda_check: cuobjdump not found: instructions were not checked" >&2

if [ $record = 1 ] && [ $failures = 0 ]; then
    {
        echo "# Budget of the CUDA kernels, checked by tests/cuda_check.sh and written by its --record: the maximum over a"
        echo "# template's instances; +: of those whose last parameter is true. architecture, kernel, registers, bytes spilled,"
        echo "# bytes of stack, bytes of static shared memory"
        echo "# nvcc $version"
        for arch in $archs; do sed "s/^/$arch /" "$build/sm_$arch.found"; done
    } >$budget
    echo "wrote $budget"
fi
[ $failures = 0 ]

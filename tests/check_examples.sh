#!/bin/sh
# check_examples.sh - compiles the usage examples in the head comments of llmc/.
#
# An example is a block of lines in the comment at the top of a header that begins with an indentation of five spaces
# and has a line that ends with `;`. Each becomes a function in build/examples/FOLDER_NAME.c, which includes only the
# header itself and the headers that the example names in a comment: `// workspace.h` of the same folder, or
# `// model/transformer.h`. What examples use without declaring it (Model model, Batch batch, int64_t i) is in
# tests/examples.h. Before an example is compiled,
#
#     for (...) and for (each micro-batch)    become for (;;)
#     ...                                     is removed
#     e                                       is declared: an Error if &e or e.text occurs, else an Error *
#
# A compiler's message names the line of the header. Prints a line for each header whose example does not compile, or
# whose comment has a statement outside an example, and exits 1 if there is one.
set -eu
cd "$(dirname "$0")/.."
out=${BUILD:-build}/examples
export INCLUDE="${BUILD:-build}/include" # what make generates
rm -rf "$out"
mkdir -p "$out"

extract() {
    awk -v out="$out" '
        function reset() { lines = first = statements = declared = 0; error = "void" }
        # Writes the block that ends here as a function, if it has a statement.
        function finish(    i) {
            if (lines && statements) {
                body = body "static inline bool example_" ++blocks "(" (declared ? "void" : error) ") {\n"
                body = body "#line " first " \"" FILENAME "\"\n"
                for (i = 1; i <= lines; i++) body = body line[i] "\n"
                body = body "    return true;\n}\n"
            } else for (i = 1; i <= lines; i++) if (line[i] ~ CALL) stray(first + i - 1)
            reset()
        }
        function stray(n) { print FILENAME ":" n ": a statement outside an example (indent it by 5 spaces)"; bad = 1 }
        # Completes the file of the header before.
        function header_end(    i) {
            if (!name) return
            finish()
            if (blocks) {
                print "#include \"" path "\"" > (out "/" name ".c")
                for (i = 1; i <= includes; i++) print "#include \"" include[i] "\"" > (out "/" name ".c")
                print "#include \"tests/examples.h\"" > (out "/" name ".c")
                printf "%s", body > (out "/" name ".c")
                close(out "/" name ".c")
                headers++
                total += blocks
            }
            name = body = ""
            blocks = includes = 0
        }
        BEGIN { CALL = "^ *([A-Za-z_0-9 *]+ = )?[a-z_0-9]+\\([^;]*\\);" }
        FNR == 1 {
            header_end()
            reset()
            path = name = folder = FILENAME
            sub(/[^\/]*$/, "", folder)
            sub(/^llmc\//, "", name)
            sub(/\.h$/, "", name)
            gsub(/\//, "_", name)
            head = 1
        }
        !head { next }
        /\*\// || /^#/ { head = 0; finish(); next }
        !/^ \*     / || !lines && /^ \*      / {
            finish()
            if (substr($0, 4) ~ (CALL " *(//.*)?$")) stray(FNR)
            next
        }
        {
            if (!lines) first = FNR
            text = substr($0, 8)
            code = text
            gsub(/"[^"]*"/, "\"\"", code)
            comment = ""
            if (match(code, /\/\/.*/)) { comment = substr(code, RSTART); code = substr(code, 1, RSTART - 1) }
            if (code ~ /; *$/) statements++
            if (code ~ /Error e;/) declared = 1
            if (code ~ /(&e|e\.text)([^a-zA-Z_0-9]|$)/) error = "Error e"
            else if (code ~ /[(,] *e\)/ && error == "void") error = "Error *e"
            while (match(comment, /([a-z_]+\/)?[a-z_]+\.h/)) {
                named = substr(comment, RSTART, RLENGTH)
                include[++includes] = (named ~ /\// ? "llmc/" : folder) named
                comment = substr(comment, RSTART + RLENGTH)
            }
            gsub(/for \((\.\.\.|each [^)]*)\)/, "for (;;)", text)
            if (text !~ /".*\.\.\..*"/) gsub(/(, *)?\.\.\./, "", text)
            line[++lines] = text
        }
        END {
            header_end()
            printf "%d examples in %d headers of %d\n", total, headers, ARGC - 1 > (out "/count")
            exit bad
        }' llmc/*.h llmc/*/*.h
}

failed=0
extract || failed=1
for file in "$out"/*.c; do echo "$file"; done | xargs -P "$(nproc)" -n 1 sh -c '
    $0 -I. -I"$INCLUDE" -fsyntax-only -std=c11 -D_GNU_SOURCE -fopenmp -Wall -Wno-unused -Werror "$1" ||
        { sed -n "s/#include \"\(.*\)\"/\1: its example does not compile/p;q" "$1" && exit 1; }' "${CC:-cc}" || failed=1
cat "$out/count"
exit $failed

#!/bin/sh
# check_includes.sh - compares llmc/ with two rules of llmc/README.md: which folder includes which, and which may end the program.
#
# Includes: the rows of the table of folders are
#
#     | `FOLDER/` | what it holds | the folders it may include |
#
# A folder may include itself and the folders that its row lists; `all` lists every folder. A header directly in llmc/
# is listed by its name.
#
# Ends: only the files of `may_end` below call die(), usage_error(), exit() or the like. Other files may call die() with a
# message that begins "out of memory: ", because running out of host memory ends the program from anywhere. Comments are
# not read.
#
# Prints each line that breaks a rule and exits 1 if there is one.
set -eu
cd "$(dirname "$0")/.."
status=0

grep -n '^ *# *include *"' llmc/*/* | awk '
    FILENAME == "llmc/README.md" {
        if (split($0, cell, "|") > 4 && match(cell[2], /`[a-z]+\/`/)) {
            folder = substr(cell[2], RSTART + 1, RLENGTH - 3)
            gsub(/[`,\/]/, " ", cell[4])
            may[folder] = " " folder " " cell[4] " "
        }
        next
    }
    {
        split($0, part, ":")
        split(part[1], path, "/")
        match($0, /"[^"]+"/)
        to = substr($0, RSTART + 1, RLENGTH - 2)
        target = to ~ /^\.\.\/.*\// ? substr(to, 4, index(substr(to, 4), "/") - 1) : to ~ /^\.\.\// ? substr(to, 4) : path[2]
        if (!(path[2] in may)) { print "llmc/README.md has no row for llmc/" path[2] "/"; bad = 1 }
        else if (may[path[2]] !~ / all / && index(may[path[2]], " " target " ") == 0) {
            print part[1] ":" part[2] ": includes " to ", but the table in llmc/README.md does not let " path[2] "/ include " target
            bad = 1
        }
        count++
    }
    END { if (!bad) print count " includes follow the table in llmc/README.md"; exit bad }' llmc/README.md - || status=1

may_end='
    train/                      the scaffolding of the trainers
    evaluate/                   the parts of the program evaluate
    rollout/inference.h         the scaffolding of the programs that do not train
    base/error.h                defines die() and usage_error()
    base/options.h              a bad command line, --help
    base/program.h              a second interrupt
    sandbox/sandbox_process.h   a child that could not start
    dist/                       ends all ranks after a failed collective
'
may_end=$may_end awk '
    BEGIN {
        count = split(ENVIRON["may_end"], row, "\n")
        for (i = 1; i <= count; i++) if (split(row[i], word, " ")) may[word[1]] = 1
        END_CALL = "(^|[^A-Za-z_0-9.>])(die|usage_error|exit|_exit|_Exit|quick_exit|abort)[(]"
    }
    FNR == 1 {
        file = substr(FILENAME, 6)
        folder = file
        sub(/[^\/]*$/, "", folder)
        free = file in may || folder in may
        files += !free
        comment = 0
    }
    free { next }
    {
        code = $0
        gsub(/die[(]"out of memory: /, "(\"", code)
        gsub(/"([^"\\]|\\.)*"/, "\"\"", code)
        if (comment && !sub(/^([^*]|\*+[^*\/])*\*+\//, "", code)) next
        gsub(/\/\*([^*]|\*+[^*\/])*\*+\//, "", code)
        sub(/\/\/.*/, "", code)
        comment = sub(/\/\*.*/, "", code)
        if (code !~ END_CALL) next
        sub(/^ */, "")
        print FILENAME ":" FNR ": may not end the program; it returns false with an Error: " $0
        bad = 1
    }
    END { if (!bad) print files " files of llmc/ return their errors"; exit bad }' llmc/*.h llmc/*/*.[ch]* || status=1
exit $status

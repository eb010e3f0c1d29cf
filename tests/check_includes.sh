#!/bin/sh
# check_includes.sh - compares every include in llmc/ with the table in llmc/README.md, whose rows are
#
#     | `FOLDER/` | what it holds | the folders it may include |
#
# A folder may include itself and the folders that its row lists; `all` lists every folder. A header directly in llmc/
# is listed by its name. Prints each include that breaks the rule and exits 1 if there is one.
set -eu
cd "$(dirname "$0")/.."
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
    END { if (!bad) print count " includes follow the table in llmc/README.md"; exit bad }' llmc/README.md -

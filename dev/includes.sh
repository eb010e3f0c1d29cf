#!/bin/sh
# includes.sh - makes every file include what it uses, and say what that is.
#
#   dev/includes.sh [FILE...]            rewrites the project's includes of the files, or of all sources outside dev/
#   dev/includes.sh --check [FILE...]    changes nothing; fails if a comment after an include names something that the
#                                        header does not define or the file does not use (part of `make check`)
#
# After each include stand up to four of the names that the file uses most from that header:
#
#     #include "../base/error.h" /* error_set, Error, die, ... */
#
# A header whose names are used is included directly; one of which nothing is used is dropped, unless it is a .c file or
# the comment after it begins with `keep:`. The includes of a run of lines are sorted by path. Those that are added go
# to a file's first run. An include that the table in llmc/README.md forbids is not made but reported, with exit status
# 1. A second run changes nothing. A header that relied on another's system headers may need them itself afterwards.
set -eu
cd "$(dirname "$0")/.."
check=0
if [ "${1-}" = --check ]; then check=1; shift; fi
sources=$(ls ./*.c llmc/*.h llmc/*/*.[ch] llmc/*/*.cu llmc/*/*.cuh data/*.[ch] dev/*.[ch] dev/*/*.[ch] \
    dev/cuda/*.cu* tests/*.[ch] tests/*.cpp | sed 's|^\./||')
[ $# -gt 0 ] || set -- $(echo "$sources" | grep -v "^dev/")
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
for file in "$@"; do mkdir -p "$temporary/$(dirname "$file")"; done
status=0
awk -v check=$check -v target="$*" -v out="$temporary" -f dev/includes.awk llmc/README.md $sources || status=1
[ $check = 1 ] && exit $status
for file in "$@"; do
    cmp -s "$file" "$temporary/$file" || { cat "$temporary/$file" >"$file" && echo "$file"; }
done
exit $status

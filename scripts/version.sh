#!/bin/sh
# version.sh - prints the version and the commit, which the Makefile compiles into the programs: 0.1.0 (562a0c9)
#
# The commit is that of the git checkout, with -dirty if tracked files differ from it; in an archive that `git archive`
# made, git has put it into the next line (.gitattributes); otherwise it is unknown.
archived='$Format:%h$'
version=0.1.0
cd "$(dirname "$0")/.." || exit 1
case $archived in
*Format*)
    commit=unknown
    if [ "$(git rev-parse --show-prefix 2>&1)" = "" ]; then
        commit=$(git describe --always --exclude '*' --dirty 2>/dev/null) || commit=unknown
    fi
    ;;
*) commit=$archived ;;
esac
echo "$version ($commit)"

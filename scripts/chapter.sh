#!/bin/sh
# chapter.sh N|all [SEED] - demonstrates a chapter of "LLM post-training, from the ground up" in a few minutes on two cores: prints
# what the chapter claims, what was seen, and whether it holds. Exits with status 1 if a claim does not hold.
#
#     scripts/chapter.sh 19         self-taught reasoning and rejection sampling
#     scripts/chapter.sh all 2      all chapters with seed 2, and a page that links their reports
#
# Everything is written to loops/chapter-N-SEED; `all` also writes loops/chapters-SEED.html. scripts/chapters/ has a file for each
# chapter. CHAPTERS in the environment names those of `all`; that of scripts/loop.sh sets the sizes.
# shellcheck disable=SC1090,SC1091,SC2034,SC2317
cd "$(dirname "$0")/.." || exit
chapter=${1:-}
[ $# -gt 0 ] && shift
: "${CHAPTERS:=$(echo scripts/chapters/[0-9]*.sh | sed 's|scripts/chapters/0*||g; s|\.sh||g')}"
[ "$chapter" = all ] || [ -e "scripts/chapters/$(printf %02d "$chapter" 2>/dev/null).sh" ] ||
    { echo "chapter.sh: give one of $CHAPTERS, or all" >&2; exit 2; }
if [ "$chapter" = all ]; then
    failed='' loops=${LOOP_OUT:-loops}
    for n in $CHAPTERS; do
        rm -f "$loops/chapter-$n-${1:-1}/claims.txt" # of an earlier run
        scripts/chapter.sh "$n" "$@" || failed="$failed $n"
        echo
    done
    page=$loops/chapters-${1:-1}.html
    # shellcheck disable=SC2086
    scripts/chapters/page.sh "${1:-1}" $CHAPTERS >"$page" && echo "page: $page"
    [ -z "$failed" ] && echo "all claims hold" && exit
    echo "claims that do not hold: chapter$failed"
    exit 1
fi
LOOP_NAME=chapter-$chapter
. scripts/loop.sh
. scripts/letters.sh
. scripts/chapters/claims.sh
. "scripts/chapters/$(printf %02d "$chapter").sh"
finished=yes
page >/dev/null && report "$out/report.html"
exit $bad

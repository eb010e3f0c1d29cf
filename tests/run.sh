#!/bin/sh
# run.sh TEST... - runs test programs from the project's root, shows the output of those that fail, and counts tests.
# JOBS of them run at a time; the default is the number of cores. Those in WAITING mostly wait for time to pass, and run one
# after another beside the others, unless JOBS is 1.
if [ "$1" = --one ]; then
    log=$RESULTS/$(echo "$2" | tr / _) verdict=FAILED
    start=$(date +%s.%N)
    timeout 600 "$2" >"$log" 2>&1 && verdict=ok
    end=$(date +%s.%N)
    # cmocka's own count of a program's tests
    count=$(sed -n 's/^\[  PASSED  \] \([0-9]* test(s)\).*/\1/p' "$log" | tail -n 1)
    line=$(printf '%-7s %-32s %s in %.1f s' $verdict "$2" "${count:-no tests}" "$(echo "$end $start" | awk '{print $1 - $2}')")
    echo $verdict >>"$RESULTS/verdicts"
    if [ $verdict = ok ]; then echo "$line"; else printf '%s\n%s\n' "$(cat "$log")" "$line"; fi
    exit 0
fi

RESULTS=$(mktemp -d)
export RESULTS
trap 'rm -rf "$RESULTS"' EXIT
: >"$RESULTS/verdicts"
jobs=${JOBS:-$(nproc)}
[ "$jobs" != 1 ] || WAITING=
waits() { case " $WAITING " in *" $1 "*) ;; *) return 1 ;; esac; }
each() { xargs -r -n 1 -P "$1" "$0" --one; } # each N: runs the tests of standard input, N at a time
for t; do waits "$t" && echo "$t"; done | each 1 &
for t; do waits "$t" || echo "$t"; done | each "$jobs"
wait
passed=$(grep -c '^ok' "$RESULTS/verdicts")
echo "programs: $passed passed, $(($# - passed)) failed"
[ "$passed" = $# ]

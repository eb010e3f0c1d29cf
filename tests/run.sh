#!/bin/sh
# run.sh TEST... - runs test programs from the project's root, shows the output of those that fail, and counts tests.
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for test in "$@"; do
    start=$(date +%s.%N)
    if timeout 600 "$test" >"$log" 2>&1; then
        passed=$((passed + 1)) verdict=ok
    else
        failed=$((failed + 1)) verdict=FAILED
        cat "$log"
    fi
    # cmocka's own count of a program's tests
    count=$(sed -n 's/^\[  PASSED  \] \([0-9]* test(s)\).*/\1/p' "$log" | tail -n 1)
    printf '%-7s %-32s %s in %.1f s\n' "$verdict" "$test" "${count:-no tests}" \
        "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')"
done
echo "programs: $passed passed, $failed failed"
[ "$failed" = 0 ]

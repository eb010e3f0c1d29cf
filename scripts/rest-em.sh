#!/bin/sh
# rest-em.sh [SEED] - ReST-EM (Singh et al. 2023, arXiv 2312.06585): as expert iteration, but each round trains the base, so that
# errors do not add up; at most 10 solutions of a problem. The paper: 32 samples of each problem of MATH.
here=$(dirname "$0")
export FROM=base PER_PROBLEM=10 TITLE="ReST-EM" LOOP_NAME=rest-em
exec "$here/expert-iteration.sh" "$@"

#!/bin/sh
# man.sh - writes a program's manual page by help2man, from what its --help and --version print:
#
#     scripts/man.sh build/bin/llmc-train-sft build/man/llmc-train-sft.1
set -eu
about=$(COLUMNS=1000 "$1" --help | sed -n '3{s/\. .*//;s/\.$//;p}')
COLUMNS=200 help2man --no-info --name="$about" --output="$2" "$1"

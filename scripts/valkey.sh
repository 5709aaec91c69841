#!/usr/bin/env bash
# Unpacks Debian 13's valkey-server beside the system, and prints the path of a program that runs it: the Redis tests use it
# as LOCK_TEST_REDIS_BIN. Needs root, debootstrap, and about 300 MB.
#
#   LOCK_TEST_REDIS_BIN=$(scripts/valkey.sh [DIRECTORY]) cargo test -p lock-redis
set -euo pipefail
cd "$(dirname "$0")/.."

directory=${1:-target/valkey}
suite=${SUITE:-trixie}
mirror=${MIRROR:-http://deb.debian.org/debian}

main() {
    mkdir -p "$directory"
    directory=$(realpath "$directory")
    program=$directory/valkey-server
    [ -x "$program" ] || install_valkey
    "$program" --version >&2
    echo "$program"
}

install_valkey() {
    [ "$(id -u)" = 0 ] || fail "run it as root: debootstrap needs that"
    command -v debootstrap >/dev/null || fail "install debootstrap: apt-get install debootstrap"
    echo "==> installing valkey-server of $suite from $mirror into $directory/root" >&2
    rm -rf "$directory/root"
    debootstrap --variant=minbase --include=valkey-server "$suite" "$directory/root" "$mirror" >&2
    local loader libraries
    loader=$(find "$directory/root/usr/lib" -maxdepth 2 -name 'ld-linux-*.so.*' | head -n 1)
    libraries=$(dirname "$(find "$directory/root/usr/lib" -maxdepth 2 -name libc.so.6 | head -n 1)")
    # With its own C library: the system's may be older.
    printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
        "$loader" "$libraries" "$directory/root/usr/bin/valkey-server" >"$program"
    chmod +x "$program"
}

fail() {
    echo "valkey.sh: $1" >&2
    exit 1
}

main

#!/usr/bin/env bash
# Unpacks etcd 3.5, Redis 8 and Valkey 8 of Debian 13 beside the system, once, and prints the path of a program that runs one
# of them, for tests with another server than the one that is installed. Needs root, debootstrap, which it installs, and 350 MB.
#
#   LOCK_TEST_REDIS_BIN=$(scripts/newer-server.sh valkey) cargo test -p lock-redis --all-features
#   LOCK_TEST_ETCD_BIN=$(scripts/newer-server.sh etcd) cargo test -p lock-etcd --all-features
#   scripts/newer-server.sh root        the directory of the file system they are in
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

suite=${SUITE:-trixie}
mirror=${MIRROR:-http://deb.debian.org/debian}
packages=etcd-server,redis-server,valkey-server

main() {
    mkdir -p "target/servers/$suite"
    directory=$(realpath "target/servers/$suite")
    case ${1:-} in
    root) install_root && echo "$directory/root" ;;
    etcd) program_named etcd ;;
    redis) program_named redis-server ;;
    valkey) program_named valkey-server ;;
    *) fail "which server? valkey, redis or etcd; or root" ;;
    esac
}

program_named() {
    install_root
    local program=$directory/$1
    [ -x "$program" ] || write_program "$program"
    "$program" --version >&2
    echo "$program"
}

# Whole, or not there.
install_root() {
    [ ! -d "$directory/root" ] || return 0
    [ "$(id -u)" = 0 ] || fail "run it as root: debootstrap needs that"
    has debootstrap || install debootstrap >&2 || fail "debootstrap cannot be installed"
    echo "==> installing $packages of $suite from $mirror into $directory/root" >&2
    rm -rf "$directory/partial"
    debootstrap --variant=minbase --include="$packages" "$suite" "$directory/partial" "$mirror" >&2
    rm -rf "$directory"/partial/var/cache/apt/archives/*.deb "$directory"/partial/var/lib/apt/lists/*
    mv "$directory/partial" "$directory/root"
}

# With its own C library: the system's may be older.
write_program() {
    local loader libraries
    loader=$(find "$directory/root/usr/lib" -maxdepth 2 -name 'ld-linux-*.so.*' | head -n 1)
    libraries=$(dirname "$(find "$directory/root/usr/lib" -maxdepth 2 -name libc.so.6 | head -n 1)")
    printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
        "$loader" "$libraries" "$directory/root/usr/bin/$(basename "$1")" >"$1"
    chmod +x "$1"
}

trap restore_services EXIT
main "$@"

#!/usr/bin/env bash
# Unpacks a server of Debian 13 beside the system, and prints the path of a program that runs it, for tests with another
# server than the one that is installed. Needs root, debootstrap, and about 300 MB.
#
#   LOCK_TEST_REDIS_BIN=$(scripts/newer-server.sh valkey) cargo test -p lock-redis --all-features
#   LOCK_TEST_ETCD_BIN=$(scripts/newer-server.sh etcd) cargo test -p lock-etcd --all-features
set -euo pipefail
cd "$(dirname "$0")/.."

server=${1:-}
suite=${SUITE:-trixie}
mirror=${MIRROR:-http://deb.debian.org/debian}

main() {
    case $server in
    valkey) package=valkey-server program=valkey-server ;;
    redis) package=redis-server program=redis-server ;;
    etcd) package=etcd-server program=etcd ;;
    *) fail "which server? valkey, redis or etcd" ;;
    esac
    mkdir -p "target/servers/$server"
    directory=$(realpath "target/servers/$server")
    program=$directory/$program
    [ -x "$program" ] || install_server
    "$program" --version >&2
    echo "$program"
}

install_server() {
    [ "$(id -u)" = 0 ] || fail "run it as root: debootstrap needs that"
    command -v debootstrap >/dev/null || fail "install debootstrap: apt-get install debootstrap"
    echo "==> installing $package of $suite from $mirror into $directory/root" >&2
    rm -rf "$directory/root"
    debootstrap --variant=minbase --include="$package" "$suite" "$directory/root" "$mirror" >&2
    local loader libraries
    loader=$(find "$directory/root/usr/lib" -maxdepth 2 -name 'ld-linux-*.so.*' | head -n 1)
    libraries=$(dirname "$(find "$directory/root/usr/lib" -maxdepth 2 -name libc.so.6 | head -n 1)")
    # With its own C library: the system's may be older.
    printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
        "$loader" "$libraries" "$directory/root/usr/bin/$(basename "$program")" >"$program"
    chmod +x "$program"
}

fail() {
    echo "newer-server.sh: $1" >&2
    exit 1
}

main

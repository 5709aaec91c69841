#!/usr/bin/env bash
# Builds the Docker image that tests use where the machine has no etcd or redis-server of its own and can pull no image:
# Debian's packages on a minimal root file system. Needs root, debootstrap, and a Docker daemon.
#
#   scripts/test-image.sh [NAME:TAG]
set -euo pipefail

image=${1:-lock-test-servers:local}
suite=${SUITE:-trixie}
mirror=${MIRROR:-http://deb.debian.org/debian}
packages=etcd-server,redis-server,valkey-server

main() {
    check_requirements
    root=$(mktemp -d "${TMPDIR:-/tmp}/lock-test-image.XXXXXX")
    trap 'rm -rf "$root"' EXIT
    echo "==> installing $packages of $suite from $mirror into $root"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    echo "==> importing it into Docker as $image"
    tar -C "$root" -c . | docker import - "$image"
    echo "==> done; tests without etcd or redis-server on PATH use $image from now on"
}

check_requirements() {
    [ "$(id -u)" = 0 ] || fail "run it as root: debootstrap needs that"
    command -v debootstrap >/dev/null || fail "install debootstrap: apt-get install debootstrap"
    command -v docker >/dev/null || fail "install docker: apt-get install docker.io"
    docker info >/dev/null 2>&1 || fail "there is no Docker daemon that answers"
}

fail() {
    echo "test-image.sh: $1" >&2
    exit 1
}

main

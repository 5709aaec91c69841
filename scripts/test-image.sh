#!/usr/bin/env bash
# Builds the Docker image that tests use where the machine has no etcd or redis-server of its own and can pull no image:
# what scripts/newer-server.sh unpacks. Needs root, debootstrap, and a Docker daemon.
#
#   scripts/test-image.sh [NAME:TAG]
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-lock-test-servers:local}

main() {
    command -v docker >/dev/null || fail "install docker: apt-get install docker.io"
    docker info >/dev/null 2>&1 || fail "there is no Docker daemon that answers"
    local root
    root=$(scripts/newer-server.sh root)
    echo "==> importing it into Docker as $image"
    tar -C "$root" -c . | docker import - "$image"
    echo "==> done; tests without etcd or redis-server on PATH use $image from now on"
}

fail() {
    echo "test-image.sh: $1" >&2
    exit 1
}

main

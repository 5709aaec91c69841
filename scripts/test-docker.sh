#!/usr/bin/env bash
# Runs the conformance suite of etcd and of Redis against servers in Docker containers, which other test runs do not use where
# the programs themselves are installed. Takes about three minutes. Says why if there can be no containers. Builds the image first
# where it is missing, which takes root and debootstrap.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

image=lock-test-servers:local

main() {
    has docker || skip "there is no docker; apt-get install docker.io"
    docker info >/dev/null 2>&1 || skip "no Docker daemon answers: $(docker info 2>&1 | tail -n 1)"
    docker image inspect "$image" >/dev/null 2>&1 || scripts/test-image.sh "$image" || skip "there is no image $image"
    export LOCK_TEST_ETCD_IMAGE=$image LOCK_TEST_REDIS_IMAGE=$image LOCK_TEST_REQUIRE_SERVERS=1
    step "servers in containers, which are gone however a test ends"
    cargo test --workspace --all-features --test servers --test servers_cleanup
    step "conformance of etcd and Redis in containers"
    cargo test --workspace --all-features --test conformance
    expect_no_containers
}

skip() {
    echo "skipped: $1"
    exit 0
}

# Those of a process that was killed take some seconds to go.
expect_no_containers() {
    local left
    for _ in {1..30}; do
        left=$(docker ps --all --quiet --filter "ancestor=$image")
        [ -n "$left" ] || return 0
        sleep 1
    done
    fail "containers are left behind: $left"
}

main "$@"

#!/usr/bin/env bash
# Runs the tests of the etcd and the Redis backend against several versions of their servers, one after the other:
#
#   scripts/server-matrix.sh              all tests of both backends: etcd 3.4 and 3.5, Redis 7.0 and 8, Valkey 8
#   scripts/server-matrix.sh etcd         of one backend: etcd or redis
#   scripts/server-matrix.sh --sample     only the conformance suite, only on the servers that scripts/test.sh does not use
#
# Takes the server on PATH, those that scripts/newer-server.sh fetches, and the programs that LOCK_MATRIX_ETCD and
# LOCK_MATRIX_REDIS name, separated by spaces. A server that is not there is skipped with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

sample=no
backends=()
failed=()

main() {
    read_arguments "$@"
    local backend
    for backend in "${backends[@]}"; do
        "$backend"_servers
    done
    [ "${#failed[@]}" = 0 ] || fail "tests failed on: ${failed[*]}"
}

read_arguments() {
    local argument
    for argument in "$@"; do
        case $argument in
        --sample) sample=yes ;;
        etcd | redis) backends+=("$argument") ;;
        *) fail "'$argument' is neither --sample nor etcd nor redis" ;;
        esac
    done
    [ "${#backends[@]}" -gt 0 ] || backends=(etcd redis)
}

etcd_servers() {
    on_path etcd etcd
    newer etcd etcd
    named etcd "${LOCK_MATRIX_ETCD:-}"
}

redis_servers() {
    on_path redis redis-server
    newer redis redis
    newer redis valkey
    named redis "${LOCK_MATRIX_REDIS:-}"
}

on_path() {
    [ "$sample" = no ] || return 0
    if has "$2"; then run "$1" "$(command -v "$2")"; else skip "$2 on PATH" "there is none"; fi
}

newer() {
    local program output
    output=$(mktemp)
    if program=$(scripts/newer-server.sh "$2" 2>"$output"); then
        run "$1" "$program"
    else
        skip "newer $2" "$(tail -n 1 "$output")"
    fi
    rm -f "$output"
}

named() {
    local program
    for program in $2; do
        if has "$program"; then run "$1" "$program"; else skip "$program" "it is no program"; fi
    done
}

run() {
    local backend=$1 program=$2 version
    version=$("$program" --version | head -n 1)
    step "lock-$backend on $version"
    local tests=()
    [ "$sample" = no ] || tests=(--test conformance)
    if ! env "LOCK_TEST_${backend^^}_BIN=$program" LOCK_TEST_REQUIRE_SERVERS=1 \
        cargo test -p "lock-$backend" --all-features --no-fail-fast "${tests[@]}"; then
        failed+=("$version;")
    fi
}

skip() {
    echo "skipped: $1: $2"
}

main "$@"

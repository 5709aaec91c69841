#!/usr/bin/env bash
# Runs every test of the workspace against real servers. Installs what is missing on Debian when run as root; otherwise
# says what to install.
#
#   scripts/test.sh [--install-only]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

main() {
    command -v cargo >/dev/null || fail "there is no cargo; install Rust from https://rustup.rs"
    install_missing
    [ "${1:-}" != --install-only ] || return 0
    # All is there now, so a test that would be skipped has a defect.
    export LOCK_TEST_REQUIRE_SERVERS=${LOCK_TEST_REQUIRE_SERVERS:-1}
    excuse_go_mutex
    run_examples
    step "all tests: unit, conformance on every backend, mutants, documentation"
    cargo test --workspace --all-features --no-fail-fast
}

# ---- what the tests need --------------------------------------------------------------------------------------------

# One Debian package per line.
missing_packages() {
    missing_for_rust
    missing_for_etcd_client
    [ -n "${LOCK_TEST_ETCD_BIN:-}" ] || has etcd || echo etcd-server
    [ -n "${LOCK_TEST_ETCDCTL_BIN:-}" ] || has etcdctl || echo etcd-client
    [ -n "${LOCK_TEST_REDIS_BIN:-}" ] || has redis-server || printf '%s\n' redis-server redis-tools
    has_redis_py || echo python3-redis
    missing_for_go_mutex
}

# Go's reference mutex, which our locks must interoperate with. From Debian 13 on etcd's Go packages have another layout,
# which the program that uses them cannot be built from: once they are installed, nothing is missing there.
missing_for_go_mutex() {
    [ -z "${LOCK_TEST_WITHOUT_GO:-}" ] || return 0
    has go || echo golang-go
    has_go_etcd || is_installed golang-etcd-server-dev || echo golang-etcd-server-dev
}

excuse_go_mutex() {
    if [ -z "${LOCK_TEST_WITHOUT_GO:-}${LOCK_TEST_GOPATH:-}" ] && ! has_go_etcd; then
        export LOCK_TEST_WITHOUT_GO="the installed golang-etcd-server-dev has no go.etcd.io/etcd/clientv3"
    fi
    [ -z "${LOCK_TEST_WITHOUT_GO:-}" ] || step "without the tests beside Go's mutex: $LOCK_TEST_WITHOUT_GO"
}

# ---- the example, as the README shows it ------------------------------------------------------------------------------

servers=()
directory=

run_examples() {
    step "example counter, in memory"
    cargo run --quiet --example counter
    directory=$(mktemp -d)
    local port
    port=$(free_port)
    start_server redis "${LOCK_TEST_REDIS_BIN:-redis-server}" --port "$port" --bind 127.0.0.1 --save '' --dir "$directory"
    run_example_with redis "$port"
    port=$(free_port)
    start_server etcd "${LOCK_TEST_ETCD_BIN:-etcd}" --data-dir "$directory/etcd" \
        --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
        --listen-peer-urls http://127.0.0.1:0
    run_example_with etcd "$port"
    clean_up
}

run_example_with() {
    local backend=$1 port=$2
    step "example counter, four processes on $backend"
    await_port "$port" || fail "$backend did not start: $(tail -n 20 "$directory/$backend.log")"
    cargo run --quiet --example counter --features "$backend" -- "$backend://127.0.0.1:$port" --processes 4
}

start_server() {
    local name=$1
    shift
    "$@" </dev/null >"$directory/$name.log" 2>&1 &
    servers+=($!)
}

# Below the range of outgoing connections.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 12000))
        if ! is_open "$port"; then
            echo "$port"
            return
        fi
    done
    fail "no free port"
}

await_port() {
    for _ in {1..300}; do
        if is_open "$1"; then return 0; fi
        sleep 0.1
    done
    return 1
}

is_open() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

clean_up() {
    restore_services
    if [ "${#servers[@]}" -gt 0 ]; then
        kill -KILL "${servers[@]}" 2>/dev/null || true
        wait "${servers[@]}" 2>/dev/null || true
    fi
    servers=()
    if [ -n "$directory" ]; then rm -rf "$directory"; fi
    directory=
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

main "$@"

#!/usr/bin/env bash
# Measures our locks beside others: one command that installs what is missing (with apt-get when run as root, else it
# says what to install), starts the servers, and shows its progress.
#
#   scripts/bench.sh etcd|redis|mem|layers|migrate [--docs] [--seconds N] [--rounds N] [--only TEXT] [--quick]
#
# Writes target/bench/, and with --docs also docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

suite=${1:-}

main() {
    case $suite in
    etcd | redis | mem | layers | migrate) ;;
    *) fail "what is to be measured? scripts/bench.sh etcd, redis, mem, layers or migrate" ;;
    esac
    command -v cargo >/dev/null || fail "there is no cargo; install Rust from https://rustup.rs"
    install_missing
    install_peers
    step "building"
    # The feature of this suite alone: only etcd needs protoc.
    cargo build --release -p lock-bench --no-default-features --features "$suite"
    step "measuring; this takes some minutes"
    "${CARGO_TARGET_DIR:-target}/release/lock-bench" "$@"
}

# One Debian package per line.
missing_packages() {
    missing_for_rust
    case $suite in
    etcd | migrate)
        missing_for_etcd_client
        [ -n "${LOCK_TEST_ETCD_BIN:-}" ] || has etcd || echo etcd-server
        ;;
    esac
    case $suite in
    redis | layers | migrate)
        [ -n "${LOCK_TEST_REDIS_BIN:-}" ] || has redis-server || echo redis-server
        ;;
    esac
}

# Whom we are compared with. The measurement goes on without those that cannot be had, and says so.
install_peers() {
    local packages=()
    if [ "$suite" = etcd ]; then
        has go || packages+=(golang-go)
        has_go_etcd || is_installed golang-etcd-server-dev || packages+=(golang-etcd-server-dev)
    fi
    if [ "$suite" = redis ]; then
        has_redis_py || packages+=(python3-redis)
        has python3 && python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    fi
    install_packages "${packages[@]}"
    if [ "$suite" = redis ]; then install_python_redis_lock; fi
}

install_packages() {
    [ "$#" -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && has apt-get; then
        step "installing $*"
        (install "$@") || echo "could not install $*; going on without" >&2
    fi
}

# Debian does not have it.
install_python_redis_lock() {
    [ ! -d target/bench/python/redis_lock ] || return 0
    step "installing python-redis-lock into target/bench/python"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --target target/bench/python python-redis-lock ||
        echo "could not install python-redis-lock; going on without" >&2
}
trap restore_services EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

main "$@"

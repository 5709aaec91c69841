# What the scripts share. Sourced by them; a script that calls install_missing defines missing_packages, which prints
# the Debian packages that are missing, one per line, and calls restore_services when it ends.
# shellcheck shell=bash

step() {
    echo "==> $1"
}

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

# ---- installation ----------------------------------------------------------------------------------------------------

install_missing() {
    local packages
    packages=$(missing_packages)
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "something is missing; on Debian: sudo apt-get install --no-install-recommends ${packages//$'\n'/ }"
    fi
    step "installing ${packages//$'\n'/ }"
    # shellcheck disable=SC2086 # one word per package
    install $packages
    packages=$(missing_packages)
    [ -z "$packages" ] || fail "still missing after the installation of: ${packages//$'\n'/ }"
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    local options=(-y -q --no-install-recommends -o DPkg::Lock::Timeout=300)
    keep_services_down
    if ! apt-get install "${options[@]}" "$@"; then
        step "updating the package lists"
        apt-get update -q
        apt-get install "${options[@]}" "$@"
    fi
    restore_services
}

policy=/usr/sbin/policy-rc.d
made_policy=no

# Else the packages of etcd and Redis start their servers on the usual ports. A policy that is there already stays.
keep_services_down() {
    [ ! -e "$policy" ] || return 0
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
}

restore_services() {
    if [ "$made_policy" = yes ]; then rm -f "$policy"; fi
    made_policy=no
}

# ---- what is there ---------------------------------------------------------------------------------------------------

missing_for_rust() {
    has cc || printf '%s\n' gcc libc6-dev
}

missing_for_etcd_client() {
    has "${PROTOC:-protoc}" || echo protobuf-compiler
    has_protobuf_includes || echo libprotobuf-dev
}

has() {
    command -v "$1" >/dev/null
}

is_installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# etcd's packages for Go, as Debian 12 lays them out.
has_go_etcd() {
    [ -e "${LOCK_TEST_GOPATH:-/usr/share/gocode}/src/go.etcd.io/etcd/clientv3/concurrency" ]
}

# Asks protoc itself, which looks beside its own place; without one, Debian's place counts.
has_protobuf_includes() {
    if ! has "${PROTOC:-protoc}"; then
        [ -e /usr/include/google/protobuf/descriptor.proto ]
        return
    fi
    local probe status=0
    probe=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\n' >"$probe/probe.proto"
    "${PROTOC:-protoc}" -I "$probe" --descriptor_set_out=/dev/null "$probe/probe.proto" 2>/dev/null || status=1
    rm -r "$probe"
    return "$status"
}

has_redis_py() {
    local python
    for python in "${LOCK_TEST_PYTHON_BIN:-python3}" /usr/bin/python3; do
        if "$python" -c 'import redis' 2>/dev/null; then return 0; fi
    done
    return 1
}

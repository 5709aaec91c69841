#!/usr/bin/env bash
# Checks what Cargo.toml claims of versions: that `rust-version` is enough, that the oldest permitted dependencies are, and that
# no published interface breaks without a new version. What this machine has no tool for is skipped with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

unpublished=(--exclude lock-bench --exclude lock-soak --exclude lock-examples)

main() {
    check_rust_version
    check_minimal_versions
    check_interfaces
}

# Clippy's lint `incompatible_msrv` does the same for what the crates use of the standard library.
check_rust_version() {
    local version
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    step "Rust $version is enough for every dependency"
    cargo metadata --format-version 1 | python3 -c '
import json, sys
number = lambda version: [int(part) for part in version.split(".")]
newer = [
    "{name} {version} needs Rust {rust_version}".format(**package)
    for package in json.load(sys.stdin)["packages"]
    if package["rust_version"] and number(package["rust_version"])[:2] > number(sys.argv[1])[:2]
]
sys.exit("\n".join(newer) or 0)
' "$version"
    step "libraries with Rust $version"
    if has_toolchain "$version"; then
        cargo "+$version" check --workspace "${unpublished[@]}" --lib --all-features --target-dir target/rust-version
    else
        skip "rustup toolchain install $version"
    fi
}

# In a copy, as it writes another Cargo.lock. There may be no such set of versions: a release of a dependency's dependency can need
# more than we ask for. That is told, and breaks no build of a day on which nothing changed here.
check_minimal_versions() {
    step "libraries with the oldest versions of their dependencies"
    has_toolchain nightly || { skip "rustup toolchain install nightly"; return; }
    local copy=target/minimal-versions/workspace
    rm -rf "$copy"
    mkdir -p "$copy"
    git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --ignore-failed-read -c | tar -x -C "$copy"
    cd "$copy"
    if cargo +nightly update --quiet -Z direct-minimal-versions; then
        cargo check --workspace "${unpublished[@]}" --lib --all-features --target-dir ../target
    else
        echo "skipped: the versions in Cargo.toml need a look, as said above"
    fi
    cd - >/dev/null
}

check_interfaces() {
    step "interfaces since the last release"
    local released
    released=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) || { echo "skipped: there is no release yet"; return; }
    has cargo-semver-checks || { skip "cargo install --locked cargo-semver-checks"; return; }
    cargo semver-checks --workspace "${unpublished[@]}" --all-features --baseline-rev "$released"
}

has_toolchain() {
    has rustup && rustup toolchain list | grep -q "^$1[.-]"
}

skip() {
    echo "skipped: this machine lacks a tool; $1"
}

main

#!/usr/bin/env bash
# Soaks a backend, or a migration from one to the other, in faults that a seed determines, and checks what happened.
#
#   scripts/soak.sh etcd|redis|migrate [--no-faults] [--seed N] [--minutes M] [--clients N] [--processes N] [--registers N] [--ttl SECONDS|FROM..TO] [--no-rollback] [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --help
exec cargo run --quiet --release -p lock-soak -- "$@"

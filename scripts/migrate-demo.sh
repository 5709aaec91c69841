#!/usr/bin/env bash
# Shows a migration: starts a Redis server and three members of etcd, and a fleet of eight processes that add to registers
# under locks; takes the locks from Redis to etcd and back while the fleet works; shows once a second how fast it is, who is
# in which phase, and what is held where; and checks in the end that no increment was lost. Ends by itself within a minute
# once it is built.
#
#   scripts/migrate-demo.sh [--seconds N]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

seconds=40
if [ "${1:-}" = --seconds ] && [ $# -eq 2 ]; then
    seconds=$2
elif [ $# -gt 0 ]; then
    fail "scripts/migrate-demo.sh [--seconds N]"
fi
[ -n "${LOCK_TEST_ETCD_BIN:-}" ] || has etcd || fail "there is no etcd; scripts/test.sh --install-only installs it"
[ -n "${LOCK_TEST_REDIS_BIN:-}" ] || has redis-server || fail "there is no redis-server; scripts/test.sh --install-only installs it"
minutes=$(awk "BEGIN { print $seconds / 60 }") || fail "give a number of seconds"
exec cargo run --quiet -p lock-soak -- migrate --no-faults --show --minutes "$minutes"

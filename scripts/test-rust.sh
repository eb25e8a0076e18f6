#!/usr/bin/env bash
# Runs the crate's unit, integration and documentation tests. Arguments go to cargo test.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage rust "unit, integration and documentation tests (cargo test)"
export_test_environment

# Quiet: a dot a test, and the names of those that fail. The other test programs still run after a
# failure, so that one run shows all of them.
logged cargo test --quiet --no-fail-fast "${cargo_flags[@]}" "$@"

# cargo test succeeds when there is nothing to run.
passed=$(awk '/^test result: ok/ { n += $4 } END { print n + 0 }' "$stage_log")
[ "$passed" -gt 0 ] || die "no Rust test ran"
stage_summary="$passed passed"

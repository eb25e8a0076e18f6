#!/usr/bin/env bash
# Formatting and lints; every warning is an error. shellcheck runs where it is installed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage lint "rustfmt, clippy, shellcheck"
cargo fmt --check
cargo clippy --quiet --all-targets "${cargo_flags[@]}" -- -D warnings
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck -x scripts/*.sh .ci/run
else
    say "shellcheck is not installed: the shell scripts were not checked"
fi

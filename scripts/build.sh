#!/usr/bin/env bash
# Builds the release libraries and programs. Arguments go to cargo.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage build "the release library (cargo build --release)"
cargo build --release "${cargo_flags[@]}" "$@"
library=$KVF_TARGET/release/libkvferry.so
stage_summary="$library, $(($(stat -c %s "$library") / 1024)) KiB"

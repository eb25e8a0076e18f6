#!/usr/bin/env bash
# Writes include/kvferry.h from the sources (build.rs does it, with cbindgen).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# cargo skips a build script whose inputs have not changed, and an edited header is not one of them.
touch -c build.rs
KVF_UPDATE_HEADER=1 cargo check --quiet --lib "${cargo_flags[@]}"
[ -f include/kvferry.h ] || die "the build wrote no include/kvferry.h"

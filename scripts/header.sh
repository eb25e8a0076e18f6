#!/usr/bin/env bash
# Writes include/kvferry.h from the sources; with --check only compares, shows the difference, and
# fails when there is one.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

header=include/kvferry.h
stage header "$header from the sources (build.rs, cbindgen)"

# Every build generates the header beside its other outputs; cargo knows where that is. The crate is
# the only package with a path for an id.
fresh=$(cargo check --quiet --lib --message-format=json "${cargo_flags[@]}" |
    sed -n '/"reason":"build-script-executed"/ { /"package_id":"path+file:/ s/.*"out_dir":"\([^"]*\)".*/\1/p }')/kvferry.h
[ -f "$fresh" ] || die "the build generated no kvferry.h"

if [ "${1:-}" = --check ]; then
    diff -u --label "$header" --label generated "$header" "$fresh" ||
        die "$header is stale: run 'make header' and commit the result"
    stage_summary="up to date"
elif cmp -s "$fresh" "$header"; then
    stage_summary="unchanged"
else
    mkdir -p include
    cp "$fresh" "$header"
    stage_summary="written"
fi

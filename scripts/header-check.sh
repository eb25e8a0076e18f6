#!/usr/bin/env bash
# Fails when include/kvferry.h is not what the sources generate, and shows the difference. The
# committed header is left as it was.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage header "include/kvferry.h against the sources"
header=include/kvferry.h
[ -f "$header" ] || die "$header is not there: run 'make header'"

committed=$(mktemp)
cp -p "$header" "$committed"
trap 'cp -p "$committed" "$header"; rm -f "$committed"; stage_end' EXIT

scripts/header.sh
diff -u --label "$header" --label generated "$committed" "$header" ||
    die "$header is stale: run 'make header' and commit the result"

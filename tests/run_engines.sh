#!/usr/bin/env bash
# run_engines.sh right|wrong PROGRAM --transport TRANSPORT [OPTION...]: runs the example engines.
# "wrong": the run has to fail, and because bytes were wrong.
set -euo pipefail
expected=$1 program=$2
shift 2

if [ "$2" = nixl ] && [ -z "${KVF_TEST_NIXL:-}" ]; then
    if [ "${KVF_TEST_NO_NIXL:-}" = 1 ]; then exit 77; fi
    echo "this test needs NIXL: set KVF_TEST_NIXL to the path of libnixl_capi.so, or" \
        "KVF_TEST_NO_NIXL=1 to do without" >&2
    exit 1
fi
if [ -n "${KVF_TEST_NIXL:-}" ]; then export KVF_NIXL_LIBRARY=$KVF_TEST_NIXL; fi

status=0
said=$("$program" "$@" 2>&1) || status=$?
echo "$said"
if [ "$expected" = wrong ]; then
    [ "$status" -eq 1 ]
    grep -q '^decode: request .* has 1 wrong bytes in its cache$' <<<"$said"
    exit 0
fi
[ "$status" -eq 0 ]
# A run in which every request computed its own cache would prove nothing.
grep -Eq '^  requests .* loaded [1-9]' <<<"$said"

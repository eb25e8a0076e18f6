#!/usr/bin/env bash
# run_pair.sh TRANSPORT PREFILL DECODE: runs two of the example programs as a pair and checks what
# they print. A program is a command line.
set -euo pipefail
transport=$1 prefill=$2 decode=$3

if [ "$transport" = nixl ] && [ -z "${KVF_TEST_NIXL:-}" ]; then
    if [ "${KVF_TEST_NO_NIXL:-}" = 1 ]; then exit 77; fi
    echo "this test needs NIXL: set KVF_TEST_NIXL to the path of libnixl_capi.so, or" \
        "KVF_TEST_NO_NIXL=1 to do without" >&2
    exit 1
fi
if [ -n "${KVF_TEST_NIXL:-}" ]; then export KVF_NIXL_LIBRARY=$KVF_TEST_NIXL; fi

# shellcheck disable=SC2086 # command lines
exec 3< <(exec $prefill prefill "$transport" 0)
owner=$!
trap 'kill "$owner" 2>/dev/null || true' EXIT
read -r -t 60 -u 3 line || { echo "prefill says nothing" >&2; exit 1; }
echo "$line"
port=${line##*port }
# shellcheck disable=SC2086
said=$($decode decode "$transport" "$port")
echo "$said"
[ "$said" = "decode: 4 blocks of 65536 bytes from prefill are here and correct" ]
read -r -t 60 -u 3 line || { echo "prefill does not hear of it" >&2; exit 1; }
echo "$line"
[ "$line" = 'prefill: decode says "blocks 7 3 21 12 are here"' ]
trap - EXIT
wait "$owner"

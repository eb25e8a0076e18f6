# shellcheck shell=bash
# What the other scripts share: places, words to the person, stages with a clock, and the
# environment that tests see. Sourced, never run; it changes to the top of the checkout.

KVF_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$KVF_ROOT" || exit

# Where downloads and environments live. Everything under it can be deleted at any time.
KVF_CACHE=${KVF_CACHE_DIR:-$KVF_ROOT/.cache}
case $KVF_CACHE in /*) ;; *) KVF_CACHE=$KVF_ROOT/$KVF_CACHE ;; esac

# Where cargo puts what it builds.
KVF_TARGET=${CARGO_TARGET_DIR:-$KVF_ROOT/target}
case $KVF_TARGET in /*) ;; *) KVF_TARGET=$KVF_ROOT/$KVF_TARGET ;; esac

# rustup adds its folder to the PATH of login shells only; a shell that was open before does not
# have it.
if ! command -v cargo >/dev/null 2>&1; then
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    export PATH
fi

# A CI run must build exactly what is committed; at a desk, cargo may write a new dependency into
# Cargo.lock.
cargo_flags=()
if [ -n "${CI:-}" ]; then cargo_flags+=(--locked); fi

say() { printf '%s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

kvf_version() { sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1; }

# --- Python ---------------------------------------------------------------------------------------

venv_python() { printf '%s\n' "$KVF_CACHE/venv/bin/python"; }

# The first Python that is new enough and can make a venv. Debian's own lacks ensurepip until
# python3-venv is installed, so a version number alone says nothing.
find_python() {
    local candidate
    for candidate in ${KVF_PYTHON:+"$KVF_PYTHON"} python3 python3.14 python3.13 python3.12 \
        python3.11 python3.10 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c '
import sys, venv, ensurepip
sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# libnixl_capi.so of the wheel in the venv.
venv_nixl() {
    local found
    found=$(compgen -G "$KVF_CACHE/venv/lib/python3*/site-packages/.nixl_cu12.mesonpy.libs/libnixl_capi.so") ||
        return 1
    head -n 1 <<<"$found"
}

# --- Stages ---------------------------------------------------------------------------------------

# Seconds that a command of a stage may take.
stage_limit=${KVF_STAGE_TIMEOUT:-1800}

# stage NAME WHAT: announces the stage, and on exit prints one line: NAME, $stage_summary or FAILED,
# and the seconds it took.
stage() {
    stage_name=$1
    stage_summary=ok
    stage_start=${EPOCHREALTIME/[.,]/}
    say "==> $1: $2"
    trap stage_end EXIT
}

# Called by the EXIT trap that stage() sets.
stage_end() {
    local status=$? elapsed=$((${EPOCHREALTIME/[.,]/} - stage_start)) verdict=$stage_summary
    case $status in
        0) ;;
        124) verdict="FAILED (ran longer than $stage_limit s)" ;;
        137) verdict="FAILED (killed: ran longer than $stage_limit s, or out of memory)" ;;
        *) verdict="FAILED (exit $status)" ;;
    esac
    printf '==> %s: %s, %d.%d s\n' "$stage_name" "$verdict" \
        $((elapsed / 1000000)) $((elapsed / 100000 % 10))
    if [ -n "${stage_log:-}" ]; then rm -f "$stage_log"; fi
    exit "$status"
}

# logged COMMAND...: runs it for at most $stage_limit seconds, shows what it prints, and keeps a copy
# in $stage_log for counting (the latest command's only).
# In a terminal the command stays in the foreground so that Ctrl-C reaches it; elsewhere timeout
# gives it a process group of its own, and ends all of it.
logged() {
    local options=(--kill-after=15)
    if [ -t 0 ]; then options+=(--foreground); fi
    if [ -z "${stage_log:-}" ]; then stage_log=$(mktemp); fi
    timeout "${options[@]}" "$stage_limit" "$@" 2>&1 | tee "$stage_log"
}

# --- What tests, demo and benchmarks see -------------------------------------------------------------

# Exports the built library and the tools of the venv under the names that tests use.
export_test_environment() {
    export KVF_LIBRARY=$KVF_TARGET/release/libkvferry.so
    [ -f "$KVF_LIBRARY" ] || die "$KVF_LIBRARY is not there: run 'make build' first"
    KVF_TEST_NIXL=$(venv_nixl) || die "no libnixl_capi.so under $KVF_CACHE/venv: run 'make venv' first"
    KVF_TEST_PYTHON=$(venv_python)
    export KVF_TEST_NIXL KVF_TEST_PYTHON
    # Leaks in UCX's registration cache otherwise; read when the library is loaded.
    export UCX_RCACHE_MAX_UNRELEASED=${UCX_RCACHE_MAX_UNRELEASED:-1024}
}

# Lets the venv import kvferry from the source tree. KVF_PYTHON_SOURCE= (empty) leaves the choice to
# what is installed in the venv: a wheel, say.
export_python_path() {
    local source=${KVF_PYTHON_SOURCE-bindings/python}
    if [ -n "$source" ]; then
        [ -d "$source/kvferry" ] || die "$source/kvferry is not there: no Python package to run"
        export PYTHONPATH=$KVF_ROOT/$source${PYTHONPATH:+:$PYTHONPATH}
    fi
}

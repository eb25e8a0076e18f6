#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS (30 unless set), or only those named as arguments.
# Seeds are read from fuzz/seeds/TARGET; what the fuzzer learns is kept under $KVF_CACHE_DIR, so that
# the next run goes on from there. An input that fails is left in fuzz/artifacts/TARGET.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cargo_fuzz_version=0.13.2
tools=$KVF_CACHE/cargo-tools
seconds=${FUZZ_SECONDS:-30}

stage fuzz "each fuzz target for $seconds s"
[ -f fuzz/Cargo.toml ] || die "fuzz/Cargo.toml is not there: nothing to fuzz"

if [ "$("$tools/bin/cargo-fuzz" --version 2>/dev/null)" != "cargo-fuzz $cargo_fuzz_version" ]; then
    say "installing cargo-fuzz $cargo_fuzz_version into $tools"
    cargo install --quiet --locked --force --root "$tools" "cargo-fuzz@$cargo_fuzz_version"
fi
PATH=$tools/bin:$PATH

# Coverage instrumentation is an unstable compiler flag. This lets the stable compiler, the one that
# builds the library, accept it; no nightly toolchain is needed.
export RUSTC_BOOTSTRAP=1

# Distributions ship Rust without the sanitizers' runtimes.
sanitizer=address
if ! compgen -G "$(rustc --print target-libdir)/librustc*_rt.asan.a" >/dev/null; then
    sanitizer=none
    say "this Rust has no AddressSanitizer: fuzzing for panics and hangs only"
fi

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then mapfile -t targets < <(cargo fuzz list --fuzz-dir fuzz); fi
[ ${#targets[@]} -gt 0 ] || die "fuzz/Cargo.toml names no fuzz target"

for target in "${targets[@]}"; do
    # The first folder is the one that libFuzzer writes to.
    corpus=("$KVF_CACHE/fuzz/$target")
    mkdir -p "${corpus[0]}"
    if [ -d "fuzz/seeds/$target" ]; then corpus+=("fuzz/seeds/$target"); fi
    say "==> fuzz: $target"
    cargo fuzz run --fuzz-dir fuzz --target-dir "$KVF_TARGET/fuzz" --sanitizer "$sanitizer" "$target" \
        "${corpus[@]}" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -verbosity=0 \
        -print_final_stats=1
done
stage_summary="no failure in ${targets[*]}"

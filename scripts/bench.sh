#!/usr/bin/env bash
# Runs the benchmarks: every benches/*.py in the venv, then cargo bench when the crate has any.
# With names as arguments (benches/NAME.py) it runs only those. The programs in benches/c, which some of
# them start, are built first.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

export_test_environment
export_python_path

# build/bench, against the release library, which is there under the name that it is loaded by.
export KVF_BENCH_PROGRAMS=$KVF_ROOT/build/bench
mkdir -p "$KVF_BENCH_PROGRAMS"
ln -sf "$KVF_LIBRARY" "$KVF_BENCH_PROGRAMS/libkvferry.so.0"
for source in benches/c/*.c; do
    "${CC:-cc}" -std=c11 -O2 -Wall -Wextra -Iinclude "$source" "$KVF_LIBRARY" \
        -Wl,-rpath,"$KVF_BENCH_PROGRAMS" -o "$KVF_BENCH_PROGRAMS/$(basename "$source" .c)"
done

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    # Helper modules begin with an underscore.
    mapfile -t names < <(find benches -maxdepth 1 -name '[!_]*.py' -printf '%f\n' 2>/dev/null |
        sed 's/\.py$//' | sort)
    [ ${#names[@]} -gt 0 ] || die "there is no benchmark in benches/"
fi

for name in "${names[@]}"; do
    say "==> bench: $name"
    "$KVF_TEST_PYTHON" "benches/$name.py"
done
if [ $# -eq 0 ] && grep -q '^\[\[bench\]\]' Cargo.toml; then
    cargo bench "${cargo_flags[@]}"
fi

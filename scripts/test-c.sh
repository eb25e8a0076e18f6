#!/usr/bin/env bash
# Builds and runs the C and C++ tests with CMake and CTest, against the release library. Arguments
# go to ctest.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage c "C and C++ tests (cmake, ctest)"
export_test_environment

build=$KVF_ROOT/build/tests
logged cmake -S tests -B "$build" -G Ninja --log-level=WARNING \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKVF_LIBRARY="$KVF_LIBRARY" -DKVF_INCLUDE="$KVF_ROOT/include"
logged cmake --build "$build"
# A test that needs the machine to itself says so with RUN_SERIAL.
logged ctest --test-dir "$build" --output-on-failure --no-tests=error --timeout 120 \
    --parallel "$(nproc)" "$@"

passed=$(sed -n 's/^.*tests passed, 0 tests failed out of \([0-9]*\).*/\1/p' "$stage_log")
[ "${passed:-0}" -gt 0 ] || die "no C or C++ test ran"
stage_summary="$passed passed"

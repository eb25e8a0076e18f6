#!/usr/bin/env bash
# Runs the Python tests in the private venv, against the release library. Arguments go to pytest.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage python "Python tests (pytest)"
export_test_environment
export_python_path
# Tests may start other programs and interpreters; none of them should write into the source tree.
export PYTHONDONTWRITEBYTECODE=1

# pytest fails by itself (exit 5) when it finds no test. A test that hangs is ended with the stacks
# of all its threads.
logged "$KVF_TEST_PYTHON" -m pytest tests/python --quiet --timeout 120 \
    -o cache_dir="$KVF_CACHE/pytest" "$@"

passed=$(sed -n 's/^.*\b\([0-9][0-9]*\) passed.*/\1/p' "$stage_log" | tail -n 1)
[ "${passed:-0}" -gt 0 ] || die "no Python test ran"
stage_summary="$passed passed"

#!/usr/bin/env bash
# Runs the tests with real vLLM engines, in the environment of scripts/venv-vllm.sh and against the
# release library. Arguments go to pytest; --all adds the tests that need long.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stage vllm "tests with real vLLM engines (pytest)"
export_test_environment
export_python_path
export PYTHONDONTWRITEBYTECODE=1
KVF_TEST_PYTHON=${KVF_VLLM_PYTHON:-$KVF_CACHE/venv-vllm/bin/python}
[ -x "$KVF_TEST_PYTHON" ] || die "$KVF_TEST_PYTHON is not there: run 'make venv-vllm' first"
# Kept: a model's path is part of what two engines compare before they talk to each other.
export KVF_TEST_PYTHON KVF_TEST_VLLM_MODELS=$KVF_CACHE/vllm-models
export KVF_TEST_VLLM_SOURCES=$KVF_CACHE/vllm-sources

# A minute or more for an engine to start: a test's limit is long, but everything has one.
logged "$KVF_TEST_PYTHON" -m pytest tests/vllm --verbose --timeout 900 --durations 10 \
    -o cache_dir="$KVF_CACHE/pytest-vllm" "$@"

passed=$(sed -n 's/^.*\b\([0-9][0-9]*\) passed.*/\1/p' "$stage_log" | tail -n 1)
[ "${passed:-0}" -gt 0 ] || die "no test with vLLM ran"
stage_summary="$passed passed"

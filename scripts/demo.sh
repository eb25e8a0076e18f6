#!/usr/bin/env bash
# Runs the demonstration: prefill ranks and decode ranks, each a process, with equal and unequal TP, over
# NIXL and over the built-in transport. Arguments go to it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

export_test_environment
export_python_path
exec "$KVF_TEST_PYTHON" examples/demo.py "$@"

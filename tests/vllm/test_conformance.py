"""vLLM's own tests of a connector, run with kvferry in the stock connector's place.

What passes with the stock connector has to pass with ours, but for tests that look inside the stock
classes: those are named here, and what they check is in our own tests as tables. The test sources are
vLLM's; they are fetched, not kept here.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as xml

import pytest
from conformance.fetch import sources

HERE = pathlib.Path(__file__).parent
UNIT = "tests/v1/kv_connector/unit"
FILES = [
    f"{UNIT}/test_remote_prefill_lifecycle.py",
    f"{UNIT}/test_remote_decode_lifecycle.py",
    f"{UNIT}/test_bidirectional_kv_transfer.py",
    f"{UNIT}/test_multi_connector.py",
    f"{UNIT}/test_kv_load_failure_recovery.py",
    f"{UNIT}/test_invalid_blocks_correctness.py",
    f"{UNIT}/test_error_propagation.py",
    f"{UNIT}/test_cache_pollution_prevention.py",
    f"{UNIT}/test_handshake_pp_aggregation.py",
    f"{UNIT}/test_output_aggregator.py",
    f"{UNIT}/test_hma_auto_config.py",
    f"{UNIT}/test_config.py",
    f"{UNIT}/test_kv_connector_lifecycle.py",
    f"{UNIT}/test_scheduler_kv_connector_override.py",
    f"{UNIT}/test_nixl_simple_cpu_offload.py",
    f"{UNIT}/test_nixl_connector.py::test_basic_interface",
    f"{UNIT}/test_nixl_connector.py::test_prompt_less_than_block_size",
    f"{UNIT}/test_nixl_connector.py::test_abort_immediately_remote_prefill_enqueues_empty_recv",
    f"{UNIT}/test_nixl_connector.py::test_prefill_exports_cached_tokens_in_kv_transfer_params",
    "tests/v1/worker/test_gpu_kv_connector.py",
    "tests/v1/engine/test_kv_transfer_rejection.py",
]
# Tests that reach into the stock connector's own objects, by their names.
LOOK_INSIDE = (
    # `connector.connector_scheduler`
    "test_abort_p_side_non_length_capped",
    "test_build_connector_meta_clears_reqs_need_recv",
    "test_d_node_request_finished_delays_block_free",
    "test_no_double_read_blocks_after_reschedule",
    "test_remote_blocks_processed_flag_persists",
    # the attributes of `NixlConnectorMetadata`
    "test_build_connector_meta_recv_entries",
    "test_build_connector_meta_multiple_requests",
    "test_nixl_wins_load_over_cpu_offload",
    "test_basic_interface",
    "test_prompt_less_than_block_size",
    "test_abort_immediately_remote_prefill_enqueues_empty_recv",
)


def outcomes(folder: pathlib.Path, which: str, report: pathlib.Path) -> dict[str, str]:
    """Runs the files; name of each test → passed, failed, error or skipped."""
    path = [folder, HERE / "conformance", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "KVF_CONFORMANCE": which,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "kvf_conformance", "-p", "no:cacheprovider"]
    command += ["--quiet", "--tb=short", "--timeout=120", f"--junitxml={report}"]
    command += ["--continue-on-collection-errors", "-W", "ignore::pytest.PytestUnknownMarkWarning", *FILES]
    log = report.with_suffix(".log")
    with log.open("wb") as out:
        subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=out, timeout=900)
    assert report.exists(), log.read_text(errors="replace")[-4000:]
    found = {}
    for case in xml.parse(report).iter("testcase"):
        verdict = next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed")
        found[f"{case.get('classname')}::{case.get('name')}"] = verdict
    return found


def test_vllms_own_tests(tmp_path):
    folder = sources(pathlib.Path(os.environ["KVF_TEST_VLLM_SOURCES"]))
    if folder is None:
        pytest.skip("vLLM's test sources cannot be downloaded: its own tests were NOT run")
    stock = outcomes(folder, "stock", tmp_path / "stock.xml")
    ours = outcomes(folder, "ours", tmp_path / "ours.xml")
    passed = {name for name, verdict in stock.items() if verdict == "passed"}
    assert len(passed) > 50, f"only {len(passed)} pass with the stock connector: {tmp_path}"
    inside = {name for name in passed if name.split("::")[-1].split("[")[0] in LOOK_INSIDE}
    worse = sorted(name for name in passed - inside if ours.get(name) != "passed")
    same = len(passed) - len(inside) - len(worse)
    print(f"vLLM's own tests: {len(passed)} pass with stock, {same} of {len(passed - inside)} with ours")
    assert not worse, (tmp_path / "ours.log").read_text(errors="replace")[-8000:]

"""python -m kvferry doctor: what works is said to work, and what does not is said why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from kvferry import doctor
from kvferry._doctor import checks


def examined(*arguments: str, **environment: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "kvferry", "doctor", "--json", *arguments],
        capture_output=True, text=True, timeout=110, env=os.environ | environment,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(report: dict) -> dict[tuple[str, str], tuple[str, str]]:
    return {(c["section"], c["name"]): (c["state"], c["detail"]) for c in report["checks"]}


def test_the_local_transport():
    code, report = examined("--transport", "local")
    told = found(report)
    assert code == 0 and report["ok"] is True
    for name in ("within a process", "between processes"):
        state, detail = told["local", name]
        assert state == "ok" and "64 MiB in" in detail and "GB/s" in detail and "by local" in detail
    assert not any(section == "nixl" for section, _ in told)
    assert told["CUDA", "devices"][0] in ("ok", "absent")


def test_nixl(nixl):
    code, report = examined("--transport", "nixl")
    told = found(report)
    assert code == 0, report
    assert os.environ["KVF_NIXL_LIBRARY"] in told["nixl", "library"][1]
    assert "UCX (DRAM" in told["nixl", "plugins"][1]
    assert "can use" in told["nixl", "UCX"][1] and "self" in told["nixl", "UCX"][1]
    assert "by UCX" in told["nixl", "within a process"][1]
    assert "by UCX" in told["nixl", "between processes"][1]


def test_no_nixl():
    code, report = examined("--transport", "nixl", "--nixl-library", "/nowhere/libnixl_capi.so")
    told = found(report)
    assert code == 1 and report["ok"] is False
    state, detail = told["nixl", "library"]
    assert state == "failed" and "/nowhere/libnixl_capi.so" in detail and "pip install" in detail
    # What cannot work without it is not tried.
    assert ("nixl", "within a process") not in told


def test_for_people(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "run", lambda *_: iter([
        checks.Check("local", "within a process", "ok", "fine"),
        checks.Check("nixl", "library", "failed", "first line\nsecond line"),
        checks.Check("CUDA", "devices", "absent", "none"),
    ]))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "ok      within a process" in out and "FAILED  library" in out and "--      devices" in out
    assert "first line\n" + " " * 30 + "second line\n" in out
    assert out.endswith("Something does not work; see above.\n")
    monkeypatch.setattr(doctor, "run", lambda *_: iter([checks.Check("CUDA", "devices", "absent", "none")]))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("All of it works.\n")


@pytest.fixture
def probe(monkeypatch):
    """Puts other programs in the place of probes."""
    def put(code: str) -> None:
        monkeypatch.setattr(checks, "_start", lambda *_: subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True))
    return put


def test_probes_that_die_hang_or_babble(probe, monkeypatch):
    probe(f"import os, sys; print('oh dear', file=sys.stderr); os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    assert checks._probe("x") == {"failed": "the probe was ended by SIGSEGV: oh dear"}
    probe("import sys; sys.exit('no luck')")
    assert checks._probe("x") == {"failed": "the probe ended with exit code 1: no luck"}
    probe("print('hello')")
    assert checks._probe("x")["failed"].startswith("the probe ended with exit code 0")
    probe("print('[1, 2'); print('{\"a\": 1}')")
    assert checks._probe("x") == {"a": 1}
    monkeypatch.setattr(checks, "LIMIT", 0.2)
    probe("import time; time.sleep(600)")
    assert checks._probe("x") == {"failed": "nothing after 0.2 s"}


def test_a_wrong_byte_is_a_failure():
    check = checks._trial("local", "within a process", {"failed": "byte 7 of 9 is 1, not 2"}, hint=True)
    assert check.state == "failed" and "byte 7" in check.detail
    assert "ptrace_scope" in check.detail or "Yama" in check.detail


def test_the_probe_looks_at_every_byte(monkeypatch):
    """An owner whose memory is not what it should be is found out."""
    from kvferry._doctor import probes

    owner, memory = probes._owner("local", "", "owner")
    with owner:
        fine = probes._read("local", "", owner.metadata(), probes._address(memory), probes._content())
        assert fine["bytes"] == len(memory) and fine["backend"] == "local"
        memory[-1] ^= 1
        wrong = probes._read("local", "", owner.metadata(), probes._address(memory), probes._content())
        assert f"byte {len(memory) - 1} of {len(memory)}" in wrong["failed"]


def test_no_cuda_is_no_failure():
    assert checks._cuda({"absent": "not there"}).state == "absent"
    assert checks._cuda({"failed": "cuInit: ..."}).state == "failed"
    assert "CUDA 12.4" in checks._cuda({"version": "12.4", "devices": ["GPU, 80 MiB"]}).detail

"""Checks: run the probes, and say what they found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# How long a probe may take, in seconds: loading NIXL and a few trial transfers.
LIMIT = 60.0


@dataclass
class Check:
    """One thing that was looked at."""

    section: str
    name: str
    #: ``ok``, ``failed``, or ``absent``: not there, and nothing of kvferry's that needs it was asked for.
    state: str
    #: For people.
    detail: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def run(transports: list[str], nixl_library: str | None = None) -> Iterator[Check]:
    """All checks, one after the other."""
    yield from _itself()
    for transport in transports:
        library = nixl_library or "" if transport == "nixl" else ""
        if transport == "nixl":
            found = _probe("library", library)
            yield _nixl_library(found)
            if found.get("error") or "failed" in found:
                continue
            yield from _nixl_plugins(_probe("plugins", library))
        yield _trial(transport, "within a process", _probe("loopback", transport, library))
        yield _trial(transport, "between processes", _between_processes(transport, library), hint=True)
    yield _cuda(_probe("cuda"))


def _itself() -> Iterator[Check]:
    from .. import __version__
    from .._ffi import lib

    yield Check("kvferry", "library", "ok", f"{__version__}, {os.path.realpath(lib._name)}")


# ---------------------------------------------------------------------------- probes


def _start(*arguments: str) -> subprocess.Popen:
    # What shows where kvferry is, for a child that starts elsewhere.
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "kvferry._doctor.probes", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", env=os.environ | {"PYTHONPATH": path},
    )


def _probe(*arguments: str, given: str = "") -> dict[str, Any]:
    return _finish(_start(*arguments), given)


def _finish(process: subprocess.Popen, given: str) -> dict[str, Any]:
    """The answer of a probe; or what happened instead."""
    try:
        out, err = process.communicate(given, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        return {"failed": f"nothing after {LIMIT:g} s{_last_words(err)}"}
    try:
        return json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        if process.returncode < 0:
            how = f"was ended by {signal.Signals(-process.returncode).name}"
        else:
            how = f"ended with exit code {process.returncode}"
        return {"failed": f"the probe {how}{_last_words(err)}"}


def _last_words(err: str) -> str:
    lines = err.strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def _between_processes(transport: str, library: str) -> dict[str, Any]:
    """One process reads another's memory; neither is the other's parent, as with two engines."""
    owner = _start("owner", transport, library)
    try:
        assert owner.stdout and owner.stdin
        hello = owner.stdout.readline()
        if not hello or "failed" in json.loads(hello):
            return json.loads(hello) if hello else _finish(owner, "")
        return _probe("reader", transport, library, given=hello)
    finally:
        if owner.poll() is None:
            owner.stdin.close()
            try:
                owner.wait(10)
            except subprocess.TimeoutExpired:
                owner.kill()
                owner.wait()
        for stream in (owner.stdin, owner.stdout, owner.stderr):
            stream.close()


# ---------------------------------------------------------------------------- what they mean


def _nixl_library(found: dict[str, Any]) -> Check:
    why = found.get("failed") or found.get("error")
    if why:
        return Check("nixl", "library", "failed", why)
    version = found["version"] or "version unknown"
    return Check("nixl", "library", "ok", f"{version}, {found['path']}, found by: {found['found_by']}")


def _nixl_plugins(found: dict[str, Any]) -> Iterator[Check]:
    if "failed" in found:
        yield Check("nixl", "plugins", "failed", found["failed"])
        return
    listed = ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in sorted(found["plugins"].items()))
    reasons: dict[str, list[str]] = {}
    for name, why in sorted(found["broken"].items()):
        if name != "UCX":
            missing, marker, _ = why.partition(": cannot open shared object file")
            reasons.setdefault(f"{missing} is missing" if marker else why.splitlines()[0], []).append(name)
    unusable = [f"\nnot usable here: {', '.join(names)} ({why})" for why, names in reasons.items()]
    state = "ok" if listed else "failed"
    yield Check("nixl", "plugins", state, (listed or "none can be used") + "".join(unusable))
    if "UCX" in found["broken"]:
        yield Check("nixl", "UCX", "failed", found["broken"]["UCX"])
        return
    text = f"memory kinds {', '.join(found['ucx'])}"
    if found["components"]:
        text += f"; can use {', '.join(found['components'])}"
    if transports := os.environ.get("UCX_TLS"):
        text += f"; limited by UCX_TLS={transports}"
    if not shutil.which("ucx_info"):
        text += " (ucx_info, which tells more, is not installed)"
    yield Check("nixl", "UCX", "ok", text)


def _trial(transport: str, name: str, found: dict[str, Any], hint: bool = False) -> Check:
    if "failed" in found:
        detail = found["failed"]
        if hint and transport == "local":
            detail += f" ({permissions()})"
        return Check(transport, name, "failed", detail)
    rate = found["bytes"] / found["seconds"] / 1e9
    detail = (
        f"{found['bytes'] >> 20} MiB in {found['seconds'] * 1e3:.1f} ms, {rate:.1f} GB/s, by {found['backend']}"
    )
    if hint and transport == "local":
        detail += f" ({permissions()})"
    return Check(transport, name, "ok", detail)


def permissions() -> str:
    """What decides whether one process may read another's memory."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            scope = file.read().strip()
    except OSError:
        return "no Yama: processes of one user may read each other's memory"
    meaning = {
        "0": "processes of one user may read each other's memory",
        "1": "only those that a process names may read its memory; kvferry names its peers",
        "2": "only with CAP_SYS_PTRACE",
        "3": "never",
    }
    return f"kernel.yama.ptrace_scope is {scope}: {meaning.get(scope, 'unknown')}"


def _cuda(found: dict[str, Any]) -> Check:
    if "failed" in found:
        return Check("CUDA", "devices", "failed", found["failed"])
    if "absent" in found:
        return Check("CUDA", "devices", "absent", found["absent"])
    listed = "; ".join(found["devices"]) or "none"
    return Check("CUDA", "devices", "ok", f"{listed}; driver for CUDA {found['version']}")

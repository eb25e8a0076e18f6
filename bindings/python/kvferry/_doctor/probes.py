"""Probes, run as ``python -m kvferry._doctor.probes NAME [ARGUMENT...]``.

Each looks at one thing in a process of its own, so that what a driver or a plugin does to it (and some
hang, or abort) is a finding and not the end of doctor. The answer is one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

#: Bytes that a trial transfer moves.
TRIAL = 64 << 20
# How long a trial transfer may take, in seconds.
LIMIT = 20.0
# Trial transfers whose fastest is told: the first one also sets the connection up.
TIMES = 4


def library(path: str = "") -> dict[str, Any]:
    """Which NIXL an agent would use."""
    from .. import errors
    from .._convert import take_buffer
    from .._ffi import kvf_buffer, lib

    answer = kvf_buffer()
    errors.check(lib.kvf_nixl_probe(path.encode() or None, answer))
    return json.loads(take_buffer(answer))


def plugins(path: str = "") -> dict[str, Any]:
    """NIXL's plugins and the memory that they serve; then UCX with what it can use here."""
    import kvferry

    folder = library(path).get("plugin_dir")

    found: dict[str, Any] = {"plugins": {}, "broken": {}}
    with kvferry.Agent(f"doctor-{os.getpid()}", "nixl", backends=[], nixl_library=path or None) as agent:
        for name in agent.plugins():
            try:
                found["plugins"][name] = [k.name for k in agent.plugin_info(name).mem_kinds]
            except kvferry.Error as e:
                found["broken"][name] = _loading(folder, name) or str(e)
        try:
            agent.create_backend("UCX")
            found["ucx"] = [k.name for k in agent.backend_info("UCX").mem_kinds]
            found["components"] = ucx_components()
        except kvferry.Error as e:
            found["broken"]["UCX"] = str(e)
    return found


def _loading(folder: str | None, plugin: str) -> str | None:
    """What the loader says of a plugin that NIXL could not load: mostly, which library is missing."""
    try:
        ctypes.CDLL(os.path.join(folder or "", f"libplugin_{plugin}.so"))
    except OSError as e:
        return str(e)
    return None


def ucx_components() -> list[str] | None:
    """Components of the UCX in this process that have found something to work with; None if it cannot
    be asked.

    ``uct_query_components`` and ``uct_component_query`` of ``uct/api/uct.h``, with the first fields of
    ``uct_component_attr_t``: which fields are wanted, the name, and the number of memory domains.
    """
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if "/libuct" in line}
    paths = [p for p in mapped if os.path.basename(p).startswith(("libuct.so", "libuct-"))]
    if not paths:
        return None

    class Attributes(ctypes.Structure):
        _fields_ = [
            ("field_mask", ctypes.c_uint64), ("name", ctypes.c_char * 16), ("domains", ctypes.c_uint),
            ("rest", ctypes.c_uint64 * 64),
        ]

    uct = ctypes.CDLL(paths[0])
    components, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_uint()
    if uct.uct_query_components(ctypes.byref(components), ctypes.byref(count)):
        return None
    usable = []
    for i in range(count.value):
        attributes = Attributes(field_mask=0b11)
        status = uct.uct_component_query(ctypes.c_void_p(components[i]), ctypes.byref(attributes))
        if status == 0 and attributes.domains:
            usable.append(attributes.name.decode("utf-8", "replace"))
    return sorted(usable)


def cuda() -> dict[str, Any]:
    """CUDA devices, by the driver's own library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        return {"absent": f"the NVIDIA driver's library was not found ({e})"}

    def call(name: str, *arguments: Any) -> str | None:
        status = getattr(driver, name)(*arguments)
        if status == 0:
            return None
        text = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(text))
        return f"{name}: {(text.value or b'').decode() or status}"

    version, count = ctypes.c_int(), ctypes.c_int()
    why = call("cuInit", 0) or call("cuDriverGetVersion", ctypes.byref(version))
    why = why or call("cuDeviceGetCount", ctypes.byref(count))
    if why:
        # No device is not a fault of the machine's.
        return {"absent" if "NO_DEVICE" in why else "failed": why}
    devices = []
    for i in range(count.value):
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        why = call("cuDeviceGet", ctypes.byref(device), i) or call("cuDeviceGetName", name, 256, device)
        why = why or call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        devices.append(f"device {i}: {why}" if why else f"{name.value.decode()}, {memory.value >> 20:,} MiB")
    return {"version": f"{version.value // 1000}.{version.value % 1000 // 10}", "devices": devices}


def loopback(transport: str, path: str = "") -> dict[str, Any]:
    """Moves bytes from one agent to another in this process."""
    owner, memory = _owner(transport, path, "owner")
    with owner:
        return _read(transport, path, owner.metadata(), _address(memory), memory)


def owner(transport: str, path: str = "") -> dict[str, Any]:
    """An agent with memory for another process to read; stays until standard input ends."""
    agent, memory = _owner(transport, path, "owner")
    with agent:
        answer({"metadata": agent.metadata().hex(), "address": _address(memory)})
        sys.stdin.read()
    sys.exit(0)


def reader(transport: str, path: str = "") -> dict[str, Any]:
    """Reads the memory of the owner that standard input names."""
    told = json.loads(sys.stdin.readline())
    return _read(transport, path, bytes.fromhex(told["metadata"]), told["address"], _content())


def _content() -> bytearray:
    """Bytes that repeat only after a while that no page or block size divides."""
    period = bytes((i * i + i // 251) & 0xFF for i in range(65_521))
    return bytearray((period * (TRIAL // len(period) + 1))[:TRIAL])


def _address(memory: bytearray) -> int:
    from .. import range_of

    return range_of(memory)[0]


def _owner(transport: str, path: str, role: str) -> tuple[Any, bytearray]:
    import kvferry

    memory = _content()
    agent = kvferry.Agent(f"doctor-{role}-{os.getpid()}", transport, nixl_library=path or None)
    agent.register([kvferry.range_of(memory)])
    return agent, memory


def _read(transport: str, path: str, metadata: bytes, address: int, wanted: bytearray) -> dict[str, Any]:
    import kvferry

    memory = bytearray(TRIAL)
    fastest = LIMIT
    with kvferry.Agent(f"doctor-reader-{os.getpid()}", transport, nixl_library=path or None) as agent:
        agent.register([kvferry.range_of(memory)])
        source = agent.add_remote(metadata)
        for _ in range(TIMES):
            memory[:] = bytes(TRIAL)
            start = time.perf_counter()
            with agent.create_transfer(
                kvferry.Op.READ, [kvferry.range_of(memory)], [(address, TRIAL)], source
            ) as transfer:
                transfer.post()
                transfer.wait(LIMIT)
                fastest = min(fastest, time.perf_counter() - start)
                backend = transfer.backend
            if memory != wanted:
                at = next(i for i in range(TRIAL) if memory[i] != wanted[i])
                return {"failed": f"byte {at} of {TRIAL} is {memory[at]}, not {wanted[at]}"}
    return {"seconds": fastest, "bytes": TRIAL, "backend": backend}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (library, plugins, cuda, loopback, owner, reader)
}


def main(arguments: list[str]) -> None:
    """Runs a probe. What libraries print on standard output goes to standard error."""
    global _out
    _out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = PROBES[arguments[0]](*arguments[1:])
    except Exception as e:  # whatever it is, it is what doctor is for
        found = {"failed": str(e) or type(e).__name__}
    answer(found)


def answer(found: dict[str, Any]) -> None:
    """Writes the answer."""
    _out.write(json.dumps(found) + "\n")
    _out.flush()


_out = sys.stdout

if __name__ == "__main__":
    main(sys.argv[1:])

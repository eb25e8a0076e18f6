"""What the Python tests share: the transports, and a process to be the peer."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent

# The NIXL that tests run against. Set before kvferry looks for one.
if os.environ.get("KVF_TEST_NIXL"):
    os.environ.setdefault("KVF_NIXL_LIBRARY", os.environ["KVF_TEST_NIXL"])

import kvferry  # noqa: E402

DEADLINE = 60.0


def need_nixl() -> None:
    """Fails without NIXL: a test that skips itself proves nothing. Unless that was asked for."""
    if os.environ.get("KVF_TEST_NIXL"):
        return
    if os.environ.get("KVF_TEST_NO_NIXL") == "1":
        pytest.skip("KVF_TEST_NO_NIXL=1")
    pytest.fail(
        "this test needs NIXL: set KVF_TEST_NIXL to the path of libnixl_capi.so, or "
        "KVF_TEST_NO_NIXL=1 to do without"
    )


@pytest.fixture
def nixl() -> None:
    """For tests that need NIXL."""
    need_nixl()


@pytest.fixture(params=["local", "nixl"])
def transport(request) -> str:
    """Each transport in turn."""
    if request.param == "nixl":
        need_nixl()
    return request.param


_names = iter(range(10**9))


@pytest.fixture
def new_agent():
    """Makes agents with names of their own, and closes them."""
    made = []

    def make(transport: str, **options) -> kvferry.Agent:
        agent = kvferry.Agent(f"agent-{os.getpid()}-{next(_names)}", transport, **options)
        made.append(agent)
        return agent

    yield make
    for agent in reversed(made):
        agent.close()


def content(seed: int, size: int) -> np.ndarray:
    """Bytes that depend on the seed and repeat nowhere."""
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8).copy()


class Peer:
    """Another process with an agent and some memory; see peer.py."""

    def __init__(self, transport: str, size: int, seed: int, **options):
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(HERE / "peer.py"), json.dumps({
                "name": f"peer-{os.getpid()}-{next(_names)}", "transport": transport, "size": size,
                "seed": seed, "options": options,
            })],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        # A peer that hangs says where, and ends; whoever reads from it sees the end of the stream.
        self._watchdog = threading.Timer(DEADLINE, self.process.send_signal, [signal.SIGABRT])
        self._watchdog.start()
        hello = self.answer()
        self.name, self.address = hello["name"], hello["address"]
        self.metadata = bytes.fromhex(hello["metadata"])

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"the peer has ended: {self.process.wait(10)}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self._watchdog.cancel()
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture
def new_peer():
    """Makes peers, and ends them."""
    made = []

    def make(*args, **kwargs) -> Peer:
        made.append(Peer(*args, **kwargs))
        return made[-1]

    yield make
    for peer in made:
        peer.end()

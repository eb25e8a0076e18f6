"""The pool in a server: the tests of the pool in process, and what only a server has."""

from __future__ import annotations

import doctest
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import test_block_pool as local

import kvferry.pool_client
from kvferry import errors
from kvferry.pool_client import PoolClient, serve

DEADLINE = 60.0


@pytest.fixture
def server():
    with serve(50, policy="lru") as started:
        yield started


def until(what, holds):
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE} s"
        time.sleep(0.002)


@pytest.mark.parametrize("policy", ["lru", "default"])
def test_random_operations_agree_with_a_model(policy):
    for seed in range(2):
        rng = random.Random(seed)
        with serve() as server:
            options = dict(pool="p", caching=True, policy=policy, events=True)
            with server.client(30, **options) as pool:
                model = local.Model(30, policy)
                local.compare(rng, pool, model)
                for _ in range(120):
                    local.step(rng, pool, model)
                    local.compare(rng, pool, model)


def test_the_example_of_the_module():
    assert doctest.testmod(kvferry.pool_client) == (0, 2)


def test_the_methods_are_those_of_the_pool_in_process():
    public = {name for name in dir(local.BlockPool) if not name.startswith("_")}
    assert public <= set(dir(PoolClient)) | {"num_blocks"}


def test_a_batch_is_one_round_trip_and_each_operation_stands_by_itself(server):
    def requests(pool):
        line = next(
            line for line in pool.metrics().splitlines()
            if line.startswith("kv_cache_server_requests_total")
        )
        return int(line.split()[1])

    with server.client() as pool:
        before = requests(pool)
        with pool.batch() as step:
            taken = step.allocate(4)
            refused = step.allocate(48)
            free = step.num_free()
            with pytest.raises(errors.InvalidStateError, match="not been sent"):
                taken.result()
        assert requests(pool) == before + 2
        assert taken.result() == [1, 2, 3, 4]
        with pytest.raises(errors.ResourceExhaustedError, match="45 of 49 are free"):
            refused.result()
        assert free.result() == 45
        with pool.batch(stop_on_error=True) as step:
            step.free([1, 1])
            last = step.free([2])
        with pytest.raises(errors.CanceledError):
            last.result()
        with pytest.raises(ZeroDivisionError):
            with pool.batch() as step:
                step.free([1])
                1 / 0
        assert pool.ref_counts([1, 2, 3, 4]) == [1, 1, 1, 1]
        with pool.batch():
            pass


def test_a_request_has_its_blocks_and_gives_them_back_together():
    with serve(50, caching=True, policy="lru") as server, server.client() as pool:
        first = pool.allocate_up_to("a", 3)
        pool.cache(first, [b"1", b"2", b"3"], block_size=4)
        assert pool.allocate_up_to("a", 4) == [4]
        with pytest.raises(errors.NotAllowedError):
            pool.free([1])
        assert pool.free_request("a") == 4
        with pytest.raises(errors.NotFoundError):
            pool.free_request("a")
        with pool.batch() as step:
            found = step.lookup_chain([b"1", b"2", b"x"], touch=True, request="b")
            rest = step.allocate_up_to("b", 5)
        assert found.result() == [[1, 2]]
        assert len(rest.result()) == 3
        pool.touch([1], request="b")
        assert pool.free_request("b") == 6
        assert pool.num_free == 49 and pool.usage == 0


def test_what_a_client_held_comes_back(server):
    with server.client() as watcher:
        pool = server.client()
        pool.allocate(5)
        assert watcher.num_free == 44
        pool.close()
        pool.close()
        with pytest.raises(errors.InvalidHandleError):
            pool.allocate(1)
        assert watcher.num_free == 49
        pool = server.client()
        pool.allocate(5)
        del pool
        assert watcher.num_free == 49
        # A process that is killed; the session's patience is far longer than the test's.
        program = (
            "import sys; from kvferry.pool_client import PoolClient\n"
            f"pool = PoolClient({server.address!r}); pool.allocate(7); print('ready', flush=True)\n"
            "sys.stdin.read()"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout.readline() == "ready\n"
            assert watcher.num_free == 42
        finally:
            child.kill()
            child.communicate()
        until("its blocks are back", lambda: watcher.num_free == 49)


def test_a_forked_child_leaves_the_parents_session_alone(server):
    with server.client() as pool:
        pool.allocate(5)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                pool.num_free
            except errors.InvalidStateError as e:
                status = 0 if "connect again after a fork" in str(e) else 2
            finally:
                pool.close()
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert pool.num_free == 44


def test_two_clients_share_a_pool(server):
    with server.client(20, pool="p") as a, server.client(20, pool="p") as b:
        with pytest.raises(errors.MismatchError):
            server.client(21, pool="p")
        held = a.allocate(9)
        with pytest.raises(errors.NotAllowedError):
            b.free(held)
        b.touch(held[:1])
        a.free(held)
        assert a.num_free == 18
    with pytest.raises(errors.NotFoundError, match="no pool 'p'|no pool \"p\""):
        server.client(pool="p")


def test_a_session_can_be_gone_on_with_by_name(server):
    with server.client(session="engine") as first:
        held = first.allocate(3)
        with server.client(session="engine") as second:
            second.free(held)
        with pytest.raises(errors.NotFoundError):
            first.num_free


def test_calls_without_an_answer(server):
    pool = server.client(timeout=2)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.TimeoutError, match="no answer"):
            pool.num_free
        with pytest.raises(errors.InvalidStateError, match="connect again"):
            with pool.batch() as step:
                step.allocate(1)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with pytest.raises(errors.TimeoutError):
        PoolClient("ipc:///nonexistent/socket", timeout=0.05)


def test_bad_arguments_send_nothing(server):
    with server.client() as pool:
        for call in (
            lambda: pool.allocate(-1),
            lambda: pool.free([-1]),
            lambda: pool.free(["x"]),
            lambda: pool.lookup_chain([b"x"], []),
            lambda: pool.lookup_chain([b""]),
            lambda: pool.allocate(1, request="x" * 257),
            lambda: server.client(5, policy="best"),
            lambda: server.client(pool="x" * 129),
        ):
            with pytest.raises(errors.InvalidArgumentError):
                call()
        with pytest.raises(errors.ResourceExhaustedError):
            pool.allocate(2**32 - 1)
        assert pool.num_free == 49
        with pytest.raises(errors.NotSupportedError):
            pool.take_events()


def test_the_server_stops(server, tmp_path):
    pool = server.client()
    pool.shutdown_server()
    until("it ends", lambda: server._process.poll() is not None)
    assert server._process.returncode == 0
    address = f"ipc://{tmp_path}/s.sock"
    other = serve(address=address, metrics_address="127.0.0.1:0", events_address=f"ipc://{tmp_path}/e")
    assert other.address == address and other.metrics_url.startswith("http://127.0.0.1:")
    assert other.events_address == f"ipc://{tmp_path}/e"
    with pytest.raises(errors.BackendError, match="a live server listens"):
        serve(address=address)
    assert other.stop() == 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(errors.BackendError, match="a pool of 0 blocks"):
        serve(0)


def test_the_server_goes_with_the_process_that_started_it():
    program = (
        "import sys; from kvferry.pool_client import serve\n"
        "server = serve(); print(server.pid, server.address, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        pid, address = child.stdout.readline().split()
        with PoolClient(address) as pool:
            assert pool.num_free == 99
    finally:
        child.kill()
        child.communicate()
    until("it has ended", lambda: not os.path.exists(address.removeprefix("ipc://")))
    # The folder was the killed process's to remove.
    os.rmdir(os.path.dirname(address.removeprefix("ipc://")))


def test_the_program_is_found_beside_the_library(monkeypatch, tmp_path):
    assert os.path.basename(kvferry.pool_client.executable()) == "kv_cache_server"
    monkeypatch.setenv("KVF_SERVER", "/named/explicitly")
    assert kvferry.pool_client.executable() == "/named/explicitly"

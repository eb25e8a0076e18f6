"""Metadata goes from a listener to whoever asks, whatever others do to the listener."""

from __future__ import annotations

import socket
import struct
import threading
import time

import numpy as np
import pytest

import kvferry
from kvferry import errors


def ask(channel: kvferry.SideChannel, **kwargs) -> bytes:
    return kvferry.request_metadata(*channel.address, **kwargs)


@pytest.mark.parametrize("size", [0, 1, 3, 4096, 5_000_000])
def test_any_bytes_arrive(size):
    metadata = np.random.default_rng(size).bytes(size)
    with kvferry.SideChannel(metadata) as channel:
        assert channel.address.host == "127.0.0.1" and channel.address.port > 0
        assert ask(channel) == metadata == ask(channel)


def test_on_the_wire():
    """Four bytes of length, big-endian, and the payload: whoever reads that needs no kvferry."""
    with kvferry.SideChannel(b"payload") as channel, socket.create_connection(channel.address) as s:
        received = b""
        while some := s.recv(100):
            received += some
    assert received == b"\0\0\0\x07payload"


def test_many_clients_at_once():
    metadata = bytes(range(256)) * 1000
    failures = []

    def client():
        try:
            for _ in range(10):
                assert ask(channel, timeout=30) == metadata
        except BaseException as e:
            failures.append(e)

    with kvferry.SideChannel(metadata) as channel:
        threads = [threading.Thread(target=client) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_silent_clients_cost_the_others_nothing():
    with kvferry.SideChannel(b"m" * 1_000_000, timeout=30) as channel:
        silent = [socket.create_connection(channel.address) for _ in range(50)]
        try:
            begin = time.monotonic()
            assert len(ask(channel)) == 1_000_000
            assert time.monotonic() - begin < 5
        finally:
            for s in silent:
                s.close()


def test_new_metadata_is_never_mixed_with_old():
    versions = [bytes([n]) * 200_000 for n in range(8)]
    with kvferry.SideChannel(versions[0]) as channel:
        stop, failures = threading.Event(), []

        def reader():
            while not stop.is_set():
                try:
                    got = ask(channel, timeout=30)
                    assert len(got) == 200_000 and len(set(got)) == 1
                except BaseException as e:
                    failures.append(e)
                    return

        threads = [threading.Thread(target=reader) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in versions * 5:
            channel.set_metadata(version)
            assert ask(channel, timeout=30) == version
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]


def test_the_end():
    channel = kvferry.SideChannel(b"x")
    address = channel.address
    assert channel.running
    channel.close()
    channel.close()
    assert not channel.running
    for call in (lambda: channel.address, lambda: channel.set_metadata(b"y")):
        with pytest.raises(errors.InvalidHandleError):
            call()
    with pytest.raises(errors.PeerLostError, match=str(address.port)):
        kvferry.request_metadata(*address, timeout=5)
    with kvferry.SideChannel(b"again", address.port) as again:  # the port is free again
        assert ask(again) == b"again"
        with pytest.raises(errors.BusyError, match=str(address.port)):
            kvferry.SideChannel(b"taken", address.port)


def serve(answer: bytes, hold: bool):
    """A listener that is not kvferry's: sends ``answer``, and then hangs up or does nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients = []

    def accept():
        client, _ = listener.accept()
        client.sendall(answer)
        clients.append(client) if hold else client.close()

    thread = threading.Thread(target=accept)
    thread.start()

    def close():
        thread.join()
        for client in clients:
            client.close()
        listener.close()

    return listener.getsockname()[1], close


@pytest.mark.parametrize(("answer", "hold", "expected"), [
    (b"", False, errors.PeerLostError),
    (b"\0\0", False, errors.PeerLostError),
    (b"\0\0\0\x09short", False, errors.PeerLostError),
    (b"", True, errors.TimeoutError),
    (b"\0\0\0\x09short", True, errors.TimeoutError),
    (struct.pack(">I", 0xFFFFFFFF), True, errors.PeerIncompatibleError),
    (b"HTTP/1.1 200 OK\r\n", False, errors.PeerIncompatibleError),
])
def test_listeners_that_are_none(answer, hold, expected):
    port, close = serve(answer, hold)
    try:
        with pytest.raises(expected):
            kvferry.request_metadata("127.0.0.1", port, timeout=0.5)
    finally:
        close()


def test_limits():
    with kvferry.SideChannel(b"12345678") as channel:
        with pytest.raises(errors.PeerIncompatibleError, match="8"):
            ask(channel, max_bytes=7)
        assert ask(channel, max_bytes=8) == b"12345678"
    with pytest.raises(errors.InvalidArgumentError):
        kvferry.SideChannel(b"12345678", max_message_bytes=7)


@pytest.mark.parametrize("call", [
    lambda: kvferry.SideChannel(b"", 65536),
    lambda: kvferry.SideChannel(b"", timeout=-1),
    lambda: kvferry.SideChannel(b"", kind="pigeon"),
    lambda: kvferry.SideChannel(b"", host="a\0b"),
    lambda: kvferry.SideChannel(b"", max_connections=-1),
    lambda: kvferry.SideChannel(b"", max_connections=2**32),
    lambda: kvferry.request_metadata("127.0.0.1", -1),
    lambda: kvferry.request_metadata("127.0.0.1", 0),
    lambda: kvferry.request_metadata("", 80),
    lambda: kvferry.request_metadata("127.0.0.1", 80, timeout=float("nan")),
    lambda: kvferry.request_metadata("127.0.0.1", 80, kind="pigeon"),
])
def test_bad_arguments(call):
    with pytest.raises(kvferry.Error) as caught:
        call()
    assert isinstance(caught.value, errors.InvalidArgumentError), caught.value


# ---------------------------------------------------------------------------- zmq


def test_ranks_and_the_clock():
    ranks = {(0, 0): b"a", (0, 1): b"b" * 1_000_000, (3, 70_000): b"c"}
    with kvferry.SideChannel(b"first", kind="zmq") as channel:
        assert ask(channel, kind="zmq") == b"first"
        channel.set_rank_metadata(1, 2, b"other")
        assert kvferry.request_rank(*channel.address, 1, 2).metadata == b"other"
        channel.replace_ranks(ranks)
        for (pp, tp), metadata in ranks.items():
            before = time.monotonic()
            answer = kvferry.request_rank(*channel.address, pp, tp)
            assert answer.metadata == metadata
            assert 0 <= answer.clock.rtt <= time.monotonic() - before
            assert abs(answer.clock.offset) <= answer.clock.rtt / 2 + 1e-6  # one host, one clock
        with pytest.raises(errors.NotFoundError, match="pp 1, tp 2"):
            kvferry.request_rank(*channel.address, 1, 2)
        channel.set_rank_metadata(0, 1, b"")
        with pytest.raises(errors.NotFoundError):
            kvferry.request_rank(*channel.address, 0, 1)
        channel.replace_ranks({})
        with pytest.raises(errors.NotFoundError):
            kvferry.request_rank(*channel.address)


def test_tcp_has_one_rank_and_no_clock():
    with kvferry.SideChannel(b"x") as channel:
        assert kvferry.request_rank(*channel.address, kind="tcp") == (b"x", None)
        for call in (
            lambda: channel.set_rank_metadata(0, 1, b"y"),
            lambda: channel.replace_ranks({(0, 0): b"y", (0, 1): b"z"}),
            lambda: kvferry.request_rank(*channel.address, 0, 1, kind="tcp"),
        ):
            with pytest.raises(errors.InvalidArgumentError):
                call()
        channel.replace_ranks({(0, 0): b"y"})
        assert ask(channel) == b"y"


@pytest.mark.parametrize("garbage", [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 100,
    b"\xff\0\0\0\0\0\0\0\1\x7f\3\0CURVE".ljust(64, b"\0"),
    b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL".ljust(64, b"\0") + b"\2" + b"\xff" * 8,
])
def test_strangers_are_cut_off_and_others_served(garbage):
    with kvferry.SideChannel(b"x", kind="zmq", timeout=60) as channel:
        with socket.create_connection(channel.address, timeout=60) as s:
            s.sendall(garbage)
            try:
                while s.recv(1000):
                    pass
            except ConnectionResetError:
                pass
        assert ask(channel, kind="zmq") == b"x"


@pytest.mark.parametrize("call", [
    lambda: kvferry.request_rank("127.0.0.1", 80, -1),
    lambda: kvferry.request_rank("127.0.0.1", 80, 0, 2**32),
    lambda: kvferry.request_rank("127.0.0.1", 80, kind="pigeon"),
    lambda: kvferry.SideChannel(b"", kind="zmq").set_rank_metadata(0, 2**32, b""),
    lambda: kvferry.SideChannel(b"", kind="zmq").replace_ranks({(-1, 0): b""}),
    lambda: kvferry.SideChannel(b"", kind="zmq", max_message_bytes=1).replace_ranks({(0, 0): b"ab"}),
])
def test_bad_arguments_of_ranks(call):
    with pytest.raises(errors.InvalidArgumentError):
        call()

"""Reads the bytes of an engine step, written from the form in src/connector/step/codec.rs: for tests that
have to see what a scheduler half says."""

from __future__ import annotations

import struct
from types import SimpleNamespace as Record

SECTIONS = ("receives", "holds", "in_batch", "forget", "cancel", "heartbeats", "registrations", "pushes")


class Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def raw(self, n: int) -> bytes:
        self.at += n
        assert self.at <= len(self.data)
        return self.data[self.at - n : self.at]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.raw(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def text(self) -> str:
        return self.raw(self.number()).decode()

    def list(self, one) -> list:
        return [one() for _ in range(self.number())]

    def blocks(self) -> list[int]:
        ids, expected = [], 0
        for _ in range(self.number()):
            coded = self.number()
            expected += coded >> 1 if coded % 2 == 0 else -(coded >> 1) - 1
            ids.append(expected)
            expected += 1
        return ids

    def peer(self) -> Record:
        return Record(engine_id=self.text(), host=self.text(), port=self.number(), tp_size=self.number(),
                      pp_size=self.number(), dcp_size=self.number())

    def lease(self) -> list[int]:
        return [self.number(), self.number()]

    def receive(self) -> Record:
        r = Record(request_id=self.text())
        flags = self.number()
        r.awaited = bool(flags & 1)
        r.peer, r.remote_request_id = self.peer(), self.text()
        local = self.list(lambda: (self.number(), self.blocks()))
        r.local_first, r.local = [first for first, _ in local], [ids for _, ids in local]
        r.remote = self.list(self.blocks)
        r.tokens, r.registration = self.number(), self.number()
        r.expiry = struct.unpack("<d", self.raw(8))[0] if flags & 2 else None
        r.lease = self.lease() if flags & 4 else None
        r.waited = self.number() / 1e9 if flags & 8 else 0.0
        return r

    def hold(self) -> Record:
        h = Record(request_id=self.text())
        flags = self.number()
        h.remaining = self.number() / 1e9
        h.lease = self.lease() if flags & 4 else None
        return h

    def heartbeat(self) -> Record:
        return Record(peer=self.peer(), ids=self.list(self.text))

    def push(self) -> Record:
        return Record(request_id=self.text(), tokens=self.number(), blocks=self.list(self.blocks))


def read(step: bytes) -> Record:
    """A step as records."""
    version, sections = step[:2]
    assert version == 1
    r = Reader(step)
    r.at = 2
    out = Record(clock=r.number() / 1e9)
    one = dict(receives=r.receive, holds=r.hold, heartbeats=r.heartbeat, registrations=r.receive, pushes=r.push)
    for bit, name in enumerate(SECTIONS):
        setattr(out, name, r.list(one.get(name, r.text)) if sections >> bit & 1 else [])
    assert r.at == len(step)
    return out

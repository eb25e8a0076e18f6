"""A block pool in a ``kv_cache_server``, with the interface of :class:`kvferry.block_pool.BlockPool`.

    >>> from kvferry.pool_client import PoolClient, serve
    >>> with serve(1000, caching=True) as server, PoolClient(server.address) as pool:
    ...     blocks = pool.allocate(2)
    ...     with pool.batch() as step:  # one round trip
    ...         cached = step.cache(blocks, [b"hash 1", b"hash 2"], block_size=16)
    ...         found = step.lookup_chain([b"hash 1", b"hash 3"])
    ...         more = step.allocate(3)
    ...     len(more.result()), found.result() == [blocks[:1]]
    (3, True)

A server lets several processes share a pool. It does not make one engine faster: a call in process
takes a microsecond, a round trip tens of them (docs/kv_cache_server.md). What a client holds goes back
when it is closed, when its process ends, or when it is silent for too long; from then on every call is
a ``NotFoundError``. A call that is not answered in time is a ``TimeoutError``, and the client is of no
use afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from ctypes import addressof, byref, c_uint32, c_uint64, memmove, sizeof
from pathlib import Path
from typing import Any, Generic, TypeVar

from . import _convert, _lifetime, errors
from ._ffi import (
    CONSTANTS,
    kvf_block_event_list,
    kvf_block_key,
    kvf_block_pool_stats,
    kvf_buffer,
    kvf_cached_blocks,
    kvf_cached_part,
    kvf_pool_client_options,
    kvf_pool_op,
    lib,
)
from .block_pool import (
    Events,
    Key,
    Stats,
    _count,
    _described,
    _hashes,
    _ids,
    _options,
    _part,
    _pointer,
    _take_events,
    _usage,
)

__all__ = ["Batch", "Pending", "PoolClient", "Server", "serve"]

#: Where a server listens unless it is told otherwise.
DEFAULT_ADDRESS = "ipc:///tmp/kv_cache.sock"

#: The largest pool there can be.
_MAX_BLOCKS = 1 << 24

T = TypeVar("T")


class _Operation:
    """One operation: what is sent, what it needs to stay alive, and how its outcome is read."""

    __slots__ = ("op", "keep", "read")

    def __init__(self, kind: str, read: Callable[[Any], Any] = lambda _: None, **fields: Any):
        self.op = kvf_pool_op(CONSTANTS["KVF_POOL_OP_" + kind], **fields)
        self.read = read
        self.keep: tuple[Any, ...] = ()


def _name(request: str | None) -> bytes | None:
    return None if request is None else _convert.text(request, "request")


def _given(kind: str, ids: Iterable[int], **fields: Any) -> _Operation:
    """An operation on blocks that are given."""
    packed = _ids(ids)
    made = _Operation(kind, ids=_pointer(packed), ids_len=len(packed) // 4, **fields)
    made.keep = (packed,)
    return made


def _into(made: _Operation, room: int) -> _Operation:
    """Gives an operation somewhere to write to; its result is what was written, as a list."""
    out = (c_uint32 * room)()
    made.op.out, made.op.out_capacity = addressof(out) if room else None, room
    made.keep += (out,)
    made.read = lambda op: out[: op.out_len]
    return made


class _Operations:
    """The methods of a pool. What :meth:`_do` makes of an operation is up to the class."""

    #: Number of blocks, the null block included.
    num_blocks: int

    def _do(self, operation: _Operation) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------------ blocks

    def allocate(self, n: int, after: int | None = None, *, request: str | None = None) -> Any:
        """Takes ``n`` free blocks and forgets what they had cached.

        Args:
            after: The last block of a request that grows: what follows it without a gap comes first.
                None: the last one of ``request``, if that is given and has blocks.
            request: The engine's request that they are for; they go back together with
                :meth:`free_request`, and only so.

        Raises:
            ResourceExhaustedError: Fewer are free; nothing is changed.
        """
        return self._allocate("ALLOCATE", n, after, request)

    def allocate_up_to(self, request: str, n: int, after: int | None = None) -> Any:
        """Takes as many blocks as the request lacks to have ``n`` of them, and gives those. So what a
        request needs behind the prefix that :meth:`lookup_chain` finds for it can be asked for in the
        same batch."""
        return self._allocate("ALLOCATE_UP_TO", n, after, request)

    def _allocate(self, kind: str, n: int, after: int | None, request: str | None) -> Any:
        if _count(n) > _MAX_BLOCKS:
            raise errors.ResourceExhaustedError(f"{n} blocks: no pool has as many")
        made = _Operation(kind, request=_name(request), count=n, after=after or 0)
        return self._do(_into(made, n))

    def free(self, ids: Iterable[int]) -> Any:
        """Gives back one reference of each block; one may appear several times. Give the last block of
        a prompt first.

        Raises:
            InvalidStateError: A block is free already; nothing is changed.
            InvalidArgumentError: A block is unknown or the null block; nothing is changed.
            NotAllowedError: A block is held by another client, or for a request.
        """
        return self._do(_given("FREE", ids))

    def free_request(self, request: str) -> Any:
        """Gives back all that was allocated, touched or found for a request, the last one first.
        Returns how many those were. NotFoundError if there are none."""
        made = _Operation("FREE_REQUEST", lambda op: op.value, request=_name(request))
        return self._do(made)

    def unpin(self, ids: Iterable[int]) -> Any:
        """Like :meth:`free`, for blocks that somebody still reads until they are handed out again:
        all go to the end of the queue, and :meth:`take_reused` tells when they were."""
        return self._do(_given("UNPIN", ids))

    def touch(self, ids: Iterable[int], *, request: str | None = None) -> Any:
        """Holds each block once more; free ones leave the queue."""
        return self._do(_given("TOUCH", ids, request=_name(request)))

    def ref_counts(self, ids: Iterable[int]) -> Any:
        """How many times each block is held, by whomever."""
        made = _given("REF_COUNTS", ids)
        return self._do(_into(made, made.op.ids_len))

    def is_writable(self, block: int) -> Any:
        """Whether a holder may write to it: held once, and nothing of it is cached."""
        made = _into(_given("WRITABLE", [block]), 1)
        out = made.keep[-1]
        made.read = lambda _: bool(out[0])
        return self._do(made)

    def free_blocks(self) -> Any:
        """The free blocks in eviction order."""
        return self._do(_into(_Operation("FREE_BLOCKS"), self.num_blocks))

    def take_reused(self) -> Any:
        """Blocks given to :meth:`unpin` that were handed out since, or lost their content to a
        reset; at most as many as the pool has blocks, call again for more."""
        return self._do(_into(_Operation("TAKE_REUSED"), self.num_blocks))

    # ------------------------------------------------------------------------ cached prefixes

    def lookup(self, hash: bytes, groups: Sequence[int] = (0,)) -> Any:
        """The block with this content in each group, or None if one is missing. Not touched."""
        made = self._lookup([hash], groups, False, None)
        out = made.keep[-1]
        made.read = lambda op: out[: op.out_len] or None
        return self._do(made)

    def lookup_chain(
        self,
        hashes: Sequence[bytes],
        groups: Sequence[int] = (0,),
        *,
        touch: bool = False,
        request: str | None = None,
    ) -> Any:
        """The longest known prefix: for each group the blocks of the hashes, from the first to the
        last that is known in all groups.

        Args:
            touch: What is found is also touched, in the same step; for ``request``, if that is given.
        """
        made = self._lookup(hashes, groups, touch, request)
        out, width = made.keep[-1], len(groups)
        made.read = lambda op: [out[i : op.out_len : width] for i in range(width)]
        return self._do(made)

    def _lookup(
        self, hashes: Sequence[bytes], groups: Sequence[int], touch: bool, request: str | None
    ) -> _Operation:
        joined, length = _hashes(hashes)
        wanted = _ids(groups)
        made = _Operation(
            "ACQUIRE" if touch else "LOOKUP",
            request=_name(request),
            hashes=_pointer(joined),
            hash_len=length,
            hash_count=len(hashes),
            groups=_pointer(wanted),
            groups_len=len(groups),
        )
        made.keep = (joined, wanted)
        return _into(made, len(hashes) * len(groups))

    def cache(
        self,
        blocks: Sequence[int],
        hashes: Sequence[bytes],
        *,
        block_size: int,
        group: int = 0,
        first: int = 0,
        mask: Sequence[bool] | None = None,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        tag: int = 0,
    ) -> Any:
        """Enters full blocks into the prefix index; as :meth:`kvferry.block_pool.BlockPool.cache`."""
        what, keep = _described(
            hashes, block_size, group, parent, tokens, tag, blocks=blocks, first=first, mask=mask
        )
        return self._content("CACHE", what, keep)

    def announce(
        self,
        hashes: Sequence[bytes],
        *,
        block_size: int,
        group: int = 0,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        tag: int = 0,
    ) -> Any:
        """Records an event for blocks that are cached already and were used again."""
        what, keep = _described(hashes, block_size, group, parent, tokens, tag)
        return self._content("ANNOUNCE", what, keep)

    def _content(self, kind: str, what: kvf_cached_blocks, keep: object) -> Any:
        made = _Operation(kind, cached=addressof(what))
        made.keep = (what, keep)
        return self._do(made)

    def cache_partial(
        self,
        block: int,
        hash: bytes,
        num_tokens: int,
        *,
        group: int = 0,
        replace: bool = False,
        block_size: int = 0,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        tag: int = 0,
    ) -> Any:
        """Enters a key for the first part of a block; as
        :meth:`kvferry.block_pool.BlockPool.cache_partial`."""
        what, keep = _part(block, hash, num_tokens, group, replace, block_size, parent, tokens, tag)
        made = _Operation("CACHE_PARTIAL", part=addressof(what))
        made.keep = (what, keep)
        return self._do(made)

    def move_keys(self, src: int, dst: int) -> Any:
        """Gives all keys of a block to another, which has none. No events."""
        return self._do(_given("MOVE_KEYS", [src, dst]))

    def evict(self, ids: Iterable[int]) -> Any:
        """Takes all keys from these blocks, held or not. The free queue stays as it is."""
        return self._do(_given("EVICT", ids))

    def reset(self) -> Any:
        """Empties the prefix index, if no block is held by anybody. Returns whether it was done."""
        return self._do(_Operation("RESET", lambda op: bool(op.value)))

    def keys(self, block: int) -> Any:
        """The keys of a block, the primary one first, and the tokens of the prefix of that."""
        # No block of a server has more.
        room = (kvf_block_key * 256)()
        made = _given("KEYS", [block], keys=addressof(room), keys_capacity=len(room))
        made.keep += (room,)

        def read(op: kvf_pool_op) -> tuple[list[Key], int]:
            found = room[: op.value]
            return [Key(bytes(k.hash[: k.hash_len]), k.group) for k in found], op.tokens

        made.read = read
        return self._do(made)

    # ------------------------------------------------------------------------ events, numbers

    def take_events(self) -> Any:
        """The events since the last call. NotSupportedError if the server publishes them, or the pool
        does not record them."""
        given = kvf_block_event_list()
        made = _Operation("TAKE_EVENTS", lambda _: _take_events(given), events=addressof(given))
        made.keep = (given,)
        return self._do(made)

    def stats(self) -> Any:
        """Counters and current numbers."""
        stats = kvf_block_pool_stats()
        made = _Operation("STATS", stats=addressof(stats))
        made.keep = (stats,)
        made.read = lambda _: Stats(*(getattr(stats, name) for name in Stats._fields))
        return self._do(made)

    def _free(self) -> Any:
        return self._do(_Operation("NUM_FREE", lambda op: op.value))


class PoolClient(_Operations):
    """A pool in a server.

    Args:
        address: ``ipc://FILE`` or ``tcp://HOST:PORT``.
        num_blocks: Makes the pool, if there is none of that name, with the other arguments as for
            :class:`kvferry.block_pool.BlockPool`; one with others is a ``MismatchError``. None: it must
            be there.
        pool: Its name; None: the one that the server was started with.
        session: This client's name; None: one that nobody else has. Whoever gives the name of a session
            that is alive goes on with it, and with what it holds.
        publish: The events of the pool that is made are published by the server.
        timeout: How long a call may take, in seconds.
        session_timeout: How long the server keeps what a silent client holds, in seconds; None: as the
            server likes. A client is not silent while its process runs.

    A context manager; closed at the latest when collected. All methods may be called from any thread.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        num_blocks: int | None = None,
        caching: bool = False,
        *,
        pool: str | None = None,
        session: str | None = None,
        policy: str = "default",
        fraction: float = 0.0,
        events: bool = False,
        event_bytes: int = 0,
        tolerate_null: bool = False,
        publish: bool = False,
        timeout: float = 10.0,
        session_timeout: float | None = None,
    ):
        create = None
        if num_blocks is not None:
            create = _options(
                num_blocks, caching, policy, fraction, events, event_bytes, tolerate_null
            )
        options = kvf_pool_client_options(
            sizeof(kvf_pool_client_options),
            publish=bool(publish),
            address=_convert.text(address, "address"),
            pool=None if pool is None else _convert.text(pool, "pool"),
            session=None if session is None else _convert.text(session, "session"),
            create=None if create is None else addressof(create),
            timeout_ms=_milliseconds(timeout, "timeout"),
            session_timeout_ms=(
                0 if session_timeout is None else _milliseconds(session_timeout, "session_timeout")
            ),
        )
        handle = c_uint64()
        errors.check(lib.kvf_pool_client_connect(options, handle))
        self._handle = handle.value
        self._finalizer = _lifetime.ends_with(self, lib.kvf_pool_client_close, self._handle)
        self.num_blocks = self.stats().blocks if num_blocks is None else num_blocks

    def __enter__(self) -> PoolClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session: what it holds goes back. Using the client afterwards is an
        :class:`errors.InvalidHandleError`. Harmless when repeated."""
        self._finalizer()

    def batch(self, *, stop_on_error: bool = False) -> Batch:
        """Operations that travel together; see :class:`Batch`."""
        return Batch(self, stop_on_error)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated."""
        return self._free()

    @property
    def usage(self) -> float:
        """The part of the blocks that is held, 0 to 1; the null block does not count."""
        return _usage(self.num_blocks, self.num_free)

    def metrics(self) -> str:
        """The numbers of the server and of all its pools, as text for Prometheus."""
        text = kvf_buffer()
        errors.check(lib.kvf_pool_client_metrics(self._handle, text))
        return _convert.take_buffer(text).decode()

    def shutdown_server(self) -> None:
        """Tells the server to answer what is in flight and to end."""
        errors.check(lib.kvf_pool_client_shutdown_server(self._handle))

    def _do(self, operation: _Operation) -> Any:
        errors.check(lib.kvf_pool_client_run(self._handle, byref(operation.op), 1, 0))
        return operation.read(operation.op)


class Pending(Generic[T]):
    """What an operation of a batch will come to."""

    __slots__ = ("_outcome",)

    def __init__(self) -> None:
        self._outcome: tuple[bool, Any] | None = None

    def result(self) -> T:
        """The result, or raises what the operation failed with. The batch must be over."""
        if self._outcome is None:
            raise errors.InvalidStateError("the batch has not been sent")
        worked, value = self._outcome
        if not worked:
            raise value
        return value


class Batch(_Operations):
    """Operations in one round trip, in their order, with nobody else's between them. Its methods are
    those of the pool and return :class:`Pending`; what they came to is known when the ``with`` block
    is over. Each operation is all or nothing by itself: one that fails does not undo those before it.
    Leaving the block by an exception sends nothing.

    Args:
        stop_on_error: Those behind one that failed are not carried out (``CanceledError``).
    """

    def __init__(self, client: PoolClient, stop_on_error: bool):
        self.num_blocks = client.num_blocks
        self._client = client
        self._stop = bool(stop_on_error)
        self._waiting: list[tuple[_Operation, Pending]] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.send()

    def num_free(self) -> Pending[int]:
        """Blocks that can be allocated."""
        return self._free()

    def _do(self, operation: _Operation) -> Pending:
        pending: Pending = Pending()
        self._waiting.append((operation, pending))
        return pending

    def send(self) -> None:
        """Sends what there is; the end of the ``with`` block does it. The results are in the
        :class:`Pending` objects; this raises only if there was no answer."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        ops = (kvf_pool_op * len(waiting))()
        for i, (operation, _) in enumerate(waiting):
            memmove(byref(ops[i]), byref(operation.op), sizeof(kvf_pool_op))
        status = lib.kvf_pool_client_run(self._client._handle, ops, len(ops), self._stop)
        # Where no operation has failed, the call has: they have no outcome.
        if status and not any(op.status for op in ops):
            raise errors.from_status(status)
        for op, (operation, pending) in zip(ops, waiting):
            if op.status:
                error = errors.from_status(op.status, op.message.decode("utf-8", "replace"))
                pending._outcome = (False, error)
            else:
                pending._outcome = (True, operation.read(op))


def _milliseconds(seconds: float, what: str) -> int:
    # To C, 0 is the default; nobody who says 0 here means ten seconds.
    return max(_convert.milliseconds(seconds, what), 1)


# ---------------------------------------------------------------------------- the server


class Server:
    """A ``kv_cache_server`` that this process has started; see :func:`serve`."""

    def __init__(self, process: subprocess.Popen, addresses: dict[str, str], folder: str | None):
        self._process = process
        self._addresses = addresses
        self._folder = folder

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._addresses["listening"]

    @property
    def events_address(self) -> str | None:
        """Where it publishes events."""
        return self._addresses.get("events")

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds its numbers."""
        return self._addresses.get("metrics")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def client(self, *args: Any, **options: Any) -> PoolClient:
        """A client of it; the arguments are those of :class:`PoolClient` behind the address."""
        return PoolClient(self.address, *args, **options)

    def stop(self, timeout: float = 10.0) -> int:
        """Ends it: what is in flight is answered. Returns its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    num_blocks: int = 100,
    caching: bool = False,
    *,
    address: str | None = None,
    policy: str = "default",
    fraction: float = 0.0,
    tolerate_null: bool = False,
    events_address: str | None = None,
    metrics_address: str | None = None,
    args: Sequence[str] = (),
) -> Server:
    """Starts a server; a context manager that stops it. It is also stopped when this process ends,
    however that happens.

    Args:
        address: Where it listens; None: a socket file in a folder of its own.
        args: More arguments for its command line.

    Raises:
        BackendError: It does not start; the text is what it said.
        NotFoundError: The program is not there.
    """
    folder = tempfile.mkdtemp(prefix="kvferry-") if address is None else None
    command = [
        executable(), str(num_blocks), f"--enable-caching={bool(caching)}",
        f"--socket-path={address or f'ipc://{folder}/server.sock'}", f"--policy={policy}",
        f"--window={fraction}", f"--tolerate-null={bool(tolerate_null)}",
        f"--events-path={events_address or ''}", f"--metrics-address={metrics_address or ''}",
        "--exit-with-stdin", *args,
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    addresses = {}
    for line in process.stdout:
        if line == "ready\n":
            # From here on what it says goes to where this process says things.
            threading.Thread(target=_pass_on, args=(process.stderr,), daemon=True).start()
            return Server(process, addresses, folder)
        what, _, where = line.rstrip().partition(" ")
        addresses[what] = where
    said = process.communicate()[1].strip()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    raise errors.BackendError(f"kv_cache_server ended with {process.returncode}: {said}")


def _pass_on(stream: Any) -> None:
    for line in stream:
        sys.stderr.write(line)


def executable() -> str:
    """The server's program: ``KVF_SERVER`` if that is set, else beside this package's files, else
    beside the library that was loaded (or in ``../bin`` of it), else on the ``PATH``."""
    explicit = os.environ.get("KVF_SERVER")
    if explicit:
        return explicit
    library = Path(lib._name)
    places = [Path(__file__).parent]
    if library.parent != Path("."):
        places += [library.parent, library.parent.parent / "bin"]
    for place in places:
        candidate = place / "kv_cache_server"
        if candidate.is_file():
            return str(candidate)
    found = shutil.which("kv_cache_server")
    if not found:
        raise errors.NotFoundError(
            f"kv_cache_server was not found: not in {', '.join(map(str, places))}, and not on the PATH; "
            "set KVF_SERVER"
        )
    return found


def main() -> None:
    """The command ``kv_cache_server`` of the wheel."""
    program = executable()
    os.execv(program, [program, *sys.argv[1:]])

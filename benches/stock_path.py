"""What one request costs: the sequence of stock vLLM's connector, and kvferry's queue, on the same NIXL.

    python benches/stock_path.py [--rounds N]         or          make bench ARGS=stock_path

A request reads 118, 512 or 2,048 blocks of 160 regions of 8 KiB pages, in a row or scattered, out of
40,960 pages a region, from another process. Each side runs in a pair of processes of its own, so that
the busy progress thread of one is not in the way of another; the sides take turns in each round.

"stock" is what vLLM 0.32 does on the engine's thread, written down without the rest of its worker:
``_build_fa_local`` and ``_build_fa_remote`` (numpy tables of all pages), ``register_local_xfer_handler``
and ``add_remote_agent`` (prepared lists of them), ``_compute_desc_ids`` (indices, for both sides),
``_read_blocks`` (make_prepped_xfer, transfer) and ``_pop_done_transfers`` (check_xfer_state, telemetry,
release), with the agent's options of its ``__init__``. Left out are its dictionaries, logs and checks.

The other sides are ``Queue.submit`` and ``Queue.poll`` of the Python package, and the same from C, in
benches/c/queue_path.c (``KVF_BENCH_PROGRAMS`` is where scripts/bench.sh has built it); "C call" is ``kvf_queue_submit`` by itself, with
its argument made before, and includes what ctypes takes for a call. Between polls the engine's thread
sleeps 1 ms on all sides: it has other things to do.

Memory is one window of 256 MiB mapped over and over, so that 54 GB of cache need no such machine. It
stays in the caches of no processor, but pages are shared: rates are for comparison only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
REGIONS, PAGES, PAGE, WINDOW = 160, 40_960, 8192, 256 << 20
ROW = PAGES * PAGE
SHAPES = {118: 5, 512: 3, 2048: 2}  # blocks → requests in a round
SIDES = ("stock", "nixl", "local")
FROM_C = {"c-nixl": "nixl", "c-local": "local"}  # side → transport
PAUSE = 1e-3


def map_memory() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                          ctypes.c_long]
    size = REGIONS * ROW
    fd = os.memfd_create("stock-path")
    os.ftruncate(fd, WINDOW)
    os.posix_fallocate(fd, 0, WINDOW)
    private, anonymous, noreserve, shared, fixed = 2, 0x20, 0x4000, 1, 0x10
    base = libc.mmap(None, size, 0, private | anonymous | noreserve, -1, 0)
    for at in range(0, size, WINDOW):
        if libc.mmap(base + at, min(WINDOW, size - at), 3, shared | fixed, fd, 0) != base + at:
            raise OSError(ctypes.get_errno(), "mmap")
    return base


def resident() -> int:
    """Bytes of memory of this process's own (the window is shared and not counted)."""
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("RssAnon")) * 1024


def forget_peak() -> int:
    """Resident bytes now; :func:`peak` counts from here."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    return peak()


def peak() -> int:
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("VmHWM")) * 1024


def ids(blocks: int, scattered: bool) -> tuple[list[int], list[int]]:
    if not scattered:
        return list(range(blocks)), list(range(7, 7 + blocks))
    # Steps without a factor in common with the number of pages: each id once, no two neighbours.
    return [i * 12_373 % PAGES for i in range(blocks)], [i * 28_019 % PAGES for i in range(blocks)]


class Stock:
    """vLLM's sequence."""

    def __init__(self, name: str, base: int):
        from nixl_cu12._api import nixl_agent, nixl_agent_config

        self.agent = nixl_agent(name, nixl_agent_config(num_threads=4, capture_telemetry=True))
        self.agent.register_memory([(base, REGIONS * ROW, 0, "")], "DRAM")
        self.base, self.metadata = base, self.agent.get_agent_metadata()
        self.counts = [PAGES] * REGIONS

    def table(self, base: int):
        import numpy as np

        parts = []
        for i in range(REGIONS):
            out = np.empty((PAGES, 3), dtype=np.uint64)
            out[:, 0] = base + i * ROW + np.arange(PAGES, dtype=np.uint64) * PAGE
            out[:, 1] = PAGE
            out[:, 2] = 0
            parts.append(out)
        return np.concatenate(parts)

    def startup(self) -> None:
        """The local list, which register_kv_caches prepares once; it keeps the table."""
        self.src = self.table(self.base)
        descs = self.agent.get_xfer_descs(self.src, "DRAM")
        self.local = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", descs)

    def indices(self, blocks):
        import numpy as np

        offsets = np.cumsum([0, *self.counts[:-1]])
        array = np.concatenate([np.asarray(group, dtype=np.int32) for group in [blocks]])[None, :]
        return (offsets[:, None] + array).ravel()

    def submit(self, local, remote) -> None:
        theirs, ours = self.indices(remote), self.indices(local)
        self.handle = self.agent.make_prepped_xfer(
            "READ", self.local, ours, self.remote, theirs, notif_msg=b"request-0123456789:1")
        self.agent.transfer(self.handle)

    def poll(self) -> bool:
        state = self.agent.check_xfer_state(self.handle)
        if state == "PROC":
            return False
        assert state == "DONE", state
        self.agent.get_xfer_telemetry(self.handle)
        self.agent.release_xfer_handle(self.handle)
        return True

    def first(self, metadata: bytes, base: int, _layout: bytes) -> tuple[float, ...]:
        """Seconds: loading the metadata, preparing, submit to first post."""
        t0 = time.perf_counter()
        peer = self.agent.add_remote_agent(metadata)
        t1 = time.perf_counter()
        descs = self.agent.get_xfer_descs(self.table(base), "DRAM")
        self.remote = self.agent.prep_xfer_dlist(peer, descs)
        t2 = time.perf_counter()
        self.submit([5], [9])
        return t1 - t0, t2 - t1, time.perf_counter() - t2

    def extra(self) -> dict:
        return {}


class Ours:
    """kvferry over one of its transports."""

    def __init__(self, name: str, base: int, transport: str):
        import kvferry

        self.k = kvferry
        # As many of UCX's threads as the stock side has; "local" has nothing of the kind.
        self.agent = kvferry.Agent(name, transport, worker_threads=4 if transport == "nixl" else 0)
        self.agent.register([(base, REGIONS * ROW)])
        self.metadata = self.agent.metadata()
        regions = [kvferry.Region(base + i * ROW, PAGES) for i in range(REGIONS)]
        dense = kvferry.DenseLayers(
            kv_heads=4, k_head_size=64, elem_bytes=2, regions=regions, order="hnd", kv="regions")
        self.layout = kvferry.Layout(groups=[kvferry.Group("full", 16)], dense=[dense])

    def startup(self) -> None:
        self.queue = self.k.Queue(self.agent)

    def submit(self, local, remote) -> None:
        self.queue.submit(self.plan, [self.peer], [(local, remote)], notification=b"request-0123456789:1")

    def poll(self) -> bool:
        done = self.queue.poll()
        if not done:
            return False
        assert done[0].ok, done[0].message
        self.last = done[0]
        return True

    def first(self, metadata: bytes, _base: int, layout: bytes) -> tuple[float, ...]:
        t0 = time.perf_counter()
        self.peer = self.agent.add_remote(metadata)
        t1 = time.perf_counter()
        self.plan = self.k.Plan(self.layout, [self.k.Layout.decode(layout)])
        t2 = time.perf_counter()
        self.submit([5], [9])
        while not self.poll():
            time.sleep(PAUSE)
        return t1 - t0, t2 - t1, self.last.posted_ns / 1e9

    def c_submits(self, local, remote) -> list[float]:
        """kvf_queue_submit alone, with an argument that was made before."""
        from array import array

        from kvferry import _convert, queue as q
        from kvferry._ffi import kvf_submission

        lists = q.BlockLists([(local, remote)])
        names, length, _keep = self.queue._agents([self.peer])
        message = array("B", _convert.payload(b"request-0123456789:1", "notification")[0])
        argument = kvf_submission(
            struct_size=ctypes.sizeof(kvf_submission),
            has_notification=1,
            plan=self.plan.handle,
            agents=ctypes.cast(names, ctypes.POINTER(ctypes.c_char_p)),
            agents_len=length,
            groups=lists.address,
            groups_len=lists.count,
            tokens=q._tokens(None),
            notification=message.buffer_info()[0],
            notification_len=len(message),
        )
        ticket, at, call = ctypes.c_uint64(), ctypes.addressof(argument), q.lib.kvf_queue_submit
        took = []
        for _ in range(SHAPES[len(local)]):
            time.sleep(2e-3)  # the thread sleeps again: waking it is counted
            t = time.perf_counter()
            status = call(self.queue.handle, at, ticket)
            took.append(time.perf_counter() - t)
            assert status == 0
            while not self.poll():
                time.sleep(PAUSE)
        return took

    def extra(self) -> dict:
        return {"thread_cpu": self.queue.stats().thread_cpu_ns / 1e9}


def endpoint(side: str, role: str, base: int):
    name = f"{role}-{side}-{os.getpid()}"
    return Stock(name, base) if side == "stock" else Ours(name, base, side)


def source(side: str) -> None:
    base = map_memory()
    end = endpoint(side, "source", base)
    layout = b"" if side == "stock" else end.layout.encode()
    print(json.dumps([base, end.metadata.hex(), layout.hex()]), flush=True)
    sys.stdin.read()


def sink(side: str) -> None:
    """Measures one round of one side and prints it."""
    base = map_memory()
    end = endpoint(side, "sink", base)
    command = [sys.executable, __file__, "--source", side]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        remote, metadata, layout = json.loads(peer.stdout.readline())
        memory, high = resident(), forget_peak()
        t = time.perf_counter()
        end.startup()
        out = {"startup_s": time.perf_counter() - t, "startup_bytes": resident() - memory,
               "startup_peak": peak() - high, "shapes": []}
        memory, high = resident(), forget_peak()
        parts = end.first(bytes.fromhex(metadata), remote, bytes.fromhex(layout))
        out.update(load_s=parts[0], prepare_s=parts[1], post_s=parts[2], first_s=sum(parts),
                   first_bytes=resident() - memory, first_peak=peak() - high)
        while side == "stock" and not end.poll():
            time.sleep(PAUSE)
        for blocks, repeat in SHAPES.items():
            for scattered in (False, True):
                out["shapes"].append(shape(end, blocks, scattered, repeat))
        time.sleep(0.3)
        before = time.process_time()
        time.sleep(1)
        out["idle"] = time.process_time() - before
        peer.stdin.close()
    print(json.dumps(out), flush=True)
    # What is left of agents in a busy process is not part of this.
    sys.stdout.flush()
    os._exit(0)


def sink_in_c(side: str) -> dict:
    """The same shapes by a C program, from a source like any other's."""
    transport = FROM_C[side]
    command = [sys.executable, __file__, "--source", transport]
    program = os.path.join(os.environ["KVF_BENCH_PROGRAMS"], "queue_path")
    env = {**os.environ, "KVF_NIXL_LIBRARY": os.environ.get("KVF_TEST_NIXL", "")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        base, metadata, layout = json.loads(peer.stdout.readline())
        run = subprocess.run([program, transport], input=f"{base} {metadata} {layout}\n", env=env,
                             stdout=subprocess.PIPE, text=True, check=True)
        peer.stdin.close()
    return json.loads(run.stdout)


def shape(end, blocks: int, scattered: bool, repeat: int) -> dict:
    local, remote = ids(blocks, scattered)
    rows = []
    cpu, extra = time.process_time(), end.extra()
    for number in range(repeat + 1):
        if number == 1:  # the first one is not counted
            cpu, extra = time.process_time(), end.extra()
        begin = time.perf_counter()
        end.submit(local, remote)
        submitted = time.perf_counter()
        polling = polls = 0
        while True:
            t = time.perf_counter()
            done = end.poll()
            polling += time.perf_counter() - t
            polls += 1
            if done:
                break
            time.sleep(PAUSE)
        rows.append((submitted - begin, polling, polls, time.perf_counter() - begin))
    gb = repeat * blocks * REGIONS * PAGE / 1e9
    out = dict(zip(("submit", "polling", "polls", "total"), map(list, zip(*rows[1:]))))
    out["cpu"] = (time.process_time() - cpu) / gb
    if extra:
        out["thread_cpu"] = (end.extra()["thread_cpu"] - extra["thread_cpu"]) / gb
        out["c"] = end.c_submits(local, remote)
    return out


def tables(rounds: dict[str, list[dict]]) -> None:
    mid = statistics.median
    every = lambda side, i, key: [x for r in rounds[side] for x in r["shapes"][i][key]]  # noqa: E731
    mean = lambda side, i, key: mid(r["shapes"][i][key] for r in rounds[side])  # noqa: E731
    names = [(b, o) for b in SHAPES for o in ("contiguous", "scattered")]

    print("\n| engine thread, µs | stock: submit + polls (polls) | nixl, Python: submit + polls (polls) "
          "| local, Python | nixl, C call | local, C call | stock / nixl, Python | stock submit / C call |")
    print("|---|---|---|---|---|---|---|---|")
    for i, (blocks, order) in enumerate(names):
        cells, sums = [], {}
        for side in SIDES:
            submit, polling = (mid(every(side, i, k)) * 1e6 for k in ("submit", "polling"))
            sums[side] = submit + polling
            cells.append(f"{submit:,.0f} + {polling:,.0f} ({mid(every(side, i, 'polls')):.0f})")
        c = {s: mid(every(s, i, "c")) * 1e6 for s in SIDES[1:]}
        stock = mid(every("stock", i, "submit")) * 1e6
        print(f"| {blocks:,} {order} | " + " | ".join(cells)
              + f" | {c['nixl']:.1f} | {c['local']:.1f} | {sums['stock'] / sums['nixl']:,.0f} "
                f"| {stock / c['nixl']:,.0f} |")

    if rounds["c-nixl"]:
        print("\n| engine thread from C, µs | stock: submit + polls | nixl: submit + polls (polls) "
              "| local: submit + polls (polls) | stock / nixl | stock / local |")
        print("|---|---|---|---|---|---|")
        for i, (blocks, order) in enumerate(names):
            sums, cells = {}, []
            for side in ("stock", *FROM_C):
                submit, polling = (mid(every(side, i, k)) * 1e6 for k in ("submit", "polling"))
                sums[side] = submit + polling
                text = f"{submit:,.0f} + {polling:,.0f}" if side == "stock" else (
                    f"{submit:,.1f} + {polling:,.1f} ({mid(every(side, i, 'polls')):.0f})")
                cells.append(text)
            print(f"| {blocks:,} {order} | " + " | ".join(cells) + "".join(
                f" | {sums['stock'] / sums[side]:,.0f}" for side in FROM_C) + " |")

    print("\n| submit to last byte, ms | stock | nixl | local | nixl / stock | local / stock |")
    print("|---|---|---|---|---|---|")
    for i, (blocks, order) in enumerate(names):
        t = {s: mid(every(s, i, "total")) * 1e3 for s in SIDES}
        print(f"| {blocks:,} {order} | " + " | ".join(f"{t[s]:,.1f}" for s in SIDES)
              + f" | {t['nixl'] / t['stock']:.2f} | {t['local'] / t['stock']:.2f} |")

    print("\n| CPU s per GB: whole process (queue's thread) | stock | nixl | local |\n|---|---|---|---|")
    for i, (blocks, order) in enumerate(names):
        print(f"| {blocks:,} {order} | {mean('stock', i, 'cpu'):.3f} | " + " | ".join(
            f"{mean(s, i, 'cpu'):.3f} ({mean(s, i, 'thread_cpu'):.3f})" for s in SIDES[1:]) + " |")

    print("\n| first transfer, 160 regions × 40,960 pages | stock | nixl | local |\n|---|---|---|---|")
    one = lambda side, key: mid(r[key] for r in rounds[side])  # noqa: E731
    for label, key, unit, scale in (
        ("at startup, local list, ms", "startup_s", ",.2f", 1e3),
        ("its memory that stays, MB", "startup_bytes", ",.2f", 1e-6),
        ("its memory at the peak, MB", "startup_peak", ",.2f", 1e-6),
        ("metadata to first post, ms", "first_s", ",.2f", 1e3),
        ("- loading the metadata, ms", "load_s", ",.2f", 1e3),
        ("- remote list, or layout and plan, ms", "prepare_s", ",.2f", 1e3),
        ("- submit to first post, ms", "post_s", ",.2f", 1e3),
        ("its memory that stays, MB", "first_bytes", ",.2f", 1e-6),
        ("its memory at the peak, MB", "first_peak", ",.2f", 1e-6),
        ("idle process, ms of CPU a second", "idle", ",.1f", 1e3),
    ):
        print(f"| {label} | " + " | ".join(format(one(s, key) * scale, unit) for s in SIDES) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sink", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.source:
        source(args.source)
        return 0
    if args.sink:
        sink(args.sink)
        return 0
    sides = (*SIDES, *FROM_C) if "KVF_BENCH_PROGRAMS" in os.environ else SIDES
    rounds: dict[str, list[dict]] = {side: [] for side in (*SIDES, *FROM_C)}
    print(f"{os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f} at the start")
    for number in range(args.rounds):
        for side in sides[:: 1 if number % 2 == 0 else -1]:
            if side in FROM_C:
                rounds[side].append(sink_in_c(side))
            else:
                run = subprocess.run([sys.executable, __file__, "--sink", side], stdout=subprocess.PIPE,
                                     text=True, check=True)
                rounds[side].append(json.loads(run.stdout.splitlines()[-1]))
            print(f"round {number + 1}, {side}: done, load {os.getloadavg()[0]:.1f}", file=sys.stderr,
                  flush=True)
    print(f"medians of {args.rounds} rounds; load {os.getloadavg()[0]:.1f} at the end")
    tables(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

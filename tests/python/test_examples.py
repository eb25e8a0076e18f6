"""The Python example in a pair with itself, and the demo: both as a newcomer runs them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

EXAMPLE = ROOT / "examples" / "python" / "move_block.py"
DEMO = ROOT / "examples" / "demo.py"


def test_move_block(transport):
    program = f"{sys.executable} {EXAMPLE}"
    done = subprocess.run(
        [str(ROOT / "tests" / "run_pair.sh"), transport, program, program],
        capture_output=True, text=True, timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [[], ["prefil"], ["decode", "warp", "1"], ["decode", "local", "1"]])
def test_move_block_used_wrongly(arguments):
    done = subprocess.run([sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(("usage: ", "move_block: ")), done.stderr
    assert "Traceback" not in done.stderr


def demo(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(DEMO), "--blocks", "9", "--request", "4", *arguments],
        capture_output=True, text=True, timeout=100,
    )


# 4 blocks of 16 tokens, K and V, 32 layers, 8 heads, 128 numbers of 2 bytes.
REQUEST = 4 * 16 * 2 * 32 * 8 * 128 * 2


def test_demo(transport):
    done = demo("--transport", transport)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = [line for line in lines if line[:1] == [transport]]
    assert [row[1] for row in rows] == ["scattered", "neighbours"] * 3
    assert all(row[2] == f"{REQUEST:,}" for row in rows)
    before, lanes, after = zip(*[
        [int(n.replace(",", "")) for n in " ".join(row[3:8]).split(" -> ")] for row in rows
    ])
    assert set(before) == {4 * 2 * 32 * 8}  # blocks, K and V, layers, heads
    # All heads of a block are one range; between unequal sizes two, from or to two ranks.
    assert lanes == (4 * 32, 4 * 32, 2 * 4 * 32, 2 * 4 * 32, 2 * 4 * 32, 2 * 4 * 32)
    # Four blocks in a row on both sides are one.
    assert after[1] == 32 and after[2:] == lanes[2:]
    # Twice, with 9 blocks in each decode engine.
    assert done.stdout.count(f"{2 * 9 * REQUEST // 4:,} bytes looked at, all right") == 3
    assert "TP 2 -> TP 1" in done.stderr and "looks at every byte" in done.stderr


def test_demo_finds_one_wrong_bit():
    done = demo("--transport", "local", "--corrupt")
    assert done.returncode == 1
    for sizes in "TP 1 -> TP 1", "TP 2 -> TP 1", "TP 1 -> TP 2":
        found = f"local FAILED, {sizes}: decode-0: layer 16, V, head 0: block "
        assert found in done.stderr
    assert done.stderr.count("1 words of the layer differ, the first at token 0, byte 8\n") == 3


def ranks_of(program: int) -> set[int]:
    return {int(p) for p in Path(f"/proc/{program}/task/{program}/children").read_text().split()}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_demo_leaves_nobody_behind(how):
    program = subprocess.Popen(
        [sys.executable, str(DEMO), "--transport", "local"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with program.stderr:
        for line in program.stderr:
            if b"computes" in line:
                break
        ranks = ranks_of(program.pid)
        assert len(ranks) == 2
        program.send_signal(how)
        rest = program.stderr.read()  # until all of them have closed it
    assert program.wait(30) == (130 if how == signal.SIGINT else -how)
    assert b"Traceback" not in rest
    end = time.monotonic() + 30
    while any(map(alive, ranks)):
        assert time.monotonic() < end, f"of {ranks} some run on"
        time.sleep(0.01)


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False

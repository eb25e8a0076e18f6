"""The Python example in a pair with itself, and the demo: both as a newcomer runs them."""

from __future__ import annotations

import subprocess
import sys

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


def test_demo(transport):
    done = demo("--transport", transport)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == [transport]]
    # 4 blocks of 16 tokens, K and V, 32 layers, 8 heads, 128 numbers of 2 bytes.
    assert row[1] == f"{4 * 16 * 2 * 32 * 8 * 128 * 2:,}"
    assert row[2] == f"{4 * 2 * 32:,}"
    assert row[-2:] == [f"{9 * 16 * 2 * 32 * 8 * 128 * 2:,}", "ok"]
    assert f"{transport}" in done.stderr and "looks at every byte" in done.stderr


def test_demo_finds_one_wrong_bit():
    done = demo("--transport", "local", "--corrupt")
    assert done.returncode == 1
    assert "local FAILED: layer 16, V, block" in done.stderr and "1 of 4096 words differ" in done.stderr

"""The code in the Python documentation runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT


def blocks(path: str) -> list[str]:
    text = (ROOT / path).read_text()
    found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, path
    return found


@pytest.mark.parametrize("path", ["docs/python.md", "docs/queue.md", "docs/kv_cache_server.md", "bindings/python/README.md"])
def test_code_runs_from_top_to_bottom(path, nixl):
    program = "\n".join(blocks(path)) + "\nprint('ran')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "ran" in done.stdout, done.stdout + done.stderr


def test_what_is_said_about_the_comparison():
    """docs/python.md says how many calls are compared; here they are counted."""
    source = (ROOT / "tests/python/nixl_cases.py").read_text()
    said = int(re.search(r"script of some (\d+) calls", (ROOT / "docs/python.md").read_text())[1])
    assert said * 0.8 < source.count("outcome(") < said * 1.25

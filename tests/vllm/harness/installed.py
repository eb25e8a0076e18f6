"""kvferry as a package that was installed, for engines that find it in the source tree."""

from __future__ import annotations

import pathlib
import tomllib

PROJECT = pathlib.Path(__file__).resolve().parents[3] / "bindings" / "python" / "pyproject.toml"


def entry_points(folder: pathlib.Path) -> pathlib.Path:
    """Writes into a folder for PYTHONPATH what an installed package says of itself, as pyproject.toml
    has it: how vLLM finds the plugin."""
    points = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["vllm.general_plugins"]
    info = folder / "kvferry-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvferry\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines, ""]))
    return folder

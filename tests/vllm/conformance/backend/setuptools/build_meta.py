"""Takes setuptools' place while pip downloads vLLM's source distribution.

pip asks a source distribution for its metadata before it keeps the file, and to answer vLLM's would
install torch and a compiler's worth of tools. All that is wanted here is the file.
"""

from __future__ import annotations

import pathlib
import re


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    version = re.search(r"^Version: (.+)$", pathlib.Path("PKG-INFO").read_text(), re.MULTILINE)[1]
    info = pathlib.Path(metadata_directory, f"vllm-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return info.name

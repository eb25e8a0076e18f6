"""Gets vLLM's own tests: from its source distribution, through pip, into a folder outside the checkout."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

VERSION = "0.32.0"
# Packages on the way to a test, and what the tests import of each other.
WANTED = (
    "tests/__init__.py",
    "tests/utils.py",
    "tests/v1/__init__.py",
    "tests/v1/attention/__init__.py",
    "tests/v1/attention/utils.py",
    "tests/v1/core/__init__.py",
    "tests/v1/core/utils.py",
    "tests/v1/engine/__init__.py",
    "tests/v1/engine/test_kv_transfer_rejection.py",
    "tests/v1/kv_connector/",
    "tests/v1/worker/__init__.py",
    "tests/v1/worker/test_gpu_kv_connector.py",
)
# The tests' default model, of which they need the shape only.
OPT_125M = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
    "do_layer_norm_before": True,
    "torch_dtype": "float16",
}


def sources(cache: pathlib.Path) -> pathlib.Path | None:
    """A folder to run vLLM's tests in; None if they cannot be had."""
    target = cache / f"vllm-{VERSION}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = _download(pathlib.Path(scratch))
        if archive is None:
            return None
        draft = pathlib.Path(scratch, "draft")
        _extract(archive, draft)
        _surroundings(draft)
        shutil.move(draft, target)
    return target


def _download(folder: pathlib.Path) -> pathlib.Path | None:
    backend = pathlib.Path(__file__).with_name("backend")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-binary", "vllm"]
    command += ["--dest", str(folder), f"vllm=={VERSION}"]
    environment = {**os.environ, "PYTHONPATH": str(backend)}
    try:
        subprocess.run(command, check=True, timeout=300, env=environment)
    except (subprocess.SubprocessError, OSError) as problem:
        print(f"vLLM's source distribution cannot be had: {problem}", file=sys.stderr)
        return None
    return next(folder.glob("vllm-*.tar.gz"), None)


def _extract(archive: pathlib.Path, target: pathlib.Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if member.isfile() and inside.startswith(WANTED):
                member.name = inside
                tar.extract(member, target, filter="data")


def _surroundings(target: pathlib.Path) -> None:
    """What the tests expect around them: a model's configuration, and a module ray."""
    model = target / "facebook" / "opt-125m"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(OPT_125M))
    (target / "ray.py").write_text("")

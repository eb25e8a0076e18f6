"""A pytest plugin for vLLM's own tests: puts kvferry in the place of the stock connector.

With ``KVF_CONFORMANCE=ours``; with anything else the tests see vLLM as it is. Also brings the fixtures
that vLLM's top-level conftest would, which itself needs much that is not here.
"""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("KVF_CONFORMANCE") == "ours":
        os.environ["KVFERRY_REPLACE_NIXL"] = "1"
        from kvferry.vllm.plugin import register

        register()


@pytest.fixture
def default_vllm_config():
    from vllm.config import VllmConfig, set_current_vllm_config

    config = VllmConfig()
    with set_current_vllm_config(config):
        yield config


@pytest.fixture
def dist_init():
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )

    with tempfile.NamedTemporaryFile() as meeting, set_current_vllm_config(VllmConfig()):
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{meeting.name}",
            backend="gloo",
        )
        initialize_model_parallel(1, 1)
        yield
    cleanup_dist_env_and_memory()

"""Fixtures of the tests with real vLLM engines; scripts/test-vllm.sh runs them.

A test that needs long, or engines of its own, is marked ``thorough`` and left out unless ``--all`` is
given: starting an engine costs a minute.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib

import pytest
from harness import models
from harness.engine import Engine, Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests marked thorough")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: only with --all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def model_folder() -> pathlib.Path:
    """Where the tiny models are. Kept between runs: the path is part of the compatibility hash."""
    return pathlib.Path(os.environ["KVF_TEST_VLLM_MODELS"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, model_folder):
    """Starts engines side by side, and ends them with the module."""
    logs = tmp_path_factory.mktemp("logs")
    engines: dict[str, Engine] = {}

    def start(*wanted: tuple[str, dict]) -> list[Engine]:
        started = []
        for name, settings in wanted:
            kind = settings.pop("kind", "llama")
            path = models.make(kind, model_folder)
            engines[name] = Engine(Settings(name=name, model=path, **settings), logs).start()
            started.append(engines[name])
        with concurrent.futures.ThreadPoolExecutor(len(started)) as threads:
            return list(threads.map(Engine.wait_ready, started))

    yield start
    with concurrent.futures.ThreadPoolExecutor(max(1, len(engines))) as threads:
        list(threads.map(Engine.stop, engines.values()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Shows the end of each engine's log with a failure."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for engine in _engines_in(value):
                report.sections.append((f"log of {engine.settings.name}", engine.tail()))
    return report


def _engines_in(value) -> list[Engine]:
    if isinstance(value, Engine):
        return [value]
    if isinstance(value, dict):
        return [e for v in value.values() for e in _engines_in(v)]
    if isinstance(value, (list, tuple)):
        return [e for v in value for e in _engines_in(v)]
    parts = [getattr(value, "prefill", None), getattr(value, "decode", None)]
    return [part for part in parts if isinstance(part, Engine)]

"""A vLLM engine as a process of its own, behind vLLM's OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

HOST = "127.0.0.1"
# A plugin of vLLM's that damages caches on command.
HOOKS = pathlib.Path(__file__).parents[1] / "hooks"
# Longest that an engine may take to start. It is a minute on an idle machine, most of it imports.
START_LIMIT = float(os.environ.get("KVF_VLLM_START_LIMIT", 420))
REQUEST_LIMIT = 120.0

# kv_connector and kv_connector_module_path of each connector.
CONNECTORS = {
    "stock": {"kv_connector": "NixlConnector"},
    "ours": {"kv_connector": "KvFerryConnector", "kv_connector_module_path": "kvferry.vllm"},
    "ours-by-stock-name": {
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": "kvferry.vllm",
    },
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def wait_for(what: str, condition, limit: float, pause: float = 0.05):
    """The first true result of condition(); an AssertionError after limit seconds."""
    deadline = time.monotonic() + limit
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {limit:g} s")
        time.sleep(pause)


@dataclasses.dataclass
class Answer:
    """What the server said to one request."""

    tokens: list[int]
    params: dict[str, Any] | None
    cached: int | None
    finish: str | None
    seconds: float


class RequestFailed(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, body: str):
        super().__init__(f"HTTP {status}: {body[:400]}")
        self.status = status


@dataclasses.dataclass
class Settings:
    """What one engine is started with."""

    name: str
    model: pathlib.Path
    role: str  # kv_producer, kv_consumer, or "" for none
    connector: str = "stock"
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # kv_connector_extra_config
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # more of KVTransferConfig
    tp: int = 1
    blocks: int = 256
    block_size: int | None = None
    dtype: str = "float32"
    args: tuple[str, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    path: tuple[str, ...] = ()  # more folders for PYTHONPATH


class Engine:
    """Starts, asks, kills and restarts one engine. Ports stay the same over restarts."""

    def __init__(self, settings: Settings, logs: pathlib.Path):
        self.settings = settings
        self.port, self.side_channel = free_port(), free_port()
        self.log = logs / f"{settings.name}.log"
        self.hooks = logs / f"{settings.name}.hooks"
        self.hooks.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    # --- its life ---

    def start(self) -> Engine:
        """Starts the process; :meth:`wait_ready` waits for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its workers can be ended with it
            )
        return self

    def wait_ready(self, limit: float = START_LIMIT) -> Engine:
        def ready() -> bool:
            assert self._process is not None
            code = self._process.poll()
            assert code is None, f"{self.settings.name} ended with {code}:\n{self.tail()}"
            try:
                return self._get("/health")[0] == 200
            except OSError:
                return False

        try:
            wait_for(f"engine {self.settings.name} ready", ready, limit, 0.25)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.tail()}") from None
        return self

    def kill(self) -> None:
        """SIGKILL to the server, the engine core and the workers at once."""
        self._end(signal.SIGKILL, 10)

    def stop(self) -> None:
        """Asks the server to end, and makes sure."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def _end(self, how: int, limit: float) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, how)
        except ProcessLookupError:
            pass
        self._process.wait(limit)
        self._process = None

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self, lines: int = 60) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # --- disturbing it ---

    def flip(self, layer: int, block: int) -> None:
        """Changes one bit of a block in this engine's KV cache."""
        draft = self.hooks / "draft"
        draft.write_text(f"{layer} {block}")
        command = draft.rename(self.hooks / "flip")
        wait_for("bit flipped", lambda: not command.exists(), 30)

    def _processes(self) -> Iterator[tuple[pathlib.Path, list[str]]]:
        """Its processes' folders in /proc, and what stat says of each behind the name."""
        assert self._process is not None
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it ended
            if int(fields[2]) == self._process.pid:
                yield entry, fields

    def workers(self) -> list[int]:
        """Process ids of the workers, which move the bytes."""
        titles = {int(e.name): (e / "cmdline").read_bytes() for e, _ in self._processes()}
        return [pid for pid, title in titles.items() if b"VLLM::Worker" in title]

    def cpu_seconds(self) -> float:
        """What all its processes have used so far."""
        ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in self._processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def freeze(self) -> None:
        """Stops the workers; handshakes are still answered, by the engine core."""
        for pid in self.workers():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.workers():
            os.kill(pid, signal.SIGCONT)

    def pause(self) -> None:
        """Stops all its processes, so that they take no time from others."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    # --- asking it ---

    def complete(
        self,
        prompt: list[int],
        tokens: int,
        *,
        params: dict[str, Any] | None = None,
        salt: str | None = None,
        limit: float = REQUEST_LIMIT,
        request_id: str | None = None,
    ) -> Answer:
        """Greedy continuation of a prompt of token ids."""
        begun = time.monotonic()
        connection = self.open_completion(
            prompt, tokens, params=params, salt=salt, limit=limit, request_id=request_id
        )
        try:
            return read_completion(connection, begun)
        finally:
            connection.close()

    def open_completion(
        self, prompt, tokens, *, params=None, salt=None, limit=REQUEST_LIMIT, request_id=None
    ) -> http.client.HTTPConnection:
        """Sends the request and returns its connection; closing that aborts the request."""
        body: dict[str, Any] = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "detokenize": False,
        }
        if params is not None:
            body["kv_transfer_params"] = params
        if salt is not None:
            body["cache_salt"] = salt
        headers = {"Content-Type": "application/json"}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        connection = http.client.HTTPConnection(HOST, self.port, timeout=limit)
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        return connection

    def _get(self, path: str, limit: float = 10.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=limit)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name, summed over labels."""
        values: dict[str, float] = {}
        for line in self._get("/metrics")[1].splitlines():
            found = re.match(r"([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)", line)
            if found and not found[1].endswith("_bucket"):
                values[found[1]] = values.get(found[1], 0.0) + float(found[2])
        return values

    def metric(self, name: str) -> float:
        return self.metrics().get(name, 0.0)

    # --- how it is started ---

    def _command(self) -> list[str]:
        s = self.settings
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            *("--model", str(s.model)),
            *("--served-model-name", "tiny"),
            *("--host", HOST),
            *("--port", str(self.port)),
            *("--dtype", s.dtype),
            *("--max-model-len", "8192"),
            *("--max-num-seqs", "16"),
            *("--max-num-batched-tokens", "2048"),
            *("--tensor-parallel-size", str(s.tp)),
            # Few blocks: little memory, and freed ones are soon used again.
            *("--num-gpu-blocks-override", str(s.blocks)),
            "--skip-tokenizer-init",
            "--enforce-eager",
            "--disable-uvicorn-access-log",
        ]
        if s.block_size is not None:
            command += ["--block-size", str(s.block_size)]
        if s.role:
            config = {
                **CONNECTORS[s.connector],
                "kv_role": s.role,
                "kv_buffer_device": "cpu",
                "engine_id": None,
                "kv_connector_extra_config": s.extra,
                **s.config,
            }
            config = {k: v for k, v in config.items() if v is not None}
            command += ["--kv-transfer-config", json.dumps(config)]
        return [*command, *s.args]

    def _environment(self) -> dict[str, str]:
        values = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_channel),
            # OpenMP threads that spin starve the other engine where there are few cores.
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
            # vLLM ties each worker to the first core, where those of several engines, which spin,
            # starve each other.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_SSM_CONV_STATE_LAYOUT": "DS",
            "PYTHONUNBUFFERED": "1",
            "KVF_TEST_HOOKS": str(self.hooks),
            "PYTHONPATH": os.pathsep.join(
                [str(HOOKS), *self.settings.path, os.environ.get("PYTHONPATH", "")]
            ),
        }
        if self.settings.tp > 1:
            cores = sorted(os.sched_getaffinity(0))
            values["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
                str(cores[rank % len(cores)]) for rank in range(self.settings.tp)
            )
        return {**values, **self.settings.env}


def read_completion(connection: http.client.HTTPConnection, begun: float) -> Answer:
    """Waits for the answer to a request that was sent."""
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    if answer.status != 200:
        raise RequestFailed(answer.status, text)
    body = json.loads(text)
    choice = body["choices"][0]
    if choice["finish_reason"] not in ("length", "stop"):
        raise RequestFailed(200, text)
    details = (body.get("usage") or {}).get("prompt_tokens_details") or {}
    return Answer(
        tokens=choice["token_ids"],
        params=body.get("kv_transfer_params"),
        cached=details.get("cached_tokens"),
        finish=choice["finish_reason"],
        seconds=time.monotonic() - begun,
    )

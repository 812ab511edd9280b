"""Backhaul's own programs as child processes: the agents and the hub, each with its HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from demo import toml
from demo.servers import Process, StartFailed, ports

START_TIMEOUT_S: Final = 30.0
"""A cold start loads ONNX Runtime and warms the model, beside others that do the same."""
STOP_TIMEOUT_S: Final = 15.0
ASK_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.05


class Program:
    """One program, run with a settings file and serving HTTP, where `/healthz/ready` says when it is ready.

    It may be stopped, killed and started again at will: it keeps its port and its state. `command`: the name
    of a console script of this Python's environment, and its words but for `--config`. The log lies beside
    the settings file `config`.
    """

    def __init__(self, name: str, command: Sequence[str], config: Path) -> None:
        self.name = name
        self.config = config
        self.log = config.with_suffix(".log")
        self.port = ports.free()
        self.url = f"http://{ports.HOST}:{self.port}"
        script = Path(sysconfig.get_path("scripts")) / command[0]
        self._process = Process(name, [script, *command[1:], "--config", config], self.log)
        self._http = httpx.AsyncClient(base_url=self.url, timeout=ASK_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """The process id. Raises `ServerError` when it was never started."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def configure(self, document: toml.Document) -> None:
        """Write its settings, to which its own HTTP address is added; read at the next start."""
        whole = toml.merged(document, {"http": {"host": ports.HOST, "port": self.port}})
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(toml.dumps(whole), encoding="utf-8")

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises `StartFailed` with the end of its log."""
        await self._process.start()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._ready():
                    if not self.running:
                        raise StartFailed(_explain(self._process, "ended before it was ready"))
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise StartFailed(_explain(self._process, f"was not ready after {START_TIMEOUT_S:g} s")) from None

    async def stop(self) -> None:
        """Let it finish and end; kill it when it takes too long."""
        await self._process.terminate(STOP_TIMEOUT_S)

    async def kill(self) -> None:
        """End it with SIGKILL, with no chance to save anything."""
        await self._process.kill()

    async def restart(self) -> None:
        """Stop it, if it runs, and start it again."""
        await self.stop()
        await self.start()

    async def close(self) -> None:
        """Stop it for good."""
        try:
            await self.stop()
        finally:
            await self._http.aclose()

    async def ask(self, path: str) -> Any:
        """The JSON that it answers at `path`; None while it does not answer."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = await self._http.get(path)
            if answer.is_success:
                return answer.json()
        return None

    async def _ready(self) -> bool:
        try:
            return (await self._http.get("/healthz/ready")).is_success
        except httpx.HTTPError:
            return False


def _explain(process: Process, what: str) -> str:
    return f"{process.name} {what}; the end of {process.log}:\n{process.tail()}"

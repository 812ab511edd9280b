"""A part of a benchmark in a process of its own, which speaks lines of JSON with the one that measures.

    async with worker.Worker("benchmarks.driver", {"port": 1883}) as driver:
        await driver.hear()                   # what the child told
        driver.say({"go": True})              # what the child hears

In the child, `arguments`, `tell` and `hear` are the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

PATIENCE_S: Final = 300.0
LONGEST_LINE: Final = 1 << 20


class WorkerFailed(RuntimeError):
    """A child ended, or said nothing for too long."""


class Worker:
    """A module of ours as a child process; killed when the block is left."""

    def __init__(self, module: str, arguments: Mapping[str, Any]) -> None:
        self.module = module
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self.module, json.dumps(self._arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def hear(self) -> dict[str, Any]:
        """The next thing that the child tells. Raises WorkerFailed."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise WorkerFailed(f"{self.module} told nothing for {PATIENCE_S:g} s") from None
        if not line:
            status = await self._process.wait()
            raise WorkerFailed(f"{self.module} ended with status {status}; its words are above")
        told: dict[str, Any] = json.loads(line)
        return told

    def say(self, word: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word).encode() + b"\n")


# In the child


def arguments() -> dict[str, Any]:
    """What the parent gave."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def tell(word: Mapping[str, Any]) -> None:
    print(json.dumps(word), flush=True)


def hear() -> dict[str, Any]:
    """What the parent says next; it ends this process if the parent is gone."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(1)
    heard: dict[str, Any] = json.loads(line)
    return heard

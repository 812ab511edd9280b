"""Has engines built by a program of its own: what it does to itself, it does to nobody else.

Two processes one after the other: one builds, the other opens what was built, as the agent would, and runs
it. Neither outlives its time, nor the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edge_agent import models

PROGRAM: Final = (sys.executable, "-m", "edge_agent.builds.program")
_LOG: Final = ".log"
_SAID: Final = 400
"""Of what the program says last, so many characters are told."""
_LAST: Final = 4096


class Outcome(enum.StrEnum):
    """How a build ended."""

    BUILT = "built"
    FAILED = "failed"
    """The program gave up, and said why."""
    CRASHED = "crashed"
    """The program was killed: by itself, or for the memory that it took."""
    TIMED_OUT = "timed_out"
    BROKEN = "broken"
    """What was built is no engine, or does not open."""


class Ended(NamedTuple):
    """How a build ended, and why, unless it went well."""

    outcome: Outcome
    reason: str | None = None


class Builder:
    """Runs `program PACKAGE FOLDER SHA256`, twice: the second time the engine is there."""

    def __init__(self, limit_s: float, program: Sequence[str] = PROGRAM) -> None:
        """`limit_s`: for each of the two processes."""
        self._limit_s = limit_s
        self._program = program

    async def build(self, model: models.Model, folder: Path) -> Ended:
        """Build the engine of a model into an empty folder. Raises OSError if no process can be started."""
        ended = await self._run(model, folder)
        if ended.outcome is not Outcome.BUILT:
            return ended
        before = await asyncio.to_thread(_files, folder)
        ended = await self._run(model, folder)
        if ended.outcome is not Outcome.BUILT:
            return Ended(Outcome.BROKEN, f"what was built does not open: {ended.reason}")
        if await asyncio.to_thread(_files, folder) != before:
            return Ended(Outcome.BROKEN, "what was built was not used, but built again")
        return ended

    async def _run(self, model: models.Model, folder: Path) -> Ended:
        words = (*self._program, str(model.folder), str(folder), model.sha256)
        with (folder / _LOG).open("wb") as log:
            # In a session of its own, so that whatever it starts can be killed with it.
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._limit_s):
                code = await process.wait()
        except TimeoutError:
            return Ended(Outcome.TIMED_OUT, f"it was not done after {time.monotonic() - began:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
        if code == 0:
            return Ended(Outcome.BUILT)
        said = _last_line(folder / _LOG)
        if code < 0:
            return Ended(Outcome.CRASHED, f"it was killed by {_signal(-code)}{f': {said}' if said else ''}")
        return Ended(Outcome.FAILED, said or f"it ended with status {code}")


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file."""
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def _last_line(log: Path) -> str:
    with log.open("rb") as held:
        held.seek(max(0, log.stat().st_size - _LAST))
        lines = held.read().decode(errors="replace").split("\n")
    return next((line.strip()[:_SAID] for line in reversed(lines) if line.strip()), "")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""The demo itself: cameras publish while things happen to the system, and then the books are balanced."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo import background, report, scene, system
from demo.floor import Floor
from demo.phases import Act, Phase, plan
from demo.view import View

LOOK_EVERY_S: Final = 0.5
BURST_S: Final = 1.5
BURST_WORK_S: Final = 3.0
"""A burst is so many seconds of its site's work, and comes within BURST_S."""
BURST_JOBS: Final = range(300, 2000)
TAIL: Final = 20
"""Lines of a log."""


class Failed(Exception):
    """The demo could not go on; the message says why, and which log to look at."""


@dataclass(frozen=True)
class Script:
    """What is to be played."""

    duration_s: float = 60.0
    rate_per_s: float = 20.0
    """Jobs of each site, in steady times."""
    burst: int | None = None
    """Jobs of a burst; None: BURST_WORK_S of the site's work, as measured."""
    cameras: int = 4
    """At each site."""
    seed: int = 1


class Show:
    """Plays a script on a system that runs."""

    def __init__(self, whole: system.System, script: Script, view: View) -> None:
        self._whole = whole
        self._script = script
        self._view = view
        self._busy, self._remote = list(whole.sites)[:2]
        self._phases = plan(script.duration_s, self._busy, self._remote)
        self._floor = Floor(whole, rate_per_s=script.rate_per_s, cameras=script.cameras, seed=script.seed)
        self._ends_at = 0.0

    async def run(self) -> report.Report:
        """Play all phases, let everything come to rest, and balance the books.

        Raises `Failed` when a part of the system ends by itself.
        """
        async with self._floor.at_work(), background.beside(self._watch()):
            self._ends_at = time.monotonic() + self._script.duration_s
            for phase in self._phases:
                await self._play(phase)
            self._view.say("the cameras have stopped; waiting for the last replies and records")
            self._floor.stop()
            if left := await self._floor.settle():
                self._view.say("not at rest: " + "; ".join(left))  # what it means, the books say
            return await self._floor.balance()

    async def _play(self, phase: Phase) -> None:
        ends_at = time.monotonic() + phase.seconds
        self._view.phase(phase)
        if phase.act is Act.BURST:
            await self._burst(min(BURST_S, phase.seconds / 2))
        elif phase.act is Act.CUT:
            self._whole.sites[self._remote].cut()
            self._floor.notebook.cut(self._remote, time.monotonic())
        elif phase.act is Act.DRAIN:
            self._floor.notebook.healed(self._remote)
            await self._whole.sites[self._remote].heal()
        await asyncio.sleep(max(0.0, ends_at - time.monotonic()))

    async def _burst(self, seconds: float) -> None:
        line = self._floor.lines[self._busy]
        pictures = await line.draw(self._script.burst or await self._burst_jobs())
        await line.burst(pictures, seconds)

    async def _burst_jobs(self) -> int:
        """More than the site can do in time, by the speed that its agent measured."""
        told = await self._whole.sites[self._busy].agent.ask("/status")
        speed = max((model["items_per_s"] for model in told["models"]), default=0.0) if told else 0.0
        return min(max(round(speed * BURST_WORK_S), BURST_JOBS.start), BURST_JOBS.stop)

    async def _watch(self) -> None:
        """Look at everything, show it, and make sure that all parts run."""
        while True:
            for part in self._whole.parts:
                if not part.running:
                    raise Failed(f"{part.name} has ended\n{tail(part.log)}")
            begun = time.monotonic()
            seen = await scene.look(self._whole, self._floor.notebook)
            self._view.show(seen, max(0.0, self._ends_at - time.monotonic()))
            await asyncio.sleep(max(0.0, begun + LOOK_EVERY_S - time.monotonic()))


def suspects(outcome: report.Report, whole: system.System) -> list[Path]:
    """The logs in which the reason for books that do not balance is likely to stand."""
    named = [
        one.log for place, one in whole.agents.items() if any(str(place) in why for why in outcome.problems)
    ]
    return named or [whole.hub.log]


def tail(log: Path) -> str:
    """The last lines of a log, and where it is."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL:] if log.exists() else []
    return "\n".join([f"the end of {log}:", *lines])

"""The rollouts whose new version this agent has left by itself, and why: kept for the next start as well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Final

from edge_agent.registry import lives, shelf

log: Final = logging.getLogger(__name__)

DISK_AGAIN_S: Final = 5.0


class Partings:
    """What this agent has gone back from. It counts at once; the disk has it as soon as that can be."""

    def __init__(self, notes: shelf.Shelf) -> None:
        self._notes = notes
        self._lives = lives.Lives(notes)
        self._reasons: dict[str, str] = {}
        self._unkept = asyncio.Event()
        """The disk has others."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """By rollout."""
        return self._reasons

    async def restore(self) -> None:
        """Read what was kept."""
        self._reasons = await asyncio.to_thread(self._notes.gone_back)

    async def begin(self, tried: Collection[str]) -> None:
        """Begin a life with these rollouts, and leave what may be the agent's death, again and again."""
        left = [rollout for rollout in tried if rollout not in self._reasons]
        back = await asyncio.to_thread(self._lives.begin, left)
        if back:
            log.error("back to the old version: %s", "; ".join(back.values()))
            self._reasons |= back
            await self._keep()

    def add(self, rollout: str, reason: str) -> None:
        """Leave the new version of a rollout, until the hub ends that."""
        self._reasons[rollout] = reason
        self._unkept.set()

    def keep_only(self, running: Collection[str]) -> None:
        """Forget the rollouts that have ended: all but these."""
        if self._reasons.keys() - running:
            self._reasons = {key: why for key, why in self._reasons.items() if key in running}
            self._unkept.set()

    async def run(self) -> None:
        """Keep them on the disk, and see that this life is a long one, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._remember(), name="registry: memory")
            group.create_task(self._live_on(), name="registry: alive")

    def stop(self) -> None:
        """The agent stops, which is no death. Blocks, for a moment."""
        self._lives.go_on()

    async def _remember(self) -> None:
        """A disk that fails is tried again."""
        while True:
            await self._unkept.wait()
            self._unkept.clear()
            if not await self._keep():
                await asyncio.sleep(DISK_AGAIN_S)

    async def _keep(self) -> bool:
        try:
            await asyncio.to_thread(self._notes.go_back, dict(self._reasons))
        except OSError as error:
            log.error("what this agent has gone back from is kept for the next start later: %s", error)
            self._unkept.set()
            return False
        return True

    async def _live_on(self) -> None:
        await asyncio.sleep(lives.ALIVE_S)
        await asyncio.to_thread(self._lives.go_on)

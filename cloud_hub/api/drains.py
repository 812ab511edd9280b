"""Drains with a limit: what an agent still runs when its time is up goes back into the queue.

That an agent drains is in the database and outlives every process; the limit is known to the hub that was
asked. If that hub ends before, the agent goes on draining and finishes what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from cloud_hub.api import context
from cloud_hub.store import agents, ends, pool, schedule
from shared import topics

log: Final = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
LOOKS: Final = 3
"""So often at least an agent is looked at: by then every hub's scheduler knows that it drains."""
_ALL: Final = 100
"""Above every priority that a lease can have."""
_MANY: Final = 10_000


class Drains:
    """The limits that this hub was told, and their ends."""

    def __init__(self, hub: context.Hub) -> None:
        self._hub = hub
        self._due: dict[topics.Agent, float] = {}
        """When, in monotonic seconds."""
        self._looked: dict[topics.Agent, int] = {}
        """How often, since the time was up."""
        self._changed = asyncio.Event()

    def limit(self, place: topics.Agent, within_s: float | None) -> None:
        """What the agent still runs in `within_s` is to stop; None: it may finish."""
        self._forget(place)
        if within_s is not None:
            self._due[place] = time.monotonic() + within_s
        self._changed.set()

    def _forget(self, place: topics.Agent) -> None:
        self._due.pop(place, None)
        self._looked.pop(place, None)

    async def run(self) -> None:
        """Stop what is due, until cancelled."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            for place in [place for place, due in self._due.items() if due <= now]:
                await self._end(place)
            soonest = min(self._due.values(), default=None)
            try:
                async with asyncio.timeout(None if soonest is None else soonest - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _end(self, place: topics.Agent) -> None:
        """Stop what it holds, again until it holds nothing: hubs may be late to know that it drains."""
        due = self._due[place]
        try:
            holds = await self._stop(place)
        except pool.UNAVAILABLE as error:
            log.warning("%s goes on running what it holds for now: %s", place, error)
            holds = True
        if self._due.get(place) != due:  # told otherwise meanwhile
            return
        self._due[place] = time.monotonic() + AGAIN_S
        looked = self._looked[place] = self._looked.get(place, 0) + 1
        if not holds and looked > LOOKS:
            self._forget(place)

    async def _stop(self, place: topics.Agent) -> bool:
        """Ask an agent, if it drains, to stop what it holds; whether it holds anything."""
        async with self._hub.connection() as connection:
            agent = await agents.find(connection, place)
            if agent is None or not agent.draining:
                return False
            held = await schedule.held(connection, _ALL, [agent.agent_id], _MANY)
            running = [(one.task_id, one.attempt) for one in held if not one.stopping]
            told = await schedule.stop(connection, running) if running else frozenset[int]()
        if running:
            log.info("%s is asked to stop %d tasks: its time to finish them is up", place, len(running))
            self._hub.tell(ends.Outcome(told=told))
        return bool(held)

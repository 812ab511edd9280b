"""What agents say of themselves, on its way to the store: presence, leases they work on, telemetry.

It waits here, the latest word of each agent, and is written for all of them together: so a statement that
takes long holds up nobody's messages, and what waits is bounded by the number of agents. A word that
PostgreSQL was not there for is written when it is back, unless a newer one came.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, TypeVar

from cloud_hub import hot, patience
from cloud_hub.store import agents, pool, schedule
from cloud_hub.store import lanes as lane_store
from shared import lanes, signals, tasks, topics

log: Final = logging.getLogger(__name__)

SOON_S: Final = 0.1
"""Between writing presence and renewals, and doing so again."""
SAVE_S: Final = 1.0
"""Likewise for telemetry, which nobody waits for."""

_T = TypeVar("_T")

_NONSENSE: Final[tuple[type[Exception], ...]] = (*pool.REFUSED, ValueError)


def renewals(told: signals.Telemetry) -> list[schedule.Renewal]:
    """What a heartbeat says of the leases that its agent holds. ValueError if one is of no task."""
    return [
        schedule.Renewal(tasks.parse_id(lease.task_id), lease.attempt, lease.progress)
        for lease in told.leases
    ]


class Reports:
    """The latest words of the agents that are not written yet."""

    def __init__(
        self, connections: pool.Pool, everywhere: hot.Hot, lease_ttl_s: float, counts: Counter[str]
    ) -> None:
        self._hot = everywhere
        self._lease_ttl_s = lease_ttl_s
        self._presence = _Batches("presence", connections, SOON_S, self._set_presence, counts)
        self._renewals = _Batches("renewals", connections, SOON_S, self._renew, counts)
        self._telemetry = _Batches("telemetry", connections, SAVE_S, self._save, counts)
        self._unshown: dict[topics.Agent, signals.Telemetry] = {}

    def presence(self, agent_id: int, presence: signals.Presence) -> None:
        """An agent came or went."""
        self._presence.put(agent_id, presence)

    def telemetry(
        self,
        agent: topics.Agent,
        agent_id: int,
        told: signals.Telemetry,
        renewals: list[schedule.Renewal],
    ) -> None:
        """An agent that this hub serves reports."""
        if renewals:
            self._renewals.put(agent_id, renewals)
        self._telemetry.put(agent_id, told)
        self._unshown[agent] = told

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._presence.run(), name="reports: presence")
            group.create_task(self._renewals.run(), name="reports: renewals")
            group.create_task(self._telemetry.run(), name="reports: telemetry")
            group.create_task(self._show(), name="reports: hot state")

    async def _set_presence(self, connection: pool.Connection, words: Mapping[int, signals.Presence]) -> None:
        for agent_id, word in words.items():
            await agents.set_presence(connection, agent_id, word.online, word.software)

    async def _renew(
        self, connection: pool.Connection, renewals: Mapping[int, list[schedule.Renewal]]
    ) -> None:
        for agent_id, its in renewals.items():
            await schedule.renew(connection, agent_id, its, self._lease_ttl_s)

    async def _save(self, connection: pool.Connection, reports: Mapping[int, signals.Telemetry]) -> None:
        await agents.save_telemetry(connection, reports)
        for agent_id, told in reports.items():
            if told.lanes:
                numbered = {lanes.Lane.parse(report.lane): report.numbered for report in told.lanes}
                await lane_store.report(connection, agent_id, numbered)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(SOON_S)
            unshown, self._unshown = self._unshown, {}
            if unshown:
                await self._hot.save_telemetry(
                    {agent: signals.encode(told) for agent, told in unshown.items()}
                )


class _Batches(Generic[_T]):
    """The latest word of each agent (by id), written by one task, many in one transaction."""

    def __init__(
        self,
        what: str,
        connections: pool.Pool,
        pause_s: float,
        write: Callable[[pool.Connection, Mapping[int, _T]], Awaitable[None]],
        counts: Counter[str],
    ) -> None:
        self._what = what
        self._connections = connections
        self._pause_s = pause_s
        self._write = write
        self._counts = counts
        self._waiting: dict[int, _T] = {}
        self._wake = asyncio.Event()

    def put(self, agent_id: int, word: _T) -> None:
        self._waiting[agent_id] = word
        self._wake.set()

    async def run(self) -> None:
        while True:
            patience.heed_cancellation()
            await self._wake.wait()
            self._wake.clear()
            words, self._waiting = self._waiting, {}
            try:
                await self._commit(words)
            except pool.UNAVAILABLE as error:
                log.warning("%s of %d agents not written yet: %s", self._what, len(words), error)
                self._waiting = words | self._waiting
                self._wake.set()
                await asyncio.sleep(SAVE_S)
            except _NONSENSE as error:
                if len(words) == 1:
                    self._drop(words, error)
                else:
                    await self._each(words)
            await asyncio.sleep(self._pause_s)

    async def _commit(self, words: Mapping[int, _T]) -> None:
        """In one order of agents for everybody, so that two transactions do not wait for each other."""
        async with (
            self._connections.connection() as connection,
            connection.transaction(),
            connection.pipeline(),
        ):
            await self._write(connection, dict(sorted(words.items())))

    async def _each(self, words: Mapping[int, _T]) -> None:
        """One of them was refused: write each alone, and drop that one."""
        for agent_id, word in words.items():
            try:
                await self._commit({agent_id: word})
            except pool.UNAVAILABLE as error:
                log.warning("%s of agent %d lost: %s", self._what, agent_id, error)
            except _NONSENSE as error:
                self._drop({agent_id: word}, error)

    def _drop(self, words: Mapping[int, _T], error: Exception) -> None:
        self._counts["unreadable"] += 1
        log.warning("%s of agent %d dropped: %s", self._what, *words, error)

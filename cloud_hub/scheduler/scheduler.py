"""The loop around the policy: gathers what is queued and who has room, applies what was decided."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

import psycopg_pool

from cloud_hub import fleet, news, settings
from cloud_hub.scheduler import policy
from cloud_hub.store import ends, pool, schedule
from shared import backoff

log: Final = logging.getLogger(__name__)


class Scheduler:
    """Places queued tasks on agents, a batch at a time, as soon as there are both."""

    def __init__(
        self,
        connections: psycopg_pool.AsyncConnectionPool[pool.Connection],
        members: fleet.Fleet,
        settings_: settings.Scheduler,
        lease_ttl_s: float,
    ) -> None:
        self._connections = connections
        self._fleet = members
        self._settings = settings_
        self._lease_ttl_s = lease_ttl_s
        self._wake = asyncio.Event()
        self.counts: Counter[str] = Counter()

    def wake(self) -> None:
        """Something was queued, or an agent has room."""
        self._wake.set()

    async def run(self, told: news.News) -> None:
        """Schedule until cancelled; `told` hears which agents have new leases."""
        pause = backoff.Backoff(base_s=0.05, cap_s=2.0)
        while True:
            try:
                full = await self._pass(told)
            except pool.UNAVAILABLE as error:
                log.warning("no pass: PostgreSQL is not available: %s", error)
                await asyncio.sleep(pause.next())
                continue
            if full:
                continue
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _pass(self, told: news.News) -> bool:
        """Place what can be placed; True if there may be more to place at once."""
        async with self._connections.connection() as connection:
            executors = self._fleet.executors(await schedule.outstanding(connection))
            models = {name for executor in executors if executor.credits for name, _ in executor.models}
            if not models:
                return False
            queued = await schedule.candidates(connection, self._settings.batch, models=models)
            placements = policy.place(
                [
                    policy.Candidate(
                        task_id=task.task_id,
                        model=task.model,
                        version=task.version,
                        priority=task.priority,
                        tag=task.tag,
                        items=task.items - task.items_done,
                        origin_agent=task.origin_agent,
                    )
                    for task in queued
                ],
                executors,
            )
            self.counts["passes"] += 1
            if not placements:
                return False
            async with connection.transaction():
                granted = await schedule.grant(
                    connection,
                    [schedule.Grant(one.task_id, one.agent_id, self._lease_ttl_s) for one in placements],
                )
        self.counts["granted"] += len(granted)
        told.tell(ends.Outcome(told=frozenset(one.agent_id for one in granted)))
        return len(placements) == self._settings.batch and bool(granted)

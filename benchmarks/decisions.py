"""Leases as fast as they come: the hub's own scheduler, leader and store; the agents are only said to be.

What a decision costs is all here: what is queued is read, placed, and committed as leases with their records
on the agents' lanes. Tells leases a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from benchmarks import noop, stock, worker
from cloud_hub import events, fleet, hot, leader, news, queues, settings
from cloud_hub.scheduler import scheduler
from cloud_hub.store import agents, pool
from shared import signals, topics

PATIENCE_S: Final = 120.0
SLOTS: Final = 256
"""Of each agent: what an agent offers by default."""


class _Elsewhere:
    """The lanes of a fleet that nobody serves."""

    def wake(self, agent_ids: Iterable[int]) -> frozenset[int]:
        return frozenset()

    def leased(self, numbers: Mapping[int, int]) -> frozenset[int]:
        return frozenset()


async def measure(dsn: str, redis: str, depth: int, count: int) -> float:
    """Leases a second, of `count` with so many tasks queued at the start."""
    everywhere = hot.Hot(redis, lambda word: None)
    policy = settings.Settings()
    async with pool.open_pool(dsn, min_size=4) as connections:
        limits = queues.Queues(connections, lambda: 1)
        members = fleet.Fleet(silent_after_s=PATIENCE_S)
        async with connections.connection() as connection:
            await stock.empty(connection)
            await stock.fill(connection, depth)
            for number in range(-(-count // SLOTS)):
                await _join(connection, members, topics.Agent(f"site-{number % 10}", f"edge-{number}"))
        placing = scheduler.Scheduler(connections, members, limits, policy.scheduler, lease_ttl_s=600.0)
        lead = leader.Leader(connections, everywhere, "benchmark", policy.leader, placing.lead)
        told = news.News(events.Events(), everywhere, _Elsewhere())
        leading = asyncio.create_task(lead.run(), name="leader")
        async with asyncio.timeout(PATIENCE_S):
            while not lead.leading:  # noqa: ASYNC110 - it says so to the scheduler alone
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            running = asyncio.create_task(placing.run(lead, told), name="scheduler")
            while placing.counts["granted"] < count:  # noqa: ASYNC110 - it counts, and tells nobody
                await asyncio.sleep(0.001)
            per_s = placing.counts["granted"] / (time.perf_counter() - began)
        for task in (running, leading):
            task.cancel()
            await asyncio.wait([task])
    return per_s


async def _join(connection: pool.Connection, members: fleet.Fleet, agent: topics.Agent) -> None:
    seen = await agents.seen(connection, agent, epoch=1)
    report = signals.ModelReport(name=noop.MODEL, version="1", provider="cpu", items_per_s=1000.0)
    member = fleet.Member(seen.agent_id, agent, epoch=1, online=True, heard=time.monotonic())
    members.join(member)
    members.heard(member, signals.Telemetry(epoch=1, sequence=1, capacity=SLOTS, models=[report]))


async def _main(given: dict[str, Any]) -> None:
    worker.tell({"told": await measure(given["dsn"], given["redis"], given["depth"], given["count"])})


if __name__ == "__main__":
    asyncio.run(_main(worker.arguments()))

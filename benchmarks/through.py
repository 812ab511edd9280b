"""Tasks through Backhaul: in over REST, to an agent, and back with their results into PostgreSQL.

The hub, the agent and the broker between them are real. A task is durable in PostgreSQL, then in the agent's
journal, then with its result in PostgreSQL again: where another queue has one process and one store,
Backhaul has two, a link, and goes on when that is cut.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks import meters, programs, worker
from benchmarks.queues import stores, way
from cloud_hub.store import migrate
from demo import program, servers

BATCH: Final = 500
"""Tasks of a request."""
SLOTS: Final = 4096
"""Tasks that the agent may hold: work for half a second of it."""
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.01

_COMMITTED: Final = "SELECT coalesce(sum(committed), 0)::bigint FROM up_lanes WHERE lane LIKE 'results%'"
"""Two records a task: its result row, and the word that it is done."""
_UNDONE: Final = """
    SELECT count(*) FROM tasks t
    WHERE state <> 'COMPLETED' OR NOT EXISTS (SELECT FROM results r WHERE r.task_id = t.task_id)
"""


class Through:
    """One hub, one agent."""

    name = "backhaul"
    title = "Backhaul: REST, hub, MQTT, agent"
    count = 20_000

    def __init__(self, place: way.Place) -> None:
        self._place = place
        self._database = stores.Database(place)

    async def measure(self, count: int) -> way.Run:
        with tempfile.TemporaryDirectory(dir=self._place.directory) as folder:
            home = Path(folder)
            async with servers.Mosquitto(home / "broker") as broker, self._database.empty() as dsn:
                await migrate.migrate(dsn)
                started = programs.Programs(home, broker, self._place.valkey)
                async with started.hub(dsn) as hub:
                    submitted_per_s = await self._submit(hub, count)
                    await self._database.settle()
                    async with started.agent(leases={"slots": SLOTS}) as agent:
                        pids = [hub.pid, agent.pid, broker.pid, self._database.pid]
                        tasks_per_s, cpu_s = await _drain(dsn, count, pids)
        return way.Run(submitted_per_s, tasks_per_s, cpu_s)

    async def _submit(self, hub: program.Program, count: int) -> float:
        size = min(BATCH, count)
        given = {"role": "batched", "port": hub.port, "size": size, "count": count // size}
        async with worker.Worker("benchmarks.rest", given) as clients:
            return size * float((await clients.hear())["told"])


async def _drain(dsn: str, count: int, pids: list[int]) -> tuple[float, float]:
    """Tasks a second from the first that is seen to be completed to the last; CPU seconds for 1,000."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as database:
        began, meter = time.perf_counter(), [meters.Cpu(pid) for pid in pids]
        first = await _until(database, 1)
        if first < 2 * count:
            began, meter = time.perf_counter(), [meters.Cpu(pid) for pid in pids]
        else:  # so few that all were done at the first look
            first = 0
        await _until(database, 2 * count)
        took = time.perf_counter() - began
        cpu_s = sum(one.seconds() for one in meter)
        done = count - first / 2
        undone = (await _one(database, _UNDONE))[0]
        assert not undone, f"{undone} tasks of {count} are not done"
    return done / took, 1000 * cpu_s / done


async def _until(database: psycopg.AsyncConnection[Any], records: int) -> int:
    """Wait until so many records are committed; returns how many there are."""
    async with asyncio.timeout(PATIENCE_S):
        while (committed := (await _one(database, _COMMITTED))[0]) < records:  # noqa: ASYNC110 - another's
            await asyncio.sleep(POLL_S)
    return int(committed)


async def _one(database: psycopg.AsyncConnection[Any], query: str) -> tuple[Any, ...]:
    row = await (await database.execute(query.encode())).fetchone()
    assert row is not None
    return tuple(row)

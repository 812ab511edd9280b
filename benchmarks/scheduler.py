"""The hub's queue: tasks in over REST, decisions, and the time from a request to the lease at the agent.

The hub and the agent are the real programs, on a real PostgreSQL, Redis and Mosquitto. Tasks have 2 KB and
cost nothing to run. In turn with them:

    COPY            the same tasks from memory into one plain table with the same key and the queue's index,
                    as many a transaction as a batch has: what this PostgreSQL takes

From request to lease: 500 requests a second, come what may; the clock runs from the instant at which a
request is due to the sight of its lease on its way to the agent, with the task's payload. What is queued
beside them waits for agents that are not there, in four queues and of all priorities.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks import figures, plain_copy, programs, stock, worker
from cloud_hub.store import migrate, pool
from demo import program, servers

BATCH: Final = 500
RATE_PER_S: Final = 500.0
ELSEWHERE: Final = "site=elsewhere"


@dataclass(frozen=True)
class Sizes:
    """Tasks of each measurement, and queued beside it."""

    single: int = 10_000
    batches: int = 100
    decisions: int = 25_600
    leases: int = 5_000
    warm: int = 1_000
    shallow: int = 10_000
    deep: int = 1_000_000


QUICK: Final = Sizes(single=100, batches=2, decisions=256, leases=50, warm=10, shallow=300, deep=1_000)


@dataclass
class Run:
    """One round: tasks a second, and ascending milliseconds."""

    copy: float
    single: float
    batched: float
    decisions: float
    decisions_deep: float
    shallow_ms: list[float]
    deep_ms: list[float]


class Bench:
    """The servers, and what is measured on them."""

    def __init__(
        self,
        directory: Path,
        sizes: Sizes,
        postgres: servers.Postgres,
        broker: servers.Mosquitto,
        redis: servers.Valkey,
    ) -> None:
        self._sizes = sizes
        self._postgres = postgres
        self._broker = broker
        self._redis = redis
        self._programs = programs.Programs(directory, broker, redis)

    async def prepare(self) -> None:
        await migrate.migrate(self._postgres.dsn)

    async def round(self) -> Run:
        """Each measurement once."""
        return Run(
            copy=await self.copy(),
            single=await self.single(),
            batched=await self.batched(),
            decisions=await self.decisions(4 * self._sizes.decisions),
            decisions_deep=await self.decisions(self._sizes.deep),
            shallow_ms=await self.lease_ms(self._sizes.shallow),
            deep_ms=await self.lease_ms(self._sizes.deep),
        )

    async def copy(self) -> float:
        """Tasks a second by plain COPY: the ceiling."""
        return await plain_copy.measure(self._postgres.dsn, self._sizes.batches, BATCH)

    async def single(self) -> float:
        """Tasks a second, each a request of its own, all of them committed when they are answered."""
        async with self._hub() as hub:
            return float(await self._rest("single", hub, count=self._sizes.single))

    async def batched(self) -> float:
        """Tasks a second, `BATCH` a request."""
        async with self._hub() as hub:
            return BATCH * float(await self._rest("batched", hub, count=self._sizes.batches, size=BATCH))

    async def decisions(self, depth: int) -> float:
        """Leases a second with so many tasks queued."""
        given = {"dsn": self._postgres.dsn, "redis": self._redis.url, "depth": depth}
        return float(await _told("benchmarks.decisions", given | {"count": self._sizes.decisions}))

    async def lease_ms(self, depth: int) -> list[float]:
        """Milliseconds from request to lease, with so many tasks queued beside."""
        async with self._hub(depth) as hub, self._programs.agent():
            told = await self._rest(
                "trickle",
                hub,
                broker=self._broker.port,
                agent=programs.AGENT,
                rate_per_s=RATE_PER_S,
                count=self._sizes.leases,
                warm=self._sizes.warm,
            )
        return sorted(told)

    async def _rest(self, role: str, hub: program.Program, **more: Any) -> Any:
        return await _told("benchmarks.rest", {"role": role, "port": hub.port, **more})

    @contextlib.asynccontextmanager
    async def _hub(self, depth: int = 0) -> AsyncIterator[program.Program]:
        """A hub with so many tasks queued."""
        async with await pool.connect(self._postgres.dsn) as connection:
            await stock.empty(connection)
            await stock.fill(connection, depth, ELSEWHERE)
        async with await psycopg.AsyncConnection.connect(self._postgres.dsn, autocommit=True) as connection:
            await connection.execute("CHECKPOINT")  # of the filling: it is not what is measured
        async with self._programs.hub(self._postgres.dsn) as hub:
            yield hub


async def _told(module: str, given: dict[str, Any]) -> Any:
    async with worker.Worker(module, given) as child:
        return (await child.hear())["told"]


async def measure(options: figures.Options) -> dict[str, float | int]:
    """Run all in turn, print the tables, return the figures."""
    sizes = QUICK if options.quick else Sizes()
    with tempfile.TemporaryDirectory(prefix="backhaul-scheduler-") as folder:
        directory = Path(folder)
        async with (
            servers.Postgres(directory / "postgres") as postgres,
            servers.Mosquitto(directory / "broker") as broker,
            servers.Valkey(directory / "redis") as redis,
        ):
            bench = Bench(directory, sizes, postgres, broker, redis)
            await bench.prepare()
            runs = [await bench.round() for _ in range(options.rounds)]
    return _report(runs, sizes)


def _report(runs: Sequence[Run], sizes: Sizes) -> dict[str, float | int]:
    copy, single, batched, decisions, decisions_deep = (
        figures.median(getattr(run, name) for run in runs)
        for name in ("copy", "single", "batched", "decisions", "decisions_deep")
    )
    shallow, deep = (
        [figures.median(figures.quantile(one, share) for one in milliseconds) for share in (0.5, 0.99)]
        for milliseconds in ([run.shallow_ms for run in runs], [run.deep_ms for run in runs])
    )
    figures.show(
        "Tasks of 2 KB into the queue, and out of it",
        ("what", "tasks/s", "of COPY"),
        [
            ("COPY, 500 a transaction", f"{copy:,.0f}", "1.00"),
            ("REST, one a request", f"{single:,.0f}", f"{single / copy:.2f}"),
            ("REST, 500 a request", f"{batched:,.0f}", f"{batched / copy:.2f}"),
            (f"leases, {sizes.decisions * 4:,} queued", f"{decisions:,.0f}", f"{decisions / copy:.2f}"),
            (f"leases, {sizes.deep:,} queued", f"{decisions_deep:,.0f}", f"{decisions_deep / copy:.2f}"),
        ],
        ("Medians. Each answered task is committed; each lease is committed with its record for the agent.",),
    )
    figures.show(
        f"From a request to its lease on the way to the agent, {RATE_PER_S:,.0f} requests a second",
        ("queued beside", "p50 ms", "p99 ms"),
        [
            (f"{sizes.shallow:,}", *(f"{value:.1f}" for value in shallow)),
            (f"{sizes.deep:,}", *(f"{value:.1f}" for value in deep)),
            ("penalty of depth", *(f"{b / a:.2f} x" for a, b in zip(shallow, deep, strict=True))),
        ],
        ("Medians of the rounds' percentiles.",),
    )
    return {
        "submit_single_per_s": round(single),
        "submit_batched_per_s": round(batched),
        "submit_batched_ratio_to_copy": figures.significant(batched / copy),
        "decisions_per_s": round(decisions),
        "decisions_deep_per_s": round(decisions_deep),
        "lease_p50_ms": figures.significant(shallow[0]),
        "lease_p99_ms": figures.significant(shallow[1]),
        "lease_deep_p50_ms": figures.significant(deep[0]),
        "lease_deep_p99_ms": figures.significant(deep[1]),
        "depth_penalty": figures.significant(deep[0] / shallow[0]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options("scheduler", "tasks into the hub's queue, and leases out of it", argv)
    figures.save(options.json, "scheduler", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

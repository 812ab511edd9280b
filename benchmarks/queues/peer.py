"""A task queue that is not ours, measured: two processes of its own library, and a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from typing import Final

from benchmarks import meters, worker
from benchmarks.queues import stores, way


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A task queue, as it was set up."""

    name: str
    words: str
    """For the table; {} stands for the version."""
    count: int
    """How many tasks take it seconds."""
    store: Callable[[way.Place], stores.Store]
    module: str
    """The module with its processes; see `child`."""
    needs: tuple[str, ...] = ()
    """The packages it imports that Backhaul does not need; the first is the queue itself."""

    @property
    def installed(self) -> bool:
        return all(util.find_spec(package) is not None for package in self.needs)

    @property
    def title(self) -> str:
        return self.words.format(*(metadata.version(package) for package in self.needs[:1]))


KINDS: Final = (
    Kind(
        name="plain_sql",
        words="plain SQL, batches of 100",
        count=40_000,
        store=stores.Database,
        module="benchmarks.queues.plain_sql",
    ),
    Kind(
        name="pgqueuer",
        words="pgqueuer {}, batches of 100",
        count=30_000,
        store=stores.Database,
        module="benchmarks.queues.pgqueuer_way",
        needs=("pgqueuer", "asyncpg", "uvloop"),
    ),
    Kind(
        name="taskiq",
        words="taskiq {}, Redis streams",
        count=6_000,
        store=stores.Hot,
        module="benchmarks.queues.taskiq_way",
        needs=("taskiq", "taskiq_redis", "uvloop"),
    ),
    Kind(
        name="celery",
        words="Celery {}, Redis, prefork",
        count=4_000,
        store=stores.Hot,
        module="benchmarks.queues.celery_way",
        needs=("celery",),
    ),
    Kind(
        name="procrastinate",
        words="procrastinate {}, ten at once",
        count=3_000,
        store=stores.Database,
        module="benchmarks.queues.procrastinate_way",
        needs=("procrastinate",),
    ),
)


class Peer:
    """One of `KINDS` at a place: a `way.Way`."""

    def __init__(self, kind: Kind, place: way.Place) -> None:
        self.name = kind.name
        self.title = kind.title
        self.count = kind.count
        self._module = kind.module
        self._store = kind.store(place)

    async def measure(self, count: int) -> way.Run:
        """Raises AssertionError unless the store says that all tasks are done."""
        async with self._store.empty() as address:
            given = {"address": address, "count": count}
            async with worker.Worker(self._module, {"role": "queue", **given}) as queue:
                await queue.hear()
                queue.say({"go": True})
                submitted = await queue.hear()
                await self._store.settle()
                async with worker.Worker(self._module, {"role": "work", **given}) as drain:
                    await drain.hear()
                    meter = (meters.Cpu(drain.pid), meters.Cpu(self._store.pid))
                    drained = await drain.hear()
                    cpu_s = sum(one.seconds() for one in meter)
                    queue.say({"look": True})
                    left = (await queue.hear())["left"]
        assert left == 0, f"{self.name}: {left} of {count} tasks are not done"
        return way.Run(
            submitted_per_s=submitted["submitted_per_s"],
            tasks_per_s=drained["tasks_per_s"],
            cpu_s=cpu_s / count * 1000,
        )

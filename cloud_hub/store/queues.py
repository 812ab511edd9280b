"""Queues: the fair-share classes of tasks, their weights and limits, what waits in them, who is shed.

A queue begins with its first task and needs no row; one without a row has weight 1 and no limits. What
waits is the sum of counters (`classes`), so that nothing here counts tasks.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from cloud_hub.store import ends, pool, sql, verdicts

ADMISSION: Final = 2
"""The class of advisory locks by which those who admit to one queue wait for each other (outgoing.PLACES)."""

_SQL: Final = sql.load("queues")


class WhenFull(enum.StrEnum):
    """What happens to a task that comes to a queue in which as many wait as may."""

    REJECT = "reject"
    """It is refused."""
    DROP_LOWEST = "drop_lowest"
    """The lowest in the queue gives way, of these the youngest; the new one is refused if it is that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue's settings; None: no limit."""

    name: str
    weight: float = 1.0
    """Its share against the other queues' weights, among tasks of one priority."""
    max_running: int | None = None
    max_queued: int | None = None
    max_per_second: float | None = None
    """Of tasks that clients submit."""
    default_priority: int | None = None
    """Of a task that names none; None: 5."""
    when_full: WhenFull = WhenFull.REJECT
    updated_at: datetime | None = None
    """None: it has no row."""


class Depth(NamedTuple):
    """How many tasks of a queue and priority wait."""

    queued: int
    sheddable: int
    """Of these, submitted to the hub: an agent that hands a task over has promised it to a device."""


Depths: TypeAlias = Mapping[str, Mapping[int, Depth]]
"""By queue and priority; what is not there is empty."""


@dataclass(slots=True)
class Waiting:
    """What waits in a queue."""

    by_priority: dict[int, int] = field(default_factory=dict)
    oldest_s: float = 0.0
    """How long the one that waits longest has done so."""


async def all_of_them(connection: pool.Connection) -> dict[str, Queue]:
    """The queues that have settings, by name."""
    return {queue.name: queue for queue in await _list(connection, None)}


async def find(connection: pool.Connection, name: str) -> Queue | None:
    """The settings of one queue; None if it has none."""
    return next(iter(await _list(connection, name)), None)


async def _list(connection: pool.Connection, name: str | None) -> list[Queue]:
    cursor = await connection.execute(_SQL["list"], {"name": name})
    return [
        Queue(
            name=found,
            weight=weight,
            max_running=max_running,
            max_queued=max_queued,
            max_per_second=max_per_second,
            default_priority=default_priority,
            when_full=WhenFull(when_full),
            updated_at=updated_at,
        )
        for (
            found,
            weight,
            max_running,
            max_queued,
            max_per_second,
            default_priority,
            when_full,
            updated_at,
        ) in await cursor.fetchall()
    ]


async def put(connection: pool.Connection, queue: Queue) -> None:
    """Give a queue these settings, all of them."""
    await connection.execute(
        _SQL["put"],
        {
            "name": queue.name,
            "weight": queue.weight,
            "max_running": queue.max_running,
            "max_queued": queue.max_queued,
            "max_per_second": queue.max_per_second,
            "default_priority": queue.default_priority,
            "when_full": queue.when_full.value,
        },
    )


async def remove(connection: pool.Connection, name: str) -> bool:
    """Forget a queue's settings, not its tasks; False if it had none."""
    return (await connection.execute(_SQL["remove"], {"name": name})).rowcount > 0


async def waiting(connection: pool.Connection) -> dict[str, Waiting]:
    """What waits in each queue; those after a failed attempt not counted."""
    found: dict[str, Waiting] = {}
    for name, priority, queued, oldest_s in await (await connection.execute(_SQL["heads"])).fetchall():
        one = found.setdefault(name, Waiting())
        one.by_priority[priority] = queued
        one.oldest_s = max(one.oldest_s, oldest_s or 0.0)
    return found


async def room(
    connection: pool.Connection, names: Collection[str], keys: Collection[str]
) -> tuple[Depths, frozenset[str]]:
    """What waits in some queues, and which of some idempotency keys are known; one round trip."""
    depths: dict[str, dict[int, Depth]] = {}
    known: frozenset[str] = frozenset()
    async with connection.pipeline():
        await connection.execute(_SQL["hold"], {"class": ADMISSION, "queues": list(names)})
        deep = await connection.execute(_SQL["depths"], {"queues": list(names)})
        if keys:
            keyed = await connection.execute(_SQL["known_keys"], {"keys": list(keys)})
            known = frozenset(key for (key,) in await keyed.fetchall())
        for name, priority, queued, sheddable in await deep.fetchall():
            depths.setdefault(name, {})[priority] = Depth(queued, sheddable)
    return depths, known


async def shed(
    connection: pool.Connection, wanted: Sequence[tuple[str, int, int]]
) -> tuple[ends.Outcome, Counter[str]]:
    """End the youngest waiting tasks of queues and priorities, (queue, priority, how many).

    Returns what that did, and how many were shed by queue: fewer than wanted where the scheduler has just
    placed some of them, which makes room as well.
    """
    cursor = await connection.execute(
        _SQL["youngest"],
        {
            "queues": [name for name, _, _ in wanted],
            "priorities": [priority for _, priority, _ in wanted],
            "counts": [count for _, _, count in wanted],
        },
    )
    chosen: dict[bytes, str] = dict(await cursor.fetchall())
    standings = await ends.lock(connection, chosen)
    changes = [change for one in standings.values() if (change := verdicts.shed(one)) is not None]
    outcome = await ends.settle(connection, changes)
    return outcome, Counter(chosen[change.standing.task_id] for change in changes)

"""What the store knows of why a task waits, and of why it went where it went."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloud_hub.store import ids, pool, sql

_SQL: Final = sql.load("explain")

MOST: Final = 10_000
"""So many tasks before one are counted."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A queued task, as far as its wait goes."""

    class_id: int
    model: str
    version: str | None
    queue: str
    selector: str
    origin_agent: int | None
    priority: int
    items: int
    """Left to run."""
    waited_s: float
    backs_off_s: float | None
    """How long it still waits after a failed attempt."""


@dataclass(frozen=True, slots=True)
class Before:
    """How many tasks wait for the same model before one."""

    higher: int
    """Of higher priorities."""
    same: int
    """Of its own class and priority and older, at most MOST + 1."""
    beside: int
    """Of its priority in other classes: queues take turns with these, by their weights."""
    mean_items: float
    """Of a task of its class."""


class Decision(NamedTuple):
    """What was noted when an attempt was granted."""

    attempt: int
    why: str | None
    """JSON, by the scheduler."""
    stopping: bool
    """It runs, and was asked to make room."""


async def standing(connection: pool.Connection, task_id: bytes) -> Standing | None:
    """How a task waits; None if it does not."""
    cursor = await connection.execute(_SQL["standing"], {"task_id": ids.Id(task_id)})
    row = await cursor.fetchone()
    return None if row is None else Standing(*row)


async def before(connection: pool.Connection, task_id: bytes, stands: Standing) -> Before:
    """What waits before a task. Depths are sums of counters; its place is counted on the index alone."""
    place = {
        "task_id": ids.Id(task_id),
        "class_id": stands.class_id,
        "model": stands.model,
        "priority": stands.priority,
        "limit": MOST + 1,
    }
    depths = await (await connection.execute(_SQL["depths"], place)).fetchall()
    counted = await (await connection.execute(_SQL["before"], place)).fetchone()
    size = await (await connection.execute(_SQL["size"], place)).fetchone()
    return Before(
        higher=sum(queued for _, priority, queued in depths if priority > stands.priority),
        same=counted[0] if counted else 0,
        beside=sum(queued for own, priority, queued in depths if priority == stands.priority and not own),
        mean_items=(size[0] if size else None) or float(stands.items),
    )


async def decisions(connection: pool.Connection, task_id: bytes) -> dict[int, Decision]:
    """What was noted of each attempt that the hub granted, by its number."""
    cursor = await connection.execute(_SQL["decisions"], {"task_id": ids.Id(task_id)})
    return {row[0]: Decision(*row) for row in await cursor.fetchall()}


async def names(connection: pool.Connection, agent_ids: Collection[int]) -> dict[int, str]:
    """SITE/NAME of agents by id."""
    if not agent_ids:
        return {}
    cursor = await connection.execute(_SQL["names"], {"agent_ids": list(agent_ids)})
    return dict(await cursor.fetchall())

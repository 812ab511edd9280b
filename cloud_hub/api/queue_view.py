"""Queues as the API and the dashboard show them: settings, what waits, what runs, what comes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from cloud_hub.api import context
from cloud_hub.store import pool, schedule
from cloud_hub.store import queues as queue_store

MAX_RUNNING = 2**31 - 1
MAX_QUEUED = 2**63 - 1


class Settings(BaseModel):
    """A queue's weight and limits; what is not said is as if the queue had no settings."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    weight: float = Field(
        1.0,
        ge=0.001,
        le=1e6,
        description="Its share against the other queues' weights, among tasks of one priority",
        examples=[3.0],
    )
    max_running: int | None = Field(
        None, ge=0, le=MAX_RUNNING, description="Tasks that may run at one time; null: no limit", examples=[8]
    )
    max_queued: int | None = Field(
        None, ge=0, le=MAX_QUEUED, description="Tasks that may wait; null: no limit", examples=[100_000]
    )
    max_per_second: float | None = Field(
        None, gt=0, le=1e9, description="Tasks taken from clients a second; null: no limit", examples=[50.0]
    )
    default_priority: int | None = Field(
        None, ge=0, le=9, description="Of tasks that name none; null: 5", examples=[2]
    )
    when_full: queue_store.WhenFull = Field(
        queue_store.WhenFull.REJECT,
        description="A task that comes to a full queue is refused, or the lowest one in it gives way",
        examples=[queue_store.WhenFull.DROP_LOWEST],
    )


class Queue(Settings):
    """A queue: its settings, and what is in it."""

    name: str = Field(description="The queue", examples=["archive"])
    updated_at: datetime | None = Field(description="When its settings were changed; null: it has none")
    queued: int = Field(
        description="Tasks that wait; those after a failed attempt not counted", examples=[17]
    )
    by_priority: dict[int, int] = Field(
        description="Of these, by priority, the highest first", examples=[{7: 2, 5: 15}]
    )
    oldest_s: float = Field(description="How long the first of them has waited", examples=[4.2])
    running: int = Field(description="Tasks that run", examples=[6])
    submitted_per_s: float = Field(
        description="Tasks that clients submitted to this hub per second, lately", examples=[12.5]
    )


async def read(hub: context.Hub, connection: pool.Connection) -> list[Queue]:
    """Every queue that has settings or something in it, by name."""
    settings = await queue_store.all_of_them(connection)
    waiting = await queue_store.waiting(connection)
    running = await schedule.running(connection)
    rates = hub.queues.rates()
    names = sorted({*settings, *waiting, *running, *rates})
    return [_queue(name, settings, waiting, running, rates) for name in names]


async def one(hub: context.Hub, connection: pool.Connection, name: str) -> Queue:
    """One queue, be there anything of it or not."""
    found = await queue_store.find(connection, name)
    return _queue(
        name,
        {name: found} if found else {},
        await queue_store.waiting(connection),
        await schedule.running(connection),
        hub.queues.rates(),
    )


def _queue(
    name: str,
    settings: Mapping[str, queue_store.Queue],
    waiting: Mapping[str, queue_store.Waiting],
    running: Mapping[str, int],
    rates: Mapping[str, float],
) -> Queue:
    found = settings.get(name) or queue_store.Queue(name=name)
    waits = waiting.get(name) or queue_store.Waiting()
    return Queue.model_construct(
        name=name,
        weight=found.weight,
        max_running=found.max_running,
        max_queued=found.max_queued,
        max_per_second=found.max_per_second,
        default_priority=found.default_priority,
        when_full=found.when_full,
        updated_at=found.updated_at,
        queued=sum(waits.by_priority.values()),
        by_priority=dict(sorted(waits.by_priority.items(), reverse=True)),
        oldest_s=round(max(0.0, waits.oldest_s), 3),
        running=running.get(name, 0),
        submitted_per_s=round(rates.get(name, 0.0), 2),
    )

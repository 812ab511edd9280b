"""Queued tasks, grants, leases and their loss."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloud_hub.store import ends, ids, outgoing, pool, sql, verdicts
from shared import wire

_SQL: Final = sql.load("schedule")


@dataclass(frozen=True, slots=True)
class Queued:
    """A queued task, as the scheduler's policy sees it."""

    task_id: bytes
    model: str
    version: str | None
    priority: int
    queue: str
    tag: float
    items: int
    items_done: int
    attempt: int
    origin_agent: int | None
    payload_bytes: int
    waited_s: float
    """Since it was submitted."""
    deadline_s: float | None
    """What is left of it."""


class Grant(NamedTuple):
    """A wish: this task to this agent, for a time."""

    task_id: bytes
    agent_id: int
    ttl_s: float


class Granted(NamedTuple):
    """A lease that was made of a wish."""

    task_id: bytes
    agent_id: int
    attempt: int


class Renewal(NamedTuple):
    """What an agent says of a lease that it holds."""

    task_id: bytes
    attempt: int
    progress: int


async def candidates(
    connection: pool.Connection,
    limit_per_model: int,
    *,
    models: Collection[str] | None = None,
    closed_queues: Collection[str] = (),
) -> list[Queued]:
    """The first queued tasks of each model (or of `models`), in the order in which they should run.

    Costs the same at any depth of the queue. Tasks of `closed_queues` are passed over.
    """
    await connection.execute(_SQL["ripen"])
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(
            _SQL["candidates"],
            {
                "limit": limit_per_model,
                "models": None if models is None else list(models),
                "closed_queues": list(closed_queues),
            },
        )
        return [Queued(*row) for row in await cursor.fetchall()]


async def grant(connection: pool.Connection, grants: Sequence[Grant]) -> list[Granted]:
    """Lease tasks to agents: QUEUED becomes PROCESSING, and a record goes on the agent's lane of leases.

    A task that is no longer queued, or that somebody else is just granting, is left out.
    """
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(
            _SQL["grant"],
            {
                "task_ids": ids.array(grant.task_id for grant in grants),
                "agent_ids": [grant.agent_id for grant in grants],
                "ttls": [grant.ttl_s for grant in grants],
            },
        )
        granted = [Granted(*row) for row in await cursor.fetchall()]
    await outgoing.append(
        connection,
        [
            outgoing.Record(
                lease.agent_id, outgoing.LEASES, wire.LEASES, task_id=lease.task_id, attempt=lease.attempt
            )
            for lease in granted
        ],
    )
    return granted


async def renew(connection: pool.Connection, agent_id: int, renewals: Sequence[Renewal], ttl_s: float) -> int:
    """Extend the leases whose progress moved; returns how many."""
    if not renewals:
        return 0
    cursor = await connection.execute(
        _SQL["renew"],
        {
            "agent_id": agent_id,
            "ttl_s": ttl_s,
            "task_ids": ids.array(renewal.task_id for renewal in renewals),
            "attempts": [renewal.attempt for renewal in renewals],
            "progress": [renewal.progress for renewal in renewals],
        },
    )
    return cursor.rowcount


async def expire(connection: pool.Connection, limit: int = 1000) -> ends.Outcome:
    """Take back leases that ran out: their tasks are queued again, or end if that was their last attempt."""
    cursor = await connection.execute(_SQL["lost"], {"limit": limit})
    standings = await ends.lock(connection, [task_id for (task_id,) in await cursor.fetchall()])
    return await ends.settle(connection, [verdicts.lost(standing) for standing in standings.values()])


async def expire_deadlines(connection: pool.Connection, limit: int = 1000) -> ends.Outcome:
    """End queued tasks whose deadline has passed. Of a running one its agent judges, or the lease's end."""
    cursor = await connection.execute(_SQL["overdue"], {"limit": limit})
    standings = await ends.lock(connection, [task_id for (task_id,) in await cursor.fetchall()])
    changes = [verdicts.expired(standing) for standing in standings.values()]
    return await ends.settle(connection, [change for change in changes if change is not None])


async def outstanding(connection: pool.Connection) -> dict[int, int]:
    """How many leases each agent (id) holds."""
    return dict(await (await connection.execute(_SQL["outstanding"])).fetchall())


async def tags(connection: pool.Connection) -> dict[str, float]:
    """The highest fair-share tag given in each queue, among tasks that have not ended.

    Looks through all of them: for a scheduler that starts.
    """
    return dict(await (await connection.execute(_SQL["tags"])).fetchall())

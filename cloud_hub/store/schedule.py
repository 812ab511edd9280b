"""Queued tasks, grants, leases and their loss."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from cloud_hub.scheduler import snapshot
from cloud_hub.store import arrays, classes, ends, leadership, outgoing, pool, sql, verdicts
from shared import tasks, wire

_SQL: Final = sql.load("schedule")


class Grant(NamedTuple):
    """A wish: this task to this agent, for a time."""

    task_id: bytes
    agent_id: int
    ttl_s: float
    priority: int = 0
    """The effective one, by which it came to its turn."""
    why: str | None = None
    """JSON: what the decision weighed, for whoever asks later."""


class Granted(NamedTuple):
    """A lease that was made of a wish."""

    task_id: bytes
    agent_id: int
    attempt: int
    number: int
    """Of its record on the agent's lane of leases."""


class Renewal(NamedTuple):
    """What an agent says of a lease that it holds."""

    task_id: bytes
    attempt: int
    progress: int


async def ripen(connection: pool.Connection) -> None:
    """Failed tasks that have waited long enough may be granted again."""
    await connection.execute(_SQL["ripen"])


async def heads(
    connection: pool.Connection,
    rows: int,
    known: classes.Known,
    *,
    passed_over: Collection[int] = (),
    without_room: Collection[int] = (),
    few: int = 0,
    rules: snapshot.Rules | None = None,
) -> list[snapshot.Head]:
    """The first waiting tasks of each class and priority, about `rows` in all, most of them the most urgent.

    Costs the same at any depth of the queue. Classes (ids) in `passed_over` are left out; of those
    `without_room`, which take nothing from the `rows`, `few` tasks of each are read.
    """
    rules = rules or snapshot.Rules()
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(
            _SQL["heads"],
            {
                "rows": rows,
                "few": few,
                "passed_over": list(passed_over),
                "without_room": list(without_room),
                "aging_s": rules.aging_s,
                "aging_cap": rules.aging_cap,
            },
        )
        found = await cursor.fetchall()
    await known.learn(connection, {row[0] for row in found})
    heads = []
    for (class_id, priority, queued), rows_ in itertools.groupby(found, key=operator.itemgetter(0, 1, 2)):
        kind = known[class_id]
        version, origin = kind.version or None, kind.origin_agent or None
        its = [
            snapshot.Task(
                task_id,
                class_id,
                kind.model,
                version,
                kind.queue,
                kind.selector,
                priority,
                items,
                payload_bytes,
                waited_s,
                origin,
                kind.home,
            )
            for _, _, _, task_id, items, payload_bytes, waited_s in rows_
        ]
        heads.append(snapshot.Head(class_id, priority, queued, its))
    return heads


async def grant(
    connection: pool.Connection, token: int, grants: Sequence[Grant], fair: str | None = None
) -> list[Granted]:
    """Lease tasks to agents: QUEUED becomes PROCESSING, and a record goes on the agent's lane of leases.

    A task that is no longer queued, or that somebody else is just granting, is left out. In the order of
    `grants`. With them the clocks `fair` are kept. Raises leadership.Deposed if `token` is not the newest.
    """
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(
            _SQL["grant"],
            {
                "token": token,
                "fair": fair,
                "lane": str(outgoing.LEASES),
                "kind": wire.LEASES.name,
                "task_ids": arrays.ids(grant.task_id for grant in grants),
                "agent_ids": arrays.numbers(grant.agent_id for grant in grants),
                "ttls": arrays.numbers(grant.ttl_s for grant in grants),
                "priorities": arrays.numbers(grant.priority for grant in grants),
                "whys": arrays.texts(grant.why for grant in grants),
            },
        )
        rows = await cursor.fetchall()
    if not rows:
        raise leadership.Deposed(f"the scheduler with token {token} was succeeded")
    return [Granted(*row) for row in rows if row[0] is not None]


async def renew(connection: pool.Connection, agent_id: int, renewals: Sequence[Renewal], ttl_s: float) -> int:
    """Extend the leases whose progress moved; returns how many."""
    if not renewals:
        return 0
    cursor = await connection.execute(
        _SQL["renew"],
        {
            "agent_id": agent_id,
            "ttl_s": ttl_s,
            "task_ids": arrays.ids(renewal.task_id for renewal in renewals),
            "attempts": arrays.numbers(renewal.attempt for renewal in renewals),
            "progress": arrays.numbers(renewal.progress for renewal in renewals),
        },
    )
    return cursor.rowcount


async def expire(connection: pool.Connection, limit: int = 1000) -> ends.Outcome:
    """Take back leases that ran out: their tasks are queued again, or end if that was their last attempt."""
    cursor = await connection.execute(_SQL["lost"], {"limit": limit})
    standings = await ends.lock(connection, [task_id for (task_id,) in await cursor.fetchall()])
    return await ends.lose(connection, list(standings.values()))


async def expire_deadlines(connection: pool.Connection, limit: int = 1000) -> ends.Outcome:
    """End queued tasks whose deadline has passed. Of a running one its agent judges, or the lease's end."""
    cursor = await connection.execute(_SQL["overdue"], {"limit": limit})
    standings = await ends.lock(connection, [task_id for (task_id,) in await cursor.fetchall()])
    changes = [verdicts.expired(standing) for standing in standings.values()]
    return await ends.settle(connection, [change for change in changes if change is not None])


async def outstanding(connection: pool.Connection) -> dict[int, int]:
    """How many leases each agent (id) holds."""
    return dict(await (await connection.execute(_SQL["outstanding"])).fetchall())


async def running(connection: pool.Connection) -> dict[str, int]:
    """How many tasks of each queue run."""
    return dict(await (await connection.execute(_SQL["running"])).fetchall())


async def held(
    connection: pool.Connection, below: int, agent_ids: Collection[int], limit: int = 1000
) -> list[snapshot.Held]:
    """Leases of a lower priority than `below` at some agents, the lowest and youngest first.

    What would be lost if one stopped is taken to be all that it ran: agents know better (Telemetry.leases).
    """
    wanted = {"below": below, "agent_ids": list(agent_ids), "limit": limit}
    found = await (await connection.execute(_SQL["held"], wanted)).fetchall()
    known = await classes.select(connection, {row[3] for row in found})
    return [
        snapshot.Held(
            task_id=task_id,
            agent_id=agent_id,
            attempt=attempt,
            class_id=class_id,
            model=known[class_id].model,
            version=known[class_id].version or None,
            selector=known[class_id].selector,
            priority=priority,
            items_left=items_left,
            lost_s=held_s,
            held_s=held_s,
            preempted_ago_s=preempted_ago_s,
            stopping=stopping,
            queue=known[class_id].queue,
        )
        for (
            task_id,
            agent_id,
            attempt,
            class_id,
            priority,
            items_left,
            held_s,
            preempted_ago_s,
            stopping,
        ) in found
    ]


async def stop(
    connection: pool.Connection,
    victims: Sequence[tuple[bytes, int]],
    urgent: Sequence[bytes] | None = None,
) -> frozenset[int]:
    """Ask running tasks, as (task id, attempt), to make room; returns the agents (ids) that will be told.

    `urgent`: the task for which each is to stop, where it is for one.
    """
    whom = [None] * len(victims) if urgent is None else [tasks.format_id(task_id) for task_id in urgent]
    cursor = await connection.execute(
        _SQL["stop"],
        {
            "task_ids": arrays.ids(task_id for task_id, _ in victims),
            "attempts": [attempt for _, attempt in victims],
            "urgent": whom,
        },
    )
    stopped = await cursor.fetchall()
    return await outgoing.append(
        connection,
        [
            outgoing.Record(
                agent_id,
                outgoing.COMMANDS,
                wire.COMMANDS,
                task_id=task_id,
                attempt=attempt,
                body={"command": "preempt", "body": f'{{"attempt": {attempt}}}'},
            )
            for task_id, agent_id, attempt in stopped
        ],
    )

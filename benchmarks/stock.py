"""A queue that is already there: so many tasks, made by PostgreSQL itself."""

from __future__ import annotations

from typing import Final

from benchmarks import noop
from cloud_hub.store import classes, pool

QUEUES: Final = 4
PRIORITIES: Final = 10

_FILL: Final = """
    WITH made AS (
        INSERT INTO tasks (
            task_id, observed_at, class_id, items, payload_bytes, priority, max_attempts, model, queue,
            content_type
        )
        SELECT
            (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 60000 + n / 100), 12, '0') || '7'
                || lpad(to_hex(n %% 4096), 3, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid,
            now(), (%(classes)s::int[])[1 + n %% %(queues)s], 1, 64, (n / %(queues)s) %% %(priorities)s, 3,
            %(model)s, (%(names)s::text[])[1 + n %% %(queues)s], 'application/json'
        FROM generate_series(0, %(count)s - 1) AS n
        RETURNING task_id
    )
    INSERT INTO payloads (task_id, body) SELECT task_id, decode(repeat('78', 64), 'hex') FROM made
"""
_EMPTY: Final = """
    TRUNCATE agents, up_lanes, down_lanes, outgoing, tasks, payloads, leases, attempts, results, depths,
        rollout_tallies
"""


async def fill(connection: pool.Connection, count: int, selector: str = "") -> None:
    """Queue so many tasks, of several queues and all priorities, for agents that `selector` fits."""
    names = [f"stock-{n}" for n in range(QUEUES)]
    keys = [classes.Key(noop.MODEL, queue=name, selector=selector) for name in names]
    known = await classes.resolve(connection, keys)
    await connection.execute(
        _FILL,
        {
            "classes": [known[key] for key in keys],
            "names": names,
            "queues": QUEUES,
            "priorities": PRIORITIES,
            "model": noop.MODEL,
            "count": count,
        },
    )


async def empty(connection: pool.Connection) -> None:
    """Nothing is queued, and no agent is known."""
    await connection.execute(_EMPTY)

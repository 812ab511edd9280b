"""The hubs that share this database: who is alive, and what others have written for the agents of one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from cloud_hub.store import pool, sql
from shared import lanes

LIVE_S: Final = 3.5
"""A hub that was not seen for so long, by the database's clock, is gone: three beats, and some patience."""
FORGET_S: Final = 600.0
"""After which nothing of it is kept."""

_SQL: Final = sql.load("hubs")


def session(hub_id: str) -> str:
    """What the connections of a hub call themselves: short, for PostgreSQL keeps 63 bytes of it."""
    return f"backhaul/{hub_id.rpartition('/')[2]}"


async def beat(connection: pool.Connection, hub_id: str) -> frozenset[str]:
    """Note that a hub is alive; returns all that are, it included."""
    cursor = await connection.execute(
        _SQL["beat"], {"hub_id": hub_id, "live_s": LIVE_S, "forget_s": FORGET_S}
    )
    return frozenset(hub_id for (hub_id,) in await cursor.fetchall())


async def succeed(connection: pool.Connection, hub_id: str, place: str) -> int:
    """A hub starts: forget the earlier ones whose ids begin with `place`; returns how many there were."""
    return (await connection.execute(_SQL["succeed"], {"hub_id": hub_id, "place": place})).rowcount


async def leave(connection: pool.Connection, hub_id: str) -> None:
    """A hub stops: the others need not wait until it is missed."""
    await connection.execute(_SQL["leave"], {"hub_id": hub_id})


async def end_sessions(connection: pool.Connection, missed: Collection[str]) -> int:
    """End what the hubs `missed` have begun, of those that went without a word; returns how many sessions.

    One that was stopped in the middle of a transaction would hold what it has locked, an agent's lane or a
    client's key, until it wakes up; and within a COPY no time-out of PostgreSQL's ends it.
    """
    names = [session(hub_id) for hub_id in missed]
    whose = {"hub_ids": list(missed), "sessions": names, "live_s": LIVE_S}
    return (await connection.execute(_SQL["end_sessions"], whose)).rowcount


async def waiting(connection: pool.Connection, agent_ids: Sequence[int]) -> dict[int, dict[lanes.Lane, int]]:
    """How far the down lanes of these agents are numbered, of those that hold records."""
    cursor = await connection.execute(_SQL["waiting"], {"agent_ids": list(agent_ids)})
    found: dict[int, dict[lanes.Lane, int]] = {}
    for agent_id, lane, numbered in await cursor.fetchall():
        found.setdefault(agent_id, {})[lanes.Lane.parse(lane)] = numbered
    return found

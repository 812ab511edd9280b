"""Which scheduler may write: the one whose token is the newest.

A lock says who should lead, but its holder may have been stopped, cut off or outlived without knowing it.
So each write of a leader holds the row of leadership with its token until its commit; whoever has a newer
token makes all writes with older ones fail (a fencing token: M. Kleppmann, "How to do distributed
locking", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloud_hub.store import pool, sql

_SQL: Final = sql.load("leadership")

PAUSE_MS: Final = 3_000
"""So long a leader may be silent within a transaction; then PostgreSQL ends its session."""


class Deposed(Exception):
    """Another scheduler has taken the lead since; whoever gets this must stop deciding."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The lead, as it was taken."""

    token: int
    fair: str
    """The clocks of the fair shares as the last leader left them; '' if none did."""


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads, as the database knows."""

    token: int
    holder: str
    since: datetime
    seen_at: datetime


async def take(connection: pool.Connection, holder: str) -> Lead:
    """Take the lead: a token higher than all before it.

    The tokens come from here and not from Redis, which may forget how far it had counted.
    """
    row = await (await connection.execute(_SQL["take"], {"holder": holder})).fetchone()
    assert row is not None
    return Lead(*row)


async def vacant(connection: pool.Connection, holder: str, silent_s: float) -> bool:
    """Whether no other hub has led for `silent_s`: for a fleet without Redis, or whose Redis is away."""
    cursor = await connection.execute(_SQL["vacant"], {"holder": holder, "silent_s": silent_s})
    return await cursor.fetchone() == (True,)


async def hold(connection: pool.Connection, token: int) -> None:
    """Hold the lead until the transaction ends; Deposed if `token` is not the newest."""
    held = {"token": token, "pause": f"{PAUSE_MS}ms"}
    if await (await connection.execute(_SQL["hold"], held)).fetchone() is None:
        raise Deposed(f"the scheduler with token {token} was succeeded")


async def leave(connection: pool.Connection, token: int) -> None:
    """Give up the lead, if it is still ours."""
    await connection.execute(_SQL["leave"], {"token": token})


async def leader(connection: pool.Connection) -> Leader:
    """Who leads now, or did last."""
    row = await (await connection.execute(_SQL["leader"])).fetchone()
    assert row is not None
    return Leader(*row)

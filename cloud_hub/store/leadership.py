"""Which scheduler may write: the one whose token is the newest."""

from __future__ import annotations

from typing import Final

from cloud_hub.store import pool, sql

_SQL: Final = sql.load("leadership")


class Deposed(Exception):
    """Another scheduler has taken the lead since; whoever gets this must stop granting."""


async def take(connection: pool.Connection) -> int:
    """Take the lead: a token higher than all before it.

    The tokens come from here and not from Redis, which may forget how far it had counted.
    """
    row = await (await connection.execute(_SQL["take"])).fetchone()
    assert row is not None
    return int(row[0])


async def check(connection: pool.Connection, token: int) -> None:
    """Hold the lead until the transaction ends; Deposed if `token` is not the newest."""
    row = await (await connection.execute(_SQL["check"])).fetchone()
    if row != (token,):
        raise Deposed(f"the scheduler with token {token} was succeeded by the one with {row and row[0]}")

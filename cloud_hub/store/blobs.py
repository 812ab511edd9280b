"""Contents too large for one row: stored and read piece by piece, each with a statement of its own.

A content is known by its SHA-256 once it is complete. Before, it is a draft that its maker alone knows; a
draft that is given up, or that nobody sends a piece of any more, is swept away, and so is a content that no
model is made of.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cloud_hub.store import pool, sql

_SQL: Final = sql.load("blobs")

CHUNK_BYTES: Final = 1 << 20
"""Of each piece but the last: the schema counts on it."""
ABANDONED_S: Final = 3600.0
"""A draft that got no piece for so long is nobody's."""
_SWEPT_TOGETHER: Final = 64


class GivenUp(Exception):
    """The draft was swept away meanwhile."""


class Blob(NamedTuple):
    """A content that is complete."""

    blob_id: int
    size: int


async def begin(connection: pool.Connection) -> int:
    """A new draft; returns its id."""
    row = await (await connection.execute(_SQL["begin"])).fetchone()
    assert row is not None
    return int(row[0])


async def append(connection: pool.Connection, blob_id: int, number: int, body: bytes) -> None:
    """Store a piece of a draft, numbered from 0. Raises GivenUp."""
    stored = await connection.execute(_SQL["append"], {"blob_id": blob_id, "number": number, "body": body})
    if not stored.rowcount:
        raise GivenUp


async def complete(connection: pool.Connection, blob_id: int, sha256: str, size: int) -> bool:
    """Make the draft the content of this SHA-256; False if that is there already, and stays then.

    Raises GivenUp; psycopg.errors.UniqueViolation if the content came at the same moment: try again.
    """
    held = await connection.execute(_SQL["hold"], {"sha256": sha256})
    if await held.fetchone() is not None:
        return False
    made = await connection.execute(_SQL["complete"], {"blob_id": blob_id, "sha256": sha256, "size": size})
    if not made.rowcount:
        raise GivenUp
    return True


async def find(connection: pool.Connection, sha256: str) -> Blob | None:
    row = await (await connection.execute(_SQL["find"], {"sha256": sha256})).fetchone()
    return None if row is None else Blob(*row)


async def chunk(connection: pool.Connection, blob_id: int, number: int) -> bytes | None:
    """A piece; None if the content has gone."""
    found = await connection.execute(_SQL["chunk"], {"blob_id": blob_id, "number": number}, binary=True)
    row = await found.fetchone()
    return None if row is None else row[0]


async def give_up(connection: pool.Connection, blob_id: int) -> None:
    """Nobody will go on with this draft: the next sweep takes it away."""
    await connection.execute(_SQL["give_up"], {"blob_id": blob_id})


async def sweep(connections: pool.Pool, abandoned_s: float = ABANDONED_S) -> int:
    """Take away what nobody needs; returns how many. Several may do so at once, and any may be broken off."""
    async with connections.connection() as connection:
        await connection.execute(_SQL["abandoned"], {"after_s": abandoned_s})
        unused = await (await connection.execute(_SQL["unused"])).fetchall()
        if unused:
            await connection.execute(_SQL["retire"], {"blob_ids": [blob_id for (blob_id,) in unused]})
    async with pool.statement(connections) as connection:
        going = await (await connection.execute(_SQL["going"])).fetchall()
    for (blob_id,) in going:
        some = {"blob_id": blob_id, "limit": _SWEPT_TOGETHER}
        left = _SWEPT_TOGETHER
        while left == _SWEPT_TOGETHER:
            async with pool.statement(connections) as connection:
                left = (await connection.execute(_SQL["take_away"], some)).rowcount
        async with pool.statement(connections) as connection:
            await connection.execute(_SQL["forget"], {"blob_id": blob_id})
    return len(going)

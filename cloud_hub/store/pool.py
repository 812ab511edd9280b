"""Connections to PostgreSQL, set up alike, and which of their errors are worth another try."""

from __future__ import annotations

from typing import Final, TypeAlias

import psycopg
import psycopg_pool

Connection: TypeAlias = psycopg.AsyncConnection[tuple[object, ...]]

UNAVAILABLE: Final[tuple[type[Exception], ...]] = (
    psycopg.OperationalError,  # lost, refused, restarting, deadlock, time-out, disk full, pool time-out
    psycopg.errors.ReadOnlySqlTransaction,  # a fail-over: still talking to the old primary
    psycopg.errors.InFailedSqlTransaction,
)
"""Errors of the store's state, not of the data: roll back, wait a little, do the same again."""

REFUSED: Final[tuple[type[Exception], ...]] = (psycopg.DataError, psycopg.IntegrityError)
"""Errors of the data: the same again fails again; a batch that raises one belongs in quarantine."""


def open_pool(
    dsn: str, *, min_size: int = 1, max_size: int = 8
) -> psycopg_pool.AsyncConnectionPool[Connection]:
    """A pool, not yet open: use it as `async with pool.open_pool(dsn) as connections`."""
    raise NotImplementedError


async def connect(dsn: str) -> Connection:
    """One connection outside of a pool, set up as those in it."""
    raise NotImplementedError

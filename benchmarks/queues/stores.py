"""The stores that task queues keep their tasks in: for each measurement an empty one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

import psycopg
from redis import asyncio as redis

from benchmarks.queues import way

DATABASE: Final = "queue"


class Store(Protocol):
    @property
    def pid(self) -> int:
        """The server's process."""

    def empty(self) -> contextlib.AbstractAsyncContextManager[str]:
        """How to connect to a store without tasks, which is emptied again when the block is left."""

    async def settle(self) -> None:
        """Let the store take in what was queued."""


class Database:
    """A database of its own in PostgreSQL, which writes through at each commit."""

    def __init__(self, place: way.Place) -> None:
        self._postgres = place.postgres

    @property
    def pid(self) -> int:
        return self._postgres.pid

    @contextlib.asynccontextmanager
    async def empty(self) -> AsyncIterator[str]:
        await self._execute("postgres", f"CREATE DATABASE {DATABASE}")
        try:
            yield self._postgres.dsn_of(DATABASE)
        finally:
            await self._execute("postgres", f"DROP DATABASE {DATABASE} WITH (FORCE)")

    async def settle(self) -> None:
        """Gather statistics: without them plans are made for empty tables, and some queues fall threefold."""
        await self._execute(DATABASE, "ANALYZE")

    async def _execute(self, database: str, statement: str) -> None:
        dsn = self._postgres.dsn_of(database)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute(statement.encode())


class Hot:
    """Valkey or Redis, whose append-only file is written through once a second."""

    def __init__(self, place: way.Place) -> None:
        self._valkey = place.valkey

    @property
    def pid(self) -> int:
        return self._valkey.pid

    @contextlib.asynccontextmanager
    async def empty(self) -> AsyncIterator[str]:
        try:
            yield self._valkey.url
        finally:
            async with redis.from_url(self._valkey.url) as connection:
                await connection.flushall()

    async def settle(self) -> None:
        """There is nothing that it would want to know."""

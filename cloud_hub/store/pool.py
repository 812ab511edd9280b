"""Connections to PostgreSQL, set up alike, and which of their errors are worth another try."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import psycopg
import psycopg_pool

from cloud_hub.store import ids
from shared import wire

Connection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
Pool: TypeAlias = psycopg_pool.AsyncConnectionPool[Connection]

UNAVAILABLE: Final[tuple[type[Exception], ...]] = (
    psycopg.OperationalError,  # lost, refused, restarting, deadlock, time-out, disk full, no connection free
    psycopg.errors.ReadOnlySqlTransaction,  # a fail-over, and we still talk to the old primary
    psycopg.errors.IdleInTransactionSessionTimeout,  # we were too slow between two statements
)
"""Errors of the store's state, not of the data: roll back, wait a little, do the same again."""

REFUSED: Final[tuple[type[Exception], ...]] = (psycopg.DataError, psycopg.IntegrityError, wire.WireError)
"""Errors of the data: the same again fails again; a batch that raises one belongs in quarantine."""

_SETTINGS: Final = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    # A queue outruns its statistics, and so does a month that has just begun: what is there is found by
    # an index, whatever was counted last night, and a plan is made once and not for each call.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "random_page_cost": "1.1",
    "jit": "off",
    "client_min_messages": "warning",
    "timezone": "UTC",
}

SESSION: Final = "backhaul"
"""What a connection calls itself, if it is not of a hub at work (`hubs.session`)."""

_NETWORK: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""How a connection to a machine that vanished is noticed (s; the last in ms)."""

_RECONNECT_S: Final = 1.0
"""How long the pool goes on trying by itself (s). Its pauses double up to this time, and who asks for a
connection in such a pause waits it out, however long PostgreSQL has been back: so they stay short,
and after them whoever asks next makes the pool try at once."""


def open_pool(
    dsn: str, *, min_size: int = 1, max_size: int = 8, timeout_s: float = 10.0, session: str = SESSION
) -> Pool:
    """A pool, not yet open: use it as `async with pool.open_pool(dsn) as connections`.

    `async with connections.connection() as connection` lends one for a transaction, which is committed
    when the block is left, or rolled back if by an error. One that broke is replaced; while none can
    be had for `timeout_s`, PoolTimeout is raised, which is one of UNAVAILABLE. PostgreSQL knows them all
    by the name `session`.
    """
    return _Pool(
        dsn,
        kwargs=_NETWORK | {"application_name": session},
        min_size=min_size,
        max_size=max_size,
        timeout=timeout_s,
        reconnect_timeout=_RECONNECT_S,
        configure=_configure,
        check=_check,
        name="store",
        open=False,
    )


@asynccontextmanager
async def statement(connections: Pool, timeout_s: float | None = None) -> AsyncIterator[Connection]:
    """A connection for single statements, each a transaction of its own: one round trip instead of three.

    `timeout_s`: how long to wait for a free one, the pool's time if it is None.
    """
    async with connections.connection(timeout=timeout_s) as connection:
        await connection.set_autocommit(True)
        try:
            yield connection
        finally:
            if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                await connection.set_autocommit(False)
            else:  # cancelled in the middle of a statement, or lost: the pool makes another
                await connection.close()


async def _check(connection: Connection) -> None:
    """Before a connection is lent: ask PostgreSQL only if it has said something that nobody asked for.

    One that has gone has closed its end, or said why: either makes the socket readable. Of a machine that
    vanished neither this nor a question would tell before the network's time is up.
    """
    watched = select.poll()
    watched.register(connection.pgconn.socket, select.POLLIN)
    if watched.poll(0):
        await psycopg_pool.AsyncConnectionPool.check_connection(connection)


class _Pool(psycopg_pool.AsyncConnectionPool[Connection]):
    """A pool that does not swallow cancellations.

    psycopg_pool waits for a free connection with `asyncio.wait_for`, which in Python 3.11 forgets a
    cancellation that comes at the same moment as the connection: the task would then go on for ever.
    """

    async def getconn(self, timeout: float | None = None) -> Connection:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        connection = await super().getconn(timeout)
        if task is not None and task.cancelling() > before:
            await self.putconn(connection)
            raise asyncio.CancelledError
        return connection


async def connect(dsn: str, session: str = SESSION) -> Connection:
    """One connection outside of a pool, set up as those in it."""
    connection = await psycopg.AsyncConnection.connect(dsn, **_NETWORK, application_name=session)
    await _configure(connection)
    return connection


async def _configure(connection: Connection) -> None:
    ids.register(connection)
    await connection.execute(
        "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)",
        (list(_SETTINGS), list(_SETTINGS.values())),
    )
    await connection.commit()

"""A hub that is missed in the middle of a transaction holds nobody up: its sessions are ended."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from cloud_hub import replicas
from cloud_hub.store import hubs, pool
from tests.integration import stores

GONE = "gone:1/0badcafe"
HERE = "here:2/900dcafe"
PATIENCE_S = hubs.LIVE_S + replicas.TIMEOUT_S + 5.0
HELD = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


async def missed(database: str) -> None:
    """Look as a hub does until the other is no longer among those alive."""
    here = replicas.Replicas(HERE, database)
    seen, gone = asyncio.Event(), asyncio.Event()
    here.watch(lambda: (seen if GONE in here.live else gone).set())
    looking = asyncio.create_task(here.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await seen.wait()
            gone.clear()
            await gone.wait()
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def sessions(database: str) -> int:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        row = await (await connection.execute(HELD, (hubs.session(GONE),))).fetchone()
    assert row is not None
    return int(row[0])


async def stop_within_a_copy(database: str, stopped: asyncio.Event, woken: asyncio.Event) -> None:
    """A hub that beats once, locks something, and is stopped in the middle of what it then writes."""
    async with await pool.connect(database, hubs.session(GONE)) as connection:
        await hubs.beat(connection, GONE)
        await connection.commit()
        await connection.execute("LOCK TABLE leadership")
        async with connection.cursor() as cursor, cursor.copy("COPY depths FROM STDIN"):
            stopped.set()
            await woken.wait()


async def test_one_that_is_stopped_in_the_middle_of_a_copy_lets_go(database: str) -> None:
    """What it has locked is free as soon as others have missed it, though no time-out ends a COPY."""
    async with stores.fresh(database):
        pass
    stopped, woken = asyncio.Event(), asyncio.Event()
    hub = asyncio.create_task(stop_within_a_copy(database, stopped, woken))
    await stopped.wait()
    await missed(database)
    assert await sessions(database) == 0
    async with await psycopg.AsyncConnection.connect(database) as other:
        await other.execute("LOCK TABLE leadership NOWAIT")
    woken.set()
    with pytest.raises(psycopg.OperationalError):
        await hub


async def test_one_that_has_left_ends_by_itself(database: str) -> None:
    """Whoever said goodbye is not interrupted in what it still has to do."""
    async with stores.fresh(database):
        pass
    async with await pool.connect(database, hubs.session(GONE)) as connection:
        await hubs.beat(connection, GONE)
        await connection.commit()
        looking = asyncio.create_task(missed(database))
        await asyncio.sleep(2 * replicas.BEAT_S)
        await hubs.leave(connection, GONE)
        await connection.commit()
        await looking
        assert await sessions(database) == 1

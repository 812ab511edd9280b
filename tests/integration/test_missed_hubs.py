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


async def test_one_that_starts_again_at_its_place_ends_what_it_had_begun(database: str) -> None:
    """A pod whose node vanished comes back elsewhere under its name: the locks of its first life go."""
    async with stores.fresh(database):
        pass
    gone = await pool.connect(database, hubs.session("pod-0:80/00000001"))
    try:
        await hubs.beat(gone, "pod-0:80/00000001")
        await gone.commit()
        await gone.execute("LOCK TABLE leadership")
        async with await pool.connect(database, hubs.session("pod-0:80/00000002")) as here:
            await hubs.succeed(here, "pod-0:80/00000002", "pod-0:80/")
            await here.commit()
            async with asyncio.timeout(5):
                await here.execute("LOCK TABLE leadership")
        with pytest.raises(psycopg.errors.AdminShutdown):
            await gone.execute("SELECT 1")
    finally:
        await gone.close()


@pytest.mark.soak
async def test_nobody_is_missed_because_postgres_stood_still(database: str) -> None:
    """When the database answers again, those who could not beat either get their time to come back."""
    async with stores.fresh(database):
        pass
    both = [replicas.Replicas(f"{name}:1/{name * 8}", database) for name in "ab"]
    running = [asyncio.create_task(one.run()) for one in both]
    try:
        async with asyncio.timeout(10):
            while any(len(one.live) < 2 for one in both):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with (
            await pool.connect(database, hubs.session(both[0].hub_id)) as first,
            await pool.connect(database, hubs.session(both[1].hub_id)) as second,
        ):
            for work in (first, second):
                await work.execute("SELECT 1")
            async with await pool.connect(database) as other:
                await other.execute("LOCK TABLE hubs IN EXCLUSIVE MODE")
                await asyncio.sleep(2 * hubs.LIVE_S + 0.5)
                await other.rollback()
            await asyncio.sleep(hubs.LIVE_S)
            for work in (first, second):
                await work.execute("SELECT 1")
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

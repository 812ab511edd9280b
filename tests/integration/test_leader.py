"""Who leads: one hub at a time, with Redis and without, whatever becomes of the leader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cloud_hub import hot, leader, settings
from cloud_hub.store import leadership, pool, schedule
from demo import servers
from tests.integration import stores

TTL_S = 1.5
"""A leader that a busy machine holds up for two thirds of it counts as gone, and rightly so."""
PATIENCE_S = 15.0


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


class Candidate:
    """A hub's part in leading, running, and what it was told when it took the lead."""

    def __init__(self, connections: pool.Pool, name: str, redis: str | None = None) -> None:
        self.told: list[str] = []
        self.hot = hot.Hot(redis, lambda word: None)
        self.leader = leader.Leader(
            connections, self.hot, name, settings.Leader(ttl_s=TTL_S), self.told.append
        )
        self._with_redis = redis is not None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.hot.run())
            await until(lambda: self.hot.available or not self._with_redis)  # so that who leads has the lock
            group.create_task(self.leader.run())

    async def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running


@contextlib.asynccontextmanager
async def running(*candidates: Candidate) -> AsyncIterator[None]:
    for one in candidates:
        one.start()
    try:
        yield
    finally:
        for one in candidates:
            await one.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


def leading(*candidates: Candidate) -> list[Candidate]:
    return [one for one in candidates if one.leader.leading]


async def writing(*candidates: Candidate) -> Candidate:
    """The one that leads, proved by a write: another still believes it until it tries or looks."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for one in leading(*candidates):
                with contextlib.suppress(leadership.Deposed):
                    async with one.leader.writing():
                        pass
                    return one
            await asyncio.sleep(0.02)


async def test_one_leads_and_the_next_follows_at_once_when_it_leaves(connections: pool.Pool) -> None:
    """Without Redis too: one of two leads, and when it leaves the other does, with the clocks it left."""
    one, other = Candidate(connections, "one"), Candidate(connections, "other")
    async with running(one):
        await until(lambda: bool(leading(one)))
        async with one.leader.deciding() as (connection, token):
            await schedule.grant(connection, token, [], "clocks")
        other.start()
        with pytest.raises(leadership.Deposed):
            async with other.leader.writing():
                pass
    await until(lambda: bool(leading(other)))
    assert other.told == ["clocks"]
    await other.stop()


async def test_a_leader_that_was_outlived_cannot_write(connections: pool.Pool) -> None:
    """What a leader began before another took the lead is rolled back, and it knows that it leads no more."""
    one = Candidate(connections, "one")
    async with running(one):
        await until(lambda: bool(leading(one)))
        async with connections.connection() as connection:
            await leadership.take(connection, "other")
        with pytest.raises(leadership.Deposed):
            async with one.leader.writing() as connection:
                await stores.submit(connection)
        assert not one.leader.leading
    async with connections.connection() as connection:
        assert await stores.scalar(connection, b"SELECT count(*) FROM tasks") == 0


async def test_with_redis_one_leads_and_redis_may_forget(connections: pool.Pool, tmp_path: Path) -> None:
    """One of two leads by its lock; emptied, killed and back again, Redis leaves one leader at a time."""
    async with servers.Valkey(tmp_path / "redis") as redis:
        one, other = (Candidate(connections, name, redis.url) for name in ("one", "other"))
        async with running(one, other):
            first = await writing(one, other)
            await until(lambda: leading(one, other) == [first])
            await redis.kill()
            await asyncio.sleep(1.5 * TTL_S)
            assert leading(one, other) == [first], "PostgreSQL sees it, so nobody succeeds it"
            await redis.start()
            await until(lambda: one.hot.available and other.hot.available)
            await writing(one, other)
            await until(lambda: len(leading(one, other)) == 1)

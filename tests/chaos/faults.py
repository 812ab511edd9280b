"""What can happen to the central scheduler and to what it stands on, each from its begin to its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from redis import asyncio as redis

from demo import background
from tests.chaos import rig

PAUSED_S: Final = 30.0
"""Longer than the broker waits for a silent hub, and than any time to live."""
FLUSHES: Final = 5
FLUSH_EVERY_S: Final = 1.0

Fault: TypeAlias = Callable[[rig.Rig], Awaitable[None]]


async def leader_killed(whole: rig.Rig) -> None:
    """The hub that leads dies between any two of its transactions, and comes back when another leads."""
    lead = await whole.lead()
    await lead.hub.kill()
    await whole.succeeded(lead)
    await lead.hub.start()


async def leader_paused(whole: rig.Rig) -> None:
    """It sleeps within a transaction or between two, far beyond its time, and wakes up as the leader."""
    await pause_leader(whole, PAUSED_S)


async def pause_leader(whole: rig.Rig, at_least_s: float = 0.0) -> None:
    """Stop the hub that leads until another does, and wake it: it leads no more, and the other still does."""
    lead = await whole.lead()
    began = time.monotonic()
    os.kill(lead.hub.pid, signal.SIGSTOP)
    try:
        now = await whole.succeeded(lead)
        await asyncio.sleep(began + at_least_s - time.monotonic())
    finally:
        os.kill(lead.hub.pid, signal.SIGCONT)
    assert now.hub is not lead.hub
    await whole.until(lambda: whole.deposed(lead.hub), bool)
    assert await whole.lead() == now, "one step for one takeover"
    assert now.token == lead.token + 1


async def redis_emptied(whole: rig.Rig) -> None:
    """Redis loses everything, and again: the lock is anybody's."""
    async with redis.from_url(whole.valkey.url) as connection:
        for _ in range(FLUSHES):
            await connection.flushall()
            await asyncio.sleep(FLUSH_EVERY_S)


async def redis_killed(whole: rig.Rig) -> None:
    """Redis is away until its absence was noticed, and comes back with nothing."""
    await whole.valkey.kill()
    shutil.rmtree(whole.valkey.directory)
    await whole.goes_on()
    await whole.valkey.start()


async def postgres_restarted(whole: rig.Rig) -> None:
    """PostgreSQL ends all sessions and is away for a moment."""
    await whole.postgres.restart()


async def postgres_killed(whole: rig.Rig) -> None:
    """PostgreSQL dies and recovers."""
    await whole.postgres.kill()
    await whole.postgres.start()


async def half_the_pool_killed(whole: rig.Rig) -> None:
    """Agents die with what they were given, and come back with their journals when others have done it."""
    victims = list(whole.pool)[: len(whole.pool) // 2]
    held = await whole.leases_of(victims)
    assert held
    await background.together(whole.pool[name].kill() for name in victims)
    await whole.until(lambda: whole.leases_of(victims), lambda leases: not leases)
    await background.together(whole.pool[name].start() for name in victims)


ALL: Final[tuple[Fault, ...]] = (
    leader_killed,
    leader_paused,
    redis_emptied,
    redis_killed,
    postgres_restarted,
    postgres_killed,
    half_the_pool_killed,
)

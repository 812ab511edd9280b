"""One part of the whole system fails in the middle of work, comes back, and the books balance.

While it happens, a burst at plant-a overflows to the hub, so that tasks are in every place where a task can
be: in a device's message, in a journal, on a lane up, queued at the hub, leased, on a lane down, replied to.
The cameras never publish again what their broker has acknowledged, so nothing covers up for a loss.
"""

import asyncio
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis import asyncio as redis

from demo import report, servers, show, system
from demo.floor import Floor

BUSY = system.SITES[0]
MEMORY = Path("/dev/shm")
BURST = 240
BURST_S = 1.0
IMPATIENT = {"overflow": {"max_wait_s": 0.05}}  # so that a burst overflows before the fault, on any machine
BEFORE = 10  # replies at each site before it
AFTER = 60  # replies that must come once all is well again
WORK_S = 60.0
REST_S = 30.0

Fault = Callable[[system.System], Awaitable[None]]


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty directory; in memory where there is room, for a test of processes and not of a disk."""
    for name in ("mosquitto", "postgres", "redis-server"):
        try:
            servers.binary(name)
        except servers.Missing as missing:
            if os.environ.get("CI") == "true":
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=MEMORY if roomy else None) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


async def agent_killed(whole: system.System) -> None:
    """The agent of the busy site dies with jobs, results and handed-over tasks in its journal."""
    await whole.sites[BUSY].agent.kill()
    await whole.sites[BUSY].agent.start()


async def hub_killed(whole: system.System) -> None:
    """The hub dies between any two of its transactions."""
    await whole.hub.kill()
    await whole.hub.start()


async def pool_killed(whole: system.System) -> None:
    """An agent dies that works for the hub alone."""
    await whole.pool.kill()
    await whole.pool.start()


async def broker_killed(whole: system.System) -> None:
    """The cloud's broker dies and forgets what it had not yet saved."""
    await whole.broker.kill()
    await whole.broker.start()


async def postgres_restarted(whole: system.System) -> None:
    """PostgreSQL ends all sessions and is away for a moment."""
    await whole.postgres.restart()


async def postgres_killed(whole: system.System) -> None:
    """PostgreSQL dies and recovers."""
    await whole.postgres.kill()
    await whole.postgres.start()


async def redis_emptied(whole: system.System) -> None:
    """Redis loses everything."""
    async with redis.from_url(whole.valkey.url) as client:
        await client.flushall()


async def redis_killed(whole: system.System) -> None:
    """Redis is away for a moment, and comes back with nothing."""
    await whole.valkey.kill()
    shutil.rmtree(whole.valkey.directory)
    await whole.valkey.start()


async def link_cut(whole: system.System) -> None:
    """The busy site loses the cloud while the cloud holds tasks of it."""
    relay = whole.sites[BUSY].relay
    relay.cut()
    await asyncio.sleep(1.0)  # long enough for the agent to take its tasks back
    await relay.heal()


async def site_broker_restarted(whole: system.System) -> None:
    """The broker between the cameras and their agent is restarted."""
    await whole.sites[BUSY].broker.restart()


FAULTS = (
    agent_killed,
    hub_killed,
    pool_killed,
    broker_killed,
    postgres_restarted,
    postgres_killed,
    redis_emptied,
    redis_killed,
    link_cut,
    site_broker_restarted,
)


async def day_with(fault: Fault, home: Path) -> report.Report:
    """A day's work with a burst, the fault in its middle, and work after it."""
    async with system.System(home, agent_settings=IMPATIENT) as whole:
        floor = Floor(whole)
        async with floor.at_work():
            with contextlib.suppress(TimeoutError):  # the books then say what did not come
                async with asyncio.timeout(WORK_S):
                    await work(floor, functools.partial(fault, whole))
            outcome = await floor.close(REST_S)
            dead = [part.name for part in whole.parts if not part.running]
            assert not dead, logs(home)
            return outcome


async def work(floor: Floor, fault: Callable[[], Awaitable[None]]) -> None:
    """Steady work, a burst with the fault in its middle, and steady work again."""
    notebook, line = floor.notebook, floor.lines[BUSY]
    pictures = await line.draw(BURST)
    await notebook.until(lambda: all(notebook.replied[site] >= BEFORE for site in system.SITES))
    async with asyncio.TaskGroup() as group:
        group.create_task(line.burst(pictures, BURST_S))
        await notebook.until(lambda: notebook.published[BUSY] > BURST)
        await fault()
    so_far = notebook.replied.total()
    await notebook.until(lambda: notebook.replied.total() >= so_far + AFTER)


def logs(home: Path) -> str:
    """What the programs had to say, for whoever looks into a failure."""
    return "\n\n".join(show.tail(log) for log in sorted(home.rglob("*.log")))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost_and_nothing_doubled(fault: Fault, home: Path) -> None:
    """Whatever part fails: each job gets its reply and its one result, and every ledger is complete."""
    outcome = await day_with(fault, home)
    assert outcome.problems == [], logs(home)
    assert outcome.lost == outcome.duplicates_in_store == outcome.failed == outcome.rejected == 0
    assert outcome.published == outcome.replied == outcome.results_in_store
    assert outcome.overflowed > 0


async def test_a_site_starts_cold_without_the_cloud(home: Path) -> None:
    """An agent that dies while it is cut off comes back alone, goes on replying, and syncs when it can."""
    async with system.System(home) as whole:
        floor, site = Floor(whole), whole.sites[BUSY]
        async with floor.at_work():
            notebook = floor.notebook
            async with asyncio.timeout(WORK_S):
                await notebook.until(lambda: notebook.replied[BUSY] >= BEFORE)
                site.relay.cut()
                await site.agent.kill()
                await site.agent.start()
                notebook.cut(BUSY, time.monotonic())
                so_far = notebook.replied[BUSY]
                await notebook.until(lambda: notebook.replied[BUSY] >= so_far + AFTER)
                notebook.healed(BUSY)
                await site.relay.heal()
            outcome = await floor.close(REST_S)
    assert outcome.problems == [], logs(home)
    assert outcome.replied_while_offline > 0

"""What a pass of the scheduler leaves behind: whether the end of a lease is of use to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from cloud_hub import fleet, queues, settings
from cloud_hub.scheduler import placement, scheduler
from cloud_hub.store import classes, ends, leadership, pool, schedule
from cloud_hub.store import queues as queue_store
from shared import signals, topics
from tests.integration import stores
from tests.unit import snapshots


class Lead:
    """A leader that nobody contests."""

    leading = True
    breaks = False
    """The connection goes when the statement is committed and before its answer is there."""

    def __init__(self, connections: pool.Pool, token: int) -> None:
        self._connections = connections
        self._token = token

    @asynccontextmanager
    async def deciding(self) -> AsyncIterator[tuple[pool.Connection, int]]:
        async with pool.statement(self._connections) as connection:
            yield connection, self._token
            if self.breaks:
                raise psycopg.OperationalError("the server closed the connection unexpectedly")


class Told:
    """Whose lanes are to be looked at."""

    def __init__(self) -> None:
        self.agent_ids: set[int] = set()

    def leased(self, numbers: Mapping[int, int]) -> None:
        self.agent_ids |= numbers.keys()

    def tell(self, outcome: ends.Outcome) -> None:
        self.agent_ids |= outcome.told


class World:
    """A scheduler over a store, and an agent that would hold ten tasks."""

    def __init__(self, connections: pool.Pool, agent_id: int, token: int, batch: int) -> None:
        members = fleet.Fleet(1000.0)
        member = fleet.Member(
            agent_id, topics.Agent("lyon", "one"), epoch=1, online=True, heard=time.monotonic()
        )
        members.join(member)
        report = signals.ModelReport(name="faces", version="1", provider="cpu", items_per_s=100.0)
        members.heard(member, signals.Telemetry(epoch=1, sequence=1, capacity=10, models=[report]))
        self.limits = queues.Queues(connections)
        policy = settings.Scheduler(batch=batch)
        self.scheduler = scheduler.Scheduler(connections, members, self.limits, policy, lease_ttl_s=60.0)
        self.lead: Any = Lead(connections, token)
        self.told: Any = Told()

    async def passes(self) -> None:
        """One pass after the other, for as long as there is more to place at once."""
        while await self.scheduler._pass(self.lead, self.told):
            pass

    @property
    def woken(self) -> bool:
        """Whether the end of a lease makes another pass."""
        self.scheduler._wake.clear()
        self.scheduler.room()
        return self.scheduler._wake.is_set()


@asynccontextmanager
async def world(database: str, batch: int = 100) -> AsyncIterator[tuple[World, pool.Pool]]:
    async with stores.fresh(database) as connections:
        async with connections.connection() as connection:
            agent_id = await stores.agent(connection)
            token = (await leadership.take(connection, "me")).token
        yield World(connections, agent_id, token, batch), connections


async def test_an_ended_lease_wakes_it_only_if_something_waits(database: str) -> None:
    """All placed: what ends changes nothing. No room for some: the first that ends makes room."""
    async with world(database) as (one, connections):
        async with connections.connection() as connection:
            await stores.submit(connection, 5)
        await one.passes()
        assert not one.woken
        async with connections.connection() as connection:
            await stores.submit(connection, 10)
        await one.passes()
        assert one.scheduler.counts["granted"] == 10
        assert one.woken


async def test_a_queue_that_runs_as_many_as_it_may_is_woken_by_its_tasks(database: str) -> None:
    """Even if all that was read was placed: the limit, and not the queue's end, was the reason."""
    async with world(database, batch=3) as (one, connections):
        one.limits.know({"slow": queue_store.Queue(name="slow", max_running=3)})
        async with connections.connection() as connection:
            await stores.submit(connection, 10, queue="slow")
        await one.passes()
        async with connections.connection() as connection:
            assert await schedule.running(connection) == {"slow": 3}
        assert one.woken


async def test_a_task_that_somebody_held_for_a_moment_is_wanted_still(database: str) -> None:
    """A late report locks it just when it should be granted: it is looked for again."""
    async with world(database) as (one, connections):
        async with connections.connection() as connection:
            task_ids = await stores.submit(connection, 1)
        async with connections.connection() as connection:
            await ends.lock(connection, task_ids)
            await one.passes()
        assert one.woken


async def test_leases_whose_commit_was_not_heard_of_are_sent_all_the_same(database: str) -> None:
    """The connection breaks behind the commit: the agent's lanes are looked at, so that no lease runs out."""
    async with world(database) as (one, connections):
        async with connections.connection() as connection:
            await stores.submit(connection, 2)
        one.lead.breaks = True
        with pytest.raises(psycopg.OperationalError):
            await one.passes()
        async with connections.connection() as connection:
            (agent_id,) = await schedule.outstanding(connection)
        assert one.told.agent_ids == {agent_id}


@pytest.mark.parametrize(("wait_s", "aside"), [(3.0, True), (0.0, False)])
async def test_what_only_its_origin_could_take_is_without_room(
    database: str, wait_s: float, aside: bool
) -> None:
    """A class that its busy origin handed over takes no rows from others while nobody else has room."""
    async with world(database) as (one, connections):
        origin = snapshots.executor(1, 50, predicted_wait_s=wait_s)
        ready = placement.Fleet([origin, snapshots.executor(2, 0)])
        async with connections.connection() as connection:
            keys = [classes.Key("m", queue="q", origin_agent=agent_id) for agent_id in (1, 0)]
            known = await classes.resolve(connection, keys)
            await one.scheduler._classes.learn(connection, list(known.values()))
        assert one.scheduler._aside(ready, set()) == ([], [known[keys[0]]] if aside else [])

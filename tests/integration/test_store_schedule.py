"""Candidates, grants, leases and their loss."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from cloud_hub.store import leadership, pool, schedule, tasks
from shared.tasks import State
from tests.integration import stores


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def test_candidates_come_in_the_order_of_the_scheduler(connections: pool.Pool) -> None:
    """Priority, then the fair-share tag, then age; of each model the first few, whatever their queue."""
    chance = random.Random(7)
    wanted = [
        stores.submission(
            model=chance.choice(["faces", "gears"]),
            queue=chance.choice(["default", "line-4", "night"]),
            priority=chance.randrange(10),
            tag=float(chance.randrange(5)),
        )
        for _ in range(300)
    ]
    order = sorted(wanted, key=lambda one: (-one.job.priority, one.tag, one.task_id))
    async with connections.connection() as connection:
        await tasks.submit(connection, wanted)
        for models, closed in ((None, []), (["gears"], []), (None, ["default", "night"]), ([], [])):
            expected: list[bytes] = []
            for model in ("faces", "gears"):
                if models is None or model in models:
                    open_ = [
                        one.task_id
                        for one in order
                        if one.job.model == model and one.job.metadata.queue not in closed
                    ]
                    expected += open_[:20]
            found = await schedule.candidates(connection, 20, models=models, closed_queues=closed)
            assert {one.task_id for one in found} == set(expected)
            keys = [(-one.priority, one.tag, one.task_id) for one in found]
            assert keys == sorted(keys)


async def test_a_grant_makes_a_lease_and_a_record(connections: pool.Pool) -> None:
    """A granted task is PROCESSING, its attempt counts up, and its agent has a numbered record to get."""
    async with connections.connection() as connection:
        one, other = await stores.agent(connection, "one"), await stores.agent(connection, "other")
        task_ids = await stores.submit(connection, 5)
        unknown = stores.submission().task_id
        grants = [schedule.Grant(t, one if n % 2 else other, 30) for n, t in enumerate([*task_ids, unknown])]
        granted = await schedule.grant(connection, grants)
        assert sorted(granted) == sorted((g.task_id, g.agent_id, 1) for g in grants[:-1])
        assert await schedule.outstanding(connection) == {one: 2, other: 3}
        assert await schedule.candidates(connection, 10) == []
        assert {(await stores.get(connection, t)).state for t in task_ids} == {State.PROCESSING}
        assert await schedule.grant(connection, grants) == [], "who has it keeps it"
        assert await schedule.grant(connection, []) == []


async def test_concurrent_grants_never_make_two_leases(connections: pool.Pool) -> None:
    """Several schedulers that want the same tasks for different agents give each task to one of them."""
    async with connections.connection() as connection:
        agent_ids = [await stores.agent(connection, f"agent-{n}") for n in range(4)]
        task_ids = await stores.submit(connection, 400)

    async def take(agent_id: int) -> list[schedule.Granted]:
        mine: list[schedule.Granted] = []
        for begin in range(0, 400, 50):
            async with connections.connection() as connection:
                order = random.Random(agent_id).sample(task_ids[begin : begin + 50], 50)
                mine += await stores.grant(connection, order, agent_id)
        return mine

    granted = [lease for leases in await asyncio.gather(*map(take, agent_ids)) for lease in leases]
    assert sorted(lease.task_id for lease in granted) == sorted(task_ids)
    assert {lease.attempt for lease in granted} == {1}
    async with connections.connection() as connection:
        cursor = await connection.execute("SELECT task_id, agent_id, attempt FROM leases")
        assert sorted(await cursor.fetchall()) == sorted(granted)
        assert await stores.scalar(connection, b"SELECT count(*) FROM outgoing") == 400


async def test_progress_renews_a_lease_and_mere_liveness_does_not(connections: pool.Pool) -> None:
    """A lease is extended when its progress differs from what was said before, and only for its holder."""
    async with connections.connection() as connection:
        one, other = await stores.agent(connection, "one"), await stores.agent(connection, "other")
        task_ids = await stores.submit(connection, 2)
        await stores.grant(connection, task_ids, one, ttl_s=-1)
        renewals = [schedule.Renewal(task_id, 1, 5) for task_id in task_ids]
        assert await schedule.renew(connection, other, renewals, 60) == 0
        assert await schedule.renew(connection, one, [schedule.Renewal(task_ids[0], 2, 5)], 60) == 0
        assert await schedule.renew(connection, one, renewals[:1], 60) == 1
        assert await schedule.renew(connection, one, renewals[:1], 60) == 0
        assert await schedule.renew(connection, one, [], 60) == 0
        assert (await schedule.expire(connection)).queued == {"faces": 1}
        assert await schedule.outstanding(connection) == {one: 1}
        assert (await stores.get(connection, task_ids[0])).state is State.PROCESSING


async def test_a_lost_lease_puts_its_task_back(connections: pool.Pool) -> None:
    """The task is queued again with its attempt kept, until it was lost as often as it may fail."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection, max_attempts=3)
        for attempt in (1, 2, 3):
            (granted,) = await stores.grant(connection, [task_id], agent_id, ttl_s=-1)
            assert granted.attempt == attempt
            outcome = await schedule.expire(connection)
            task = await stores.get(connection, task_id)
            assert (task.attempt, task.failures) == (attempt, attempt)
            assert task.state is (State.QUEUED if attempt < 3 else State.TERMINATED)
        assert [end.task_id for end in outcome.ended] == [task_id]
        assert await tasks.requeue(connection, [task_id]) == [task_id]
        (granted,) = await stores.grant(connection, [task_id], agent_id)
        assert granted.attempt == 4


async def test_two_lookers_do_not_take_the_same_lease(connections: pool.Pool) -> None:
    """Of two hubs that look for lost leases at once each takes what the other does not hold; none waits."""
    async with connections.connection() as first, connections.connection() as second:
        agent_id = await stores.agent(first)
        task_ids = await stores.submit(first, 10)
        await stores.grant(first, task_ids, agent_id, ttl_s=-1)
        await first.commit()
        assert sum((await schedule.expire(first, limit=6)).queued.values()) == 6
        assert sum((await schedule.expire(second, limit=10)).queued.values()) == 4


async def test_the_tags_of_a_restarted_scheduler(connections: pool.Pool) -> None:
    """The highest tag of each queue is found again, so that virtual time goes on where it was."""
    async with connections.connection() as connection:
        for tag in (1.0, 9.0, 4.0):
            await stores.submit(connection, tag=tag)
            await stores.submit(connection, tag=tag / 2, queue="night")
        assert await schedule.tags(connection) == {"default": 9.0, "night": 4.5}


async def test_only_the_newest_leader_writes(connections: pool.Pool) -> None:
    """A scheduler that was succeeded is told so; one that writes is not succeeded meanwhile."""
    async with connections.connection() as first, connections.connection() as second:
        old = await leadership.take(first)
        await leadership.check(first, old)
        await first.commit()
        await leadership.check(first, old)
        taking = asyncio.create_task(leadership.take(second))
        await stores.submit(first)
        assert not taking.done()
        await first.commit()
        new = await taking
        await second.commit()
        assert new > old
        await leadership.check(second, new)
        with pytest.raises(leadership.Deposed):
            await leadership.check(first, old)

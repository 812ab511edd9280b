"""Heads and depths, grants, leases and their loss, and who may decide."""

import asyncio
import math
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cloud_hub.scheduler import snapshot
from cloud_hub.store import apply, classes, leadership, outgoing, pool, schedule, tasks
from shared import tasks as words
from shared.tasks import State
from tests.integration import stores


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def test_the_heads_are_the_first_tasks_of_each_class_and_priority(connections: pool.Pool) -> None:
    """Of every class and priority the oldest tasks and the exact depth; none of the classes passed over, few
    of those without room; and the wanted rows go to the most urgent, with one of each of the others."""
    chance = random.Random(7)
    wanted = [
        stores.submission(
            model=chance.choice(["faces", "gears"]),
            queue=chance.choice(["default", "line-4", "night"]),
            priority=chance.randrange(10),
            selector=chance.choice([None, "site=lyon"]),
        )
        for _ in range(1500)
    ]
    expected: dict[tuple[str, str, str, int], list[bytes]] = {}
    for one in wanted:
        said = one.job.metadata
        key = (one.job.model, said.queue, said.selector or "", one.job.priority)
        expected.setdefault(key, []).append(one.task_id)
    known = classes.Known()

    async def heads(**more: Any) -> dict[tuple[str, str, str, int], snapshot.Head]:
        found = await schedule.heads(connection, 240, known, **more)
        for head in found:
            assert {task.class_id for task in head.tasks} == {head.class_id}
        return {
            (
                known[head.class_id].model,
                known[head.class_id].queue,
                known[head.class_id].selector,
                head.priority,
            ): head
            for head in found
        }

    async with connections.connection() as connection:
        await tasks.submit(connection, wanted)
        found = await heads()
        assert {key: head.queued for key, head in found.items()} == {
            key: len(ids) for key, ids in expected.items()
        }
        left = 240
        for priority in range(9, -1, -1):
            level = [key for key in expected if key[-1] == priority]
            each = max(1, math.ceil(left / len(level)))
            for key in level:
                assert [task.task_id for task in found[key].tasks] == expected[key][:each]
            left -= sum(len(expected[key]) for key in level)
        assert left < 0
        aside = [one.class_id for one in known if one.queue == "night"]
        assert not any(queue == "night" for _, queue, _, _ in await heads(passed_over=aside))
        for few in (0, 3):
            found = await heads(without_room=aside, few=few)
            counts = {len(head.tasks) for (_, queue, _, _), head in found.items() if queue == "night"}
            assert counts == ({few} if few else set())
        assert await heads(passed_over=[one.class_id for one in known]) == {}


async def test_a_task_that_waited_long_is_read_with_the_more_urgent(connections: pool.Pool) -> None:
    """The rows go by effective priority: so what is old comes to its turn as soon as its wait says."""
    known = classes.Known()
    async with connections.connection() as connection:
        old = await stores.submit(connection, 50, priority=1)
        await stores.submit(connection, 50, priority=5)
        rules = snapshot.Rules(aging_s=100.0, aging_cap=9)
        for waited_s, most in ((0, 1), (900, 20)):
            await connection.execute(
                "UPDATE tasks SET submitted_at = now() - make_interval(secs => %s) WHERE priority = 1",
                [waited_s],
            )
            found = {head.priority: head for head in await schedule.heads(connection, 20, known, rules=rules)}
            assert [task.task_id for task in found[1].tasks] == old[:most]


async def test_depths_are_exact_whatever_happens(connections: pool.Pool) -> None:
    """What waits is counted where it changes: submitted, handed over, granted, lost, backing off, cancelled,
    asked again, forgotten; before and after the counters are added up."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)

        async def check() -> None:
            counted = await stores.scalar(
                connection,
                b"SELECT count(*) FROM tasks WHERE state = 'QUEUED' AND not_before IS NULL",
            )
            for _ in range(2):
                assert sum((await classes.depths(connection)).values()) == counted
                await classes.compact(connection)

        task_ids = await stores.submit(connection, 100)
        await stores.submit(connection, 50, priority=9, queue="night", model="gears")
        await check()
        await apply.tasks(connection, agent_id, stores.handed_over(words.new_id()))
        await check()
        await stores.grant(connection, task_ids[:60], agent_id, ttl_s=-1)
        await check()
        for failed in task_ids[:5]:
            report = stores.report(failed, 1, State.FAILED, retriable=True)
            await apply.attempts(connection, agent_id, report)
        await check()
        await schedule.expire(connection)
        await check()
        await connection.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
        await schedule.ripen(connection)
        await check()
        await tasks.cancel(connection, task_ids[:20])
        await check()
        await tasks.requeue(connection, task_ids[:10])
        await check()
        await connection.execute("UPDATE tasks SET finished_at = '2020-01-01' WHERE finished_at IS NOT NULL")
        assert await tasks.forget(connection, datetime(2100, 1, 1, tzinfo=UTC)) == 10
        await connection.execute("DELETE FROM tasks WHERE state = 'QUEUED'")
        await check()
        assert await classes.depths(connection) == {}


async def test_a_class_is_one_whoever_makes_it(connections: pool.Pool) -> None:
    """Two who need the same new class at once get the same id; one that is rolled back is not remembered."""
    key = classes.Key("faces", "2", "night", "site=lyon")
    async with connections.connection() as first, connections.connection() as second:
        made = await classes.resolve(first, [key])
        asking = asyncio.create_task(classes.resolve(second, [key, classes.Key("gears")]))
        await first.rollback()
        again = await asking
        await second.commit()
        assert (await classes.resolve(first, [key]))[key] == again[key] != made[key]
        (known,) = (await classes.select(first, [again[key]])).values()
        assert known == (again[key], "faces", "2", "night", "site=lyon", 0, None)


async def test_a_grant_makes_a_lease_and_a_record(connections: pool.Pool) -> None:
    """A granted task is PROCESSING, its attempt counts up, and its agent has a numbered record to get."""
    async with connections.connection() as connection:
        one, other = await stores.agent(connection, "one"), await stores.agent(connection, "other")
        task_ids = await stores.submit(connection, 5)
        unknown = stores.submission().task_id
        grants = [schedule.Grant(t, one if n % 2 else other, 30) for n, t in enumerate([*task_ids, unknown])]
        granted = await stores.lease(connection, grants)
        numbers = [1, 1, 2, 2, 3]  # in the order of the wishes, on each agent's own lane
        assert granted == [(g.task_id, g.agent_id, 1, n) for g, n in zip(grants, numbers, strict=False)]
        assert await schedule.outstanding(connection) == {one: 2, other: 3}
        assert await stores.waiting(connection) == []
        assert {(await stores.get(connection, t)).state for t in task_ids} == {State.PROCESSING}
        assert await stores.lease(connection, grants) == [], "who has it keeps it"
        assert await stores.lease(connection, []) == []


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
        assert sorted(await cursor.fetchall()) == sorted(lease[:3] for lease in granted)
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


async def test_a_lost_task_of_many_items_goes_on_after_its_rows(connections: pool.Pool) -> None:
    """Items whose rows are here are not run again; where all are here, the task is complete."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        some, gap, every = await stores.submit(connection, 3, items=6)
        await stores.grant(connection, [some, gap, every], agent_id, ttl_s=-1)
        await apply.results(connection, agent_id, stores.rows(some, 4))
        await apply.results(connection, agent_id, stores.rows(gap, 2, first=1))
        await apply.results(connection, agent_id, stores.rows(every, 6))
        outcome = await schedule.expire(connection)
        assert [end.task_id for end in outcome.ended] == [every]
        done = {task_id: (await stores.get(connection, task_id)).items_done for task_id in (some, gap, every)}
        assert done == {some: 4, gap: 0, every: 6}
        assert (await stores.get(connection, every)).state is State.COMPLETED


async def test_who_might_make_room(connections: pool.Pool) -> None:
    """Leases of lower priority at the agents asked about, the lowest and youngest first; one that was asked
    to stop says so, and its agent gets the command."""
    async with connections.connection() as connection:
        one, other = await stores.agent(connection, "one"), await stores.agent(connection, "other")
        task_ids = await stores.submit(connection, 4, items=10)
        for task_id, agent_id, priority in zip(task_ids, (one, one, one, other), (3, 5, 3, 1), strict=True):
            await stores.lease(connection, [schedule.Grant(task_id, agent_id, 60, priority)])
            await connection.commit()
        held = await schedule.held(connection, 5, [one])
        assert [(lease.task_id, lease.priority) for lease in held] == [(task_ids[2], 3), (task_ids[0], 3)]
        assert not any(lease.stopping for lease in held)
        assert await schedule.stop(connection, [(task_ids[2], 1), (task_ids[1], 7)]) == {one}
        (stopping, _) = await schedule.held(connection, 5, [one])
        assert stopping.stopping
        assert stopping.preempted_ago_s == 0
        batch = await outgoing.read(connection, one, outgoing.COMMANDS, 0, 10, 1000)
        assert batch is not None
        (command,) = batch.batches[0].to_pylist()
        assert command == {"command": "preempt", "task_id": task_ids[2], "body": '{"attempt": 1}'}


async def test_a_decision_is_kept_with_its_attempt(connections: pool.Pool) -> None:
    """Why a task went where it went can be read while it runs and after."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection)
        await stores.lease(connection, [schedule.Grant(task_id, agent_id, -1, 7, '{"able": 2}')])
        why = b"SELECT why FROM leases UNION ALL SELECT why FROM attempts"
        assert await stores.scalar(connection, why) == '{"able": 2}'
        await schedule.expire(connection)
        assert await stores.scalar(connection, why) == '{"able": 2}'


async def test_only_the_newest_leader_writes(connections: pool.Pool) -> None:
    """A scheduler that was succeeded is told so; one that writes is not succeeded meanwhile."""
    async with connections.connection() as first, connections.connection() as second:
        old = await leadership.take(first, "one")
        await schedule.grant(first, old.token, [], "clocks")
        await first.commit()
        await leadership.hold(first, old.token)
        taking = asyncio.create_task(leadership.take(second, "other"))
        await stores.submit(first)
        assert not taking.done()
        await first.commit()
        new = await taking
        await second.commit()
        assert new.token > old.token
        assert new.fair == "clocks"
        await leadership.hold(second, new.token)
        with pytest.raises(leadership.Deposed):
            await leadership.hold(first, old.token)


async def test_who_was_succeeded_grants_nothing(connections: pool.Pool) -> None:
    """The token is checked by the very statement that grants: no lease, no record, no clocks of his."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection)
        old = await leadership.take(connection, "one")
        new = await leadership.take(connection, "other")
        await connection.commit()
        wish = [schedule.Grant(task_id, agent_id, 60)]
        with pytest.raises(leadership.Deposed):
            await schedule.grant(connection, old.token, wish, "his clocks")
        assert (await stores.get(connection, task_id)).state is State.QUEUED
        for table in ("leases", "outgoing", "down_lanes"):
            assert await stores.scalar(connection, f"SELECT count(*) FROM {table}".encode()) == 0
        assert len(await schedule.grant(connection, new.token, wish)) == 1
        assert (await leadership.take(connection, "third")).fair == ""


async def test_a_leader_that_stops_in_the_middle_holds_up_nobody(connections: pool.Pool) -> None:
    """PostgreSQL ends the session of one that is silent within a transaction, and the next can lead."""
    async with connections.connection() as first, connections.connection() as second:
        old = await leadership.take(first, "one")
        await first.commit()
        await leadership.hold(first, old.token)
        async with asyncio.timeout(leadership.PAUSE_MS / 1000 + 10):
            new = await leadership.take(second, "other")
        assert new.token == old.token + 1
        with pytest.raises(pool.UNAVAILABLE):
            await first.execute("SELECT 1")


async def test_the_lead_is_vacant_when_nobody_was_seen(connections: pool.Pool) -> None:
    """Without Redis a hub leads when no other was seen for a while, or when the last one said it goes."""
    async with connections.connection() as connection:
        lead = await leadership.take(connection, "one")
        await connection.commit()
        assert not await leadership.vacant(connection, "other", 60)
        assert await leadership.vacant(connection, "one", 60)
        assert await leadership.vacant(connection, "other", -1)
        await leadership.leave(connection, lead.token)
        assert await leadership.vacant(connection, "other", 60)

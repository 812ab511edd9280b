"""How attempts end, and what that means for tasks, leases and origins."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pyarrow as pa
import pytest

from cloud_hub.store import agents, apply, classes, ends, lanes, pool, schedule, tasks, verdicts
from shared import lanes as protocol
from shared import tasks as words
from shared import topics, wire
from shared.tasks import Reason, State
from tests.integration import stores


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def read(connection: pool.Connection, agent_id: int, lane: str) -> list[tuple[str, dict[str, object]]]:
    """(kind, record) of all that waits on a down lane, read in batches of at most two records."""
    found: list[tuple[str, dict[str, object]]] = []
    after = 0
    while (
        batch := await lanes.read(connection, agent_id, protocol.Lane(lane), after, max_rows=2)
    ) is not None:
        assert batch.span.first == after + 1
        records = [record for part in batch.batches for record in part.to_pylist()]
        assert len(records) == batch.span.size
        found += [(batch.kind.name, record) for record in records]
        after = batch.span.last
    return found


async def test_a_completed_task_is_done_with(connections: pool.Pool) -> None:
    """Its state, its lease and its payload all change together, and those who wait can be told."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection, items=3)
        await stores.grant(connection, [task_id], agent_id)
        await apply.results(connection, agent_id, stores.rows(task_id, 3))
        outcome = await apply.attempts(connection, agent_id, stores.report(task_id, 1, State.COMPLETED))
        assert [(end.task_id, end.state, end.model) for end in outcome.ended] == [
            (task_id, State.COMPLETED, "faces")
        ]
        task = await stores.get(connection, task_id)
        assert (task.state, task.items_done, task.agent) == (State.COMPLETED, 3, None)
        assert task.finished_at is not None
        assert await tasks.payload(connection, task_id) is None
        assert await read(connection, agent_id, "results") == [], "nobody handed it over, so nobody is told"


async def test_many_ends_in_one_batch(connections: pool.Pool) -> None:
    """A batch of many attempts, of several outcomes and some of them twice, ends each task rightly."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        task_ids = await stores.submit(connection, 300)
        await stores.grant(connection, task_ids, agent_id)
        states = [State.COMPLETED, State.FAILED, State.QUEUED]
        batches = [stores.report(t, 1, states[n % 3]) for n, t in enumerate(task_ids)]
        outcome = await apply.attempts(connection, agent_id, pa.concat_batches(batches + batches[:30]))
        assert len(outcome.ended) == 200
        assert outcome.queued == {"faces": 100}
        counts = await tasks.counts(connection)
        assert counts.states == {State.COMPLETED: 100, State.TERMINATED: 100, State.QUEUED: 100}
        assert await stores.scalar(connection, b"SELECT count(*) FROM leases") == 0
        assert await stores.scalar(connection, b"SELECT count(*) FROM attempts") == 300


async def test_a_failed_task_waits_and_comes_back(connections: pool.Pool) -> None:
    """After a failure worth another try the task is not granted at once, and is when its wait is over."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection)
        await stores.grant(connection, [task_id], agent_id)
        await apply.attempts(connection, agent_id, stores.report(task_id, 1, State.FAILED, retriable=True))
        task = await stores.get(connection, task_id)
        assert (task.state, task.failures) == (State.QUEUED, 1)
        assert task.not_before is not None
        assert await stores.waiting(connection) == []
        assert await stores.grant(connection, [task_id], agent_id) == []
        await connection.execute("UPDATE tasks SET not_before = now()")
        assert await stores.waiting(connection) == [task_id]
        assert len(await stores.grant(connection, [task_id], agent_id)) == 1


async def test_a_late_completion_calls_the_other_back(connections: pool.Pool) -> None:
    """An agent whose lease was lost completes the task; the one that runs it now is told to stop."""
    async with connections.connection() as connection:
        slow, quick = await stores.agent(connection, "slow"), await stores.agent(connection, "quick")
        (task_id,) = await stores.submit(connection)
        await stores.grant(connection, [task_id], slow, ttl_s=-1)
        assert (await schedule.expire(connection)).queued == {"faces": 1}
        await stores.grant(connection, [task_id], quick)
        outcome = await apply.attempts(connection, slow, stores.report(task_id, 1, State.COMPLETED))
        assert [end.state for end in outcome.ended] == [State.COMPLETED]
        assert outcome.told == {quick}
        assert await read(connection, quick, "commands") == [
            ("commands", {"command": "cancel", "task_id": task_id, "body": None})
        ]
        # The lease record has not been sent yet: it goes, as its number must, without payload.
        ((_, lease),) = await read(connection, quick, "leases")
        assert (lease["task_id"], lease["payload"]) == (task_id, None)
        late = await apply.attempts(connection, quick, stores.report(task_id, 2, State.COMPLETED))
        assert late.ended == []
        history = await tasks.attempts(connection, task_id)
        assert [(one.attempt, one.state) for one in history] == [(1, State.COMPLETED), (2, State.COMPLETED)]


async def test_the_word_of_an_attempt_that_is_past_changes_nothing(connections: pool.Pool) -> None:
    """The attempt number fences: a failure or a put-back of a lost lease does not touch the current one."""
    async with connections.connection() as connection:
        slow, quick = await stores.agent(connection, "slow"), await stores.agent(connection, "quick")
        (task_id,) = await stores.submit(connection, items=8)
        await stores.grant(connection, [task_id], slow, ttl_s=-1)
        await schedule.expire(connection)
        await stores.grant(connection, [task_id], quick)
        for state in (State.FAILED, State.TERMINATED, State.QUEUED):
            outcome = await apply.attempts(connection, slow, stores.report(task_id, 1, state, items_done=5))
            assert (outcome.ended, outcome.queued) == ([], {})
        task = await stores.get(connection, task_id)
        assert (task.state, task.attempt, task.items_done) == (State.PROCESSING, 2, 0)


async def test_the_origin_gets_every_row_of_its_task(connections: pool.Pool) -> None:
    """A task that was handed over and completed elsewhere comes back as its rows, one chunk, in order."""
    async with connections.connection() as connection:
        origin, helper = await stores.agent(connection, "origin"), await stores.agent(connection, "helper")
        task_id = words.new_id()
        taken = await apply.tasks(connection, origin, stores.handed_over(task_id, items=5))
        assert taken.queued == {"faces": 1}
        await stores.grant(connection, [task_id], helper)
        sent = stores.rows(task_id, 5, output="{}")
        await apply.results(connection, helper, sent)
        outcome = await apply.attempts(connection, helper, stores.report(task_id, 1, State.COMPLETED))
        assert outcome.told == {origin}
        batch = await lanes.read(connection, origin, lanes.RESULTS, 0, max_rows=3)
        assert batch is not None
        assert (batch.kind, batch.span) == (wire.RESULTS, (1, 5)), "a chunk is never cut"
        assert batch.batches[0].equals(sent)


async def test_a_row_that_is_gone_is_sent_as_failed(connections: pool.Pool) -> None:
    """The numbers of a chunk are given: an item without a row takes its place, and says why it failed."""
    async with connections.connection() as connection:
        origin, helper = await stores.agent(connection, "origin"), await stores.agent(connection, "helper")
        task_id = words.new_id()
        await apply.tasks(connection, origin, stores.handed_over(task_id, items=3))
        await stores.grant(connection, [task_id], helper)
        await apply.results(connection, helper, stores.rows(task_id, 2))
        await apply.attempts(connection, helper, stores.report(task_id, 1, State.COMPLETED))
        outcomes = [record["outcome"] for _, record in await read(connection, origin, "results")]
        assert outcomes == ["ok", "ok", "failed"]


async def test_the_origin_hears_how_else_its_task_ended(connections: pool.Pool) -> None:
    """Cancelled, expired, failed for good or lost too often: one record says so to the origin."""
    async with connections.connection() as connection:
        origin, helper = await stores.agent(connection, "origin"), await stores.agent(connection, "helper")
        cancelled, expired, failed, lost = (words.new_id() for _ in range(4))
        for task_id in (cancelled, failed, lost):
            await apply.tasks(connection, origin, stores.handed_over(task_id, max_attempts=1))
        await apply.tasks(connection, origin, stores.handed_over(expired, deadline_ms=-1))
        await tasks.cancel(connection, [cancelled])
        assert [end.reason for end in (await schedule.expire_deadlines(connection)).ended] == [Reason.EXPIRED]
        await stores.grant(connection, [failed], helper)
        word = stores.report(failed, 1, State.FAILED, error="no such model")
        await apply.attempts(connection, helper, word)
        await stores.grant(connection, [lost], helper, ttl_s=-1)
        assert [end.reason for end in (await schedule.expire(connection)).ended] == [Reason.EXHAUSTED]
        told = [record for kind, record in await read(connection, origin, "results") if kind == "attempts"]
        assert [(one["task_id"], one["state"], one["reason"]) for one in told] == [
            (cancelled, "TERMINATED", "cancelled"),
            (expired, "TERMINATED", "expired"),
            (failed, "TERMINATED", "not_retriable"),
            (lost, "TERMINATED", "exhausted"),
        ]
        assert told[2]["error"] == "no such model"


async def test_an_origin_that_ran_it_is_not_told(connections: pool.Pool) -> None:
    """What an agent handed over and was given back to run, it knows the end of."""
    async with connections.connection() as connection:
        origin = await stores.agent(connection, "origin")
        task_id = words.new_id()
        await apply.tasks(connection, origin, stores.handed_over(task_id))
        await stores.grant(connection, [task_id], origin)
        outcome = await apply.attempts(connection, origin, stores.report(task_id, 1, State.COMPLETED))
        assert outcome.told == frozenset()
        assert await read(connection, origin, "results") == []


async def test_a_task_that_ended_before_it_came_stays_ended(connections: pool.Pool) -> None:
    """The origin took it back and ran it; the record that hands it over comes later and changes nothing."""
    async with connections.connection() as connection:
        origin = await stores.agent(connection, "origin")
        done, failed = words.new_id(), words.new_id()
        await apply.results(connection, origin, stores.rows(done, 4, attempt=0))
        await apply.attempts(connection, origin, stores.report(done, 0, State.COMPLETED))
        await apply.attempts(connection, origin, stores.report(failed, 0, State.FAILED, error="no memory"))
        for task_id in (done, failed):
            late = await apply.tasks(connection, origin, stores.handed_over(task_id, items=4))
            assert late.queued == {}
            assert await tasks.payload(connection, task_id) is None
        task = await stores.get(connection, done)
        assert (task.state, task.items, task.items_done) == (State.COMPLETED, 4, 4)
        assert (task.model, task.version, task.device) == ("faces", "3", "camera-1")
        ended = await stores.get(connection, failed)
        assert (ended.state, ended.reason) == (State.TERMINATED, Reason.NOT_RETRIABLE)
        assert await stores.waiting(connection) == []
        assert await tasks.requeue(connection, [failed]) == [], "there is nothing to run it on"


async def test_both_words_at_the_same_moment(connections: pool.Pool) -> None:
    """The end of a task and the record that hands it over, in two transactions at once: it ends, once."""
    for first_is_the_task in (True, False):
        task_id = words.new_id()
        async with connections.connection() as one, connections.connection() as other:
            origin = await stores.agent(one, "origin")
            await one.commit()

            async def hand_over(
                connection: pool.Connection, task_id: bytes = task_id, agent: int = origin
            ) -> None:
                await apply.tasks(connection, agent, stores.handed_over(task_id))

            async def end(connection: pool.Connection, task_id: bytes = task_id, agent: int = origin) -> None:
                await apply.attempts(connection, agent, stores.report(task_id, 0, State.COMPLETED))

            first, second = (hand_over, end) if first_is_the_task else (end, hand_over)
            await first(one)
            waiting = asyncio.create_task(second(other))
            await one.commit()
            await waiting
            await other.commit()
            assert (await stores.get(other, task_id)).state is State.COMPLETED
            assert await tasks.payload(other, task_id) is None


async def test_a_withdrawn_task_is_not_taken(connections: pool.Pool) -> None:
    """A record without payload only fills its number; of a task that is known it changes nothing."""
    async with connections.connection() as connection:
        origin = await stores.agent(connection, "origin")
        withdrawn, known = words.new_id(), words.new_id()
        await apply.tasks(connection, origin, stores.handed_over(known))
        both = pa.concat_batches([stores.handed_over(withdrawn, None), stores.handed_over(known, None)])
        assert (await apply.tasks(connection, origin, both)).queued == {}
        assert await tasks.get(connection, withdrawn) is None
        assert (await stores.get(connection, known)).state is State.QUEUED
        assert await tasks.payload(connection, known) == b"picture"
        again = pa.concat_batches([stores.handed_over(known), stores.handed_over(withdrawn)] * 2)
        assert (await apply.tasks(connection, origin, again)).queued == {"faces": 1}


async def test_what_is_handed_over_keeps_its_words(connections: pool.Pool) -> None:
    """Priority, deadline, tag and the rest of a task that was handed over reach the agent that runs it."""
    async with connections.connection() as connection:
        origin, helper = await stores.agent(connection, "origin"), await stores.agent(connection, "helper")
        task_id, plain = words.new_id(), words.new_id()
        record = stores.handed_over(
            task_id,
            priority=8,
            queue="line-4",
            version="7",
            device="camera-9",
            items=6,
            timeout_ms=900,
            deadline_ms=90_000,
            traceparent="00-1-2-03",
        )
        await apply.tasks(connection, origin, record)
        await apply.tasks(connection, origin, stores.handed_over(plain, priority=1))
        heads = await schedule.heads(connection, 10, classes.Known())
        assert [(t.priority, t.origin_agent, t.home, t.payload_bytes) for h in heads for t in h.tasks] == [
            (8, origin, "lyon", 7),
            (1, origin, "lyon", 7),
        ]
        await stores.grant(connection, [task_id], helper, ttl_s=30)
        await stores.grant(connection, [plain], helper)
        (_, lease), (_, without) = await read(connection, helper, "leases")
        assert without["deadline_ms"] is None
        assert 89_000 < int(str(lease.pop("deadline_ms"))) <= 90_000
        assert 29_000 < int(str(lease.pop("ttl_ms"))) <= 30_000
        assert lease == {
            "task_id": task_id,
            "model": "faces",
            "version": "7",
            "priority": 8,
            "queue": "line-4",
            "device": "camera-9",
            "content_type": "image/png",
            "payload": b"picture",
            "items": 6,
            "timeout_ms": 900,
            "traceparent": "00-1-2-03",
            "attempt": 1,
            "items_done": 0,
            "origin": "lyon/origin",
        }


async def test_a_new_epoch_takes_over(connections: pool.Pool) -> None:
    """A fresh journal lost what ran there: it is queued again; words to the old epoch go to the new one."""
    place = topics.Agent("lyon", "origin")
    async with connections.connection() as connection:
        old, helper = await stores.agent(connection, "origin", epoch=70), await stores.agent(connection, "h")
        handed = [words.new_id() for _ in range(3)]
        for task_id in handed:
            await apply.tasks(connection, old, stores.handed_over(task_id, items=2))
        running = await stores.submit(connection, 2)
        await stores.grant(connection, running, old)
        await stores.grant(connection, handed[:1], helper)
        await apply.results(connection, helper, stores.rows(handed[0], 2))
        await apply.attempts(connection, helper, stores.report(handed[0], 1, State.COMPLETED))
        await tasks.cancel(connection, handed[1:2])
        await agents.set_draining(connection, place, True)

        seen = await agents.seen(connection, place, 33)
        assert (seen.is_new, seen.is_current) == (True, True)
        assert seen.outcome.queued == {"faces": 2}
        assert seen.outcome.told == {seen.agent_id}
        assert [(await stores.get(connection, task_id)).failures for task_id in running] == [1, 1]
        told = await read(connection, seen.agent_id, "results")
        assert [(kind, record["task_id"]) for kind, record in told] == [
            ("results", handed[0]),
            ("results", handed[0]),
            ("attempts", handed[1]),
        ]
        assert await read(connection, old, "results") == []
        assert await read(connection, old, "leases") == []

        # Words that come up from now on go to the new epoch at once.
        await tasks.cancel(connection, handed[2:])
        assert len(await read(connection, seen.agent_id, "results")) == 4
        current = await agents.find(connection, place)
        assert current is not None
        assert (current.agent_id, current.draining) == (seen.agent_id, True)


async def test_no_word_is_lost_in_a_succession(connections: pool.Pool) -> None:
    """A word that is being written while its origin gets a new epoch reaches that epoch, whoever is first."""
    place = topics.Agent("lyon", "origin")
    for epoch, word_is_first in ((2, True), (3, False)):
        async with connections.connection() as one, connections.connection() as other:
            old = await stores.agent(one, "origin", epoch=epoch - 1)
            task_id = words.new_id()
            await apply.tasks(one, old, stores.handed_over(task_id))
            await one.commit()
            waiting: asyncio.Task[object]
            if word_is_first:
                await tasks.cancel(one, [task_id])
                waiting = asyncio.create_task(agents.seen(other, place, epoch))
            else:
                await agents.seen(one, place, epoch)
                waiting = asyncio.create_task(tasks.cancel(other, [task_id]))
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done, "the second one waits for the first"
            await one.commit()
            await waiting
            await other.commit()
            new = await stores.agent(one, "origin", epoch=epoch)
            assert await read(one, old, "results") == []
            assert [record["task_id"] for _, record in await read(one, new, "results")][-1:] == [task_id]
            await lanes.acknowledged(one, new, lanes.RESULTS, 99)


async def test_an_old_epoch_that_speaks_again_takes_nothing(connections: pool.Pool) -> None:
    """A late message of an epoch that is over is no succession: the newer one keeps its leases."""
    place = topics.Agent("lyon", "one")
    async with connections.connection() as connection:
        await agents.seen(connection, place, 1)
        new = await agents.seen(connection, place, 2)
        await stores.grant(connection, await stores.submit(connection), new.agent_id)
        old = await agents.seen(connection, place, 1)
        assert (old.is_new, old.is_current) == (False, False)
        assert await schedule.outstanding(connection) == {new.agent_id: 1}


async def test_a_word_nobody_knows_is_refused(connections: pool.Pool) -> None:
    """An attempt that ended in a way there is not is one of REFUSED, before anything is written."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        with pytest.raises(pool.REFUSED, match="REJECTED"):
            await apply.attempts(connection, agent_id, stores.report(words.new_id(), 1, State.REJECTED))
        unknown = stores.report(words.new_id(), 3, State.COMPLETED)
        assert (await apply.attempts(connection, agent_id, unknown)).ended == []
        assert await stores.scalar(connection, b"SELECT count(*) FROM tasks") == 0


async def test_deadlines_are_judged_while_tasks_wait(connections: pool.Pool) -> None:
    """A queued task past its deadline ends; one that runs is its agent's, until its lease is lost."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        waiting, running = await stores.submit(connection, 2, deadline_ms=50_000)
        (patient,) = await stores.submit(connection)
        await stores.grant(connection, [running], agent_id, ttl_s=-1)
        await connection.execute("UPDATE tasks SET deadline_at = deadline_at - %s", (timedelta(minutes=1),))
        assert [end.task_id for end in (await schedule.expire_deadlines(connection)).ended] == [waiting]
        (lost,) = (await schedule.expire(connection)).ended
        assert (lost.task_id, lost.reason) == (running, Reason.EXPIRED)
        assert (await stores.get(connection, patient)).state is State.QUEUED


async def test_a_lease_stays_with_a_task_that_was_left_alone(connections: pool.Pool) -> None:
    """A change that came too late takes nothing: a task that runs without a lease would never be missed."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection)
        (before,) = (await ends.lock(connection, [task_id])).values()
        await stores.grant(connection, [task_id], agent_id)
        cancelled = verdicts.cancelled(before)
        assert cancelled is not None
        await ends.settle(connection, [cancelled])
        assert (await stores.get(connection, task_id)).state is State.PROCESSING
        assert await stores.scalar(connection, b"SELECT count(*) FROM leases") == 1

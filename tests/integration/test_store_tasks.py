"""Tasks: submitted, listed, cancelled, asked to run again."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from cloud_hub.store import apply, pool, results, tasks
from shared.tasks import Reason, State
from tests.integration import stores


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def test_a_submission_is_kept_as_it_was_said(connections: pool.Pool) -> None:
    """All that a job says is in its task, its payload beside it; the answer is in the order of the call."""
    wanted = [
        stores.submission(
            model="faces",
            items=3,
            payload=b"\0" * 3000,
            version="2",
            priority=9,
            queue="line-4",
            selector="site=lyon",
            timeout_ms=500,
            deadline_ms=60_000,
            max_attempts=2,
            traceparent="00-1-2-03",
        ),
        stores.submission(),
    ]
    async with connections.connection() as connection:
        submitted = await tasks.submit(connection, wanted)
        assert submitted == [tasks.Submitted(one.task_id, repeated=False) for one in wanted]
        task = await stores.get(connection, wanted[0].task_id)
        assert (task.state, task.model, task.version, task.priority) == (State.QUEUED, "faces", "2", 9)
        assert (task.queue, task.selector, task.items, task.payload_bytes) == ("line-4", "site=lyon", 3, 3000)
        assert (task.timeout_ms, task.max_attempts, task.traceparent) == (500, 2, "00-1-2-03")
        assert task.deadline_at is not None
        assert (task.deadline_at - task.submitted_at).total_seconds() == 60
        assert await tasks.payload(connection, task.task_id) == b"\0" * 3000
        assert (await stores.get(connection, wanted[1].task_id)).deadline_at is None
        assert await tasks.get(connection, stores.submission().task_id) is None


async def test_a_key_is_one_task(connections: pool.Pool) -> None:
    """The same idempotency key gives the same task, within a call and later, whatever it asks for."""
    async with connections.connection() as connection:
        first, second, other = await tasks.submit(
            connection,
            [
                stores.submission(idempotency_key="a"),
                stores.submission(idempotency_key="a"),
                stores.submission(idempotency_key="b"),
            ],
        )
        assert not first.repeated
        assert second == tasks.Submitted(first.task_id, repeated=True)
        assert other.task_id != first.task_id
    async with connections.connection() as connection:
        fresh, again = await tasks.submit(
            connection, [stores.submission(), stores.submission(model="other", idempotency_key="a")]
        )
        assert not fresh.repeated
        assert again == tasks.Submitted(first.task_id, repeated=True)
        assert await stores.scalar(connection, b"SELECT count(*) FROM tasks") == 3
        assert await stores.scalar(connection, b"SELECT count(*) FROM payloads") == 3


async def test_concurrent_submissions_of_one_key_are_told_the_same_id(connections: pool.Pool) -> None:
    """However many clients bring a key at once, and in whatever order with others: one task, one id."""
    keys = [f"key-{number}" for number in range(20)]

    async def bring(order: list[str]) -> dict[str, tasks.Submitted]:
        async with connections.connection() as connection:
            submitted = await tasks.submit(
                connection, [stores.submission(idempotency_key=key) for key in order]
            )
        return dict(zip(order, submitted, strict=True))

    answers = await asyncio.gather(*(bring(keys if n % 2 else keys[::-1]) for n in range(6)))
    for key in keys:
        assert len({answer[key].task_id for answer in answers}) == 1
        assert [answer[key].repeated for answer in answers].count(False) == 1
    async with connections.connection() as connection:
        assert await stores.scalar(connection, b"SELECT count(*) FROM tasks") == len(keys)


async def test_a_key_whose_submission_failed_is_free_again(connections: pool.Pool) -> None:
    """Who waits for a key behind a submission that is rolled back gets it himself."""
    async with connections.connection() as first, connections.connection() as second:
        await tasks.submit(first, [stores.submission(idempotency_key="a")])
        waiting = asyncio.create_task(tasks.submit(second, [stores.submission(idempotency_key="a")]))
        await first.rollback()
        (submitted,) = await waiting
        assert not submitted.repeated
        assert (await stores.get(second, submitted.task_id)).idempotency_key == "a"


async def test_lists_go_by_pages_newest_first(connections: pool.Pool) -> None:
    """Pages together are all tasks that the filter wants, each once."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        plain = await stores.submit(connection, 5)
        special = await stores.submit(connection, 4, model="gears", queue="line-4")
        await tasks.cancel(connection, special[:2])
        await stores.grant(connection, plain[:1], agent_id)
        for wanted, expected in (
            (tasks.Filter(), plain + special),
            (tasks.Filter(model="gears"), special),
            (tasks.Filter(queue="line-4", state=State.QUEUED), special[2:]),
            (tasks.Filter(state=State.TERMINATED, reason=Reason.CANCELLED), special[:2]),
            (tasks.Filter(state=State.PROCESSING), plain[:1]),
            (tasks.Filter(site="lyon"), []),
        ):
            found: list[bytes] = []
            before = None
            while True:
                page = await tasks.list_page(connection, wanted, before=before, limit=2)
                found += [task.task_id for task in page.tasks]
                before = page.next
                if before is None:
                    break
            assert found == expected[::-1]


async def test_counts_are_counted(connections: pool.Pool) -> None:
    """The counts are those of the tasks that are there, by state, and of the queued by model and queue."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        some = await stores.submit(connection, 6)
        await stores.submit(connection, 2, model="gears", queue="line-4")
        await stores.grant(connection, some[:3], agent_id)
        await apply.attempts(connection, agent_id, stores.report(some[0], 1, State.COMPLETED))
        await tasks.cancel(connection, some[1:2])
        counts = await tasks.counts(connection)
    assert counts.states == {
        State.QUEUED: 5,
        State.PROCESSING: 1,
        State.COMPLETED: 1,
        State.TERMINATED: 1,
    }
    assert counts.queued == {("faces", "default", 5): 3, ("gears", "line-4", 5): 2}


async def test_cancelling_ends_what_has_not_ended(connections: pool.Pool) -> None:
    """Queued and running tasks end, the agent that runs one is told, and what has ended stays as it is."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        queued, running, done = await stores.submit(connection, 3)
        await stores.grant(connection, [running, done], agent_id)
        await apply.attempts(connection, agent_id, stores.report(done, 1, State.COMPLETED))
        outcome = await tasks.cancel(connection, [queued, running, done, stores.submission().task_id])
        assert {end.task_id for end in outcome.ended} == {queued, running}
        assert {end.reason for end in outcome.ended} == {Reason.CANCELLED}
        assert outcome.told == {agent_id}
        assert await stores.scalar(connection, b"SELECT count(*) FROM leases") == 0
        assert (await stores.get(connection, done)).state is State.COMPLETED
        assert (await tasks.cancel(connection, [queued, running, done])).ended == []


async def test_a_dead_letter_runs_again(connections: pool.Pool) -> None:
    """A terminated task is queued with its payload, its failures forgotten, its attempts counting on."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        (task_id,) = await stores.submit(connection, items=2, deadline_ms=1000)
        await stores.grant(connection, [task_id], agent_id)
        failed = stores.rows(task_id, 2, outcome="failed", label=None, error="no memory")
        await apply.results(connection, agent_id, failed)
        await apply.attempts(connection, agent_id, stores.report(task_id, 1, State.FAILED, error="no memory"))
        letter = await stores.get(connection, task_id)
        assert (letter.state, letter.reason, letter.error) == (
            State.TERMINATED,
            Reason.NOT_RETRIABLE,
            "no memory",
        )

        assert await tasks.requeue(connection, [task_id, stores.submission().task_id]) == [task_id]
        task = await stores.get(connection, task_id)
        assert (task.state, task.failures, task.attempt, task.reason) == (State.QUEUED, 0, 1, None)
        assert (task.error, task.finished_at, task.deadline_at) == (None, None, None)

        (granted,) = await stores.grant(connection, [task_id], agent_id)
        assert granted.attempt == 2
        assert (await apply.results(connection, agent_id, stores.rows(task_id, 2, attempt=2))).inserted == 2
        await apply.attempts(connection, agent_id, stores.report(task_id, 2, State.COMPLETED))
        assert (await stores.get(connection, task_id)).state is State.COMPLETED
        rows = (await results.of_task(connection, task_id)).to_pylist()
        assert [row["outcome"] for row in rows] == ["ok", "ok"]
        assert await stores.scalar(connection, b"SELECT count(*) FROM shadows WHERE agrees IS NULL") == 2
        assert await tasks.requeue(connection, [task_id]) == [], "a completed task is no dead letter"


async def test_attempts_are_told_with_the_one_that_runs(connections: pool.Pool) -> None:
    """The history of a task names who ran it, how each attempt ended, and who runs it now."""
    async with connections.connection() as connection:
        one, other = await stores.agent(connection, "one"), await stores.agent(connection, "other")
        (task_id,) = await stores.submit(connection, items=9)
        await stores.grant(connection, [task_id], one)
        await apply.attempts(connection, one, stores.report(task_id, 1, State.QUEUED, items_done=4))
        await stores.grant(connection, [task_id], other)
        first, second = await tasks.attempts(connection, task_id)
        assert (first.attempt, first.agent.name, first.state, first.items_done) == (1, "one", State.QUEUED, 4)
        assert (first.run_us, first.granted_at is None, first.ended_at is None) == (1000, False, False)
        assert (second.attempt, second.agent.name, second.state) == (2, "other", State.PROCESSING)
        assert second.ended_at is None
        running = await stores.get(connection, task_id)
        assert running.agent is not None
        assert running.agent.name == "other"
        assert running.items_done == 4


async def test_what_ended_long_ago_is_forgotten(connections: pool.Pool) -> None:
    """Ended tasks go with their payloads, attempts and keys, so many at a time; those that live stay."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        waiting, dead, done, again = await stores.submit(connection, 4)
        (keyed,) = await tasks.submit(connection, [stores.submission(idempotency_key="a")])
        await stores.grant(connection, [done, again], agent_id)
        await apply.results(connection, agent_id, stores.rows(done))
        await apply.attempts(connection, agent_id, stores.report(done, 1, State.COMPLETED))
        await apply.attempts(connection, agent_id, stores.report(again, 1, State.FAILED))
        await tasks.cancel(connection, [dead, keyed.task_id])
        await tasks.requeue(connection, [again])
        now = datetime.now(UTC) + timedelta(seconds=1)
        assert await tasks.forget(connection, now - timedelta(hours=1)) == 0
        assert await tasks.forget(connection, now, limit=2) == 2
        assert await tasks.forget(connection, now) == 1
        left = await tasks.list_page(connection, tasks.Filter())
        assert {task.task_id for task in left.tasks} == {waiting, again}
        assert await stores.scalar(connection, b"SELECT count(*) FROM payloads") == 2
        (fresh,) = await tasks.submit(connection, [stores.submission(idempotency_key="a")])
        assert not fresh.repeated
        assert await stores.scalar(connection, b"SELECT count(*) FROM attempts") == 1
        assert (await results.of_task(connection, done)).num_rows == 1

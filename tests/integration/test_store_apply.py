"""Result rows: recorded once, whatever is repeated."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from cloud_hub.store import apply, partitions, pool, results
from shared import tasks, wire
from tests.integration import stores


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def recorded(connection: pool.Connection, task_id: bytes) -> list[tuple[int, str | None]]:
    """(item, label) of what is recorded of a task."""
    found = (await results.of_task(connection, task_id)).to_pylist()
    return [(row["item"], row["label"]) for row in found]


async def test_what_comes_up_is_what_is_read(connections: pool.Pool) -> None:
    """Every column of a row is read back as it came, with its sender and the time of its arrival."""
    task_id = tasks.new_id()
    sent = stores.rows(task_id, 3, score=0.25, output='{"p":[1,2]}', error=None, clock_offset_us=-5)
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection, "north", site="lyon")
        assert await apply.results(connection, agent_id, sent) == apply.Applied(inserted=3, shadowed=0)
        read = await results.of_task(connection, task_id)
    assert read.select(sent.schema.names).equals(sent)
    assert read.column("site").to_pylist() == ["lyon"] * 3
    assert read.column("agent").to_pylist() == ["north"] * 3


async def test_the_first_result_wins(connections: pool.Pool) -> None:
    """A later row of the same item changes nothing; it is kept beside it, compared and counted."""
    task_id = tasks.new_id()
    async with connections.connection() as connection:
        one, other = await stores.agent(connection, "one"), await stores.agent(connection, "other")
        await apply.results(connection, one, stores.rows(task_id, 4, label="good"))
        later = pa.concat_batches(
            [stores.rows(task_id, 3, label="good"), stores.rows(task_id, 2, first=3, label="scratch")]
        )
        applied = await apply.results(connection, other, later)
        assert applied == apply.Applied(inserted=1, shadowed=4, disagreed=1)
        assert await recorded(connection, task_id) == [*((item, "good") for item in range(4)), (4, "scratch")]
        cursor = await connection.execute("SELECT item, agent_id, label, agrees FROM shadows ORDER BY item")
        assert await cursor.fetchall() == [
            *((item, other, "good", True) for item in range(3)),
            (3, other, "scratch", False),
        ]


async def test_a_batch_may_repeat_itself(connections: pool.Pool) -> None:
    """Of two rows of one item in one batch the first is recorded, the second is its shadow."""
    task_id = tasks.new_id()
    twice = pa.concat_batches([stores.rows(task_id, 2, label="good"), stores.rows(task_id, 2, label="dent")])
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        assert await apply.results(connection, agent_id, twice) == apply.Applied(2, 2, disagreed=2)
        assert await recorded(connection, task_id) == [(0, "good"), (1, "good")]


async def test_several_batches_of_one_transaction(connections: pool.Pool) -> None:
    """Batches that are applied together count for themselves, though they share a staging table."""
    task_id = tasks.new_id()
    batch = stores.rows(task_id, 5)
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        await apply.results(connection, agent_id, batch)
        for _ in range(3):
            assert await apply.results(connection, agent_id, batch) == apply.Applied(0, 5)
        fresh = stores.rows(tasks.new_id(), 7)
        assert await apply.results(connection, agent_id, fresh) == apply.Applied(7, 0)


async def test_two_at_once_agree_on_one_row(connections: pool.Pool) -> None:
    """Of two agents that report the same items at the same time one is recorded and the other shadowed."""
    task_ids = [tasks.new_id() for _ in range(50)]
    forwards = pa.concat_batches([stores.rows(task_id) for task_id in task_ids])
    backwards = pa.concat_batches([stores.rows(task_id) for task_id in reversed(task_ids)])

    async def one(name: str, batch: pa.RecordBatch) -> apply.Applied:
        while True:
            try:
                async with connections.connection() as connection, connection.transaction():
                    agent_id = await stores.agent(connection, name)
                    return await apply.results(connection, agent_id, batch)
            except pool.UNAVAILABLE:
                continue  # they met in opposite directions, and PostgreSQL chose one to go first

    first, second = await asyncio.gather(one("one", forwards), one("other", backwards))
    assert first.inserted + second.inserted == 50
    assert first.shadowed + second.shadowed == 50
    async with connections.connection() as connection:
        assert await stores.scalar(connection, b"SELECT count(*) FROM results") == 50


async def test_nothing_is_committed_but_by_the_caller(connections: pool.Pool) -> None:
    """A transaction that is given up leaves no row, neither straight nor staged."""
    task_id = tasks.new_id()
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
    for _ in range(2):
        async with connections.connection() as connection:
            await apply.results(connection, agent_id, stores.rows(task_id))
            await apply.results(connection, agent_id, stores.rows(task_id))
            await connection.rollback()
            assert await recorded(connection, task_id) == []
            assert await stores.scalar(connection, b"SELECT count(*) FROM shadows") == 0


async def test_text_that_postgres_cannot_hold_is_mended(connections: pool.Pool) -> None:
    """A NUL or a broken byte in a label costs that character, not the batch; other texts stay as they are."""
    task_id = tasks.new_id()
    batch = stores.rows(task_id, 3)
    broken = pa.array([b"lot\0 7", b"n\xff", "größe".encode()], pa.binary())
    labels = pa.StringArray.from_buffers(3, *broken.buffers()[1:])
    batch = batch.set_column(batch.schema.get_field_index("label"), batch.schema.field("label"), labels)
    async with connections.connection() as connection:
        await apply.results(connection, await stores.agent(connection), batch)
        labels_read = [label for _, label in await recorded(connection, task_id)]
    assert labels_read == ["lot\N{REPLACEMENT CHARACTER} 7", "n\N{REPLACEMENT CHARACTER}", "größe"]


async def test_a_batch_that_breaks_a_promise_is_refused_whole(connections: pool.Pool) -> None:
    """An outcome that is none raises one of REFUSED, and the transaction can still set the batch aside."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        with pytest.raises(pool.REFUSED):
            await apply.results(connection, agent_id, stores.rows(tasks.new_id(), outcome="perhaps"))
        await connection.rollback()
        assert await stores.scalar(connection, b"SELECT count(*) FROM results") == 0


async def test_an_empty_batch_is_no_trouble(connections: pool.Pool) -> None:
    """A batch of which everything was committed before has nothing left, and that is fine."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        empty = stores.rows(tasks.new_id()).slice(1)
        assert await apply.results(connection, agent_id, empty) == apply.Applied(0, 0)
        nothing = wire.build(wire.ATTEMPTS, {"task_id": []})
        assert (await apply.attempts(connection, agent_id, nothing)).ended == []
        assert (await apply.tasks(connection, agent_id, wire.build(wire.TASKS, {"task_id": []}))).queued == {}


async def test_a_page_goes_on_where_the_last_one_ended(connections: pool.Pool) -> None:
    """Pages together are all rows, each once, newest task first, under any filter."""
    task_ids = [tasks.new_id() for _ in range(7)]
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        for number, task_id in enumerate(task_ids):
            label = "good" if number % 2 else "dent"
            await apply.results(connection, agent_id, stores.rows(task_id, 3, label=label))
        for wanted, count in (
            (results.Filter(), 21),
            (results.Filter(label="good"), 9),
            (results.Filter(task_id=task_ids[3]), 3),
            (results.Filter(site="lyon", agent="one", model="faces", device="camera-1", outcome="ok"), 21),
            (results.Filter(site="paris"), 0),
            (
                results.Filter(
                    since=datetime(2020, 1, 1, tzinfo=UTC), until=datetime(2021, 1, 1, tzinfo=UTC)
                ),
                0,
            ),
        ):
            seen: list[tuple[bytes, int]] = []
            after = None
            while True:
                page = await results.page(connection, wanted, after=after, limit=4)
                seen += [(row["task_id"], row["item"]) for row in page.rows.to_pylist()]
                after = page.next
                if after is None:
                    break
            assert len(seen) == len(set(seen)) == count
            assert seen == sorted(seen, reverse=wanted.task_id is None)


async def test_a_stream_holds_one_batch_at_a_time(connections: pool.Pool) -> None:
    """All rows come, oldest first, in batches of the size asked for, in the columns that are promised."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        for _ in range(5):
            await apply.results(connection, agent_id, stores.rows(tasks.new_id(), 5))
    async with connections.connection() as connection:
        batches = [batch async for batch in results.stream(connection, results.Filter(), rows=10)]
    assert [batch.num_rows for batch in batches] == [10, 10, 5]
    assert all(batch.schema.equals(results.SCHEMA) for batch in batches)
    keys = [(row["task_id"], row["item"]) for batch in batches for row in batch.to_pylist()]
    assert keys == sorted(keys)


async def test_a_reader_that_takes_its_time_is_in_nobodys_way(connections: pool.Pool) -> None:
    """While a stream is half read, months are made and dropped, and rows that come meanwhile are in it."""
    async with connections.connection() as reader, connections.connection() as keeper:
        agent_id = await stores.agent(keeper)
        await apply.results(keeper, agent_id, stores.rows(tasks.new_id(), 4))
        await keeper.commit()
        stream = results.stream(reader, results.Filter(), rows=3)
        first = await anext(stream)
        await partitions.ensure(keeper, datetime(2031, 1, 1, tzinfo=UTC))
        await partitions.drop_before(keeper, datetime(2020, 1, 1, tzinfo=UTC))
        await apply.results(keeper, agent_id, stores.rows(tasks.new_id(), 4))
        await keeper.commit()
        assert first.num_rows + sum([batch.num_rows async for batch in stream]) == 8

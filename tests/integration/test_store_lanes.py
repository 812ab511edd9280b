"""Cursors, ledgers, numbering, and what goes down."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from cloud_hub.store import agents, apply, lanes, outgoing, pool
from shared import lanes as protocol
from shared import signals, topics, wire
from shared import tasks as words
from shared.tasks import State
from tests.integration import stores

UP = protocol.Lane("results", 2)


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def test_a_lane_is_locked_until_its_batch_is_committed(connections: pool.Pool) -> None:
    """Whoever comes second waits, and sees the cursor that the first one left."""
    async with connections.connection() as first, connections.connection() as second:
        agent_id = await stores.agent(first)
        await first.commit()
        assert await lanes.lock(first, agent_id, UP) == (0, 0)
        waiting = asyncio.create_task(lanes.lock(second, agent_id, UP))
        await lanes.advance(first, agent_id, UP, last=10, added=8, numbered=25)
        assert not waiting.done()
        await first.commit()
        assert await waiting == lanes.Cursor(cursor=10, committed=8)


async def test_the_ledger_adds_up(connections: pool.Pool) -> None:
    """Numbered, passed and committed are counted apart, so that what is missing is computed."""
    async with connections.connection() as connection:
        agent_id, other = await stores.agent(connection), await stores.agent(connection, "other")
        await lanes.lock(connection, agent_id, UP)
        await lanes.advance(connection, agent_id, UP, last=10, added=10, numbered=12)
        await lanes.advance(
            connection, agent_id, UP, last=30, added=15, numbered=30
        )  # 5 no store has any more
        await lanes.advance(connection, agent_id, UP, last=40, added=0, numbered=40)  # in quarantine
        await lanes.report(connection, agent_id, {UP: 100, protocol.Lane("tasks"): 3})
        await lanes.report(connection, agent_id, {UP: 99})
        await lanes.command(connection, [agent_id], "cancel", task_id=words.new_id())
        book = (await lanes.ledgers(connection))[agent_id]
        assert book.up[UP] == protocol.Ledger(numbered=100, cursor=40, committed=25)
        assert (book.up[UP].missing, book.up[UP].waiting) == (15, 60)
        assert book.up[protocol.Lane("tasks")].waiting == 3
        assert book.down == {lanes.COMMANDS: protocol.Ledger(numbered=1, cursor=0, committed=0)}
        assert await lanes.ledgers(connection, [other]) == {}


async def test_a_batch_that_cannot_be_applied_is_kept_whole(connections: pool.Pool) -> None:
    """Quarantine keeps the bytes, the header and the reason, whatever they hold."""
    header = wire.Header(1, protocol.Span(1, 5), 1, 5, "results")
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        await lanes.quarantine(connection, agent_id, UP, header, b"\0\xff", "not\0 Arrow")
        await lanes.quarantine(connection, agent_id, UP, None, b"", "no header")
        cursor = await connection.execute(
            "SELECT lane, header ->> 'kind', header -> 'span' ->> 1, payload, error "
            "FROM quarantine ORDER BY quarantine_id"
        )
        assert await cursor.fetchall() == [
            ("results.2", "results", "5", b"\0\xff", "not Arrow"),
            ("results.2", None, None, b"", "no header"),
        ]


async def test_numbers_have_no_gap_and_no_twin(connections: pool.Pool) -> None:
    """Many transactions that append to the lanes of several agents at once number them without a gap."""
    async with connections.connection() as connection:
        agent_ids = [await stores.agent(connection, f"agent-{n}") for n in range(3)]

    async def append(seed: int) -> None:
        async with connections.connection() as connection:
            for round_ in range(5):
                order = agent_ids[(seed + round_) % 3 :] + agent_ids[: (seed + round_) % 3]
                await outgoing.append(
                    connection,
                    [
                        outgoing.Record(agent_id, outgoing.COMMANDS, wire.COMMANDS, size=1 + seed % 3)
                        for agent_id in order
                    ],
                )
                await connection.commit()

    await asyncio.gather(*(append(seed) for seed in range(6)))
    async with connections.connection() as connection:
        for agent_id in agent_ids:
            cursor = await connection.execute(
                "SELECT first, last FROM outgoing WHERE agent_id = %s ORDER BY first", (agent_id,)
            )
            spans = await cursor.fetchall()
            assert len(spans) == 30
            assert spans[0][0] == 1
            assert all(after[0] == before[1] + 1 for before, after in pairwise(spans))
            numbers = await lanes.down_lanes(connection, agent_id)
            assert numbers == {lanes.COMMANDS: (spans[-1][1], 0)}


async def test_batches_are_whole_chunks_of_one_kind_within_limits(connections: pool.Pool) -> None:
    """A batch ends before another kind, too many rows or too many bytes; one big chunk goes alone."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        small = await stores.submit(connection, 4, payload=b"x" * 1000)
        big = await stores.submit(connection, 2, payload=b"x" * 50_000)
        await stores.grant(connection, small + big, agent_id)

        async def spans(max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
            found = []
            after = 0
            while batch := await lanes.read(connection, agent_id, lanes.LEASES, after, max_rows, max_bytes):
                found.append((batch.span.first, batch.span.last))
                after = batch.span.last
            return found

        assert await spans(100, 1 << 20) == [(1, 6)]
        assert await spans(4, 1 << 20) == [(1, 4), (5, 6)]
        assert await spans(100, 10_000) == [(1, 4), (5, 5), (6, 6)]
        assert await spans(1, 1) == [(n, n) for n in range(1, 7)]

        origin = await stores.agent(connection, "origin")
        for items in (3, 2, 40):
            task_id = words.new_id()
            await apply.tasks(connection, origin, stores.handed_over(task_id, items=items, max_attempts=1))
            await stores.grant(connection, [task_id], agent_id)
            await apply.results(connection, agent_id, stores.rows(task_id, items, output="x" * 1000))
            state = State.COMPLETED if items != 2 else State.FAILED
            await apply.attempts(connection, agent_id, stores.report(task_id, 1, state))
        kinds = []
        after = 0
        while batch := await lanes.read(connection, origin, lanes.RESULTS, after, 10, 1 << 20):
            kinds.append((batch.kind.name, batch.span.size))
            after = batch.span.last
        assert kinds == [("results", 3), ("attempts", 1), ("results", 40)]


async def test_results_stay_within_the_bytes(connections: pool.Pool) -> None:
    """Several chunks of rows that are together too heavy are sent as far as they fit, at least one."""
    async with connections.connection() as connection:
        agent_id, origin = await stores.agent(connection), await stores.agent(connection, "origin")
        for _ in range(5):
            task_id = words.new_id()
            await apply.tasks(connection, origin, stores.handed_over(task_id, items=4))
            await stores.grant(connection, [task_id], agent_id)
            await apply.results(connection, agent_id, stores.rows(task_id, 4, output="x" * 1000))
            await apply.attempts(connection, agent_id, stores.report(task_id, 1, State.COMPLETED))
        for max_bytes, size in ((1 << 20, 20), (10_000, 8), (100, 4)):
            batch = await lanes.read(connection, origin, lanes.RESULTS, 0, max_bytes=max_bytes)
            assert batch is not None
            assert batch.span == (1, size)
            assert sum(part.num_rows for part in batch.batches) == size


async def test_acknowledged_records_are_gone(connections: pool.Pool) -> None:
    """What the agent has committed is deleted, and nothing else; a cursor never moves back."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        await lanes.command(connection, [agent_id] * 5, "cancel")
        for cursor, left in ((2, 3), (1, 3), (2, 3), (99, 0)):
            await lanes.acknowledged(connection, agent_id, lanes.COMMANDS, cursor)
            assert await stores.scalar(connection, b"SELECT count(*) FROM outgoing") == left
        assert await lanes.down_lanes(connection, agent_id) == {lanes.COMMANDS: (5, 5)}
        assert await lanes.read(connection, agent_id, lanes.COMMANDS, 5) is None


async def test_a_database_from_yesterday_goes_on_after_the_agent(connections: pool.Pool) -> None:
    """When the agent has committed more than was numbered here, what waits gets new numbers after that."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        for number in range(5):
            await lanes.command(connection, [agent_id], "cancel", body=str(number))
        await lanes.acknowledged(connection, agent_id, lanes.COMMANDS, 2)
        await lanes.renumber(connection, agent_id, lanes.COMMANDS, 4)
        assert await lanes.down_lanes(connection, agent_id) == {lanes.COMMANDS: (5, 2)}, "nothing is wrong"
        await lanes.renumber(connection, agent_id, lanes.COMMANDS, 1000)
        assert await lanes.down_lanes(connection, agent_id) == {lanes.COMMANDS: (1003, 1000)}
        batch = await lanes.read(connection, agent_id, lanes.COMMANDS, 1000)
        assert batch is not None
        assert batch.span == (1001, 1003)
        assert [record["body"] for record in batch.batches[0].to_pylist()] == ["2", "3", "4"]


async def test_what_is_said_of_agents_is_found(connections: pool.Pool) -> None:
    """The fleet is the current epoch of each place, with what it last said of itself."""
    async with connections.connection() as connection:
        one = await agents.seen(connection, topics.Agent("lyon", "one"), 5, software="1.2")
        await agents.seen(connection, topics.Agent("lyon", "one"), 3, online=False)
        await agents.seen(connection, topics.Agent("paris", "two"), 1)
        newest = await agents.find(connection, topics.Agent("lyon", "one"))
        assert newest is not None
        assert (newest.epoch, newest.online) == (3, False)
        said = signals.Telemetry(epoch=3, sequence=9, capacity=4, clock_offset_us=-7)
        await agents.save_telemetry(connection, {newest.agent_id: said})
        await agents.save_telemetry(connection, {})
        await agents.set_presence(connection, newest.agent_id, True, "1.3")
        assert await agents.set_draining(connection, topics.Agent("lyon", "one"), True)
        assert not await agents.set_draining(connection, topics.Agent("lyon", "nobody"), True)
        first, second = await agents.fleet(connection)
        assert (first.place, first.online, first.draining, first.software) == (
            topics.Agent("lyon", "one"),
            True,
            True,
            "1.3",
        )
        assert first.telemetry == said
        assert (second.place, second.telemetry) == (topics.Agent("paris", "two"), None)
        assert await agents.find(connection, topics.Agent("lyon", "nobody")) is None
        again = await agents.seen(connection, topics.Agent("lyon", "one"), 5)
        assert again.agent_id == one.agent_id

"""The up lanes of the journal: numbered without gap or repeat, kept until acknowledged."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from edge_agent.journal import errors, journal, outbox, records
from shared import lanes, tasks, wire
from tests.unit import journals


async def finish(book: journal.Journal, count: int, items: int = 1) -> list[bytes]:
    """Take in and finish tasks, all in one commit each; their ids."""
    accepted = await book.accept([journals.task(items=items) for _ in range(count)])
    ids = [one.task_id for one in accepted if one is not None]
    return await book.finish([journals.finished(task_id, items) for task_id in ids])


def chunks(folder: Path) -> list[tuple[int, int, str]]:
    """Where the chunks in the file begin and end."""
    return journals.peek(folder, "SELECT first, last, kind FROM outgoing ORDER BY lane, first")


def body_bytes(folder: Path) -> int:
    """What the chunks in the file hold."""
    ((total,),) = journals.peek(folder, "SELECT sum(length(body)) FROM outgoing")
    assert isinstance(total, int)
    return total


async def test_numbers_have_no_gap(tmp_path: Path) -> None:
    """Every row of a lane has the next number, over commits, kinds and restarts."""
    for _ in range(3):
        async with journals.opened(tmp_path) as book:
            await finish(book, 2, items=3)
            (task_id,) = [(await journals.accept(book)).task_id]
            end = records.Finished(task_id, [journals.row(task_id)], attempt=journals.end_of_attempt(task_id))
            await book.finish([end])
            batches = await journals.sent(book, journals.RESULTS)
    assert batches[-1].span.last == 3 * (6 + 2)
    assert [batch.kind.name for batch in batches] == ["results", "attempts"] * 3


async def test_one_commit_makes_one_chunk_of_a_kind(tmp_path: Path) -> None:
    """All rows of a commit leave as one chunk, then all ends of attempts, whoever brought them."""
    async with journals.opened(tmp_path) as book:
        ids = [(await journals.accept(book)).task_id for _ in range(4)]
        ends = [records.Finished(i, [journals.row(i)], attempt=journals.end_of_attempt(i)) for i in ids]
        held = asyncio.Event()
        commits = book.counters.commits
        gate = asyncio.create_task(_hold(book, held))
        await held.wait()
        finishing = [asyncio.create_task(book.finish([end])) for end in ends]
        await asyncio.gather(gate, *finishing)
        assert book.counters.commits == commits + 2
        assert chunks(tmp_path) == [(1, 4, "results"), (5, 8, "attempts")]
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS))
        assert [row["task_id"] for row in rows] == ids + ids


async def _hold(book: journal.Journal, held: asyncio.Event) -> None:
    """Keep the writer busy until the loop has handed in what else it has."""
    loop, go = asyncio.get_running_loop(), threading.Event()

    def change(_: object) -> None:
        loop.call_soon_threadsafe(held.set)
        # The tasks that wait for `held` run first, then their operations are in the queue.
        loop.call_soon_threadsafe(lambda: loop.call_later(0.05, go.set))
        assert go.wait(10)

    await book._writer.commit(change)


async def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    """A row is the same when it is read for the uplink, in every column."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book)
        row = journals.row(
            task.task_id,
            attempt=2,
            device=None,
            outcome=tasks.Outcome.FAILED,
            label=None,
            score=0.25,
            output='{"a": 1}',
            error="unreadable",
            clock_offset_us=-5,
            clock_error_us=9,
        )
        await book.finish([records.Finished(task.task_id, [row])])
        (read,) = journals.rows_of(await journals.sent(book, journals.RESULTS))
        observed = read.pop("observed_at")
        assert round(observed.timestamp() * 1e6) == journals.NOW_US
        assert read == {name: value for name, value in row._asdict().items() if name != "observed_at"}
        assert list(row._asdict()) == wire.RESULTS.schema.names
        assert list(journals.end_of_attempt(task.task_id)._asdict()) == wire.ATTEMPTS.schema.names


async def test_a_batch_is_whole_chunks_within_its_limits(tmp_path: Path) -> None:
    """A batch holds as many chunks as fit, at least one, and of one kind alone."""
    async with journals.opened(tmp_path) as book:
        for _ in range(6):
            await finish(book, 1, items=10)
        by_rows = await journals.sent(book, journals.RESULTS, max_rows=25)
        assert [batch.span for batch in by_rows] == [(1, 20), (21, 40), (41, 60)]
        assert [batch.span.size for batch in await journals.sent(book, journals.RESULTS, max_rows=1)] == [
            10
        ] * 6
        assert [batch.span.size for batch in await journals.sent(book, journals.RESULTS, max_bytes=1)] == [
            10
        ] * 6
        assert await book.read(journals.RESULTS, 60, 10, 10) is None
        assert await book.read(lanes.Lane("results", 9), 0, 10, 10) is None


async def test_handed_over_tasks_are_read_within_limits(tmp_path: Path) -> None:
    """Payloads count: a batch of tasks stays within its bytes, and one too large travels alone."""
    async with journals.opened(tmp_path) as book:
        ids = [(await journals.accept(book, payload=bytes(size))).task_id for size in (40, 40, 40, 500, 10)]
        await book.hand_over(ids)
        batches = await journals.sent(book, journals.TASKS, max_bytes=100)
        assert [batch.span for batch in batches] == [(1, 2), (3, 3), (4, 4), (5, 5)]
        assert [batch.span.size for batch in await journals.sent(book, journals.TASKS, max_rows=3)] == [3, 2]


async def test_a_huge_result_is_cut_to_what_a_batch_may_be(tmp_path: Path) -> None:
    """A task of very many items, or very large ones, makes chunks that can travel."""
    async with journals.opened(tmp_path) as book:
        many, large = [(await journals.accept(book)).task_id for _ in range(2)]
        rows = [journals.row(many, item) for item in range(wire.MAX_BATCH_ROWS * 2 + 5)]
        await book.finish([records.Finished(many, rows)])
        output = "x" * (wire.MAX_BATCH_BYTES // 3)
        await book.finish(
            [records.Finished(large, [journals.row(large, item, output=output) for item in range(7)])]
        )
        batches = await journals.sent(book, journals.RESULTS, max_rows=1)
        assert [row["item"] for row in journals.rows_of(batches)] == [*range(len(rows)), *range(7)]
        assert max(batch.span.size for batch in batches) <= wire.MAX_BATCH_ROWS
        sizes = [len(wire.pack(batch.batches[0])) for batch in batches]
        assert max(sizes) <= wire.MAX_BATCH_BYTES


async def test_what_is_acknowledged_is_deleted(tmp_path: Path) -> None:
    """The file keeps what is after the hub's cursor and nothing before it; a cursor never goes back."""
    async with journals.opened(tmp_path) as book:
        for _ in range(3):
            await finish(book, 1, items=10)
        await book.acknowledged(journals.RESULTS, 20)
        await book.acknowledged(journals.RESULTS, 10)
        assert (await book.lanes())[journals.RESULTS] == (30, 20)
        assert chunks(tmp_path) == [(21, 30, "results")]
    async with journals.opened(tmp_path) as book:
        await book.acknowledged(journals.RESULTS, 30)
        assert (await book.lanes())[journals.RESULTS] == (30, 30)
        assert chunks(tmp_path) == []
        await finish(book, 1)
        assert (await book.lanes())[journals.RESULTS] == (31, 30)


async def test_reading_goes_on_inside_a_chunk(tmp_path: Path) -> None:
    """Whatever number the hub has reached, what follows is read from there, even within a chunk."""
    async with journals.opened(tmp_path) as book:
        await finish(book, 1, items=10)
        await finish(book, 1, items=10)
        every = journals.rows_of(await journals.sent(book, journals.RESULTS))
        for after in range(20):
            assert journals.rows_of(await journals.sent(book, journals.RESULTS, after)) == every[after:]
        await book.acknowledged(journals.RESULTS, 13)
        assert journals.rows_of(await journals.sent(book, journals.RESULTS, 13)) == every[13:]


async def test_a_backlog_of_small_chunks_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub away, single results do not stay single: the backlog takes a fraction of the space."""
    monkeypatch.setattr(outbox, "JOIN_CHUNKS", 32)
    async with journals.opened(tmp_path) as book:
        accepted = await book.accept([journals.task() for _ in range(2 * outbox.JOIN_CHUNKS)])
        ids = [one.task_id for one in accepted if one is not None]
        for task_id in ids[: outbox.JOIN_CHUNKS - 1]:
            await book.finish([records.Finished(task_id, [journals.row(task_id)])])
        assert len(chunks(tmp_path)) == outbox.JOIN_CHUNKS - 1
        alone = body_bytes(tmp_path)
        await book.acknowledged(journals.RESULTS, 10)
        for task_id in ids[outbox.JOIN_CHUNKS - 1 :]:
            await book.finish([records.Finished(task_id, [journals.row(task_id)])])
        assert chunks(tmp_path) == [
            (11, outbox.JOIN_CHUNKS, "results"),
            (outbox.JOIN_CHUNKS + 1, 2 * outbox.JOIN_CHUNKS, "results"),
        ]
        assert body_bytes(tmp_path) < alone / 2
        await book.acknowledged(journals.RESULTS, 40)
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS, 40))
        assert [row["task_id"] for row in rows] == ids[40:]


async def test_joined_chunks_can_still_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is joined is no larger than a batch may be, and nothing of it is left out."""
    monkeypatch.setattr(outbox, "JOIN_CHUNKS", 8)
    monkeypatch.setattr(wire, "MAX_BATCH_ROWS", 10)
    async with journals.opened(tmp_path) as book:
        ids = []
        for _ in range(outbox.JOIN_CHUNKS):
            ids += await finish(book, 1, items=3)
        sizes = [last - first + 1 for first, last, _ in chunks(tmp_path)]
        assert sum(sizes) == 24
        assert 3 < max(sizes) <= 10
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS))
        assert [row["task_id"] for row in rows] == [task_id for task_id in ids for _ in range(3)]


async def test_large_chunks_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only small chunks are joined: a large one among them stays, and so does its place."""
    monkeypatch.setattr(outbox, "JOIN_CHUNKS", 4)
    monkeypatch.setattr(outbox, "SMALL_ROWS", 5)
    async with journals.opened(tmp_path) as book:
        ids = []
        for items in (1, 1, 9, 9, 1, 1):
            ids += [(task_id, items) for task_id in await finish(book, 1, items)]
        # The newest four were looked at.
        assert [place[:2] for place in chunks(tmp_path)] == [(1, 1), (2, 2), (3, 11), (12, 20), (21, 22)]
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS))
        assert [row["task_id"] for row in rows] == [task_id for task_id, items in ids for _ in range(items)]


async def test_joining_keeps_the_order_of_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of different kinds are never joined, so an attempt's end stays behind its rows."""
    monkeypatch.setattr(outbox, "JOIN_CHUNKS", 32)
    async with journals.opened(tmp_path) as book:
        expected = []
        for at in range(outbox.JOIN_CHUNKS):
            task_id = (await journals.accept(book)).task_id
            attempt = journals.end_of_attempt(task_id) if at % 9 == 0 else None
            await book.finish([records.Finished(task_id, [journals.row(task_id)], attempt=attempt)])
            expected += [(task_id, "results")] + ([(task_id, "attempts")] if attempt else [])
        batches = await journals.sent(book, journals.RESULTS)
        found = [(row["task_id"], batch.kind.name) for batch in batches for row in journals.rows_of([batch])]
        assert found == expected
        assert len(chunks(tmp_path)) < len(expected) / 2


async def test_live_records_pass_a_backlog(tmp_path: Path) -> None:
    """A fresh generation is opened beside a backlog, numbered from 1; the old one goes when drained."""
    async with journals.opened(tmp_path) as book:
        assert await book.open_generation("results") == journals.RESULTS  # nothing to pass
        await finish(book, 3)
        live = await book.open_generation("results")
        assert live == lanes.Lane("results", 2)
        await finish(book, 1)
        assert (await book.lanes())[journals.RESULTS] == (3, 0)
        assert (await book.lanes())[live] == (1, 0)
        await book.acknowledged(journals.RESULTS, 3)
        await book.acknowledged(live, 1)
        assert set(await book.lanes()) == {live, journals.TASKS}
        await book.acknowledged(journals.RESULTS, 3)  # late, and of no lane any more
        assert await book.open_generation("results") == live
        await finish(book, 1)
        assert await book.open_generation("results") == lanes.Lane("results", 3)
        assert (await book.lanes())[live] == (2, 1)


async def test_a_new_epoch_keeps_what_the_hub_may_not_have(tmp_path: Path) -> None:
    """A journal that was put back begins anew: all that is unacknowledged, from 1, and no cursor."""
    async with journals.opened(tmp_path) as book:
        ids = []
        for _ in range(4):
            ids += await finish(book, 1, items=2)
        handed = [(await journals.accept(book)).task_id for _ in range(2)]
        await book.hand_over(handed)
        await book.acknowledged(journals.RESULTS, 3)  # within a chunk
        await book.acknowledged(journals.TASKS, 1)
        await book.move_cursor(lanes.Lane("commands", 1), 7, 7)
        before, rows = book.epoch, journals.rows_of(await journals.sent(book, journals.RESULTS, 3))

        assert await book.new_epoch() != before
        assert await book.lanes() == {journals.RESULTS: (5, 0), journals.TASKS: (1, 0)}
        assert await book.cursors() == {}
        assert journals.rows_of(await journals.sent(book, journals.RESULTS)) == rows
        (task,) = journals.rows_of(await journals.sent(book, journals.TASKS))
        assert task["task_id"] == handed[1]
        await finish(book, 1)
        await book.acknowledged(journals.RESULTS, 5)
        epoch = book.epoch
    async with journals.opened(tmp_path) as book:
        assert book.epoch == epoch
        assert (await book.lanes())[journals.RESULTS] == (6, 5)
        assert len(await journals.sent(book, journals.RESULTS, 5)) == 1
        assert [kind for _, _, kind in chunks(tmp_path)] == ["tasks", "results"]


async def test_a_new_epoch_is_cheap_however_long_the_backlog(tmp_path: Path) -> None:
    """Beginning anew writes a few pages, not the backlog: it must succeed on a disk that is nearly full."""
    async with journals.opened(tmp_path) as book:
        await book.accept([journals.task()])
        for _ in range(20):
            await finish(book, 100)
        written = book.counters.bytes_written
        await book.new_epoch()
        assert book.counters.bytes_written - written < 40_000


async def test_the_uplink_is_told_of_what_was_appended(tmp_path: Path) -> None:
    """After a commit that made lanes grow, and only then, the loop hears their highest numbers."""
    async with journals.opened(tmp_path) as book:
        told: list[dict[lanes.Lane, int]] = []
        book.on_appended = lambda numbers: told.append(dict(numbers))
        ids = [(await journals.accept(book)).task_id for _ in range(2)]
        assert told == []
        await book.hand_over(ids[:1])
        await finish(book, 2)
        assert told == [{journals.TASKS: 1}, {journals.RESULTS: 2}]


async def test_an_epoch_is_random(tmp_path: Path) -> None:
    """Fresh journals do not share an epoch, so that nobody takes one for the other; it has 48 bits."""
    epochs = set()
    for number in range(3):
        async with journals.opened(tmp_path / str(number)) as book:
            epochs.add(book.epoch)
    assert len(epochs) == 3
    assert all(0 < epoch < 1 << 48 for epoch in epochs)


async def test_records_of_another_schema_are_not_guessed_at(tmp_path: Path) -> None:
    """A chunk that another version of the agent packed with other columns is refused, not misread."""
    async with journals.opened(tmp_path) as book:
        await finish(book, 1)
        await book._writer.commit(
            lambda t: t.connection.execute("UPDATE outgoing SET schema_version = schema_version + 1")
        )
        with pytest.raises(errors.JournalTooNew, match="schema 2"):
            await book.read(journals.RESULTS, 0, 10, 1000)

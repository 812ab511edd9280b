"""Group commit: many callers, one fsync, and nobody pays for another's mistake."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.journal import database, errors, records, space, writer
from edge_agent.journal.transaction import Transaction


class Bench:
    """A writer over a table of numbers."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.db"
        self.connection = database.open_for_writing(self.path).connection
        self.connection.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
        self.counters = records.Counters()
        self.meter = database.WriteMeter(self.path)
        self.writer = writer.Writer(
            self.connection,
            space.Space(self.path, 1 << 30),
            self.counters,
            meter=self.meter,
            before_commit=lambda _: None,
            on_damage=lambda: None,
        )

    def numbers(self) -> set[int]:
        """What another connection can see: what is committed."""
        with contextlib.closing(database.open_for_reading(self.path)) as reader:
            return {number for (number,) in reader.execute("SELECT number FROM numbers")}

    async def stall(self) -> Callable[[], None]:
        """Have the writer busy with a commit until what is returned is called."""
        loop, busy, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def change(_: Transaction) -> None:
            loop.call_soon_threadsafe(busy.set)
            assert go.wait(10)

        self._stalled = asyncio.create_task(self.writer.commit(change))
        await busy.wait()
        return go.set


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.writer.close()
    made.connection.close()
    made.meter.close()


def add(number: int) -> Callable[[Transaction], int]:
    """An operation that stores a number and answers with its double."""

    def change(transaction: Transaction) -> int:
        transaction.connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number * 2

    return change


async def handed_in() -> None:
    """Let the tasks that were just made run up to where they wait."""
    await asyncio.sleep(0)


async def test_what_is_answered_is_committed(bench: Bench) -> None:
    """An operation's answer comes after its commit, never before."""
    assert await bench.writer.commit(add(7)) == 14
    assert bench.numbers() == {7}


async def test_operations_that_wait_share_a_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one commit is on its way to the disk, all that arrives becomes the next one."""
    go = await bench.stall()
    waiting = [asyncio.create_task(bench.writer.commit(add(number))) for number in range(100)]
    await handed_in()
    wakes = 0
    wake = asyncio.get_running_loop().call_soon_threadsafe

    def counted(callback: Callable[..., object], *args: Any) -> object:
        nonlocal wakes
        wakes += 1
        return wake(callback, *args)

    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", counted)
    commits = bench.counters.commits
    go()
    assert await asyncio.gather(*waiting) == [number * 2 for number in range(100)]
    assert bench.counters.commits - commits == 2  # the stalled one, and one for all
    assert wakes == 2  # the loop is woken once for each


async def test_only_the_culprit_fails(bench: Bench) -> None:
    """An operation that fails takes nothing with it, whatever shared its commit."""
    await bench.writer.commit(add(3))
    go = await bench.stall()
    waiting = [asyncio.create_task(bench.writer.commit(add(number))) for number in range(6)]
    await handed_in()
    go()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["int"] * 3 + ["IntegrityError"] + ["int"] * 2
    assert bench.numbers() == set(range(6))


async def test_half_an_operation_is_never_kept(bench: Bench) -> None:
    """What an operation did before it failed is undone, even alone in its commit."""

    def change(transaction: Transaction) -> None:
        add(1)(transaction)
        raise LookupError("no")

    with pytest.raises(LookupError):
        await bench.writer.commit(change)
    await bench.writer.commit(add(2))
    assert bench.numbers() == {2}


async def test_a_cancelled_caller_cancels_no_one(bench: Bench) -> None:
    """A caller that goes away gives up its answer; its change and its neighbours are committed."""
    go = await bench.stall()
    leaving, staying = (asyncio.create_task(bench.writer.commit(add(number))) for number in (1, 2))
    await handed_in()
    leaving.cancel()
    go()
    assert await staying == 4
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert bench.numbers() == {1, 2}


async def test_callers_wait_while_the_queue_is_full(bench: Bench) -> None:
    """Only so many operations are in memory at a time; the others' callers wait, and each has its turn."""
    go = await bench.stall()
    count = writer.GROUP + 50
    waiting = [asyncio.create_task(bench.writer.commit(add(number))) for number in range(count)]
    await handed_in()
    assert bench.writer._queue.qsize() == writer.GROUP - 1  # and one is being committed
    go()
    await asyncio.gather(*waiting)
    assert bench.numbers() == set(range(count))


async def test_what_nobody_waits_for_joins_the_next_commit(bench: Bench) -> None:
    """A change that may wait costs no commit of its own when there is another one."""
    await bench.writer.commit(add(0))
    commits = bench.counters.commits
    await bench.writer.eventually(add(1))
    await bench.writer.eventually(add(2))
    await bench.writer.commit(add(3))
    assert bench.counters.commits - commits == 1
    assert bench.numbers() == {0, 1, 2, 3}


async def test_what_nobody_waits_for_is_done_at_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no other commit to join, a change that may wait is committed after a while."""
    monkeypatch.setattr(writer, "PATIENCE_S", 0.01)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def change(transaction: Transaction) -> None:
        add(1)(transaction)
        loop.call_soon_threadsafe(done.set)

    await bench.writer.eventually(change)
    async with asyncio.timeout(5):
        await done.wait()
        await bench.writer.commit(lambda _: None)
    assert bench.numbers() == {1}


async def test_what_nobody_waits_for_may_fail(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A change without a caller that fails is logged, and harms nobody."""

    def change(_: Transaction) -> None:
        raise LookupError("no")

    await bench.writer.eventually(change)
    await bench.writer.commit(add(1))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert bench.numbers() == {1}


async def test_closing_drains(bench: Bench) -> None:
    """All that was handed in before the end is committed and answered; what comes after is refused."""
    go = await bench.stall()
    waiting = [asyncio.create_task(bench.writer.commit(add(number))) for number in range(10)]
    await handed_in()
    await bench.writer.eventually(add(10))
    closing = asyncio.create_task(bench.writer.close())
    await handed_in()
    with pytest.raises(errors.JournalClosed):
        await bench.writer.commit(add(11))
    go()
    await closing
    assert await asyncio.gather(*waiting) == [number * 2 for number in range(10)]
    assert bench.numbers() == set(range(11))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_the_end_of_the_thread_is_the_end_of_waiting(bench: Bench) -> None:
    """Should the writer's thread die, everybody who waits is told, and so is whoever comes later."""

    def deadly(_: Transaction) -> None:
        raise SystemExit

    go = await bench.stall()
    waiting = [asyncio.create_task(bench.writer.commit(change)) for change in (add(1), deadly, add(2))]
    await handed_in()
    go()
    for caller in waiting:
        with pytest.raises(errors.JournalClosed):
            await caller
    with pytest.raises(errors.JournalClosed):
        await bench.writer.commit(add(3))
    assert bench.numbers() == set()


async def test_writes_are_measured(bench: Bench) -> None:
    """The bytes that commits write to the disk are counted: pages, not what was meant to be stored."""
    await bench.writer.commit(add(1))
    once = bench.counters.bytes_written
    assert once >= database.PAGE_BYTES
    await bench.writer.commit(lambda _: None)
    assert bench.counters.bytes_written == once
    wal = bench.path.with_name("journal.db-wal").stat().st_size
    await bench.writer.commit(add(2))
    assert bench.path.with_name("journal.db-wal").stat().st_size - wal == bench.counters.bytes_written - once

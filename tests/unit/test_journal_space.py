"""A journal and its disk: new work is refused in time, what was accepted finishes, space comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.journal import database, errors, journal, records, space, writer
from shared import tasks
from tests.unit import journals

PAYLOAD = os.urandom(20_000)


async def fill(book: journal.Journal, at_most: int = 5000) -> list[bytes]:
    """Hand in tasks, one a commit, until one is refused; the ids of those that were taken in."""
    taken: list[bytes] = []
    while len(taken) < at_most:
        try:
            (accepted,) = await book.accept([journals.task(PAYLOAD)])
        except errors.JournalFull:
            return taken
        if accepted is None:
            return taken
        taken.append(accepted.task_id)
    raise AssertionError("the journal never got full")


async def finish_all(book: journal.Journal, ids: list[bytes]) -> None:
    """End tasks in commits of ten, each with a reply."""
    for at in range(0, len(ids), 10):
        ended = await book.finish([journals.finished(task_id) for task_id in ids[at : at + 10]])
        assert ended == ids[at : at + 10]


async def test_the_quota_refuses_new_work_and_nothing_else(tmp_path: Path) -> None:
    """At its quota the journal takes in no job and no lease, counts each, and finishes what it has."""
    async with journals.opened(tmp_path, max_bytes=2 << 20) as book:
        ids = await fill(book)
        assert 1.2 * (1 << 20) < len(ids) * len(PAYLOAD) < 2 << 20
        assert book.counters.refused == 1
        with pytest.raises(errors.JournalFull):
            await journals.take_leases(book, 1, journals.leases([tasks.new_id()], payload=PAYLOAD))
        assert book.counters.refused == 2
        assert await book.cursors() == {}
        await book.move_cursor(journals.LEASES, 1, 0)
        assert await book.hand_over(ids[:2]) == ids[:2]
        await finish_all(book, ids)
        assert book.size_bytes < 8 << 20
        assert len(await fill(book)) > len(ids) / 2


async def test_a_job_that_is_refused_holds_nobody_up(tmp_path: Path) -> None:
    """Jobs for which there is no room do not fail those beside them that fit, nor an end of a task."""
    async with journals.opened(tmp_path, max_bytes=1 << 20) as book:
        task = await journals.accept(book)
        small, large, other = await book.accept(
            [journals.task(b"x"), journals.task(bytes(1 << 20)), journals.task(b"y")]
        )
        assert small is not None
        assert other is not None
        assert large is None
        commits = book.counters.commits
        refused = asyncio.create_task(book.accept([journals.task(bytes(1 << 20))]))
        ended = asyncio.create_task(book.finish([journals.finished(task.task_id)]))
        assert await refused == [None]
        assert await ended == [task.task_id]
        assert book.counters.commits - commits <= 2


async def test_a_known_key_is_answered_by_a_full_journal(tmp_path: Path) -> None:
    """A repeated job needs no room: it gets its answer while new ones are refused."""
    async with journals.opened(tmp_path, max_bytes=1 << 20) as book:
        await journals.accept(book, idempotency_key="k")
        await fill(book)
        (again,) = await book.accept([journals.task(PAYLOAD, idempotency_key="k")])
        assert again is not None
        assert again.repeated


async def test_a_full_database_refuses_and_recovers(tmp_path: Path) -> None:
    """When SQLite itself says that it is full, a job is refused, tasks finish, and then there is room."""
    async with journals.opened(tmp_path) as book:
        await book.flush()
        connection = book._writer._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 100}")
        ids = await fill(book)
        assert book.counters.refused == 1
        await finish_all(book, ids)
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS))
        assert [row["task_id"] for row in rows] == ids


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "backhaul-test", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill_disk(hog: Path) -> None:
    """Leave no byte to anybody."""
    with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
        while file.write(bytes(1024)):
            pass


async def test_a_full_disk_refuses_new_work_and_finishes_the_old(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a disk that others have filled to the last byte, all that was accepted still finishes, by the
    room that was kept for it; new work waits until there is room again."""
    monkeypatch.setattr(space, "BALLAST_RETRY_S", 0.0)
    hog = small_disk / "hog"
    async with journals.opened(small_disk, max_bytes=32 << 20) as book:
        ids = [(await journals.accept(book, payload=PAYLOAD)).task_id for _ in range(20)]
        fill_disk(hog)
        assert len(await fill(book)) < 50  # the pages that the file has at hand
        assert "ballast" not in caplog.text
        with pytest.raises(errors.JournalFull):
            await journals.take_leases(book, 1, journals.leases([tasks.new_id()], payload=PAYLOAD * 20))
        await finish_all(book, ids)
        assert "ballast" in caplog.text
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS))
        assert [row["task_id"] for row in rows] == ids
        hog.unlink()
        await journals.accept(book, payload=PAYLOAD)
    async with journals.opened(small_disk, max_bytes=32 << 20) as book:
        assert (await book.lanes())[journals.RESULTS].numbered == len(ids)


async def test_a_journal_opens_on_a_full_disk(small_disk: Path) -> None:
    """An agent that starts on a disk without a free byte finishes what it has, and takes in nothing."""
    async with journals.opened(small_disk, max_bytes=32 << 20) as book:
        ids = [(await journals.accept(book, payload=PAYLOAD)).task_id for _ in range(5)]
    fill_disk(small_disk / "hog")
    async with journals.opened(small_disk, max_bytes=32 << 20) as book:
        assert [task.task_id for task in await book.waiting(10)] == ids
        await finish_all(book, ids)


async def test_without_its_ballast_the_journal_takes_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job is accepted while the room to finish it cannot be had; once it can be, jobs are taken again."""
    monkeypatch.setattr(space, "BALLAST_RETRY_S", 0.0)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with journals.opened(tmp_path) as book:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", no_room)
            book._writer._space.release()
            assert await book.accept([journals.task()]) == [None]
        await journals.accept(book)


async def test_space_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a backlog has drained and the journal is idle, its file shrinks on the disk."""
    monkeypatch.setattr(writer, "IDLE_S", 0.02)
    async with journals.opened(tmp_path) as book:
        await book.accept([journals.task(PAYLOAD) for _ in range(300)])
        ids = [task.task_id for task in await book.waiting(1000)]
        full = book.size_bytes
        assert full > 6_000_000
        await finish_all(book, ids)
        await book.replied(ids)
        await book.acknowledged(journals.RESULTS, len(ids))
        await book.flush()
        async with asyncio.timeout(10):
            while book.size_bytes > full / 4:  # noqa: ASYNC110 - nobody is told of it
                await asyncio.sleep(0.02)
        await journals.accept(book)
    ((verdict,),) = journals.peek(tmp_path, "PRAGMA integrity_check")
    assert verdict == "ok"


async def test_a_few_free_pages_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free pages that the next jobs will take are not given back: that would only wear the flash."""
    monkeypatch.setattr(writer, "IDLE_S", 0.01)
    async with journals.opened(tmp_path) as book:
        await book.accept([journals.task(PAYLOAD) for _ in range(20)])
        ids = [task.task_id for task in await book.waiting(1000)]
        await finish_all(book, ids)
        tidied = asyncio.Event()
        loop, tidy = asyncio.get_running_loop(), book._writer._space.tidy

        def watched(connection: object) -> bool:
            loop.call_soon_threadsafe(tidied.set)
            return tidy(connection)  # type: ignore[arg-type]

        monkeypatch.setattr(book._writer._space, "tidy", watched)
        await book.flush()
        async with asyncio.timeout(5):
            await tidied.wait()
        await book.flush()
    ((free,),) = journals.peek(tmp_path, "PRAGMA freelist_count")
    assert 50 < free <= space.VACUUM_STEP


def test_a_limited_file_size_is_a_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stops new work like a full disk does, not the agent."""
    program = """
import asyncio, pathlib, resource, signal, sys
from edge_agent.journal import errors
from tests.unit import journals

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with journals.opened(pathlib.Path(sys.argv[1]), max_bytes=1 << 30) as book:
        task = await journals.accept(book)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
        taken = 0
        try:
            while taken < 1000:
                await book.accept([journals.task(bytes(50_000))])
                taken += 1
        except (errors.JournalFull, errors.JournalBroken) as error:
            print(type(error).__name__)
        print((await book.counts()).waiting - 1 == taken)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "True", done.stdout
    assert done.stdout.split()[0] in ("JournalFull", "JournalBroken")


def test_used_bytes_are_of_pages_that_hold_something(tmp_path: Path) -> None:
    """What is in use is the file without its free pages."""
    connection = database.open_for_writing(tmp_path / "journal.db").connection
    empty = space.used_bytes(connection)
    connection.execute("INSERT INTO replies VALUES (?, 't', NULL, 'c', ?)", (bytes(16), bytes(100_000)))
    full = space.used_bytes(connection)
    connection.execute("DELETE FROM replies")
    assert full - empty >= 100_000
    assert space.used_bytes(connection) == empty
    connection.close()
    assert records.Counters().refused == 0

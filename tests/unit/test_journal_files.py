"""The journal's files: made, brought up to date, locked, and survived when they are damaged."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from pathlib import Path

import msgspec
import pytest

from edge_agent.journal import database, errors, reads, records, running, sql
from shared import tasks
from tests.unit import journals

CATALOGUE = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"


def file(folder: Path) -> Path:
    return folder / "journal.db"


def catalogue(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    """Everything that the schema says, spacing and comments aside."""
    rows = connection.execute(CATALOGUE).fetchall()
    plain = [(*names, " ".join(sql.without_comments(text).split())) for *names, text in rows]
    columns = connection.execute(
        "SELECT m.name, c.* FROM sqlite_schema AS m, pragma_table_xinfo(m.name) AS c ORDER BY m.name, c.cid"
    ).fetchall()
    return plain + columns


def names(folder: Path) -> list[str]:
    """The files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def test_the_migrations_amount_to_the_schema() -> None:
    """A journal that was brought up to date step by step is what `schema.sql` says it is."""
    with contextlib.closing(memory()) as stepwise, contextlib.closing(memory()) as at_once:
        database.migrate(stepwise, sql.migrations())
        at_once.executescript(sql.schema())
        assert catalogue(stepwise) == catalogue(at_once)
        lanes_ = "SELECT * FROM lanes ORDER BY lane"
        assert stepwise.execute(lanes_).fetchall() == at_once.execute(lanes_).fetchall()


async def test_a_journal_of_the_first_schema_goes_on(tmp_path: Path) -> None:
    """An agent that is updated finds its tasks as they were, and gives them checkpoints from now on."""
    task = journals.task(items=3)
    with contextlib.closing(sqlite3.connect(file(tmp_path), isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.migrate(connection, sql.migrations()[:1])
        connection.execute(sql.queries("tasks")["insert"], msgspec.structs.asdict(task))
    async with journals.opened(tmp_path) as book:
        (found,) = await book.waiting(10)
        assert found == msgspec.structs.replace(task, seq=1, payload=None)
        rows = [journals.row(task.task_id)]
        assert await book.checkpoint(records.Checkpoint(task.task_id, 1, rows))
        (found,) = await book.waiting(10)
        assert found.items_done == 1
    assert journals.peek(tmp_path, "PRAGMA user_version") == [(len(sql.migrations()),)]


def test_migrations_are_numbered_without_a_gap() -> None:
    """The number of a migration is the version of the schema that it leads to."""
    steps = sql.migrations()
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))


def test_a_migration_happens_whole_or_not_at_all() -> None:
    """A step that fails leaves the schema and its version as they were; the steps before it stay."""
    with contextlib.closing(memory()) as connection:
        steps = [
            sql.Migration(1, "CREATE TABLE a (x);"),
            sql.Migration(2, "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1);"),
        ]
        with pytest.raises(sqlite3.OperationalError):
            database.migrate(connection, steps)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        assert (names, version) == (["a"], 1)
        database.migrate(connection, [steps[0], sql.Migration(2, "CREATE TABLE b (x);")])
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        assert version == 2


async def test_a_newer_journal_is_left_alone(tmp_path: Path) -> None:
    """An agent that was set back does not touch what a newer one wrote; it says what to do."""
    async with journals.opened(tmp_path) as book:
        await journals.accept(book)
    with contextlib.closing(sqlite3.connect(file(tmp_path))) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = file(tmp_path).read_bytes()
    with pytest.raises(errors.JournalTooNew, match="schema 99"):
        async with journals.opened(tmp_path):
            pass
    assert file(tmp_path).read_bytes() == before


async def test_one_process_has_a_journal(tmp_path: Path) -> None:
    """A second agent over the same folder is refused; once the first is gone, it may have it."""
    async with journals.opened(tmp_path):
        with pytest.raises(errors.JournalInUse):
            async with journals.opened(tmp_path):
                pass
    async with journals.opened(tmp_path):
        pass


async def test_a_journal_under_a_new_name_begins_a_new_epoch(tmp_path: Path) -> None:
    """An agent that was renamed, or given another's disk, does not go on with the other's numbers."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book)
        await book.finish([journals.finished(task.task_id, items=5)])
        await book.acknowledged(journals.RESULTS, 2)
        epoch = book.epoch
    async with journals.opened(tmp_path, name="other") as book:
        assert book.epoch != epoch
        assert (await book.lanes())[journals.RESULTS] == (3, 0)


@pytest.mark.parametrize("damage", ["header", "schema", "cut", "text"])
async def test_a_damaged_journal_is_kept_and_replaced(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent whose file cannot be read starts afresh, says so loudly, and keeps the file."""
    async with journals.opened(tmp_path) as book:
        for _ in range(20):
            await journals.accept(book, payload=os.urandom(3000))
        epoch = book.epoch
    content = bytearray(file(tmp_path).read_bytes())
    match damage:
        case "header":
            content[:16] = b"x" * 16
        case "schema":
            content[100 : database.PAGE_BYTES] = os.urandom(database.PAGE_BYTES - 100)
        case "cut":
            del content[database.PAGE_BYTES * 2 + 100 :]
        case "text":
            content = bytearray(b"not a database at all, but some text" * 100)
    file(tmp_path).write_bytes(content)
    async with journals.opened(tmp_path) as book:
        assert book.epoch != epoch
        assert book.counters.recovered_from_corruption == 1
        await journals.accept(book)
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    (aside,) = [name for name in names(tmp_path) if ".corrupt-" in name]
    assert (tmp_path / aside).read_bytes() == content
    async with journals.opened(tmp_path) as book:
        assert book.counters.recovered_from_corruption == 0
        assert (await book.counts()).waiting == 1


async def test_damage_that_shows_later_is_found_at_the_next_start(tmp_path: Path) -> None:
    """Damage deep in the file fails what touches it, and sends the file aside when the agent restarts."""
    async with journals.opened(tmp_path) as book:
        accepted = await book.accept([journals.task(os.urandom(3000)) for _ in range(200)])
    content = bytearray(file(tmp_path).read_bytes())
    half = len(content) // 2 // database.PAGE_BYTES * database.PAGE_BYTES
    content[half:] = os.urandom(len(content) - half)
    file(tmp_path).write_bytes(content)
    ids = [one.task_id for one in accepted if one is not None]
    async with journals.opened(tmp_path) as book:
        assert book.counters.recovered_from_corruption == 0
        with pytest.raises(errors.JournalBroken):
            await book.finish([journals.finished(task_id) for task_id in ids])
        with pytest.raises(errors.JournalBroken):
            await book.payloads(ids)
    async with journals.opened(tmp_path) as book:
        assert book.counters.recovered_from_corruption == 1
        await journals.accept(book)


async def test_a_suspicion_that_was_wrong_costs_nothing(tmp_path: Path) -> None:
    """A whole journal that was suspected is checked through once, and kept."""
    async with journals.opened(tmp_path) as book:
        await journals.accept(book)
    database.suspect(file(tmp_path))
    for _ in range(2):
        async with journals.opened(tmp_path) as book:
            assert (await book.counts()).waiting == 1
    assert names(tmp_path) == ["journal.db", "journal.db-ballast", "journal.db-running"]


async def test_a_power_cut_loses_no_commit_before_it(tmp_path: Path) -> None:
    """Wherever the write-ahead log ends after a power cut, each commit is there whole or not at all,
    and none is missing before one that is there."""
    cut = tmp_path / "cut"
    cut.mkdir()
    async with journals.opened(tmp_path) as book:
        ids = []
        for _ in range(5):
            task = await journals.accept(book, payload=bytes(5000))
            await book.finish([journals.finished(task.task_id, items=2)])
            ids.append(task.task_id)
        log = file(tmp_path).with_name("journal.db-wal").read_bytes()
        whole = file(tmp_path).read_bytes()
    found = []
    for end in [*range(0, len(log), len(log) // 40), len(log)]:
        (cut / "journal.db").write_bytes(whole)
        (cut / "journal.db-wal").write_bytes(log[:end])
        with contextlib.closing(database.open_for_writing(cut / "journal.db").connection) as connection:
            waiting = reads.waiting(connection, 10, None, records.Holder.EDGE)
            replies = [reply.task_id for reply in reads.unreplied(connection, 10, b"")]
            batch = reads.batch(connection, journals.RESULTS, 0, 1000, 1 << 20, 0)
            rows = [] if batch is None else journals.rows_of([batch])
        assert replies == ids[: len(replies)]
        assert [row["task_id"] for row in rows] == [i for i in replies for _ in range(2)]
        assert [task.task_id for task in waiting] in ([], ids[len(replies) : len(replies) + 1])
        found.append(2 * len(replies) + len(waiting))
    assert found == sorted(found)
    assert found[-1] == 10


async def test_a_task_that_ran_when_the_agent_died_is_marked(tmp_path: Path) -> None:
    """Each death counts for the tasks that ran at that moment; ours have one attempt less, leases keep
    their number."""
    leased = tasks.new_id()
    async with journals.opened(tmp_path) as book:
        ran, stopped, waited = [(await journals.accept(book)).task_id for _ in range(3)]
        await journals.take_leases(book, 1, journals.leases([leased], attempt=6))
    for _ in range(2):
        async with journals.opened(tmp_path) as book:
            book.running.begin([ran, stopped, leased, tasks.new_id()])
            book.running.done([stopped])
            marks = (tmp_path / "journal.db-running").read_bytes()
        (tmp_path / "journal.db-running").write_bytes(marks)  # as kill -9 would have left it
    async with journals.opened(tmp_path) as book:
        assert book.counters.crashes_found == 2
        found = await book.find([ran, stopped, waited, leased])
        assert {i: (task.crashes, task.attempt) for i, task in found.items()} == {
            ran: (2, 2),
            stopped: (0, 0),
            waited: (0, 0),
            leased: (2, 6),
        }
    async with journals.opened(tmp_path) as book:
        assert book.counters.crashes_found == 0


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 50, os.urandom(5000)])
def test_any_marks_can_be_read(tmp_path: Path, content: bytes) -> None:
    """Whatever a power cut left of the marks is read without an error, as ids of no task."""
    (tmp_path / "running").write_bytes(content)
    marks = running.Running(tmp_path / "running")
    assert {len(task_id) for task_id in marks.left_behind} <= {16}
    marks.close()


SMALL = {"all", "to_sync", "cursors", "identity", "reset_cursors", "renumber", "count_done"}
"""Statements over tables of a few rows."""
READ_FROM_ONE_END = {"remember", "remembered", "oldest"}
ASKED_AT_START = {"count_unreplied", "count_leased"}
STATEMENTS = [(name, query) for name in ("tasks", "lanes") for query in sql.queries(name).items()]


@pytest.mark.parametrize(("name", "query"), STATEMENTS, ids=[f"{n}.{q[0]}" for n, q in STATEMENTS])
def test_every_statement_fits_the_schema(name: str, query: tuple[str, str]) -> None:
    """No named statement is wrong, and none goes through a whole table of tasks or chunks."""
    with contextlib.closing(memory()) as connection:
        database.migrate(connection, sql.migrations())
        parameters = dict.fromkeys(re.findall(r":(\w+)", query[1]), 1)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query[1]}", parameters)]
    scans = [step for step in plan if step.startswith("SCAN") and "COVERING INDEX" not in step]
    assert not scans or query[0] in SMALL | READ_FROM_ONE_END | ASKED_AT_START, plan
    sorts = [step for step in plan if "TEMP B-TREE" in step]
    assert not sorts or query[0] == "count", plan


def test_the_next_tasks_are_found_by_the_index(tmp_path: Path) -> None:
    """The order in which tasks run is the index's, on a database that was never analyzed: the cost of the
    next task does not grow with the queue."""
    with contextlib.closing(memory()) as connection:
        database.migrate(connection, sql.migrations())
        parameters = {"holder": "edge", "rank": -5, "tag": 1.0, "seq": 1, "limit": 10}
        query = sql.queries("tasks")["waiting"]
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", parameters)]
    assert plan == [
        "SEARCH t USING INDEX tasks_in_order (holder=? AND (rank,tag)>(?,?))",
        "SEARCH c USING PRIMARY KEY (task_id=?) LEFT-JOIN",
        "SEARCH g USING PRIMARY KEY (task_id=?) LEFT-JOIN",
        "SEARCH s USING PRIMARY KEY (task_id=?) LEFT-JOIN",
    ]


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """The writer's commits reach the disk before they are answered (synchronous=FULL in WAL mode)."""
    with contextlib.closing(database.open_for_writing(file(tmp_path)).connection) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)

"""The plans of the hot statements, on a database that nobody has analyzed, and on one that was."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from cloud_hub.store import classes, migrate, pool, sql
from demo import servers
from tests.integration import stores

TASKS = 50_000

FILL = (
    b"""
    INSERT INTO classes (model, queue)
    SELECT 'model-' || m, 'queue-' || q FROM generate_series(0, 2) AS m, generate_series(0, 3) AS q
    """,
    b"""
    INSERT INTO tasks (
        task_id, observed_at, class_id, items, payload_bytes, priority, max_attempts, model, queue,
        content_type, state, finished_at, items_done, attempt, deadline_at
    )
    SELECT
        md5(n::text)::uuid, now(),
        (SELECT class_id FROM classes c WHERE c.model = 'model-' || n %% 3 AND c.queue = 'queue-' || n %% 4),
        1, 10, n %% 10, 3, 'model-' || n %% 3, 'queue-' || n %% 4, 'image/png',
        CASE WHEN n %% 10 < 6 THEN 'QUEUED' WHEN n %% 10 < 9 THEN 'COMPLETED' ELSE 'PROCESSING' END,
        CASE WHEN n %% 10 BETWEEN 6 AND 8 THEN now() END, (n %% 10 BETWEEN 6 AND 8)::int, 1,
        CASE WHEN n %% 7 = 0 THEN now() + interval '1 hour' END
    FROM generate_series(1, %(n)s) AS n
    """,
    b"INSERT INTO payloads (task_id, body) SELECT task_id, '\\x00' FROM tasks",
    b"""
    INSERT INTO leases (task_id, attempt, agent_id, expires_at)
    SELECT task_id, 1, 1, now() + interval '1 hour' FROM tasks WHERE state = 'PROCESSING'
    """,
    b"""
    INSERT INTO attempts (task_id, attempt, agent_id, state, items_done)
    SELECT task_id, 1, 1, 'COMPLETED', 1 FROM tasks
    """,
    b"""
    INSERT INTO results (task_id, item, observed_at, agent_id, attempt, outcome, model, version)
    SELECT task_id, 0, now(), 1, 1, 'ok', model, '1' FROM tasks
    """,
    b"""
    INSERT INTO outgoing (agent_id, lane, first, last, kind, task_id, attempt)
    SELECT 1, 'leases.1', n, n, 'leases', md5(n::text)::uuid, 1 FROM generate_series(1, %(n)s) AS n
    """,
    b"INSERT INTO down_lanes (agent_id, lane, numbered) VALUES (1, 'leases.1', %(n)s)",
    b"INSERT INTO idempotency_keys (key, task_id) SELECT task_id::text, task_id FROM tasks",
)

LARGE = ("tasks", "payloads", "attempts", "outgoing", "idempotency_keys", "results", "results_default")

BY_ID = [
    ("ends", "lock"),
    ("ends", "leases"),
    ("ends", "change"),
    ("ends", "release"),
    ("ends", "record"),
    ("ends", "drop_payloads"),
    ("schedule", "grant"),
    ("schedule", "renew"),
    ("tasks", "attempts"),
    ("tasks", "payload"),
    ("tasks", "dead_letters"),
    ("tasks", "requeue"),
    ("tasks", "clear_results"),
    ("apply", "tombstones"),
    ("outgoing", "leases"),
    ("outgoing", "results"),
]
OTHERS = [
    ("schedule", "heads"),
    ("schedule", "held"),
    ("schedule", "stop"),
    ("ends", "checkpoints"),
    ("schedule", "ripen"),
    ("schedule", "lost"),
    ("schedule", "overdue"),
    ("outgoing", "append"),
    ("outgoing", "chunks"),
    ("lanes", "acknowledge"),
    ("tasks", "claim"),
    ("tallies", "lock"),
    ("tallies", "put"),
    ("tallies", "before"),
]


@pytest.fixture(scope="module", params=["never analyzed", "analyzed empty", "analyzed"])
def filled(postgres: servers.Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store with many tasks in all states, with and without statistics, and with some that mislead."""
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE plans")
        try:
            dsn = postgres.dsn_of("plans")
            asyncio.run(fill(dsn, request.param))
            yield dsn
        finally:
            admin.execute("DROP DATABASE plans WITH (FORCE)")


async def fill(dsn: str, statistics: str) -> None:
    await migrate.migrate(dsn)
    connection = await pool.connect(dsn)
    async with connection:
        for table in (*LARGE, "leases"):
            if table != "results":
                await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)".encode())
        await stores.agent(connection)
        if statistics == "analyzed empty":
            await connection.execute("ANALYZE")
        for statement in FILL:
            await connection.execute(statement, {"n": TASKS})
        if statistics == "analyzed":
            await connection.execute("ANALYZE")


@pytest.fixture
async def connection(filled: str) -> AsyncIterator[pool.Connection]:
    async with await pool.connect(filled) as connection:
        yield connection


async def plan(connection: pool.Connection, block: bytes) -> dict[str, Any]:
    """The plan that our connections use: made once, for any values of the parameters."""
    names: list[bytes] = []

    def number(match: re.Match[bytes]) -> bytes:
        name = match.group(1)
        if name not in names:
            names.append(name)
        return b"$%d" % (names.index(name) + 1)

    statement = re.sub(rb"%\((\w+)\)[sb]", number, block)
    await connection.execute(b"PREPARE explained AS " + statement, prepare=False)
    values = b"(" + b", ".join([b"NULL"] * len(names)) + b")" if names else b""
    cursor = await connection.execute(b"EXPLAIN (FORMAT JSON) EXECUTE explained" + values, prepare=False)
    row = await cursor.fetchone()
    assert row is not None
    await connection.execute("DEALLOCATE explained")
    return dict(row[0][0]["Plan"])


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)


def scans(node: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(kind of scan, table, index) of every table that a plan reads."""
    return {
        (each["Node Type"], each.get("Relation Name", ""), each.get("Index Name", ""))
        for each in nodes(node)
        if "Scan" in each["Node Type"]
    }


async def test_no_hot_statement_looks_through_a_large_table(connection: pool.Connection) -> None:
    """Whatever the statistics say or fail to say, large tables are read by an index; by id, by the ids'."""
    for noun, name in BY_ID + OTHERS:
        found = scans(await plan(connection, sql.load(noun)[name]))
        assert found, (noun, name)
        for kind, table, index in found:
            assert not (kind == "Seq Scan" and table in LARGE), (noun, name, found)
            if (noun, name) in BY_ID:
                # A partial index would do for a planner that believes that hardly a task is queued.
                assert index not in ("tasks_queued", "tasks_due", "tasks_backing_off"), (noun, name, found)


async def test_heads_are_read_off_the_queue_index(connection: pool.Connection) -> None:
    """The next tasks are the first entries of the index, in its order: only what is returned is sorted."""
    chosen = await plan(connection, sql.load("schedule")["heads"])
    assert {index for _, table, index in scans(chosen) if table == "tasks"} == {"tasks_queued"}
    for node in nodes(chosen):
        if node["Node Type"] == "Limit":
            assert all(below["Node Type"] != "Sort" for below in nodes(node)), node


async def test_lists_read_no_more_than_they_show(connection: pool.Connection) -> None:
    """A page of tasks or of result rows comes off an index in its order, without a sort."""
    select = sql.load("tasks")["select"]
    for state in (b"QUEUED", b"PROCESSING", b"TERMINATED"):
        chosen = await plan(connection, select.replace(b"{conditions}", b"t.state = '%s'" % state))
        assert {index for _, table, index in scans(chosen) if table == "tasks"} == {"tasks_open"}
        (limit,) = (node for node in nodes(chosen) if node["Node Type"] == "Limit")
        assert [node["Node Type"] for node in nodes(limit)] == ["Limit", "Index Scan"]
    rows = sql.load("results")["select"] + b" ORDER BY r.task_id DESC, r.item DESC LIMIT %(limit)s"
    chosen = await plan(connection, rows)
    assert {kind for kind, table, _ in scans(chosen) if table.startswith("results")} == {"Index Scan"}
    assert all(node["Node Type"] != "Sort" for node in nodes(chosen))


async def test_heads_cost_the_same_at_any_depth(database: str) -> None:
    """The pages that are read for the next tasks do not grow with the queue behind them."""
    block = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql.load("schedule")["heads"]
    parameters: dict[str, Any] = {"rows": 500, "few": 8, "passed_over": [], "without_room": [1, 2]}
    parameters |= {"aging_s": 300.0, "aging_cap": 9}
    pages = []
    await migrate.migrate(database)
    async with await pool.connect(database) as connection:
        for statement in FILL[:2]:
            await connection.execute(statement, {"n": TASKS})
        for share in (b"00", b"f3"):
            await connection.execute("DELETE FROM tasks WHERE left(task_id::text, 2) < %s", (share.decode(),))
            await classes.compact(connection)
            await connection.commit()
            await connection.set_autocommit(True)
            await connection.execute("VACUUM tasks, depths")
            await connection.set_autocommit(False)
            row = await (await connection.execute(block, parameters)).fetchone()
            assert row is not None
            pages.append(row[0][0]["Plan"]["Shared Hit Blocks"] + row[0][0]["Plan"]["Shared Read Blocks"])
    deep, shallow = pages
    assert deep <= shallow * 1.5

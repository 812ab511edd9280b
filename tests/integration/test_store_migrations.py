"""The schema: migrations, partitions."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from cloud_hub.store import apply, blobs, ids, migrate, models, partitions, pool
from shared import tasks
from tests.integration import stores

SCHEMA = Path(migrate.__file__).parent / "schema.sql"

CATALOGUE = """
    SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
        a.attstorage::text, a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = %(schema)s::text::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'relation', relname, relkind::text, array_to_string(reloptions, ','),
        pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid), NULL, NULL
    FROM pg_class WHERE relnamespace = %(schema)s::text::regnamespace
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), NULL, NULL, NULL, NULL
    FROM pg_constraint WHERE connamespace = %(schema)s::text::regnamespace
    UNION ALL
    SELECT 'index', tablename, indexname, indexdef, NULL, NULL, NULL, NULL
    FROM pg_indexes WHERE schemaname = %(schema)s::text
"""


def catalogue(connection: psycopg.Connection, schema: str) -> set[tuple[object, ...]]:
    """Everything that a schema holds, in words that do not name the schema itself."""
    rows = connection.execute(CATALOGUE, {"schema": schema}).fetchall()
    return {
        tuple(text.replace(f"{schema}.", "") if isinstance(text, str) else text for text in row)
        for row in rows
    }


FILLED = (b"agents", b"tasks", b"leases", b"results", b"depths", b"classes")
"""Tables that a hub at work has rows in."""


async def whole(connection: pool.Connection, table: bytes) -> list[str]:
    """Every row of a table, as text."""
    rows = await connection.execute(b"SELECT t::text FROM %b t ORDER BY 1" % table)
    return [text for (text,) in await rows.fetchall()]


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


def test_the_migrations_together_make_the_schema(database: str) -> None:
    """migrations/ and schema.sql, the one that runs and the one that is read, say the same."""
    with psycopg.connect(database) as connection:
        connection.execute("CREATE SCHEMA migrated; CREATE SCHEMA written")
        connection.execute("SET search_path = migrated")
        for step in migrate.migrations():
            connection.execute(step.script)
        connection.execute("SET search_path = written")
        connection.execute(SCHEMA.read_bytes())
        migrated, written = catalogue(connection, "migrated"), catalogue(connection, "written")
        assert migrated == written
        assert len(written) > 100


async def test_migrating_again_and_at_once_changes_nothing(database: str) -> None:
    """Any number of hubs may start together on an empty database, and again on a migrated one."""
    newest = migrate.migrations()[-1].version
    assert set(await asyncio.gather(*(migrate.migrate(database) for _ in range(4)))) == {newest}
    assert await migrate.migrate(database) == newest


async def test_a_database_of_version_2_goes_on_with_all_that_is_in_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that is brought up to date finds agents, tasks and results as they were, and can take models."""
    every = migrate.migrations()
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "migrations", lambda: every[:2])
        assert await migrate.migrate(database) == 2
    async with pool.open_pool(database) as connections:
        async with connections.connection() as connection:
            agent_id = await stores.agent(connection)
            _queued, leased = await stores.submit(connection, 2)
            await stores.grant(connection, [leased], agent_id)
            await apply.results(connection, agent_id, stores.rows(tasks.new_id(), items=3))
            before = [await whole(connection, table) for table in FILLED]
        assert all(before)
        assert await migrate.migrate(database) == every[-1].version
        async with connections.connection() as connection:
            assert [await whole(connection, table) for table in FILLED] == before
            draft = await blobs.begin(connection)
            assert await blobs.complete(connection, draft, "ab" * 32, 0)
            assert await models.add(connection, "faces", "1", "ab" * 32, "", None)


async def test_a_newer_database_is_left_alone(database: str) -> None:
    """A hub that is older than the database says so and touches nothing."""
    await migrate.migrate(database)
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO schema_versions (version, name) VALUES (9999, 'of the future')")
    with pytest.raises(migrate.NewerSchema, match="9999"):
        await migrate.migrate(database)


async def test_months_are_made_ahead_once(connections: pool.Pool) -> None:
    """This month and the next two have partitions, over the turn of a year too; a second call makes none."""
    async with connections.connection() as connection:
        made = await partitions.ensure(connection, datetime(2031, 11, 30, 23, 59, tzinfo=UTC))
        assert made == ["results_2031_11", "results_2031_12", "results_2032_01"]
        assert await partitions.ensure(connection, datetime(2031, 12, 1, tzinfo=UTC)) == ["results_2032_02"]


async def test_rows_that_came_before_their_month_move_into_it(connections: pool.Pool) -> None:
    """A device whose clock is ahead does not hinder the partition of the month that it dreams of."""
    early = bytes(ids.lowest(datetime(2033, 5, 17, tzinfo=UTC)))
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        await apply.results(connection, agent_id, stores.rows(early, items=3))
        assert await stores.scalar(connection, b"SELECT count(*) FROM results_default") == 3
        await partitions.ensure(connection, datetime(2033, 5, 1, tzinfo=UTC))
        assert await stores.scalar(connection, b"SELECT count(*) FROM results_default") == 0
        assert await stores.scalar(connection, b"SELECT count(*) FROM results_2033_05") == 3


async def test_dropping_takes_whole_months_only(connections: pool.Pool) -> None:
    """A month goes when it has ended before the instant; the one that the instant is in stays."""
    async with connections.connection() as connection:
        await partitions.ensure(connection, datetime(2020, 1, 15, tzinfo=UTC))
        agent_id = await stores.agent(connection)
        for day in (datetime(2020, 1, 31, 23, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC)):
            await apply.results(connection, agent_id, stores.rows(bytes(ids.lowest(day))))
        assert await partitions.drop_before(connection, datetime(2020, 2, 28, tzinfo=UTC)) == [
            "results_2020_01"
        ]
        assert await stores.scalar(connection, b"SELECT count(*) FROM results") == 1


async def test_a_clock_that_was_never_set_has_its_place(connections: pool.Pool) -> None:
    """Results of 1970 and of 2200 are taken like any others, and are unique there too."""
    async with connections.connection() as connection:
        agent_id = await stores.agent(connection)
        for year in (1970, 2200):
            task_id = bytes(ids.lowest(datetime(year, 1, 2, tzinfo=UTC)))
            assert (await apply.results(connection, agent_id, stores.rows(task_id))).inserted == 1
            assert (await apply.results(connection, agent_id, stores.rows(task_id))).shadowed == 1
        assert await stores.scalar(connection, b"SELECT count(*) FROM results_early") == 1
        await apply.results(connection, agent_id, stores.rows(tasks.new_id()))
        assert await stores.scalar(connection, b"SELECT count(*) FROM results_default") == 1

"""PostgreSQL restarts, and the store goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import psycopg_pool
import pytest

from cloud_hub.store import apply, migrate, pool, results, tasks
from demo import servers
from shared import tasks as words
from tests.integration import stores


@pytest.fixture
async def server(tmp_path: Path, postgres: servers.Postgres) -> servers.Postgres:
    """A PostgreSQL of the test's own; `postgres` is asked for because it skips where there is none."""
    return servers.Postgres(tmp_path / "own")


async def persist(connections: pool.Pool, work: Callable[[pool.Connection], Awaitable[object]]) -> int:
    """Do what the hub does with an unavailable store: the same again; returns how often it failed."""
    failed = 0
    while True:
        try:
            async with connections.connection() as connection:
                await work(connection)
        except pool.UNAVAILABLE:
            failed += 1
        else:
            return failed


async def test_a_killed_server_comes_back_to_the_same_pool(server: servers.Postgres) -> None:
    """What was committed is there, what was not is not, and the pool finds its way back by itself."""
    async with server:
        await migrate.migrate(server.dsn)
        async with pool.open_pool(server.dsn, max_size=2, timeout_s=0.5) as connections:
            kept, undone = words.new_id(), words.new_id()
            async with connections.connection() as connection:
                agent_id = await stores.agent(connection)
                await apply.results(connection, agent_id, stores.rows(kept))

            async def be_killed() -> None:
                async with connections.connection() as connection:
                    await apply.results(connection, agent_id, stores.rows(undone))
                    await server.kill()
                    await apply.results(connection, agent_id, stores.rows(undone))

            with pytest.raises(pool.UNAVAILABLE):
                await be_killed()

            async def submit(connection: pool.Connection) -> None:
                await tasks.submit(connection, [stores.submission(idempotency_key="once")])

            async with asyncio.TaskGroup() as group:
                submitted = group.create_task(persist(connections, submit), name="submit until it is done")
                with pytest.raises(psycopg_pool.PoolTimeout):
                    async with connections.connection():
                        pass
                await server.start()
            assert submitted.result() > 0
            async with connections.connection() as connection:
                assert (await results.of_task(connection, kept)).num_rows == 1
                assert (await results.of_task(connection, undone)).num_rows == 0
                assert await stores.scalar(connection, b"SELECT count(*) FROM tasks") == 1


async def test_connections_that_died_unnoticed_are_replaced(database: str) -> None:
    """A pool whose idle connections were cut gives out a good one, and nobody sees an error."""
    async with stores.fresh(database) as connections:
        async with connections.connection() as connection:
            agent_id = await stores.agent(connection)
            cut = b"SELECT pg_terminate_backend(%s, 5000)"  # and wait until it has ended
            victim = connection.info.backend_pid
        async with await pool.connect(database) as other:
            await stores.scalar(other, cut, victim)
        async with connections.connection() as connection:
            assert connection.info.backend_pid != victim
            assert (await apply.results(connection, agent_id, stores.rows(words.new_id()))).inserted == 1


async def test_errors_of_the_data_are_not_worth_another_try(database: str) -> None:
    """What is refused is told apart from what is unavailable: trying again must not go on for ever."""
    async with stores.fresh(database) as connections, connections.connection() as connection:
        with pytest.raises(pool.REFUSED) as refused:
            await connection.execute("SELECT 1 / 0")
        assert not isinstance(refused.value, pool.UNAVAILABLE)
        await connection.rollback()
        await connection.execute("SET statement_timeout = '1ms'")
        with pytest.raises(pool.UNAVAILABLE):
            await connection.execute("SELECT pg_sleep(10)")
        await connection.rollback()
        await connection.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(pool.UNAVAILABLE):
            await stores.agent(connection)


async def test_a_connection_comes_back_as_it_was(database: str) -> None:
    """Lent for single statements and given back in the middle of one: the next has transactions again."""
    async with stores.fresh(database, max_size=1) as connections:

        async def ask() -> None:
            async with pool.statement(connections) as connection:
                await connection.execute("SELECT pg_sleep(0.002)")
                await connection.execute("SELECT 1 / 0")

        for pause_s in (0.0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.1) * 4:
            asking = asyncio.create_task(ask())
            await asyncio.sleep(pause_s)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            async with connections.connection() as connection:
                assert not connection.autocommit
                assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

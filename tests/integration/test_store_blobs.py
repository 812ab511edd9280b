"""Contents that come and go while others look at them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from cloud_hub.store import blobs, models, pool
from tests.integration import stores

SHA256 = "ab" * 32


@pytest.fixture
async def connections(database: str) -> AsyncIterator[pool.Pool]:
    async with stores.fresh(database) as opened:
        yield opened


async def stored(connections: pool.Pool, body: bytes = b"piece", sha256: str = SHA256) -> int:
    """A content that is complete."""
    async with connections.connection() as connection:
        draft = await blobs.begin(connection)
        await blobs.append(connection, draft, 0, body)
        assert await blobs.complete(connection, draft, sha256, len(body))
    return draft


async def test_what_comes_into_use_while_it_is_swept_stays(connections: pool.Pool) -> None:
    """A sweep waits for whoever is just making a model of a content, looks again, and leaves it."""
    await stored(connections)
    async with connections.connection() as connection:
        other = await blobs.begin(connection)
        assert not await blobs.complete(connection, other, SHA256, 5)
        sweeping = asyncio.create_task(blobs.sweep(connections))
        await stores.until_one_waits(connections)
        await models.add(connection, "faces", "1", SHA256, "", None)
    assert await sweeping == 0
    async with connections.connection() as connection:
        found = await blobs.find(connection, SHA256)
        assert found is not None
        assert await blobs.chunk(connection, found.blob_id, 0) == b"piece"


async def test_what_is_being_swept_is_not_taken_for_there(connections: pool.Pool) -> None:
    """Who brings a content that is just going waits to see it go, and brings it anew."""
    await stored(connections)
    async with connections.connection() as connection:
        await connection.execute(b"SELECT FROM blobs FOR UPDATE")
        await connection.execute(b"UPDATE blobs SET state = 'going', sha256 = NULL, size = NULL")
        again = asyncio.create_task(stored(connections, b"anew!"))
        await stores.until_one_waits(connections)
    anew = await again
    async with connections.connection() as connection:
        assert await blobs.find(connection, SHA256) == (anew, 5)
        assert await blobs.chunk(connection, anew, 0) == b"anew!"
    assert await blobs.sweep(connections) == 2  # it is no model's yet, either


async def test_of_two_drafts_of_one_content_one_becomes_it(connections: pool.Pool) -> None:
    """The second waits for the first; if that is committed it is told so, and finds it at its next try."""
    async with connections.connection() as connection:
        first, second = await blobs.begin(connection), await blobs.begin(connection)

    async def complete() -> bool:
        async with connections.connection() as connection:
            return await blobs.complete(connection, second, SHA256, 5)

    async with connections.connection() as connection:
        assert await blobs.complete(connection, first, SHA256, 5)
        late = asyncio.create_task(complete())
        await stores.until_one_waits(connections)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await late
    assert await complete() is False


async def test_a_draft_that_was_given_up_takes_no_more(connections: pool.Pool) -> None:
    """Neither a piece nor an end: whoever took it away may be in the middle of it."""
    async with connections.connection() as connection:
        draft = await blobs.begin(connection)
        await blobs.append(connection, draft, 0, b"piece")
        await blobs.give_up(connection, draft)
        with pytest.raises(blobs.GivenUp):
            await blobs.append(connection, draft, 1, b"piece")
        with pytest.raises(blobs.GivenUp):
            await blobs.complete(connection, draft, SHA256, 10)


async def test_a_content_that_a_model_is_made_of_cannot_go(connections: pool.Pool) -> None:
    """The schema itself refuses it, whatever a program does."""
    await stored(connections)
    async with connections.connection() as connection:
        await models.add(connection, "faces", "1", SHA256, "", None)
    for wrong in (
        b"UPDATE blobs SET state = 'going', sha256 = NULL, size = NULL",
        b"UPDATE blobs SET sha256 = repeat('c', 64)",
        b"DELETE FROM blobs",
        b"UPDATE blobs SET state = 'coming'",
    ):
        with pytest.raises(psycopg.IntegrityError):
            async with connections.connection() as connection:
                await connection.execute(wrong)

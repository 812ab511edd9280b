"""Models over REST: fetched in parts, and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cloud_hub.api import blobs as api_blobs
from cloud_hub.api import context
from cloud_hub.store import blobs
from tests.integration import api_server
from tests.integration.api_server import Served
from tests.integration.shipped import aim, at, package, problem, push, pushed, sha256, stored


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


@contextlib.asynccontextmanager
async def slow_readers(hub: Served, address: str, count: int) -> AsyncIterator[None]:
    """Clients that ask for something, and read no more than the first line of it."""
    writers = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", httpx.URL(hub.url).port or 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        writer.write(f"GET {address} HTTP/1.1\r\nhost: hub\r\n\r\n".encode())
        assert b" 200 " in await reader.readline()
        writers.append(writer)
    yield
    for writer in writers:
        writer.close()


async def fetched_in_turn(hub: Served, address: str) -> httpx.Response:
    """What is there, as soon as the hub has seen that another fetch has ended."""
    async with asyncio.timeout(10):
        while (answer := await hub.client.get(address)).status_code == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return answer


async def test_a_fetch_goes_on_where_it_broke_off(hub: Served, tmp_path: Path) -> None:
    """A range is answered with exactly its bytes, across the pieces that the store keeps."""
    body = package(tmp_path, graph=bytes(range(251)) * 12_000)
    await pushed(hub, body)
    address = f"/v1/blobs/{sha256(body)}"
    tag = f'"sha256:{sha256(body)}"'
    whole = len(body)
    for header, start, stop in (
        ("bytes=0-0", 0, 1),
        (f"bytes={whole // 2}-", whole // 2, whole),
        ("bytes=1048570-1048580", 1048570, 1048581),
        ("bytes=1048576-2097151", 1 << 20, 2 << 20),
        ("bytes=-10", whole - 10, whole),
    ):
        answer = await hub.client.get(address, headers={"range": header, "if-range": tag})
        assert (answer.status_code, answer.content) == (206, body[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{whole}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["etag"] == tag


async def test_a_fetch_is_answered_as_the_standard_says(hub: Served, tmp_path: Path) -> None:
    """All of it for another's tag or several ranges, 304 for what is at hand, 416 behind the end."""
    body = package(tmp_path)
    await pushed(hub, body)
    address = f"/v1/blobs/{sha256(body)}"
    tag = f'"sha256:{sha256(body)}"'
    head = await hub.client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(body))
    assert (head.headers["etag"], head.headers["accept-ranges"]) == (tag, "bytes")
    for headers in ({"range": "bytes=5-", "if-range": '"sha256:other"'}, {"range": "bytes=0-1,4-5"}):
        answer = await hub.client.get(address, headers=headers)
        assert (answer.status_code, answer.content) == (200, body)
        assert "content-range" not in answer.headers
    known = await hub.client.get(address, headers={"if-none-match": tag})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)
    beyond = await hub.client.get(address, headers={"range": f"bytes={len(body)}-"})
    problem(beyond, 416, "range-not-satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(body)}"
    problem(await hub.client.get("/v1/blobs/" + "0" * 64), 404, "not-found")
    problem(await hub.client.get("/v1/blobs/nothing"), 422, "invalid")


async def test_a_slow_fetch_holds_no_connection(hub: Served, tmp_path: Path) -> None:
    """Many clients that read slowly leave the pool of connections to the others."""
    body = package(tmp_path, graph=bytes(12_000_000))
    await pushed(hub, body)
    async with slow_readers(hub, f"/v1/blobs/{sha256(body)}", 20), asyncio.timeout(5):
        assert (await hub.client.get("/v1/models")).status_code == 200


async def test_only_so_many_fetch_at_once(database: str, tmp_path: Path) -> None:
    """One fetch more than the limit is told to come back."""
    body = package(tmp_path, graph=bytes(12_000_000))
    async with api_server.serving(database, context.Settings(max_fetches=1)) as hub:
        await pushed(hub, body)
        address = f"/v1/blobs/{sha256(body)}"
        async with slow_readers(hub, address, 1):
            busy = await hub.client.get(address)
            problem(busy, 429, "busy")
            assert int(busy.headers["retry-after"]) >= 1
        assert (await fetched_in_turn(hub, address)).content == body


async def test_a_fetch_that_stands_still_makes_room(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has its turn and reads nothing, as over a link that died, does not keep the others from theirs."""
    monkeypatch.setattr(api_blobs, "PATIENCE_S", 0.2)
    body = package(tmp_path, graph=bytes(12_000_000))
    async with api_server.serving(database, context.Settings(max_fetches=1)) as hub:
        await pushed(hub, body)
        address = f"/v1/blobs/{sha256(body)}"
        async with slow_readers(hub, address, 1):
            assert (await hub.client.get(address)).status_code == 429
            assert (await fetched_in_turn(hub, address)).content == body


async def test_what_goes_while_it_is_sent_is_never_taken_for_whole(hub: Served, tmp_path: Path) -> None:
    """A content that is removed under a client ends its connection, short of the length that was told."""
    body = package(tmp_path, graph=bytes(25_000_000))
    await pushed(hub, body)
    async with hub.client.stream("GET", f"/v1/blobs/{sha256(body)}") as answer:
        stream = answer.aiter_raw()
        await anext(stream)
        assert (await hub.client.delete(at())).status_code == 200
        assert await blobs.sweep(hub.pool) == 1
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in stream:
                pass


async def test_a_version_that_is_to_be_served_stays(hub: Served, tmp_path: Path) -> None:
    """A target holds its version; withdrawn, the version can go, and its content is swept away."""
    body = package(tmp_path)
    await pushed(hub, body)
    await aim(hub, "1", "site=lyon")
    detail = problem(await hub.client.delete(at()), 409, "in-use")
    assert "site=lyon" in detail
    await hub.client.delete("/v1/targets/defects", params={"selector": "site=lyon"})
    gone = await hub.client.delete(at())
    assert (gone.status_code, gone.json()["sha256"]) == (200, sha256(body))
    problem(await hub.client.delete(at()), 404, "not-found")
    problem(await hub.client.get("/v1/models/defects"), 404, "not-found")
    assert await blobs.sweep(hub.pool) == 1
    assert await stored(hub) == []
    await pushed(hub, body)  # and it may come again


async def test_a_sweep_spares_what_is_just_coming_into_use(hub: Served, tmp_path: Path) -> None:
    """A push of a content that the sweep is about to take away either keeps it or brings its own."""
    body = package(tmp_path)
    for _ in range(10):
        await push(hub, body)
        await hub.client.delete(at())
        answer, _ = await asyncio.gather(push(hub, body), blobs.sweep(hub.pool))
        assert answer.status_code == 201
        fetched = await hub.client.get(f"/v1/blobs/{sha256(body)}")
        assert fetched.content == body
        await hub.client.delete(at())

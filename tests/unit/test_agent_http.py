"""The agent's HTTP server: what it takes, what it refuses, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import http

LIMIT = 1000


class Echo:
    """Says a body again; `hold` keeps answers back."""

    max_body = LIMIT
    max_bodies = 2 * LIMIT

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.answering = asyncio.Semaphore(0)

    async def answer(self, request: http.Request) -> http.Response:
        self.answering.release()
        await self.hold.wait()
        if request.path == "/echo/broken":
            raise ZeroDivisionError
        if request.path == "/echo/refused":
            raise http.Refused(409, "not now", {"Retry-After": "7"})
        return http.Response(200, "text/plain", request.body, {"X-Method": request.method})

    def refuse(self, refused: http.Refused) -> http.Response:
        return http.Response(refused.status, "application/json", f'"{refused}"'.encode(), refused.headers)


@contextlib.asynccontextmanager
async def serving(service: Echo | None = None) -> AsyncIterator[http.Server]:
    services: Mapping[str, http.Service] = {"echo": service or Echo()}
    pages: dict[str, http.Page] = {"/page": lambda: (200, "text/plain", b"a page\n")}
    async with http.Server.open("127.0.0.1", 0, pages, services) as server:
        yield server


@contextlib.asynccontextmanager
async def asking(service: Echo | None = None) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(service) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as one,
    ):
        yield one


async def said(port: int, text: bytes) -> bytes:
    """What comes back for raw bytes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


async def test_pages() -> None:
    """A page is read with GET, its head with HEAD; at another path stands what there is."""
    async with asking() as client:
        page = await client.get("/page?fresh=1")
        assert (page.status_code, page.text) == (200, "a page\n")
        head = await client.head("/page")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "7")
        lost = await client.get("/nothing")
        assert (lost.status_code, "/page" in lost.text, "/echo" in lost.text) == (404, True, True)
        wrote = await client.post("/page")
        assert (wrote.status_code, wrote.headers["allow"]) == (405, "GET, HEAD")


async def test_many_requests_share_a_connection() -> None:
    """A connection is kept for the next request, in HTTP/1.1 unless told otherwise, in 1.0 if asked."""
    async with serving() as server:
        asked = b"GET /page HTTP/1.1\r\n\r\n" * 3 + b"GET /page HTTP/1.1\r\nConnection: close\r\n\r\n"
        assert (await said(server.port, asked)).count(b"a page") == 4
        old = b"GET /page HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /page HTTP/1.0\r\n\r\n"
        assert (await said(server.port, old)).count(b"a page") == 2


@pytest.mark.parametrize("encoding", [None, "identity", "gzip", "deflate"])
async def test_a_body_is_read_whole(encoding: str | None) -> None:
    """A body arrives as it was, packed or not, and `Expect: 100-continue` is told to go on."""
    body = bytes(range(256)) * 3
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body)}.get(encoding or "", body)
    headers = {"Content-Encoding": encoding} if encoding else {}
    async with asking() as client:
        answer = await client.post("/echo", content=packed, headers=headers)
    assert (answer.content, answer.headers["x-method"]) == (body, "POST")
    async with serving() as server:
        head = (
            b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        told = await said(server.port, head + b"ab")
    assert told.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_a_body_too_large_is_refused() -> None:
    """By its length before it is read, or by what it unpacks to; the sender gets to read why."""
    async with asking() as client:
        for body, headers in (
            (b"x" * (LIMIT + 1), {}),
            (b"x" * 20_000_000, {}),
            (gzip.compress(b"x" * (LIMIT + 1)), {"Content-Encoding": "gzip"}),
        ):
            answer = await client.post("/echo", content=body, headers=headers)
            assert (answer.status_code, "1,000 bytes" in answer.text) == (413, True)
        fits = await client.post("/echo", content=b"x" * LIMIT)
        assert fits.status_code == 200


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"no gzip", "gzip", 400),
        (gzip.compress(b"cut off")[:-3], "gzip", 400),
        (gzip.compress(b"one") + b"more", "gzip", 400),
        (b"", "gzip", 400),
        (b"x", "br", 415),
    ],
)
async def test_a_body_that_cannot_be_unpacked(body: bytes, encoding: str, status: int) -> None:
    """It is the sender's mistake, told as such."""
    async with asking() as client:
        answer = await client.post("/echo", content=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/2.0\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET /page HTTP/1.1\r\nA: " + b"b" * http.HEAD_BYTES + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_not_http_is_refused(text: bytes, status: int) -> None:
    """With its status, and the connection ends: nobody can hide a second request in the first."""
    async with serving() as server:
        told = await said(server.port, text)
    assert told.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in told
    assert told.count(b"Content-Type") == 1


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(text: bytes) -> None:
    """Whatever comes, it is a head or it is refused."""
    with contextlib.suppress(http.Refused):
        http.parse(text + b"\r\n\r\n")


async def test_errors_are_told_in_the_services_form() -> None:
    """A refusal keeps its status and headers; a fault of ours is a 500, and the next request is served."""
    async with asking() as client:
        refused = await client.get("/echo/refused")
        assert (refused.status_code, refused.headers["retry-after"]) == (409, "7")
        assert refused.json() == "not now"
        assert (await client.get("/echo/broken")).status_code == 500
        assert (await client.get("/echo")).status_code == 200


async def test_bodies_share_a_budget() -> None:
    """While others hold the memory for bodies, one more is told to come again; pages are served."""
    service = Echo()
    service.hold.clear()
    async with asking(service) as client, asyncio.TaskGroup() as group:
        first, second = (group.create_task(client.post("/echo", content=b"x" * LIMIT)) for _ in range(2))
        for _ in range(2):
            await service.answering.acquire()
        third = await client.post("/echo", content=b"x")
        assert (third.status_code, third.headers["retry-after"]) == (503, "1")
        assert (await client.get("/page")).status_code == 200
        service.hold.set()
        assert [(await one).status_code for one in (first, second)] == [200, 200]


async def test_packed_bodies_count_as_what_they_unpack_to() -> None:
    """Small ones that are packed share the budget as they are, not as what they might have been."""
    service = Echo()
    service.hold.clear()
    packed, headers = gzip.compress(b"x" * 100), {"Content-Encoding": "gzip"}
    async with asking(service) as client, asyncio.TaskGroup() as group:
        asked = [group.create_task(client.post("/echo", content=packed, headers=headers)) for _ in range(10)]
        for _ in asked:
            await service.answering.acquire()
        service.hold.set()
        assert [(await one).status_code for one in asked] == [200] * 10


async def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit the one that has been idle longest goes; whoever is being answered stays."""
    monkeypatch.setattr(http, "CONNECTIONS", 3)
    service = Echo()
    async with serving(service) as server, asyncio.TaskGroup() as group:
        service.hold.clear()
        asked = b"POST /echo HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"
        busy = group.create_task(said(server.port, asked))
        await service.answering.acquire()
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        assert b"a page" in await said(server.port, b"GET /page HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(5):
            assert await idle[0][0].read() == b""
        service.hold.set()
        assert (await busy).endswith(b"busy")
        for _, writer in idle:
            writer.close()


async def test_whoever_is_slow_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head or a body that does not come to its end costs a connection for a bounded time."""
    monkeypatch.setattr(http, "IDLE_S", 0.05)
    monkeypatch.setattr(http, "MOVE_S", 0.05)
    async with serving() as server:
        assert await said(server.port, b"GET /pa") == b""
        assert await said(server.port, b"POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf") == b""


async def test_an_answer_under_way_goes_out_when_the_server_closes() -> None:
    """Closing waits for what is being answered, and ends idle connections at once."""
    service = Echo()
    service.hold.clear()
    async with asyncio.TaskGroup() as group:
        async with serving(service) as server:
            _, idle = await asyncio.open_connection("127.0.0.1", server.port)
            busy = group.create_task(said(server.port, b"GET /echo HTTP/1.1\r\n\r\n"))
            await service.answering.acquire()
            asyncio.get_running_loop().call_later(0.05, service.hold.set)
        assert b"200 OK" in await busy
        idle.close()

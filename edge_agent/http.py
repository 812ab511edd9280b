"""The local port: an HTTP/1.1 server in the agent's own loop, with a bound on everything.

It serves pages, which are short texts, and services, which take bodies and may take their time. Answers are
made in the agent's loop: they tell it as it is, and a loop that hangs is an agent that does not answer its
liveness probe.

A body comes with its length (not in chunks), and may be packed by gzip or deflate. HTTP/1.1: RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

log: Final = logging.getLogger(__name__)

CONNECTIONS: Final = 512
"""Open at one time, at most: beyond it the one that has been idle longest makes room."""
HEAD_BYTES: Final = 32 << 10
"""Of a request line and its headers."""
IDLE_S: Final = 75.0
"""How long a connection may wait for its next request."""
MOVE_S: Final = 30.0
"""How long a body may take to come, and an answer to be taken."""
LINGER_S: Final = 1.0
"""How long the rest of a refused body is read, for whoever sends to the end before it listens."""
CLOSE_S: Final = 1.0
"""How long what is being answered may take when the server closes."""

_LINE: Final = re.compile(r"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])")
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_ENCODINGS: Final = "gzip, deflate"
_GONE: Final = (ConnectionError, TimeoutError, asyncio.IncompleteReadError)
"""What reading and writing raise when the client has left, or is too slow."""


class Request(NamedTuple):
    """What a client asks, its body unpacked."""

    method: str
    path: str
    """Without the query, and as it was sent."""
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes


class Response(NamedTuple):
    """What it is answered."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


class Refused(Exception):
    """A request that is answered with an error; the message is for whoever sent it."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers: Mapping[str, str] = headers or {}


Page = Callable[[], tuple[int, str, bytes]]
"""Answers with status, content type and body; called in the loop, so it only reads."""


class Service(Protocol):
    """Answers all requests of which the path begins with one word."""

    max_body: int
    """Bytes of one body, packed and unpacked."""
    max_bodies: int
    """Bytes of all bodies that are being read or answered; one more is told to come again."""

    async def answer(self, request: Request) -> Response:
        """The answer to a request. May raise Refused."""
        ...

    def refuse(self, refused: Refused) -> Response:
        """A refusal in the form in which this service tells errors."""
        ...


class Server:
    """Serves pages by their paths, and services by the first word of the path."""

    def __init__(self, pages: Mapping[str, Page], services: Mapping[str, Service]) -> None:
        """Use `Server.open`."""
        self._pages = pages
        self._services = services
        self._bodies = dict.fromkeys(services, 0)
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        """Those that have been idle longest come first."""
        self._unpacking = asyncio.Lock()
        """One body at a time: nobody knows how large it will be."""
        self.port = 0
        self.closing = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, host: str, port: int, pages: Mapping[str, Page], services: Mapping[str, Service] | None = None
    ) -> AsyncIterator[Server]:
        """A server at `host` and `port` (0 takes a free one), for the time of the block."""
        server = cls(pages, services or {})
        listener = await asyncio.start_server(server._connected, host, port, limit=HEAD_BYTES)
        server.port = listener.sockets[0].getsockname()[1]
        try:
            yield server
        finally:
            listener.close()
            await server._close()

    async def answer(self, head: _Head, read: _Read) -> Response:
        """The answer to what a head asks, errors included; `read` brings the body, if it is wanted."""
        word = head.path.split("/", 2)[1]
        service = self._services.get(word)
        try:
            if service is None:
                return self._page(head)
            if head.length > service.max_body:
                raise Refused(413, f"the body has more than {service.max_body:,} bytes")
            with self._room(word, service, head.length):
                body = await read()
                if head.encoding is None:
                    return await service.answer(Request(head.method, head.path, head.headers, body))
                async with self._unpacking:
                    body = await asyncio.to_thread(unpacked, body, head.encoding, service.max_body)
                with self._room(word, service, len(body)):
                    return await service.answer(Request(head.method, head.path, head.headers, body))
        except _GONE:
            raise
        except Refused as refused:
            return _text(refused) if service is None else service.refuse(refused)
        except Exception:
            log.exception("%s %s failed", head.method, head.path)
            failed = Refused(500, "the agent failed to answer this; its log says how")
            return _text(failed) if service is None else service.refuse(failed)

    def _page(self, head: _Head) -> Response:
        page = self._pages.get(head.path)
        if page is None:
            known = ", ".join(sorted([*self._pages, *(f"/{word}" for word in self._services)]))
            raise Refused(404, f"not found; there is {known}")
        if head.method not in ("GET", "HEAD"):
            raise Refused(405, "this can be read, and nothing else", {"Allow": "GET, HEAD"})
        return Response(*page())

    @contextlib.contextmanager
    def _room(self, word: str, service: Service, size: int) -> Iterator[None]:
        """Memory for a body of `size` bytes; Refused if others have it all."""
        if self._bodies[word] and self._bodies[word] + size > service.max_bodies:
            raise Refused(503, "too many requests are being read and answered", {"Retry-After": "1"})
        self._bodies[word] += size
        try:
            yield
        finally:
            self._bodies[word] -= size

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS:
            idle = next((one for one in self._connections if one.idle), None)
            if idle is None:
                writer.close()
                return
            self._connections.pop(idle).cancel()
        one = _Connection(self, reader, writer)
        task = asyncio.get_running_loop().create_task(one.run(), name="http: connection")
        self._connections[one] = task
        task.add_done_callback(lambda _: self._connections.pop(one, None))

    def idle(self, one: _Connection) -> None:
        """A connection waits for its next request from now on."""
        if task := self._connections.pop(one, None):
            self._connections[one] = task

    async def _close(self) -> None:
        self.closing = True
        for one, task in self._connections.items():
            if one.idle:
                task.cancel()
        tasks = list(self._connections.values())
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)


class _Head(NamedTuple):
    """A request line and headers."""

    method: str
    path: str
    headers: Mapping[str, str]
    length: int
    keep_alive: bool

    @property
    def encoding(self) -> str | None:
        """How the body is packed."""
        named = self.headers.get("content-encoding", "").lower()
        return None if named in ("", "identity") else named


_Read = Callable[[], Awaitable[bytes]]


def parse(text: bytes) -> _Head:
    """The head of a request; Refused if it is none, or asks for what is not served here."""
    line, *lines = text.decode("latin-1").split("\r\n")[:-2]
    found = _LINE.fullmatch(line)
    if found is None:
        raise Refused(400, "this is no request line of HTTP/1.1")
    method, target, minor = found.groups()
    headers: dict[str, str] = {}
    for one in lines:
        header = _HEADER.fullmatch(one)
        if header is None:
            raise Refused(400, "a header is not of the form 'name: value'")
        name, value = header[1].lower(), header[2]
        if name == "content-length" and name in headers:
            raise Refused(400, "Content-Length is there twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if "transfer-encoding" in headers:
        raise Refused(411, "a body must come with its Content-Length, not in chunks")
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise Refused(400, f"Content-Length {length!r} is no number")
    wish = headers.get("connection", "").lower()
    keep_alive = "close" not in wish if minor == "1" else "keep-alive" in wish
    return _Head(method, target.partition("?")[0], headers, int(length), keep_alive)


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """A body as it was before it was packed; Refused if that is larger than `limit`, or cannot be told."""
    if encoding not in ("gzip", "deflate"):
        raise Refused(
            415,
            f"Content-Encoding {encoding!r} is not taken: {_ENCODINGS} are",
            {"Accept-Encoding": _ENCODINGS},
        )
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, as the first bytes say
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused(400, f"the body cannot be unpacked: {error}") from None
    if len(plain) > limit:
        raise Refused(413, f"the body unpacks to more than {limit:,} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise Refused(400, f"the body is not one whole {encoding} stream")
    return plain


class _Connection:
    """One client, a request at a time."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._unread = 0
        """Bytes of the body that have not been read."""
        self.idle = True

    async def run(self) -> None:
        """Serve requests until the client leaves, or is to leave."""
        self._writer.transport.set_write_buffer_limits(0)  # what was drained has left us
        try:
            while await self._serve():
                self.idle = True
                self._server.idle(self)
        except _GONE:
            pass
        finally:
            self._writer.close()

    async def _serve(self) -> bool:
        """One request; whether there may be another."""
        try:
            async with asyncio.timeout(IDLE_S):
                text = await self._reader.readuntil(b"\r\n\r\n")
            self.idle = False
            head = parse(text)
        except asyncio.LimitOverrunError:
            await self._end(_text(Refused(431, f"the headers have more than {HEAD_BYTES:,} bytes")))
            return False
        except Refused as refused:
            await self._end(_text(refused))
            return False
        self._unread = head.length
        response = await self._server.answer(head, functools.partial(self._body, head))
        if self._unread or not head.keep_alive or self._server.closing:
            await self._end(response, head.method)
            return False
        await self._write(response, head.method)
        return True

    async def _body(self, head: _Head) -> bytes:
        if not head.length:
            return b""
        if head.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(MOVE_S):
            body = await self._reader.readexactly(head.length)
        self._unread = 0
        return body

    async def _write(self, response: Response, method: str = "", *, last: bool = False) -> None:
        lines = [
            f"HTTP/1.1 {response.status} {_phrase(response.status)}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
            *(["Connection: close"] if last else []),
            "\r\n",
        ]
        head = "\r\n".join(lines).encode("latin-1")
        self._writer.write(head if method == "HEAD" else head + response.body)
        if self._writer.transport.get_write_buffer_size():
            async with asyncio.timeout(MOVE_S):
                await self._writer.drain()

    async def _end(self, response: Response, method: str = "") -> None:
        """The last answer on this connection. Closed with a body unread, it would be lost on its way."""
        await self._write(response, method, last=True)
        if self._unread or response.status in (411, 431):
            self._writer.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while await self._reader.read(HEAD_BYTES):
                        pass


def _text(refused: Refused) -> Response:
    return Response(refused.status, "text/plain", f"{refused}\n".encode(), refused.headers)


@functools.cache
def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase

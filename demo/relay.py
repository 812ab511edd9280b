"""A TCP relay that can be cut like a cable: the link between a site and the cloud."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Final, Self

from demo.servers import ports

CHUNK: Final = 64 * 1024
"""Bytes read at a time."""


class Relay:
    """Passes each connection to a port of its own on to `host`:`target`.

        async with Relay(broker.host, broker.port) as relay:
            relay.cut()           # every connection is lost, new ones are refused
            await relay.heal()    # listens again, on the same port

    What is in its buffers when it is cut is lost, as on a real line.
    """

    host = ports.HOST

    def __init__(self, host: str, target: int) -> None:
        self._far = (host, target)
        self.port = ports.free()
        """Where it listens, whenever it does."""
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._lines: set[asyncio.Task[None]] = set()

    @property
    def is_cut(self) -> bool:
        return self._server is None

    async def heal(self) -> None:
        """Listen; does nothing if it listens already."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self.host, self.port)

    def cut(self) -> None:
        """Break every connection at once and refuse new ones, until `heal`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for end in self._ends:
            end.transport.abort()

    async def stop(self) -> None:
        """Cut, and wait until nothing of it runs any more."""
        self.cut()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.heal()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.get_running_loop().create_task(self._connect(reader, writer), name="relay: line")
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One line, from its beginning to its end."""
        with self._held(writer), contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._far)
            with self._held(far_writer):
                if not self.is_cut:
                    await _either(_pump(reader, far_writer), _pump(far_reader, writer))

    @contextlib.contextmanager
    def _held(self, end: asyncio.StreamWriter) -> Iterator[None]:
        """One end of a line, within reach of `cut`; what was written to it still goes out at the close."""
        self._ends.add(end)
        try:
            yield
        finally:
            self._ends.discard(end)
            end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes one way until their source ends."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def _either(*ways: Coroutine[object, object, None]) -> None:
    """Run both until one of them ends, however it ends."""
    running = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

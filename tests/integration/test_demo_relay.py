"""The demo's relay: a line that passes everything until it is cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from demo.relay import Relay

LARGE = bytes(range(256)) * 4096  # a megabyte: more than any buffer on the way


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back whatever it gets; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_all_bytes_pass_both_ways_in_order() -> None:
    """What goes in comes out, however much, on several connections at once."""
    async with echo() as port, Relay("127.0.0.1", port) as relay, asyncio.timeout(10):

        async def there_and_back() -> bytes:
            reader, writer = await asyncio.open_connection(relay.host, relay.port)
            writer.write(LARGE)
            back = await reader.readexactly(len(LARGE))
            writer.close()
            return back

        assert await asyncio.gather(*(there_and_back() for _ in range(3))) == [LARGE] * 3


async def test_a_cut_breaks_connections_and_refuses_new_ones_until_healed() -> None:
    """Cut, nothing gets through and both sides are told; healed, it listens on the same port."""
    async with echo() as port, Relay("127.0.0.1", port) as relay, asyncio.timeout(10):
        where = relay.host, relay.port
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        relay.cut()
        assert relay.is_cut
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*where)
        await relay.heal()
        assert (relay.host, relay.port) == where
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        writer.close()


async def test_the_last_bytes_before_a_goodbye_arrive() -> None:
    """A side that sends and closes at once is heard to the end."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with Relay("127.0.0.1", server.sockets[0].getsockname()[1]) as relay, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(relay.host, relay.port)
        writer.write(LARGE)
        writer.close()
        assert await heard == LARGE
    server.close()


async def test_a_target_that_is_away_ends_the_connection() -> None:
    """Behind the relay nobody listens: who connects is told so, and the relay goes on."""
    async with echo() as port, Relay("127.0.0.1", port) as nowhere:
        relay = Relay(nowhere.host, nowhere.port)
        nowhere.cut()
        async with relay, asyncio.timeout(10):
            for _ in range(2):
                reader, writer = await asyncio.open_connection(relay.host, relay.port)
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

"""REST clients in a process of their own: as lean as they can be, for they share the machine with the hub.

pour      so many requests as fast as they are answered, over some connections; tells requests a second
trickle   requests at a fixed rate, whatever the answers take, from so many connections; the leases that
          follow are seen on their way to the agent; tells the milliseconds from each request to its lease
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from benchmarks import noop, worker
from shared import lanes, link, tasks, topics, wire

HOST: Final = "127.0.0.1"
PATIENCE_S: Final = 30.0


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time; raises AssertionError unless the answer is 202."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            answer, self._answer, self._received = self._answer, None, b""
            if head.startswith(b"HTTP/1.1 202"):
                answer.set_result(body)
            else:
                answer.set_exception(AssertionError((head + end + body).decode(errors="replace")))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_exception(error or ConnectionResetError("the hub hung up"))

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def one() -> bytes:
    """The request that submits one task."""
    return _post(f"/v1/tasks?model={noop.MODEL}&priority=7", "application/json", noop.payload())


def many(count: int) -> bytes:
    """The request that submits so many."""
    return _post("/v1/tasks/batch", wire.CONTENT_TYPE, noop.batch(count))


def _post(path: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(port: int, count: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, HOST, port))[1] for _ in range(count)]


async def pour(port: int, request: bytes, count: int, connections: int) -> float:
    """Requests a second."""
    left = itertools.repeat(request, count)

    async def keep_asking(connection: Connection) -> None:
        for each in left:
            await connection.ask(each)

    clients = await connect(port, connections)
    began = time.perf_counter()
    await asyncio.gather(*map(keep_asking, clients))
    took = time.perf_counter() - began
    for client in clients:
        client.close()
    return count / took


class Leases:
    """Sees leases on their way from the hub to an agent."""

    def __init__(self, port: int, agent: topics.Agent) -> None:
        self._link = link.Link(link.Address(HOST, port), "benchmark-leases", receive_maximum=1000)
        self._link.subscribe(topics.down(agent, str(lanes.Lane("leases"))), 1, self._arrived)
        self._seen: dict[bytes, float] = {}
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._seen)

    async def run(self) -> None:
        await self._link.run()

    async def connected(self) -> None:
        await self._link.wait_connected()

    def when(self, task_id: bytes) -> float:
        """The instant (`time.perf_counter`) at which a lease of the task was first seen."""
        return self._seen[task_id]

    def _arrived(self, message: link.Message) -> None:
        now = time.perf_counter()
        self._link.ack(message)
        header = wire.Header.parse(message.properties)
        batch = wire.decode(wire.LEASES, message.payload, header.span.size)
        for task_id in batch.column("task_id").to_pylist():
            self._seen.setdefault(task_id, now)
        self.changed.set()


async def trickle(
    port: int, broker: int, agent: topics.Agent, rate_per_s: float, count: int, warm: int
) -> list[float]:
    """Milliseconds from each request to the sight of its lease, of the last `count` requests."""
    leases = Leases(broker, agent)
    watching = asyncio.create_task(leases.run(), name="leases")
    await leases.connected()
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for connection in await connect(port, 64):
        idle.put_nowait(connection)
    asked: dict[bytes, float] = {}
    request = one()

    async def ask(connection: Connection, at: float) -> None:
        answer = msgspec.json.decode(await connection.ask(request))
        asked[tasks.parse_id(answer["task_id"])] = at
        idle.put_nowait(connection)

    began = time.perf_counter()
    asking: set[asyncio.Task[None]] = set()
    for number in range(warm + count):
        due = began + number / rate_per_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        # An open loop: what waits for a connection is late, and its lateness counts.
        asking.add(asyncio.create_task(ask(await idle.get(), due), name="ask"))
    await asyncio.gather(*asking)
    async with asyncio.timeout(PATIENCE_S):
        while len(leases) < len(asked):
            leases.changed.clear()
            await leases.changed.wait()
    watching.cancel()
    return [1000 * (leases.when(task_id) - at) for task_id, at in list(asked.items())[warm:]]


_ROLES: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "single": lambda given: pour(given["port"], one(), given["count"], 64),
    "batched": lambda given: pour(given["port"], many(given["size"]), given["count"], 4),
    "trickle": lambda given: trickle(
        given["port"],
        given["broker"],
        topics.Agent(*given["agent"]),
        given["rate_per_s"],
        given["count"],
        given["warm"],
    ),
}


async def _main() -> None:
    given = worker.arguments()
    told = await _ROLES[given["role"]](given)
    worker.tell({"told": told})


if __name__ == "__main__":
    asyncio.run(_main())

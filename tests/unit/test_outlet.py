"""What an outlet sends, and when: over a link that is played, from a store in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from shared import lanes, outlet, signals, wire
from tests.integration import stores

RESULTS = lanes.Lane("results")
LINGER_S = 0.02


class Link:
    """Takes what is published, and is always connected."""

    connected = True

    def __init__(self) -> None:
        self.sent: asyncio.Queue[wire.Header] = asyncio.Queue()

    async def room(self) -> None:
        pass

    def publish_nowait(
        self, topic: str, payload: bytes, *, qos: int, content_type: str, properties: Mapping[str, str]
    ) -> asyncio.Future[None]:
        self.sent.put_nowait(wire.Header.parse(properties))
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        taken.set_result(None)
        return taken


class Store:
    """Records of which every `run` are of one kind, then as many of the other."""

    def __init__(self, run: int) -> None:
        self._run = run
        self.numbered = 0

    async def read(self, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int) -> wire.Batch | None:
        last = min(self.numbered, (after // self._run + 1) * self._run)
        rows = [stores.rows(bytes(16)) for _ in range(after, last)]
        kind = wire.RESULTS if after // self._run % 2 == 0 else wire.ATTEMPTS
        if kind is wire.ATTEMPTS:
            ended = {"state": ["COMPLETED"], "retriable": [False], "items_done": [1], "attempt": [1]}
            rows = [wire.build(kind, {"task_id": [bytes(16)], **ended}) for _ in range(after, last)]
        return wire.Batch(lanes.Span(after + 1, last), kind, rows) if rows else None

    async def acknowledged(self, lane: lanes.Lane, cursor: int) -> None:
        pass


class Sending:
    """An outlet at work."""

    def __init__(self, run: int) -> None:
        self.link = Link()
        self.store = Store(run)
        mqtt: Any = self.link
        self.outlet = outlet.Outlet(
            self.store, mqtt, str, 1, {RESULTS: (0, 0)}, linger_s={"results": LINGER_S}, urgent=()
        )

    def append(self, count: int) -> None:
        self.store.numbered += count
        self.outlet.appended({RESULTS: self.store.numbered})

    async def sent(self, batches: int) -> list[lanes.Span]:
        """The next that are sent."""
        async with asyncio.timeout(5):
            return [(await self.link.sent.get()).span for _ in range(batches)]

    async def acknowledge(self, cursor: int) -> None:
        await self.outlet.acknowledge([signals.Ack(lane=str(RESULTS), cursor=cursor)])


@contextlib.asynccontextmanager
async def sending(run: int) -> AsyncIterator[Sending]:
    one = Sending(run)
    running = asyncio.create_task(one.outlet.run())
    try:
        yield one
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_all_that_waits_goes_at_once_whatever_its_kinds() -> None:
    """Kinds that alternate make several batches, and none of them waits for another's acknowledgement."""
    async with sending(run=3) as one:
        one.append(12)
        assert await one.sent(4) == [(1, 3), (4, 6), (7, 9), (10, 12)]


async def test_what_comes_while_something_is_on_its_way_waits_for_company() -> None:
    """Small batches that come later go together, when what went before them is acknowledged."""
    async with sending(run=100) as one:
        one.append(2)
        assert await one.sent(1) == [(1, 2)]
        for _ in range(3):
            one.append(1)
            await asyncio.sleep(LINGER_S)
        assert one.link.sent.empty()
        await one.acknowledge(2)
        assert await one.sent(1) == [(3, 5)]


async def test_no_more_goes_than_the_window_holds() -> None:
    """A burst of many kinds is bounded by the window; the rest follows the acknowledgements."""
    async with sending(run=1) as one:
        one.append(lanes.WINDOW + 3)
        assert await one.sent(lanes.WINDOW) == [(n, n) for n in range(1, lanes.WINDOW + 1)]
        await asyncio.sleep(LINGER_S)
        assert one.link.sent.empty()
        await one.acknowledge(2)
        assert await one.sent(2) == [(lanes.WINDOW + 1,) * 2, (lanes.WINDOW + 2,) * 2]


async def test_a_link_that_breaks_makes_the_lane_begin_at_the_cursor() -> None:
    """What was sent over the old connection may not have arrived: it goes again, all of it."""
    async with sending(run=2) as one:
        one.append(4)
        assert await one.sent(2) == [(1, 2), (3, 4)]
        await one.acknowledge(2)
        one.outlet.reconnected()
        assert await one.sent(1) == [(3, 4)]

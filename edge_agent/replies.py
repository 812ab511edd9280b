"""Replies to devices: durable in the journal until the site's broker has acknowledged them.

The way is short: a reply goes out right after the commit that holds it. What could not be sent, be it
that the broker is away or that too many wait, is read from the journal again.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable
from typing import Final

from edge_agent.journal import journal, records
from shared import link

WAITING: Final = 1024
"""Replies that wait in memory, at most; beyond it they are read from the journal."""
FORGET_EVERY_S: Final = 0.2
"""Acknowledged replies are deleted from the journal in groups: fewer writes to flash."""


class Replies:
    """Sends replies to the site's broker, each at least once."""

    def __init__(self, book: journal.Journal, mqtt: link.Link) -> None:
        self._journal = book
        self._link = mqtt
        self._waiting: asyncio.Queue[records.Reply] = asyncio.Queue(WAITING)
        self._on_the_way: dict[bytes, asyncio.Future[None]] = {}
        self._sent: list[bytes] = []
        self._in_journal = True
        """True while the journal may hold replies that are neither waiting nor on their way."""
        self._wake = asyncio.Event()
        self.total = 0

    def put(self, replies: Iterable[records.Reply]) -> None:
        """Send these, which the journal has committed; never blocks."""
        for reply in replies:
            try:
                self._waiting.put_nowait(reply)
            except asyncio.QueueFull:
                self._in_journal = True
        self._wake.set()

    def connected(self) -> None:
        """The broker is there (again): send what it has not acknowledged."""
        self._in_journal = True
        self._wake.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name="replies: send")
            group.create_task(self._forget(), name="replies: forget")

    async def flush(self) -> None:
        """Wait until all that is on its way has been acknowledged, and delete it from the journal."""
        while self._on_the_way and self._link.connected:
            await asyncio.wait(list(self._on_the_way.values()))
        await self._forget_sent()

    async def _send(self) -> None:
        while True:
            await self._link.wait_connected()
            while not self._waiting.empty():
                await self._publish(self._waiting.get_nowait())
            if self._in_journal and self._link.connected:
                self._in_journal = False
                await self._read_journal()
                continue
            self._wake.clear()
            if self._waiting.empty() and not self._in_journal:
                await self._wake.wait()

    async def _read_journal(self) -> None:
        """Send what the journal holds and we have not sent over this connection."""
        unreplied = await self._journal.unreplied(WAITING)
        gone = set(self._sent)
        for reply in unreplied:
            if reply.task_id not in self._on_the_way and reply.task_id not in gone:
                await self._publish(reply)
        if len(unreplied) == WAITING:
            self._in_journal = True
            await self._forget_sent()

    async def _publish(self, reply: records.Reply) -> None:
        if reply.task_id in self._on_the_way:
            return
        try:
            await self._link.room()
            acknowledged = self._link.publish_nowait(
                reply.topic,
                reply.body,
                qos=1,
                content_type=reply.content_type,
                correlation=reply.correlation,
            )
        except link.LinkDown:
            self._in_journal = True
            return
        except link.LinkError:
            # Unpublishable (a response topic that no broker takes, or a reply larger than it takes):
            # sending it again would fail again, so it ends here; the result itself is safe.
            self._sent.append(reply.task_id)
            return
        assert acknowledged is not None  # QoS 1
        self._on_the_way[reply.task_id] = acknowledged
        acknowledged.add_done_callback(functools.partial(self._done, reply.task_id))

    def _done(self, task_id: bytes, acknowledged: asyncio.Future[None]) -> None:
        self._on_the_way.pop(task_id, None)
        if acknowledged.cancelled() or acknowledged.exception() is not None:
            self._in_journal = True  # the connection broke: again, over the next one
            self._wake.set()
        else:
            self._sent.append(task_id)
            self.total += 1

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            await self._forget_sent()

    async def _forget_sent(self) -> None:
        if self._sent:
            sent = list(self._sent)
            await self._journal.replied(sent)
            del self._sent[: len(sent)]

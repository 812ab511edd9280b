"""Replies to devices: durable in the journal until the site's broker has acknowledged them.

The way is short: a reply goes out right after the commit that holds it. What could not be sent, be it
that the broker is away or that too many wait, is read from the journal again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from edge_agent.journal import journal, records
from shared import link, tasks

log: Final = logging.getLogger(__name__)

WAITING: Final = 1024
"""Replies that wait in memory, at most; beyond it they are read from the journal."""
ASKED_AGAIN: Final = 1024
"""Tasks whose devices have repeated their job before it ended, at most; a device may repeat once more."""
FORGET_EVERY_S: Final = 0.2
"""Acknowledged replies are deleted from the journal in groups: fewer writes to flash."""


class Address(NamedTuple):
    """Where a device waits for its reply; without a topic, where the first of them waits."""

    topic: str | None
    correlation: bytes | None


def readdressed(reply: records.Reply, address: Address) -> records.Reply:
    """The same reply for somebody who asked again."""
    return msgspec.structs.replace(reply, topic=address.topic or reply.topic, correlation=address.correlation)


class Replies:
    """Sends replies to the site's broker, each at least once."""

    def __init__(self, book: journal.Journal, mqtt: link.Link) -> None:
        self._journal = book
        self._link = mqtt
        self._waiting: asyncio.Queue[records.Reply] = asyncio.Queue(WAITING)
        self._on_the_way: dict[bytes, asyncio.Future[None]] = {}
        self._copies: asyncio.Queue[records.Reply] = asyncio.Queue(WAITING)
        self._asked_again: dict[bytes, list[Address]] = {}
        self._sent: list[bytes] = []
        self._in_journal = True
        """True while the journal may hold replies that are neither waiting nor on their way."""
        self._wake = asyncio.Event()
        self.total = 0
        mqtt.watch(self._link_changed)

    def put(self, replies: Iterable[records.Reply]) -> None:
        """Send these, which the journal has committed; never blocks."""
        for reply in replies:
            for address in self._asked_again.pop(reply.task_id, ()):
                self.repeat(readdressed(reply, address))
            try:
                self._waiting.put_nowait(reply)
            except asyncio.QueueFull:
                self._in_journal = True
        self._wake.set()

    def repeat(self, reply: records.Reply) -> None:
        """Send a reply that the journal does not wait for: if it is lost, its device asks once more."""
        with contextlib.suppress(asyncio.QueueFull):
            self._copies.put_nowait(reply)
        self._wake.set()

    def ask_again(self, task_id: bytes, address: Address) -> None:
        """A device repeated the job of a task that has not ended: it gets a copy of the reply there too."""
        if len(self._asked_again) < ASKED_AGAIN or task_id in self._asked_again:
            self._asked_again.setdefault(task_id, []).append(address)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name="replies: send")
            group.create_task(self._forget(), name="replies: forget")

    async def flush(self) -> None:
        """Wait until all that is on its way has been acknowledged, and delete it from the journal."""
        while self._on_the_way and self._link.connected:
            await asyncio.wait(list(self._on_the_way.values()))
        await self._forget_sent()

    def _link_changed(self, connected: bool) -> None:
        if connected:  # send what the broker has not acknowledged
            self._in_journal = True
            self._wake.set()

    async def _send(self) -> None:
        while True:
            await self._link.wait_connected()
            while not self._waiting.empty():
                await self._publish(self._waiting.get_nowait())
            while not self._copies.empty():
                with contextlib.suppress(link.LinkError):
                    await self._put_out(self._copies.get_nowait())
            if self._in_journal and self._link.connected:
                self._in_journal = False
                await self._read_journal()
                continue
            self._wake.clear()
            if self._waiting.empty() and self._copies.empty() and not self._in_journal:
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
            acknowledged = await self._put_out(reply)
        except link.LinkDown:
            self._in_journal = True
            return
        except link.LinkError as error:
            # A response topic that no broker takes, or a reply larger than it takes: sending it again
            # would fail again, so it ends here; the result itself is safe.
            log.warning("reply to task %s given up: %s", tasks.format_id(reply.task_id), error)
            self._sent.append(reply.task_id)
            return
        self._on_the_way[reply.task_id] = acknowledged
        acknowledged.add_done_callback(functools.partial(self._done, reply.task_id))

    async def _put_out(self, reply: records.Reply) -> asyncio.Future[None]:
        """Publish; the future is done when the broker has it. Raises LinkError."""
        await self._link.room()
        acknowledged = self._link.publish_nowait(
            reply.topic,
            reply.body,
            qos=1,
            content_type=reply.content_type,
            correlation=reply.correlation,
        )
        assert acknowledged is not None  # QoS 1
        return acknowledged

    def _done(self, task_id: bytes, acknowledged: asyncio.Future[None]) -> None:
        self._on_the_way.pop(task_id, None)
        error = None if acknowledged.cancelled() else acknowledged.exception()
        if acknowledged.cancelled() or isinstance(error, link.LinkDown):
            self._in_journal = True  # the connection broke: again, over the next one
            self._wake.set()
            return
        self._sent.append(task_id)
        if error is None:
            self.total += 1
        else:
            log.warning("reply to task %s given up: %s", tasks.format_id(task_id), error)

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            await self._forget_sent()

    async def _forget_sent(self) -> None:
        if self._sent:
            sent = list(self._sent)
            await self._journal.replied(sent)
            del self._sent[: len(sent)]

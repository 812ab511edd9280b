"""A bounded queue between a subscription and the task that works off its messages."""

from __future__ import annotations

import asyncio
from collections import deque

from shared.link.messages import Message


class Inbox:
    """Messages in order of arrival: `put` is a subscription's handler, one task takes.

        inbox = link.Inbox(limit=200)
        site.subscribe(topics.jobs("line-3"), 1, inbox.put)
        while True:
            for message in await inbox.take(64): ...

    It holds at most `limit` messages beside the QoS 1 messages that the broker sends before it must wait for
    our acknowledgements (the link's `receive_maximum`). Beyond that, newcomers of QoS 0 are dropped, and
    those of QoS 1 push out the oldest whose connection is over; `dropped` counts both. A message that the
    broker sends again after a reconnect takes the place of its first copy, as long as that was not taken yet.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"an inbox for {limit} messages: give it room for one at least")
        self._limit = limit
        self._messages: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        """Add a message that has just arrived."""
        if message.duplicate:
            self._forget_first_copy(message)
        if len(self._messages) >= self._limit and not self._make_room(message):
            self.dropped += 1
            return
        self._messages.append(message)
        self._arrived.set()

    async def take(self, most: int) -> list[Message]:
        """Between one and `most` messages, as soon as there is one."""
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        return [self._messages.popleft() for _ in range(min(most, len(self._messages)))]

    def _forget_first_copy(self, message: Message) -> None:
        for index, known in enumerate(self._messages):
            if (
                known.stale
                and known.packet_id == message.packet_id
                and known.topic == message.topic
                and known.payload == message.payload
            ):
                del self._messages[index]
                return

    def _make_room(self, message: Message) -> bool:
        """Whether the full inbox can take `message`."""
        if message.qos == 0:
            return False
        for index, known in enumerate(self._messages):
            if known.stale:
                del self._messages[index]
                self.dropped += 1
                break
        return True

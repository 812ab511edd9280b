"""What happens in this hub, told at once to whoever waits for it in this process.

Events hurry things up and carry no promise: whoever waits looks into the store first, is woken by an
event, and looks again by himself after a while. So an event may be lost (the mailboxes are bounded)
and another process's events may never come here; then the waiter is slower, not wrong.

Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeAlias

from shared import tasks, topics

MAILBOX: Final = 256
"""Events that wait for one subscriber, at most."""


class TaskQueued(NamedTuple):
    """Tasks were put into a queue of the hub: the scheduler may place them."""

    model: str
    added: int = 1


class TaskEnded(NamedTuple):
    """A task reached a final state, and that is committed."""

    task_id: bytes
    state: tasks.State
    reason: tasks.Reason | None = None
    model: str = ""


class FleetChanged(NamedTuple):
    """An agent came, went, or reported other than it did before."""

    agent: topics.Agent


Event: TypeAlias = TaskQueued | TaskEnded | FleetChanged


class Subscription:
    """The mailbox of one subscriber. When it is full the oldest event falls out, and is counted."""

    def __init__(self, kinds: tuple[type[Event], ...], limit: int) -> None:
        self.kinds = kinds
        self.lost = 0
        """Events that fell out because they were not taken in time."""
        self._waiting: deque[Event] = deque(maxlen=limit)
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once no further event will come."""
        return self._closed

    def take(self) -> list[Event]:
        """All events that wait, oldest first; never waits itself."""
        taken = list(self._waiting)
        self._waiting.clear()
        if not self._closed:
            self._changed.clear()
        return taken

    async def changed(self, timeout_s: float | None = None) -> bool:
        """Wait until an event is there or the mailbox is closed; False if `timeout_s` passed before that."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _put(self, event: Event) -> None:
        if len(self._waiting) == self._waiting.maxlen:
            self.lost += 1
        self._waiting.append(event)
        self._changed.set()

    def _close(self) -> None:
        self._closed = True
        self._changed.set()


class Events:
    """The fan-out: `publish` never blocks and never fails, whatever the subscribers do."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._endings: dict[bytes, set[asyncio.Event]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    def publish(self, event: Event) -> None:
        """Tell everyone who waits for an event of this kind, and those who wait for this task to end."""
        for subscription in self._subscriptions:
            if isinstance(event, subscription.kinds):
                subscription._put(event)
        if isinstance(event, TaskEnded):
            for ended in self._endings.get(event.task_id, ()):
                ended.set()

    @contextmanager
    def subscribe(self, *kinds: type[Event], limit: int = MAILBOX) -> Iterator[Subscription]:
        """A mailbox for events of `kinds`, for as long as the block lasts."""
        subscription = Subscription(kinds, limit)
        if self._closed:
            subscription._close()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    @contextmanager
    def ending(self, task_id: bytes) -> Iterator[asyncio.Event]:
        """What is set when the task ends, or when this hub stops; costs nothing for other tasks' events."""
        ended = asyncio.Event()
        if self._closed:
            ended.set()
        waiters = self._endings.setdefault(task_id, set())
        waiters.add(ended)
        try:
            yield ended
        finally:
            waiters.discard(ended)
            if not waiters:
                self._endings.pop(task_id, None)

    def close(self) -> None:
        """No event will come any more: wake everyone, so that streams and waits come to their end."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription._close()
        for waiters in self._endings.values():
            for ended in waiters:
                ended.set()

"""Sends the records of one agent's lanes in one direction, from a durable store over a link.

The agent has one outlet, to the hub; the hub has one for each agent. What to send is decided by
`lanes.Sender`; this module reads it from the store, encodes it in a thread and publishes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from shared import lanes, link, signals

if TYPE_CHECKING:
    from shared import wire

FULL_BATCH = 1024
"""A batch of so many records is never held back."""
IN_LOOP_BYTES = 32 << 10
"""Up to this size a batch is encoded in the loop: to hand it to a thread and back would take longer."""


class Store(Protocol):
    """Where the records wait until they are acknowledged."""

    async def read(self, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int) -> wire.Batch | None:
        """The records after number `after`, as far as they are of one kind: whole chunks, at least one."""

    async def acknowledged(self, lane: lanes.Lane, cursor: int) -> None:
        """The receiver has committed all up to `cursor`: they may be deleted."""


class Outlet:
    """Drives the senders of one agent and epoch."""

    def __init__(
        self,
        store: Store,
        mqtt: link.Link,
        topic: Callable[[str], str],
        epoch: int,
        numbers: Mapping[lanes.Lane, tuple[int, int]],
        *,
        linger_s: Mapping[str, float] | None = None,
        urgent: Iterable[str] = ("tasks", "leases", "commands"),
    ) -> None:
        """`topic` makes a lane's topic; `numbers` gives (numbered, acknowledged) of each lane in the
        store; a lane named in `urgent` goes before all others; `linger_s` by lane name is how long a
        record may wait for company."""
        self._store = store
        self._link = mqtt
        self._topic = topic
        self._epoch = epoch
        self._linger_s = linger_s or {}
        self._urgent = frozenset(urgent)
        self._senders: dict[lanes.Lane, lanes.Sender] = {}
        self._waiting_since: dict[lanes.Lane, float] = {}
        self._burst: dict[lanes.Lane, int] = {}
        """The records that have waited long enough, up to these numbers: they go in as many batches as their
        kinds make, without waiting for each other's acknowledgement."""
        self._turns = lanes.Turns()
        self._wake = asyncio.Event()
        self.batches_sent = 0
        self.records_sent = 0
        self.rewinds = 0
        self.restart(numbers)

    def restart(self, numbers: Mapping[lanes.Lane, tuple[int, int]]) -> None:
        """Begin with what the store now says: (numbered, acknowledged) of each lane."""
        self._senders.clear()
        self._burst.clear()
        for lane, (numbered, acknowledged) in sorted(numbers.items()):
            self._add(lane, lanes.Sender(acked=acknowledged, numbered=numbered))
        self._wake.set()

    @property
    def unacknowledged(self) -> int:
        return sum(sender.unacknowledged for sender in self._senders.values())

    def reports(self) -> list[signals.LaneReport]:
        return [
            signals.LaneReport(lane=str(lane), numbered=sender.numbered, acknowledged=sender.acked)
            for lane, sender in sorted(self._senders.items())
        ]

    def appended(self, numbers: Mapping[lanes.Lane, int]) -> None:
        """The store has committed records up to these numbers."""
        now = time.monotonic()
        for lane, numbered in numbers.items():
            sender = self._senders.get(lane) or self._add(lane, lanes.Sender())
            sender.append(numbered)
            self._waiting_since.setdefault(lane, now)
        self._wake.set()

    def backlog(self, name: str) -> int:
        """Unacknowledged records of the live generation of a lane."""
        live = self._live(name)
        return self._senders[live].unacknowledged if live is not None else 0

    def generations(self, name: str) -> int:
        return sum(lane.name == name for lane in self._senders)

    def reconnected(self) -> None:
        """The link is new: go on after what the receiver has acknowledged."""
        for sender in self._senders.values():
            sender.reconnect()
        self._wake.set()

    async def acknowledge(self, acks: Iterable[signals.Ack]) -> None:
        """Take the receiver's cursors and let the store delete what they pass.

        Raises JournalRegressed if the receiver is ahead of the store.
        """
        now = time.monotonic()
        moved: list[tuple[lanes.Lane, int]] = []
        try:
            for ack in acks:
                lane = lanes.Lane.parse(ack.lane)
                sender = self._senders.get(lane)
                if sender is None:
                    continue  # a generation that was drained and dropped; or not of ours
                sent = sender.sent
                if sender.acknowledge(ack.cursor, now, rewind=ack.rewind):
                    moved.append((lane, sender.acked))
                self.rewinds += sender.sent < sent
        finally:
            self._wake.set()  # the window has room, whatever the store says
            for lane, acked in moved:
                await self._store.acknowledged(lane, acked)
                sender = self._senders.get(lane)
                if sender is not None and not sender.unacknowledged and lane != self._live(lane.name):
                    del self._senders[lane]
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._wake.clear()
            pause = await self._send_ready()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _send_ready(self) -> float | None:
        """Send all that may go now; returns the seconds after which to look again."""
        for lane, sender in self._senders.items():
            if sender.tick(time.monotonic()):
                self.rewinds += 1
                self._waiting_since.setdefault(lane, 0.0)
        while self._link.connected:
            chosen = self._choose(time.monotonic())
            if chosen is None:
                break
            with contextlib.suppress(link.LinkDown):  # `reconnected` rewinds the lane
                await self._send(chosen)
        now = time.monotonic()
        times = [sender.due for sender in self._senders.values() if sender.due is not None]
        times += [
            since + self._linger_s.get(lane.name, 0.0)
            for lane, since in self._waiting_since.items()
            if lane in self._senders and self._senders[lane].open and self._senders[lane].idle
        ]
        return max(0.001, min(times) - now) if times and self._link.connected else None

    async def _send(self, lane: lanes.Lane) -> None:
        if "shared.wire" not in sys.modules:  # it brings pyarrow: with the first record, and not in the loop,
            await asyncio.to_thread(importlib.import_module, "shared.wire")  # which it would hold up
        from shared import wire

        sender = self._senders.get(lane)
        if sender is None or not sender.open:
            return  # an acknowledgement came meanwhile
        after = sender.sent
        batch = await self._store.read(lane, after, wire.MAX_BATCH_ROWS, wire.MAX_BATCH_BYTES)
        if batch is None:
            if sender.sent != after:
                return  # likewise: what was to be sent is gone, for it has arrived
            raise LookupError(f"lane {lane} numbered {sender.numbered} records but holds none after {after}")
        if sum(part.nbytes for part in batch.batches) <= IN_LOOP_BYTES:
            payload = wire.encode(batch.kind, batch.batches)
        else:
            payload = await asyncio.to_thread(wire.encode, batch.kind, batch.batches)
        await self._link.room()
        if sender.sent != after or not self._link.connected or lane not in self._senders:
            return  # the lane was rewound or acknowledged meanwhile: choose again
        header = wire.Header(
            epoch=self._epoch,
            span=batch.span,
            floor=sender.floor,
            numbered=max(sender.numbered, batch.span.last),
            kind=batch.kind.name,
            sent_us=time.time_ns() // 1000,
        )
        sender.append(batch.span.last)
        if after >= self._burst.get(lane, 0):
            self._burst[lane] = sender.numbered
        sender.send(batch.span, time.monotonic())
        if sender.unsent:
            self._waiting_since[lane] = time.monotonic()
        else:
            self._waiting_since.pop(lane, None)
        self.batches_sent += 1
        self.records_sent += batch.span.size
        taken = self._link.publish_nowait(
            self._topic(str(lane)),
            payload,
            qos=1,
            content_type=wire.CONTENT_TYPE,
            properties=header.properties(),
        )
        assert taken is not None  # QoS 1
        taken.add_done_callback(lambda _: sender.delivered(time.monotonic()))

    def _choose(self, now: float) -> lanes.Lane | None:
        """The lane whose turn it is, if any may send."""
        live: lanes.Lane | None = None
        backlog: lanes.Lane | None = None
        for lane in sorted(self._senders):
            if not self._ready(lane, now):
                continue
            if lane.name in self._urgent:
                return lane
            if lane == self._live(lane.name):
                live = live or lane
            else:
                backlog = backlog or lane
        turn = self._turns.take(live is not None, backlog is not None)
        return live if turn == "live" else backlog if turn == "backlog" else None

    def _ready(self, lane: lanes.Lane, now: float) -> bool:
        """A full batch goes as soon as the window has a place; a small one when nothing is in flight, and all
        that waits then goes with it.
        """
        sender = self._senders[lane]
        if not sender.open:
            return False
        if sender.unsent >= FULL_BATCH or sender.sent < self._burst.get(lane, 0):
            return True
        since = self._waiting_since.get(lane, 0.0)
        return sender.idle and now >= since + self._linger_s.get(lane.name, 0.0)

    def _live(self, name: str) -> lanes.Lane | None:
        return max((lane for lane in self._senders if lane.name == name), default=None)

    def _add(self, lane: lanes.Lane, sender: lanes.Sender) -> lanes.Sender:
        self._senders[lane] = sender
        for other, its in self._senders.items():
            if other.name == lane.name and other != self._live(lane.name):
                its.window = lanes.BACKLOG_WINDOW
        return sender

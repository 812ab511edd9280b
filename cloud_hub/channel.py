"""The hub's end of one agent's lanes: applies what comes up, sends what goes down.

    message -> inbox (bounded) -> decode (thread) -> one transaction: rows and cursor -> acknowledge

Messages are acknowledged to the broker when they arrive: MQTT wants that in order of arrival, so one
agent whose batches cannot be applied would hold up all others. What is promised is kept by the lane's
cursor; a batch dropped here for want of room is simply sent again. And so two hubs may serve one agent
for a moment without harm (see `replicas`): rows and cursor are committed together, under the lock of the
cursor's row, and a batch that the other has committed is known by its numbers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute  # here at the start: else the first batch's transaction waits for it

from cloud_hub import down, news, patience
from cloud_hub.rollouts import active
from cloud_hub.store import apply, ends, pool
from cloud_hub.store import lanes as lane_store
from shared import backoff, lanes, link, signals, topics, wire

log: Final = logging.getLogger(__name__)

INBOX: Final = 64
"""Batches of one agent that wait to be applied, more than its windows let it send at a time."""
TOGETHER: Final = 16
"""Batches applied in one transaction, at most: one commit serves them all."""
GATHER_S: Final = 0.02
"""Between two commits of little: what comes meanwhile shares the next, and the first after a pause waits for
nobody."""
LITTLE_BYTES: Final = 64 << 10
"""Of Arrow: so much is decoded in less time than a thread takes to be there."""
UPWARDS: Final = (wire.RESULTS.name, wire.TASKS.name, wire.ATTEMPTS.name)
"""The kinds that agents send, in the order in which they are applied: an attempt's rows before its end."""
TRIES: Final = 3
"""A batch that PostgreSQL refuses so often is set aside."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One batch as it came."""

    lane: lanes.Lane
    message: link.Message


class _Refused(NamedTuple):
    """A batch that cannot be applied, and why."""

    arrival: Arrival
    header: wire.Header | None
    error: str


@dataclass(slots=True)
class _Progress:
    """How far a lane comes with a transaction."""

    last: int = 0
    added: int = 0
    numbered: int = 0
    lost: int = 0


@dataclass(slots=True)
class _Taken:
    """What became of some arrivals: to be written, and then to be acknowledged."""

    batches: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    """By kind, each in the order of its lane."""
    progress: dict[lanes.Lane, _Progress] = field(default_factory=dict)
    refused: list[_Refused] = field(default_factory=list)
    acks: dict[lanes.Lane, signals.Ack] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """For the metrics, once it is committed."""


class Budget:
    """Bytes of batches that may wait in this hub, for all agents together."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Whether `size` bytes may wait too."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def release(self, size: int) -> None:
        self._left += size


class Channel:
    """One agent, in one epoch."""

    def __init__(
        self,
        agent: topics.Agent,
        agent_id: int,
        epoch: int,
        connections: pool.Pool,
        mqtt: link.Link,
        tell: news.News,
        rolling: active.Active,
        applying: asyncio.Semaphore,
        budget: Budget,
        counts: Counter[str],
    ) -> None:
        """`applying` bounds the transactions, `budget` the waiting bytes, of all channels together."""
        self.agent = agent
        self.agent_id = agent_id
        self.epoch = epoch
        self._connections = connections
        self._link = mqtt
        self._news = tell
        self._rolling = rolling
        self._applying = applying
        self._budget = budget
        self._counts = counts
        self.down = down.DownLanes(connections, mqtt, agent, agent_id, epoch, counts)
        self._inbox: asyncio.Queue[Arrival] = asyncio.Queue(INBOX)
        self._refusals: Counter[tuple[lanes.Lane, int]] = Counter()
        self._say = asyncio.Event()
        self._greet = True
        self._say.set()
        self._cursors: dict[lanes.Lane, int] = {}
        """The up lanes' cursors, as last committed by this process."""
        self.active = time.monotonic()
        """When it last had something to do with its agent (s)."""

    def put(self, arrival: Arrival) -> bool:
        """A batch has come; False if there is no room for it, so that its sender must repeat it."""
        self.active = time.monotonic()
        size = len(arrival.message.payload)
        if self._inbox.full() or not self._budget.take(size):
            return False
        self._inbox.put_nowait(arrival)
        return True

    def reconnected(self, *, ourselves: bool) -> None:
        """The agent, or the hub itself, is at the broker again: what was sent down may not have arrived."""
        self.down.reconnected()
        if ourselves:  # neither may what came up: the agent should go on after our cursors at once
            self._greet = True
            self._say.set()

    def heartbeat(self) -> None:
        """Answer the agent's: it hands work over only to a hub that it hears."""
        self.active = time.monotonic()
        self._say.set()

    async def run(self) -> None:
        """Apply and send until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._apply_arrivals(), name=f"{self.agent}: apply")
            group.create_task(self._say_cursors(), name=f"{self.agent}: say cursors")
            group.create_task(self.down.run(), name=f"{self.agent}: down lanes")

    def close(self) -> None:
        """Nothing more will be applied: what waits makes room for others. Call it beside cancelling `run`."""
        while not self._inbox.empty():
            self._budget.release(len(self._inbox.get_nowait().message.payload))

    async def _say_cursors(self) -> None:
        """When we begin, and at each of our connects, so that the agent rewinds; else as a sign of life."""
        while True:
            await self._say.wait()
            self._say.clear()
            greet, self._greet = self._greet, False
            if greet:
                ledgers = await patience.steadily(self._ledgers, f"lanes of {self.agent}")
                self._cursors.update({lane: ledger.cursor for lane, ledger in ledgers.up.items()})
            await self._send_acks(
                [
                    signals.Ack(lane=str(lane), cursor=cursor, rewind=greet)
                    for lane, cursor in self._cursors.items()
                ]
            )

    async def _ledgers(self) -> lane_store.Ledgers:
        async with self._connections.connection() as connection:
            books = await lane_store.ledgers(connection, [self.agent_id])
        return books.get(self.agent_id, lane_store.Ledgers({}, {}))

    async def _apply_arrivals(self) -> None:
        rested = 0.0
        while True:
            patience.heed_cancellation()
            await asyncio.sleep(max(0.0, rested - time.monotonic()))
            arrivals = [await self._inbox.get()]
            while len(arrivals) < TOGETHER and not self._inbox.empty():
                arrivals.append(self._inbox.get_nowait())
            try:
                await self._apply(arrivals)
            finally:
                self._budget.release(_size(arrivals))
            rested = time.monotonic() + (GATHER_S if _size(arrivals) < LITTLE_BYTES else 0.0)

    async def _apply(self, arrivals: list[Arrival]) -> None:
        """Apply batches in one transaction and acknowledge; alone, if PostgreSQL refuses one of them."""
        pause = backoff.Backoff(base_s=0.05, cap_s=2.0)
        while True:
            try:
                async with self._applying:
                    acks, outcomes = await self._commit(arrivals)
                break
            except pool.UNAVAILABLE as error:
                self._counts["unavailable"] += 1
                log.warning("%s: PostgreSQL is not available, trying again: %s", self.agent, error)
                patience.heed_cancellation()
                await asyncio.sleep(pause.next())
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the other agents
                if len(arrivals) > 1:
                    for arrival in arrivals:
                        await self._apply([arrival])
                    return
                self._refuse(arrivals[0], error)
        for outcome in outcomes:
            self._news.tell(outcome)
        self._cursors.update({lanes.Lane.parse(ack.lane): ack.cursor for ack in acks})
        await self._send_acks(acks)

    def _refuse(self, arrival: Arrival, error: Exception) -> None:
        header = wire.Header.parse(arrival.message.properties)
        self._refusals[arrival.lane, header.span.first] += 1
        log.error("%s lane %s records %d to %d refused: %s", self.agent, arrival.lane, *header.span, error)

    async def _commit(self, arrivals: Sequence[Arrival]) -> tuple[list[signals.Ack], list[ends.Outcome]]:
        """One transaction: the rows of all batches, kind by kind, and the cursors of their lanes."""
        async with self._connections.connection() as connection, connection.transaction():
            receivers: dict[lanes.Lane, lanes.Receiver] = {}
            for lane in sorted({arrival.lane for arrival in arrivals}, key=str):  # as lanes.sql, report
                held = await lane_store.lock(connection, self.agent_id, lane)
                receivers[lane] = lanes.Receiver(held.cursor)
            if _size(arrivals) < LITTLE_BYTES:
                taken = self._take_in(arrivals, receivers)
            else:
                taken = await asyncio.to_thread(self._take_in, arrivals, receivers)
            outcomes = await self._write(connection, taken)
            for refused in taken.refused:
                await self._set_aside(connection, refused)
                taken.counts["quarantined"] += 1
            for lane, progress in taken.progress.items():
                await lane_store.advance(
                    connection,
                    self.agent_id,
                    lane,
                    last=progress.last,
                    added=progress.added,
                    numbered=progress.numbered,
                )
        for lane, progress in taken.progress.items():
            if progress.lost:
                log.error("%s lane %s: %d records are lost", self.agent, lane, progress.lost)
        self._counts["records"] += sum(progress.added for progress in taken.progress.values())
        self._counts.update(taken.counts)
        for refused in taken.refused:
            if refused.header is not None:
                self._refusals.pop((refused.arrival.lane, refused.header.span.first), None)
        return list(taken.acks.values()), outcomes

    def _take_in(self, arrivals: Sequence[Arrival], receivers: Mapping[lanes.Lane, lanes.Receiver]) -> _Taken:
        """Decide on each batch, and decode those that are next on their lanes."""
        taken = _Taken()
        for arrival in arrivals:
            receiver = receivers[arrival.lane]
            try:
                header = wire.Header.parse(arrival.message.properties)
            except wire.WireError as error:
                taken.refused.append(_Refused(arrival, None, str(error)))
                continue
            decision = receiver.receive(header.span, header.floor)
            if decision.verdict is lanes.Verdict.APPLY:
                progress = taken.progress.setdefault(arrival.lane, _Progress())
                try:
                    kind, batch = self._decode(arrival, header)
                    batch = batch.slice(decision.skip)
                    taken.batches.setdefault(kind, []).append(batch)
                    progress.added += batch.num_rows
                except wire.WireError as error:
                    taken.refused.append(_Refused(arrival, header, str(error)))
                progress.lost += decision.lost
                progress.last = header.span.last
                progress.numbered = max(progress.numbered, header.numbered)
                receiver.commit(header.span.last)
            before = taken.acks.get(arrival.lane)
            taken.acks[arrival.lane] = signals.Ack(
                lane=str(arrival.lane),
                cursor=receiver.cursor,
                rewind=decision.verdict is lanes.Verdict.GAP or (before is not None and before.rewind),
                echo_us=header.sent_us,
            )
            taken.counts[decision.verdict.name.lower()] += 1
        return taken

    def _decode(self, arrival: Arrival, header: wire.Header) -> tuple[str, pa.RecordBatch]:
        """The kind and the records of a batch. Raises WireError if it cannot be applied."""
        kind = wire.KINDS.get(header.kind)
        if kind is None:
            raise wire.WireError(f"records of the kind {header.kind!r} are not known here")
        if kind.name not in UPWARDS:
            raise wire.WireError(f"{kind.name} do not travel upwards")
        if self._refusals[arrival.lane, header.span.first] >= TRIES:
            raise wire.WireError("the database refused it")
        return kind.name, wire.decode(kind, arrival.message.payload, header.span.size)

    async def _write(self, connection: pool.Connection, taken: _Taken) -> list[ends.Outcome]:
        """Apply records, those of one kind together: so many small batches cost no more than a large one."""
        outcomes = []
        for kind in UPWARDS:
            if not (parts := taken.batches.get(kind)):
                continue
            (batch,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
            if kind == wire.RESULTS.name:
                applied = await apply.results(connection, self.agent_id, batch, self._rolling.watched)
                taken.counts.update(shadows=applied.shadowed, results=applied.inserted)
            elif kind == wire.TASKS.name:
                outcomes.append(await apply.tasks(connection, self.agent_id, batch))
            else:
                outcomes.append(await apply.attempts(connection, self.agent_id, batch))
        return outcomes

    async def _set_aside(self, connection: pool.Connection, refused: _Refused) -> None:
        arrival, header, error = refused
        log.error("%s lane %s: batch set aside: %s", self.agent, arrival.lane, error)
        await lane_store.quarantine(
            connection, self.agent_id, arrival.lane, header, arrival.message.payload, error
        )

    async def _send_acks(self, acks: list[signals.Ack]) -> None:
        message = signals.Acks(epoch=self.epoch, acks=acks, sent_us=time.time_ns() // 1000)
        try:
            await self._link.room()
            self._link.publish_nowait(topics.down(self.agent, topics.ACK), signals.encode(message), qos=1)
        except link.LinkDown:
            log.debug("%s: acknowledgement not sent, the link is down", self.agent)


def _size(arrivals: Iterable[Arrival]) -> int:
    return sum(len(arrival.message.payload) for arrival in arrivals)

"""The way to the hub: our lanes up, its lanes down, presence and heartbeats, over one link.

    journal -> outlet -> up/{lane} ===> hub        down/{lane} ===> inlet -> journal -> runner, replies
                 ^                                 down/ack   ===> outlet
                 +---- acknowledgements -----------+

Cut or not, the journal takes what is finished; at connect the lanes go on after the hub's cursor, and
live results go before what piled up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_agent import clock, engine, hub, link_speed, replies, runner, settings, slices, verdicts, window
from edge_agent.journal import errors, journal, records
from shared import jobs, lanes, link, outlet, signals, tasks, topics

if TYPE_CHECKING:
    import pyarrow as pa

    from shared import wire

log: Final = logging.getLogger(__name__)

INBOX: Final = 64
TRIES: Final = 3
"""A batch that cannot be read so often is passed over and counted as missing."""
GENERATIONS: Final = 8
"""Generations of a lane that drain beside the live one, at most."""
RECLAIM: Final = 256
"""Handed-over tasks taken back at a time."""
LINGERING: Final = "results"


WISHES: Final[dict[str, runner.Wish]] = {"cancel": slices.Stop.CANCEL, "preempt": slices.Stop.PREEMPT}
"""The commands that are known here."""


class _Body(msgspec.Struct):
    """What a command says beside its task."""

    attempt: int | None = None
    """It is about this attempt and no other."""


class Uplink:
    """This agent's side of the link to the hub."""

    def __init__(
        self,
        mqtt: link.Link,
        book: journal.Journal,
        machine: engine.Engine,
        waiting: window.Window,
        executor: runner.Runner,
        answers: replies.Replies | None,
        beyond: hub.Hub,
        offset: clock.Offset,
        agent: topics.Agent,
        policy: settings.Settings,
        telemetry: Callable[[], signals.Telemetry],
        *,
        numbers: Mapping[lanes.Lane, records.Numbers],
        cursors: Mapping[lanes.Lane, records.Cursor],
    ) -> None:
        """`numbers` and `cursors` are the journal's, as it was opened."""
        self._link = mqtt
        self._journal = book
        self._engine = machine
        self._window = waiting
        self._runner = executor
        self._replies = answers
        self._hub = beyond
        self._offset = offset
        self._agent = agent
        self._policy = policy
        self._telemetry = telemetry
        self._inbox = link.Inbox(INBOX)
        self._refusals: Counter[tuple[lanes.Lane, int]] = Counter()
        self._cursors = {lane: cursor.cursor for lane, cursor in cursors.items()}
        self._beat = asyncio.Event()
        self._connected = asyncio.Event()
        self._back = asyncio.Event()
        self.speed = link_speed.LinkSpeed()
        self.counts: Counter[str] = Counter()
        self.outlet = outlet.Outlet(
            book,
            mqtt,
            lambda lane: topics.up(agent, lane),
            book.epoch,
            numbers,
            linger_s={LINGERING: policy.uplink.linger_s},
        )
        book.on_appended = self.outlet.appended
        mqtt.subscribe(topics.all_down(agent), 1, self._inbox.put)
        mqtt.watch(self._link_changed)

    @staticmethod
    def will(agent: topics.Agent, epoch: int) -> link.Publication:
        """What the broker says of us when we vanish."""
        gone = signals.Presence(epoch=epoch, online=False)
        return link.Publication(topics.presence(agent), signals.encode(gone), qos=1, retain=True)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.outlet.run(), name="uplink: send")
            group.create_task(self._receive(), name="uplink: receive")
            group.create_task(self._greet(), name="uplink: greet")
            group.create_task(self._heartbeat(), name="uplink: heartbeat")
            group.create_task(self._reclaim(), name="uplink: reclaim")

    async def leave(self) -> None:
        """Say that we go, so that nobody waits for the will."""
        with contextlib.suppress(link.LinkError):
            await self._link.publish(
                topics.presence(self._agent),
                signals.encode(signals.Presence(epoch=self._journal.epoch, online=False)),
                qos=1,
                retain=True,
            )

    async def flush(self) -> None:
        """Wait until the hub has acknowledged everything, or the link is down."""
        while self.outlet.unacknowledged and self._link.connected:
            self._back.clear()
            await self._back.wait()

    def beat(self) -> None:
        """Send a heartbeat now: something about us has changed."""
        self._beat.set()

    # Coming and going of the link

    def _link_changed(self, connected: bool) -> None:
        self._hub.link_changed(connected)
        if connected:
            self._connected.set()
        else:
            self._back.set()

    async def _greet(self) -> None:
        """At each connect: a fresh lane where a backlog waits, then birth, then go on with the lanes."""
        while True:
            await self._connected.wait()
            self._connected.clear()
            if (
                self.outlet.backlog(LINGERING) > self._policy.uplink.backlog_records
                and self.outlet.generations(LINGERING) < GENERATIONS
            ):
                fresh = await self._journal.open_generation(LINGERING)
                self.outlet.appended({fresh: 0})
                log.info("%d results wait: they drain beside the live ones", self.outlet.unacknowledged)
            with contextlib.suppress(link.LinkDown):
                await self._link.publish(
                    topics.presence(self._agent),
                    signals.encode(signals.Presence(epoch=self._journal.epoch, online=True)),
                    qos=1,
                    retain=True,
                )
            self.outlet.reconnected()
            self._beat.set()

    async def _heartbeat(self) -> None:
        while True:
            if self._link.connected:
                with contextlib.suppress(link.LinkDown):
                    await self._link.publish(
                        topics.up(self._agent, topics.TELEMETRY), signals.encode(self._telemetry())
                    )
            self._beat.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.uplink.telemetry_s):
                    await self._beat.wait()
                await asyncio.sleep(0.05)  # so that a flurry of changes makes one heartbeat

    async def _reclaim(self) -> None:
        """While the hub is away, take back what it holds: the devices wait for it."""
        while True:
            await asyncio.sleep(min(0.25, self._policy.overflow.reclaim_after_s))
            if not self._hub.handed_over or self._hub.away_s < self._policy.overflow.reclaim_after_s:
                continue
            some = list(itertools.islice(self._hub.handed_over, RECLAIM))
            found = await self._journal.find(some)
            here = [task_id for task_id, task in found.items() if self._engine.has(task.model, task.version)]
            back = await self._journal.reclaim(here)
            self._hub.handed_over.difference_update(here)
            self.counts["reclaimed"] += len(back)
            self._runner.offer(back)
            if back:
                log.info("the hub is away: %d handed-over tasks taken back", len(back))

    # What comes down

    async def _receive(self) -> None:
        while True:
            for message in await self._inbox.take(INBOX):
                self._link.ack(message)
                self._hub.heard()
                try:
                    await self._take(message)
                except (topics.BadTopic, signals.SignalError, ValueError) as error:
                    self.counts["unreadable"] += 1
                    log.warning("message on %s dropped: %s", message.topic, error)

    async def _take(self, message: link.Message) -> None:
        lane = topics.parse(message.topic).lane
        if lane == topics.ACK:
            told = signals.decode(signals.Acks, message.payload)
            self._measure(message, told.sent_us)
            await self._acknowledged(told)
            return
        await self._batch(lanes.Lane.parse(lane), message)

    def _measure(self, message: link.Message, sent_us: int) -> None:
        self.speed.arrived(len(message.payload), sent_us, round(1e6 * message.arrived))

    async def _acknowledged(self, told: signals.Acks) -> None:
        if told.epoch != self._journal.epoch:
            return  # meant for what this agent was before
        now_us, now = clock.wall_us(), time.monotonic()
        for ack in told.acks:
            if ack.echo_us:
                self._offset.measure(ack.echo_us, told.sent_us, now_us, now)
        await self.outlet.acknowledge(told.acks)
        if not self.outlet.unacknowledged:
            self._back.set()

    async def _batch(self, lane: lanes.Lane, message: link.Message) -> None:
        """Apply a batch of a down lane with its cursor, then acknowledge."""
        from shared import wire  # loads pyarrow: an agent without work from the hub does not need it

        header = wire.Header.parse(message.properties)
        if header.epoch != self._journal.epoch:
            return
        self._measure(message, header.sent_us)
        decision = lanes.Receiver(self._cursors.get(lane, 0)).receive(header.span, header.floor)
        if decision.verdict is lanes.Verdict.APPLY:
            if decision.lost:
                log.error("lane %s: %d records are lost", lane, decision.lost)
                self.counts["lost"] += decision.lost
            try:
                kind = wire.KINDS.get(header.kind)
                if kind is None:
                    raise wire.WireError(f"records of the kind {header.kind!r} are not known here")
                batch = await asyncio.to_thread(wire.decode, kind, message.payload, header.span.size)
            except wire.WireError as error:
                self._refusals[lane, header.span.first] += 1
                log.error("lane %s, records %d to %d: %s", lane, *header.span, error)
                if self._refusals[lane, header.span.first] < TRIES:
                    return  # it comes again: perhaps it was damaged on its way
                await self._journal.move_cursor(lane, header.span.last, 0)
                self.counts["set_aside"] += 1
            else:
                try:
                    await self._apply(lane, header, kind, batch.slice(decision.skip))
                except errors.JournalFull as full:
                    log.warning("lane %s: not taken: %s", lane, full)
                    return  # it comes again, when there may be room
            self._cursors[lane] = max(self._cursors.get(lane, 0), header.span.last)
        await self._send_ack(lane, header, rewind=decision.verdict is lanes.Verdict.GAP)

    async def _apply(
        self, lane: lanes.Lane, header: wire.Header, kind: wire.Kind, batch: pa.RecordBatch
    ) -> None:
        last = header.span.last
        if kind.name == "leases":
            taken = await self._journal.apply_leases(
                lane, last, batch, stamp=self._stamp, accepted_us=clock.wall_us()
            )
            self.counts["leases"] += len(taken.new) + len(taken.renewed)
            self._hub.handed_over.difference_update(task.task_id for task in taken.new)
            self._runner.renew(taken.renewed)
            self._runner.offer(taken.new)
        elif kind.name in ("results", "attempts"):
            await self._returned(lane, last, batch.num_rows, kind.name, batch.to_pylist())
        elif kind.name == "commands":
            await self._journal.move_cursor(lane, last, batch.num_rows)
            for command in batch.to_pylist():
                await self._obey(command)
        else:
            await self._journal.move_cursor(lane, last, 0)
            self.counts["set_aside"] += 1

    async def _returned(
        self, lane: lanes.Lane, last: int, count: int, kind: str, rows: Sequence[dict[str, Any]]
    ) -> None:
        """Handed-over tasks come back with their results or their end: their devices get their replies."""
        by_task: dict[bytes, list[dict[str, Any]]] = {}
        for row in rows:
            by_task.setdefault(row["task_id"], []).append(row)
        known = await self._journal.find(list(by_task))
        ended = []
        for task_id, its in by_task.items():
            self._hub.handed_over.discard(task_id)
            task = known.get(task_id)
            if task is None:
                continue  # taken back and finished here: a shadow
            if kind == "results":
                reply = verdicts.returned(task, its, self._agent.site)
            else:
                reply = verdicts.returned(
                    task, (), self._agent.site, reason=its[0]["reason"], error=its[0]["error"]
                )
            ended.append(records.Returned(task_id, reply))
        here = set(await self._journal.apply_returned(lane, last, count, ended))
        for one in ended:
            self._runner.forget(one.task_id)  # it may have been taken back, but the hub was faster
        self.counts["returned"] += len(here)
        if self._replies is not None:
            self._replies.put([one.reply for one in ended if one.task_id in here and one.reply is not None])

    def _stamp(self, model: str, queue: str, items: int) -> float:
        """The fair-share tag of a leased task: it was ordered by the hub, so here it only takes its place."""
        return self._window.stamp(jobs.DEFAULT_PRIORITY, queue, float(items))

    async def _obey(self, command: Mapping[str, Any]) -> None:
        word, task_id = command["command"], command["task_id"]
        wish = WISHES.get(word)
        if wish is None or task_id is None:
            log.info("command %r is not known here", word)
            return
        try:
            body = msgspec.json.decode(command["body"] or "{}", type=_Body)
        except msgspec.DecodeError as error:
            log.warning("%s %s is ignored: %s", word, tasks.format_id(task_id), error)
            self.counts["commands_ignored"] += 1
            return
        here = await self._runner.stop_task(task_id, wish, body.attempt)
        self.counts["commands_ignored"] += not here
        log.info("%s %s: %s", word, tasks.format_id(task_id), "taken" if here else "no such attempt here")

    async def _send_ack(self, lane: lanes.Lane, header: wire.Header, *, rewind: bool) -> None:
        ack = signals.Ack(
            lane=str(lane), cursor=self._cursors.get(lane, 0), rewind=rewind, echo_us=header.sent_us
        )
        message = signals.Acks(epoch=self._journal.epoch, acks=[ack], sent_us=clock.wall_us())
        with contextlib.suppress(link.LinkDown):
            await self._link.room()
            self._link.publish_nowait(topics.up(self._agent, topics.ACK), signals.encode(message), qos=1)

"""Agents that are played, and hubs without anything but their gateway: many of both fit into one test."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pyarrow as pa

from cloud_hub import events, fleet, gateway, hot, replicas, settings
from cloud_hub.rollouts import active
from cloud_hub.store import pool
from demo import servers
from shared import backoff, lanes, link, outlet, signals, tasks, topics, wire
from tests.integration import stores

PATIENCE_S = 15.0
RESULTS = lanes.Lane("results")


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for what raises no event."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def new_link(broker: servers.Mosquitto, client_id: str) -> link.Link:
    return link.Link(
        link.Address(broker.host, broker.port), client_id, backoff=backoff.Backoff(base_s=0.05, cap_s=0.5)
    )


class Agent:
    """An agent that keeps its results in memory and forgets none that the hub has not acknowledged."""

    def __init__(self, broker: servers.Mosquitto, name: str, *, epoch: int = 1, beat_s: float = 0.2) -> None:
        self.place = topics.Agent("lyon", name)
        self.epoch = epoch
        self.link = new_link(broker, f"agent-{name}-{epoch}")
        self.got: dict[lanes.Lane, int] = {}
        """Cursors of its down lanes."""
        self.repeated = 0
        """Batches down that it had before."""
        self.heard = 0
        """Answers of hubs."""
        self.leases: list[signals.LeaseReport] = []
        self._beat_s = beat_s
        self._sequence = 0
        self._rows: list[pa.RecordBatch] = []
        self._inbox = link.Inbox(100)
        self.outlet = outlet.Outlet(self, self.link, lambda lane: topics.up(self.place, lane), epoch, {})
        self.link.subscribe(topics.all_down(self.place), 1, self._inbox.put)

    def works(self) -> list[Coroutine[Any, Any, None]]:
        return [self.link.run(), self._hear(), self._speak(), self.outlet.run()]

    def finish(self, count: int = 1) -> list[bytes]:
        """Results of so many tasks, to be sent."""
        task_ids = [tasks.new_id() for _ in range(count)]
        self._rows += [stores.rows(task_id) for task_id in task_ids]
        self.outlet.appended({RESULTS: len(self._rows)})
        return task_ids

    async def read(self, lane: lanes.Lane, after: int, max_rows: int, max_bytes: int) -> wire.Batch | None:
        some = self._rows[after : after + min(max_rows, 20)]
        return wire.Batch(lanes.Span(after + 1, after + len(some)), wire.RESULTS, some) if some else None

    async def acknowledged(self, lane: lanes.Lane, cursor: int) -> None:
        pass

    async def say(self, *, online: bool) -> None:
        word = signals.Presence(epoch=self.epoch, online=online, software="played")
        await self.link.publish(topics.presence(self.place), signals.encode(word), qos=1, retain=True)

    async def _speak(self) -> None:
        await self.link.wait_connected()
        await self.say(online=True)
        while True:
            self._sequence += 1
            told = signals.Telemetry(
                epoch=self.epoch, sequence=self._sequence, capacity=4, leases=self.leases
            )
            with contextlib.suppress(link.LinkDown):
                await self.link.publish(topics.up(self.place, topics.TELEMETRY), signals.encode(told))
            await asyncio.sleep(self._beat_s)

    async def _hear(self) -> None:
        while True:
            for message in await self._inbox.take(10):
                self.link.ack(message)
                lane = topics.parse(message.topic).lane
                if lane == topics.ACK:
                    told = signals.decode(signals.Acks, message.payload)
                    if told.epoch == self.epoch:
                        self.heard += 1
                        await self.outlet.acknowledge(told.acks)
                else:
                    await self._arrived(lanes.Lane.parse(lane), wire.Header.parse(message.properties))

    async def _arrived(self, lane: lanes.Lane, header: wire.Header) -> None:
        receiver = lanes.Receiver(self.got.get(lane, 0))
        decision = receiver.receive(header.span, header.floor)
        self.repeated += decision.verdict is lanes.Verdict.REPEAT
        if decision.verdict is lanes.Verdict.APPLY:
            receiver.commit(header.span.last)
        self.got[lane] = receiver.cursor
        ack = signals.Ack(
            lane=str(lane), cursor=receiver.cursor, rewind=decision.verdict is lanes.Verdict.GAP
        )
        with contextlib.suppress(link.LinkDown):
            await self.link.publish(
                topics.up(self.place, topics.ACK),
                signals.encode(signals.Acks(epoch=self.epoch, acks=[ack])),
                qos=1,
            )


class Hub:
    """The gateway of a hub, among others."""

    def __init__(
        self,
        broker: servers.Mosquitto,
        database: str,
        connections: pool.Pool,
        name: str,
        redis_url: str | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """`alone`: it never learns of others, and takes all agents for its own."""
        self.heard: Counter[str] = Counter()
        """News, by word."""
        self.fleet = fleet.Fleet(10.0)
        self.hot = hot.Hot(redis_url, lambda word: self.heard.update([word]))
        # Not a random id: which agents are whose, and that each hub has some, is the same in every run.
        self.replicas = replicas.Replicas(f"{name}:8080/played", database)
        self.link = new_link(broker, f"hub-{name}")
        self.rolling = active.Active(connections)
        """Which models are rolled out, as the test has it read."""
        self.gateway = gateway.Gateway(
            self.link,
            connections,
            self.fleet,
            events.Events(),
            self.hot,
            settings.Gateway(),
            15.0,
            self.replicas,
            self.rolling,
        )
        self._alone = alone
        if alone:
            self.replicas.live = frozenset({self.replicas.hub_id})

    def works(self) -> list[Coroutine[Any, Any, None]]:
        works = [self.gateway.run(), self.link.run(), self.hot.run()]
        return works if self._alone else [*works, self.replicas.run()]


@contextlib.asynccontextmanager
async def running(*them: Agent | Hub) -> AsyncIterator[None]:
    """All of them at work and connected; cancelled at the end."""
    async with asyncio.TaskGroup() as group:
        tasks_ = [group.create_task(work) for one in them for work in one.works()]
        try:
            async with asyncio.timeout(PATIENCE_S):
                for one in them:
                    await one.link.wait_connected()
            yield
        finally:
            for task in tasks_:
                task.cancel()

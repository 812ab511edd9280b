"""The hub as one agent sees it, played by hand: a test decides what goes down and looks at what comes up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from demo import servers
from shared import backoff, lanes, link, signals, topics, wire

PATIENCE_S: Final = 20.0


class Hub:
    """Takes in the up lanes of one agent, and sends records of its own making down."""

    def __init__(self, mqtt: link.Link, agent: topics.Agent) -> None:
        self._link = mqtt
        self._agent = agent
        self._inbox = link.Inbox(64)
        self._changed = asyncio.Event()
        self._cursors: dict[lanes.Lane, int] = {}
        self._sent: Counter[lanes.Lane] = Counter()
        self._epoch = 0
        self.presence: list[bool] = []
        """What the agent said of itself, births and wills."""
        self._heartbeats: list[signals.Telemetry] = []
        self.rows: list[dict[str, Any]] = []
        self.attempts: list[dict[str, Any]] = []
        self._taken: dict[str, int] = {}
        """The agent's cursors of our lanes."""
        for topic in (topics.up(agent, "+"), topics.presence(agent)):
            mqtt.subscribe(topic, 1, self._inbox.put)

    async def run(self) -> None:
        """Take in what comes until cancelled."""
        while True:
            for message in await self._inbox.take(64):
                self._link.ack(message)
                await self._take(message)
                self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until something that came makes `condition` true."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def online(self, times: int = 1) -> None:
        """Wait until the agent has said so many times that it is there."""
        await self.until(lambda: sum(self.presence) >= times and self._epoch != 0)

    async def heartbeat(self) -> signals.Telemetry:
        """The next one."""
        heard = len(self._heartbeats)
        await self.until(lambda: len(self._heartbeats) > heard)
        return self._heartbeats[-1]

    async def lease(self, task_id: bytes, attempt: int, work: dict[str, Any], items_done: int = 0) -> None:
        """Have the agent run a task, and wait until it has it; `work`: its columns of `wire.LEASES`."""
        record = {"priority": 5, "queue": "default", "ttl_ms": 60_000} | work
        record |= {"task_id": task_id, "attempt": attempt, "items_done": items_done}
        await self._send(wire.LEASES, lanes.Lane("leases"), record)

    async def command(self, command: str, task_id: bytes, body: str | None = None) -> None:
        """A word about a task; wait until the agent has heard it."""
        record = {"command": command, "task_id": task_id, "body": body}
        await self._send(wire.COMMANDS, lanes.Lane("commands"), record)

    async def _send(self, kind: wire.Kind, lane: lanes.Lane, record: dict[str, Any]) -> None:
        self._sent[lane] += 1
        number = self._sent[lane]
        header = wire.Header(self._epoch, lanes.Span(number, number), number, number, kind.name)
        batch = wire.build(kind, {name: [value] for name, value in record.items()})
        await self._link.publish(
            topics.down(self._agent, str(lane)),
            wire.encode(kind, [batch]),
            qos=1,
            content_type=wire.CONTENT_TYPE,
            properties=header.properties(),
        )
        await self.until(lambda: self._taken.get(str(lane), 0) >= number)

    async def _take(self, message: link.Message) -> None:
        where = topics.parse(message.topic)
        if where.direction == "presence":
            presence = signals.decode(signals.Presence, message.payload)
            self._epoch = presence.epoch
            self.presence.append(presence.online)
        elif where.lane == topics.TELEMETRY:
            self._heartbeats.append(signals.decode(signals.Telemetry, message.payload))
        elif where.lane == topics.ACK:
            acks = signals.decode(signals.Acks, message.payload).acks
            self._taken |= {ack.lane: ack.cursor for ack in acks}
        else:
            await self._batch(lanes.Lane.parse(where.lane), message)

    async def _batch(self, lane: lanes.Lane, message: link.Message) -> None:
        """Take a batch in where the cursor stands, and say where it stands then."""
        header = wire.Header.parse(message.properties)
        cursor = self._cursors.get(lane, 0)
        decision = lanes.Receiver(cursor).receive(header.span, header.floor)
        if decision.verdict is lanes.Verdict.APPLY:
            assert not decision.lost
            kind = wire.KINDS[header.kind]
            new = wire.decode(kind, message.payload, header.span.size).slice(decision.skip).to_pylist()
            (self.attempts if kind is wire.ATTEMPTS else self.rows).extend(new)
            cursor = self._cursors[lane] = header.span.last
        rewind = decision.verdict is lanes.Verdict.GAP
        acks = signals.Acks(
            epoch=header.epoch, acks=[signals.Ack(lane=str(lane), cursor=cursor, rewind=rewind)]
        )
        await self._link.publish(topics.down(self._agent, topics.ACK), signals.encode(acks), qos=1)


@contextlib.asynccontextmanager
async def playing(broker: servers.Mosquitto, agent: topics.Agent) -> AsyncIterator[Hub]:
    """A hub at `broker` for one agent."""
    mqtt = link.Link(link.Address(broker.host, broker.port), "hub", backoff=backoff.Backoff(0.01, 0.1))
    hub = Hub(mqtt, agent)
    running = [asyncio.create_task(mqtt.run()), asyncio.create_task(hub.run())]
    try:
        await mqtt.wait_connected()
        yield hub
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

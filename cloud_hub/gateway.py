"""Between the cloud's broker and the store: who speaks, and to which channel it belongs.

Every hub hears the presence and the telemetry of all agents, so each knows the whole fleet. The lanes of
an agent are heard and served by the hub that owns it (`replicas`): it subscribes to them when it opens the
agent's channel and unsubscribes when it closes it. When a hub comes or goes, channels close here and
open there; that two hubs may have one open for a second does no harm, for the reasons given in `replicas`.

Every message of an agent says its epoch. The first sight of an (agent, epoch) is looked up in the store;
what comes from it meanwhile waits. The fleet knows an agent by its newest epoch; records of an older one
that are still on their way are applied all the same when they come: they are results.

Nothing here waits for PostgreSQL while it takes messages: each agent's channel, the introductions and the
reports do, in tasks of their own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from cloud_hub import channel, events, fleet, hot, news, patience, replicas, reports, settings
from cloud_hub.rollouts import active
from cloud_hub.store import agents, hubs, pool
from cloud_hub.store import lanes as lane_store
from shared import lanes, link, signals, topics, wire

log: Final = logging.getLogger(__name__)

WAITING_BYTES: Final = 256 << 20
"""Of batches that wait to be applied, all agents together."""
INTRODUCING: Final = 4
"""Agents that are looked up at one time."""
HELD: Final = 64
"""Messages of an agent that wait until it has been looked up."""
LOOK_S: Final = 1.0
"""How often the store is asked what other hubs have put on the down lanes of ours."""
IDLE_S: Final = 600.0
"""After which the channel of an epoch that is over is closed."""


class Who(NamedTuple):
    """One epoch of an agent."""

    agent: topics.Agent
    epoch: int


class Gateway:
    """Speaks with all agents over one link."""

    def __init__(
        self,
        mqtt: link.Link,
        connections: pool.Pool,
        members: fleet.Fleet,
        here: events.Events,
        everywhere: hot.Hot,
        policy: settings.Gateway,
        lease_ttl_s: float,
        siblings: replicas.Replicas,
        rolling: active.Active,
    ) -> None:
        """`rolling`: the rollouts for which results count."""
        self._link = mqtt
        self._connections = connections
        self._fleet = members
        self._events = here
        self._replicas = siblings
        self._rolling = rolling
        self.counts: Counter[str] = Counter()
        self.news = news.News(here, everywhere, self)
        self._reports = reports.Reports(connections, everywhere, lease_ttl_s, self.counts)
        self._inbox = link.Inbox(4 * policy.in_flight)
        self._applying = asyncio.Semaphore(policy.applying)
        self._introducing = asyncio.Semaphore(INTRODUCING)
        self._budget = channel.Budget(WAITING_BYTES)
        self._ids: dict[Who, int] = {}
        self._strangers: dict[Who, list[link.Message]] = {}
        self._channels: dict[Who, channel.Channel] = {}
        self._running: dict[Who, asyncio.Task[None]] = {}
        self._by_id: dict[int, channel.Channel] = {}
        self._subscribed: set[topics.Agent] = set()
        self._group: asyncio.TaskGroup | None = None
        mqtt.subscribe(topics.all_telemetry(), 0, self._inbox.put)
        mqtt.subscribe(topics.all_presence(), 1, self._inbox.put)
        mqtt.watch(self._link_changed)
        everywhere.on_lanes = self.wake
        siblings.watch(self._divide)

    @property
    def owned(self) -> int:
        """How many agents this hub serves."""
        return len(self._subscribed)

    def wake(self, agent_ids: Iterable[int]) -> frozenset[int]:
        """The down lanes of these agents have new records; returns those that are not served here."""
        elsewhere = set()
        for agent_id in agent_ids:
            known = self._by_id.get(agent_id)
            if known is None:
                elsewhere.add(agent_id)
            else:
                known.down.wake()
        return frozenset(elsewhere)

    def leased(self, numbers: Mapping[int, int]) -> frozenset[int]:
        """The same of their lanes of leases alone, which have records up to these numbers."""
        elsewhere = set()
        for agent_id, number in numbers.items():
            known = self._by_id.get(agent_id)
            if known is None:
                elsewhere.add(agent_id)
            else:
                known.down.appended({lane_store.LEASES: number})
        return frozenset(elsewhere)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._dispatch(), name="gateway: dispatch")
            self._group.create_task(self._reports.run(), name="gateway: reports")
            self._group.create_task(self._look_after(), name="gateway: look after channels")

    def _link_changed(self, connected: bool) -> None:
        if connected:  # what was sent down over the old connection may not have arrived
            for one in self._channels.values():
                one.reconnected(ourselves=True)

    # What comes up

    async def _dispatch(self) -> None:
        while True:
            for message in await self._inbox.take(64):
                self._link.ack(message)
                self._take(message)

    def _take(self, message: link.Message) -> None:
        try:
            parsed = topics.parse(message.topic)
            if parsed.direction == "presence":
                if message.payload:  # an empty one is a retained message being removed
                    self._presence(parsed.agent, signals.decode(signals.Presence, message.payload), message)
            elif parsed.lane == topics.TELEMETRY:
                self._telemetry(parsed.agent, signals.decode(signals.Telemetry, message.payload), message)
            elif parsed.lane == topics.ACK:
                told = signals.decode(signals.Acks, message.payload)
                if one := self._channel(Who(parsed.agent, told.epoch), message):
                    one.down.acknowledge(told.acks)
            else:
                header = wire.Header.parse(message.properties)
                arrival = channel.Arrival(lanes.Lane.parse(parsed.lane), message)
                one = self._channel(Who(parsed.agent, header.epoch), message)
                if one is not None and not one.put(arrival):
                    self.counts["dropped"] += 1
        except (topics.BadTopic, signals.SignalError, wire.WireError, ValueError) as error:
            self.counts["unreadable"] += 1
            log.warning("message on %s dropped: %s", message.topic, error)

    def _presence(self, agent: topics.Agent, presence: signals.Presence, message: link.Message) -> None:
        who = Who(agent, presence.epoch)
        member = self._fleet.find(agent)
        if not presence.online and (member is None or member.epoch != presence.epoch):
            return  # the will of an epoch that is over, or the retained word of one that went long ago
        agent_id = self._known(who, message)
        if agent_id is None:
            return
        member = self._fleet.find(agent)
        if member is not None and member.epoch == presence.epoch:
            if presence.online:
                self._fleet.born(member)
            else:
                member.online = False
        # By every hub that hears it: the agent's own may have gone with it.
        self._reports.presence(agent_id, presence)
        if presence.online and who in self._channels:
            self._channels[who].reconnected(ourselves=False)
        self._events.publish(events.FleetChanged(agent))
        self.news.freed()

    def _telemetry(self, agent: topics.Agent, told: signals.Telemetry, message: link.Message) -> None:
        who = Who(agent, told.epoch)
        renewals = reports.renewals(told)  # first: what makes no sense is not to get further
        agent_id = self._known(who, message)
        member = self._fleet.find(agent)
        if agent_id is None or member is None or member.epoch != told.epoch or member.telemetry == told:
            return  # the last: Mosquitto sends the owner a copy for each of its subscriptions
        if not self._fleet.heard(member, told):
            return
        member.online = True  # it speaks, whatever a late will says
        if who in self._channels:
            self._channels[who].heartbeat()
            self._reports.telemetry(agent, agent_id, told, renewals)
        self._events.publish(events.FleetChanged(agent))
        self.news.freed()

    def _channel(self, who: Who, message: link.Message) -> channel.Channel | None:
        """The channel of an (agent, epoch), if it is served here; of one that is not yet known, wait."""
        one = self._channels.get(who)
        if one is None:
            agent_id = self._known(who, message)
            if agent_id is not None and self._owns(who.agent):
                one = self._open(who, agent_id)
        return one

    # Who speaks

    def _known(self, who: Who, message: link.Message) -> int | None:
        """The id of an (agent, epoch). At its first sight None: `message` comes again when it is known."""
        agent_id = self._ids.get(who)
        if agent_id is None:
            held = self._strangers.get(who)
            if held is None:
                held = self._strangers[who] = []
                assert self._group is not None  # which runs the dispatch
                self._group.create_task(self._introduce(who), name=f"introduce {who.agent}")
            if len(held) < HELD and self._budget.take(len(message.payload)):
                held.append(message)
            else:
                self.counts["dropped"] += 1
        return agent_id

    async def _introduce(self, who: Who) -> None:
        """Look an (agent, epoch) up, or note that it is new, and take what it has said meanwhile."""
        try:
            async with self._introducing:
                seen, draining = await patience.steadily(lambda: self._meet(who), f"{who.agent}")
        except pool.REFUSED as error:
            self.counts["unreadable"] += 1
            log.warning("%s epoch %d is no agent: %s", *who, error)
            self._release(who)
            return
        self._ids[who] = seen.agent_id
        if seen.is_current:
            self._fleet.join(
                fleet.Member(
                    agent_id=seen.agent_id,
                    agent=who.agent,
                    epoch=who.epoch,
                    online=True,
                    heard=time.monotonic(),
                    draining=draining,
                )
            )
            if self._owns(who.agent):
                self._open(who, seen.agent_id)
        self.news.tell(seen.outcome)
        if seen.is_new:
            log.info("%s is new here, epoch %d", *who)
            self.news.freed()
        for message in self._release(who):
            self._take(message)

    async def _meet(self, who: Who) -> tuple[agents.Seen, bool]:
        async with self._connections.connection() as connection:
            seen = await agents.seen(connection, who.agent, who.epoch)
            found = await agents.find(connection, who.agent)
        return seen, found is not None and found.draining

    def _release(self, who: Who) -> list[link.Message]:
        held = self._strangers.pop(who)
        self._budget.release(sum(len(message.payload) for message in held))
        return held

    # Whom we serve

    def _owns(self, agent: topics.Agent) -> bool:
        return self._replicas.owns(agent)

    def _divide(self) -> None:
        """A hub has come or gone: close what is no longer ours, open what is now."""
        for who in list(self._channels):
            if not self._owns(who.agent):
                self._close(who)
        for agent in [agent for agent in self._subscribed if not self._owns(agent)]:
            self._subscribed.remove(agent)
            self._link.unsubscribe(topics.own_up(agent))
        for member in self._fleet:
            who = Who(member.agent, member.epoch)
            if who not in self._channels and self._owns(member.agent):
                self._open(who, member.agent_id)

    def _open(self, who: Who, agent_id: int) -> channel.Channel:
        one = channel.Channel(
            who.agent,
            agent_id,
            who.epoch,
            self._connections,
            self._link,
            self.news,
            self._rolling,
            self._applying,
            self._budget,
            self.counts,
        )
        self._channels[who] = self._by_id[agent_id] = one
        if who.agent not in self._subscribed:  # before the channel tells the agent its cursors
            self._subscribed.add(who.agent)
            self._link.subscribe(topics.own_up(who.agent), 1, self._inbox.put)
        assert self._group is not None
        self._running[who] = self._group.create_task(one.run(), name=f"channel {who.agent} epoch {who.epoch}")
        return one

    def _close(self, who: Who) -> None:
        one = self._channels.pop(who)
        del self._by_id[one.agent_id]
        self._running.pop(who).cancel()
        one.close()

    async def _look_after(self) -> None:
        """Look for what others have put on our down lanes, and forget epochs that are over."""
        while True:
            patience.heed_cancellation()
            await asyncio.sleep(LOOK_S)
            for who in [who for who in self._ids if self._over(who)]:
                if who in self._channels:
                    self._close(who)
                del self._ids[who]
            if self._replicas.alone or not self._by_id:
                continue
            try:
                async with self._connections.connection() as connection:
                    waiting = await hubs.waiting(connection, list(self._by_id))
            except pool.UNAVAILABLE as error:
                log.warning("down lanes not looked at: %s", error)
                continue
            for agent_id, numbers in waiting.items():
                if agent_id in self._by_id:
                    self._by_id[agent_id].down.appended(numbers)

    def _over(self, who: Who) -> bool:
        """Whether the agent has a newer epoch, and nothing has come from this one for long."""
        member = self._fleet.find(who.agent)
        if member is None or member.epoch == who.epoch:
            return False
        one = self._channels.get(who)
        return one is None or time.monotonic() - one.active > IDLE_S

"""Between the cloud's broker and the store: who speaks, and to which channel it belongs.

Every message of an agent says its epoch. The first sight of an (agent, epoch) opens a channel for it.
The fleet knows an agent by its newest epoch; records of an older one that are still on their way are
applied all the same when they come: they are results.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from cloud_hub import channel, events, fleet, hot, news, settings
from cloud_hub.store import agents, pool, schedule
from cloud_hub.store import lanes as lane_store
from shared import lanes, link, signals, tasks, topics, wire

log: Final = logging.getLogger(__name__)

WAITING_BYTES: Final = 256 << 20
"""Of batches that wait to be applied, all agents together."""


class Gateway:
    """Speaks with all agents over one link."""

    def __init__(
        self,
        mqtt: link.Link,
        connections: channel.Pool,
        members: fleet.Fleet,
        here: events.Events,
        everywhere: hot.Hot,
        policy: settings.Gateway,
        lease_ttl_s: float,
    ) -> None:
        self._link = mqtt
        self._connections = connections
        self._fleet = members
        self._events = here
        self._hot = everywhere
        self._policy = policy
        self._lease_ttl_s = lease_ttl_s
        self.news = news.News(here, everywhere, self.wake_lanes)
        self._inbox = link.Inbox(4 * policy.in_flight)
        self._applying = asyncio.Semaphore(policy.applying)
        self._budget = channel.Budget(WAITING_BYTES)
        self._channels: dict[tuple[topics.Agent, int], channel.Channel] = {}
        self._by_id: dict[int, channel.Channel] = {}
        self._unsaved: dict[int, signals.Telemetry] = {}
        self.counts: Counter[str] = Counter()
        mqtt.subscribe(topics.all_up(), 1, self._inbox.put)
        mqtt.subscribe(topics.all_presence(), 1, self._inbox.put)
        mqtt.watch(self._link_changed)

    def wake_lanes(self, agent_ids: Iterable[int]) -> None:
        """The down lanes of these agents have new records."""
        for agent_id in agent_ids:
            known = self._by_id.get(agent_id)
            if known is not None:
                known.wake_down()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._dispatch(group), name="gateway: dispatch")
            group.create_task(self._save_telemetry(), name="gateway: save telemetry")

    def _link_changed(self, connected: bool) -> None:
        if connected:  # what was sent down over the old connection may not have arrived
            for one in self._channels.values():
                one.reconnected(ourselves=True)

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            for message in await self._inbox.take(64):
                self._link.ack(message)
                try:
                    await self._take(message, group)
                except (topics.BadTopic, signals.SignalError, wire.WireError, ValueError) as error:
                    self.counts["unreadable"] += 1
                    log.warning("message on %s dropped: %s", message.topic, error)
                except pool.UNAVAILABLE as error:
                    self.counts["unavailable"] += 1
                    log.warning(
                        "message on %s dropped, PostgreSQL is not available: %s", message.topic, error
                    )

    async def _take(self, message: link.Message, group: asyncio.TaskGroup) -> None:
        parsed = topics.parse(message.topic)
        if parsed.direction == "presence":
            if message.payload:  # an empty one is a retained message being removed
                await self._presence(parsed.agent, signals.decode(signals.Presence, message.payload), group)
        elif parsed.lane == topics.TELEMETRY:
            await self._telemetry(parsed.agent, signals.decode(signals.Telemetry, message.payload), group)
        elif parsed.lane == topics.ACK:
            told = signals.decode(signals.Acks, message.payload)
            await (await self._channel(parsed.agent, told.epoch, group)).acknowledge(told.acks)
        else:
            header = wire.Header.parse(message.properties)
            one = await self._channel(parsed.agent, header.epoch, group)
            arrival = channel.Arrival(lanes.Lane.parse(parsed.lane), message)
            if not self._budget.take(len(message.payload)):
                self.counts["dropped"] += 1
            elif not one.put(arrival):
                self._budget.release(len(message.payload))
                self.counts["dropped"] += 1

    async def _presence(
        self, agent: topics.Agent, presence: signals.Presence, group: asyncio.TaskGroup
    ) -> None:
        member = self._fleet.find(agent)
        if not presence.online and (member is None or member.epoch != presence.epoch):
            return  # the will of an epoch that is over, or the retained word of one that went long ago
        one = await self._channel(agent, presence.epoch, group)
        member = self._fleet.find(agent)
        assert member is not None
        if presence.online:
            self._fleet.heard(member)
        if member.epoch == presence.epoch:
            member.online = presence.online
        async with self._connections.connection() as connection:
            await agents.set_presence(connection, one.agent_id, presence.online, presence.software)
        if presence.online:
            one.reconnected(ourselves=False)
        self._events.publish(events.FleetChanged(agent))
        self.news.freed()

    async def _telemetry(
        self, agent: topics.Agent, told: signals.Telemetry, group: asyncio.TaskGroup
    ) -> None:
        one = await self._channel(agent, told.epoch, group)
        member = self._fleet.find(agent)
        if member is None or member.epoch != told.epoch or not self._fleet.heard(member, told):
            return
        member.online = True  # it speaks, whatever a late will says
        self._unsaved[one.agent_id] = told
        if told.leases:
            renewals = [
                schedule.Renewal(tasks.parse_id(lease.task_id), lease.attempt, lease.progress)
                for lease in told.leases
            ]
            async with self._connections.connection() as connection:
                await schedule.renew(connection, one.agent_id, renewals, self._lease_ttl_s)
        await self._hot.save_telemetry(agent, signals.encode(told))
        await one.heartbeat()
        self._events.publish(events.FleetChanged(agent))
        self.news.freed()

    async def _channel(self, agent: topics.Agent, epoch: int, group: asyncio.TaskGroup) -> channel.Channel:
        """The channel of an (agent, epoch), opened at first sight."""
        known = self._channels.get((agent, epoch))
        if known is not None:
            return known
        async with self._connections.connection() as connection:
            seen = await agents.seen(connection, agent, epoch)
        one = channel.Channel(
            agent,
            seen.agent_id,
            epoch,
            self._connections,
            self._link,
            self.news,
            self._applying,
            self._budget,
            self.counts,
        )
        self._channels[agent, epoch] = self._by_id[seen.agent_id] = one
        group.create_task(one.run(), name=f"channel {agent} epoch {epoch}")
        if seen.is_current:
            await self._succeed(agent, epoch, seen.agent_id)
        self.news.tell(seen.outcome)
        if seen.is_new:
            log.info("%s is new here, epoch %d", agent, epoch)
            self.news.freed()
        return one

    async def _succeed(self, agent: topics.Agent, epoch: int, agent_id: int) -> None:
        """`epoch` is the current one: the fleet knows the agent by it from now on."""
        async with self._connections.connection() as connection:
            found = await agents.find(connection, agent)
        self._fleet.join(
            fleet.Member(
                agent_id=agent_id,
                agent=agent,
                epoch=epoch,
                online=True,
                heard=time.monotonic(),
                draining=found.draining if found is not None else False,
            )
        )

    async def _save_telemetry(self) -> None:
        """The latest reports, all agents in one statement; the dashboard of another hub reads them."""
        while True:
            await asyncio.sleep(1.0)
            unsaved, self._unsaved = self._unsaved, {}
            if not unsaved:
                continue
            try:
                async with self._connections.connection() as connection:
                    await agents.save_telemetry(connection, unsaved)
                    for agent_id, told in unsaved.items():
                        await lane_store.report(
                            connection,
                            agent_id,
                            {lanes.Lane.parse(report.lane): report.numbered for report in told.lanes},
                        )
            except pool.UNAVAILABLE as error:
                log.warning("telemetry not saved: %s", error)

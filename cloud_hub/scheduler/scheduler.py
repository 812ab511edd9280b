"""The loop around the policy: gathers what is queued and who has room, applies what was decided.

    heads, leases held -> plan (pure) -> one fenced transaction: leases, records on their lanes, the clocks
                            |
                            +-> no room for something urgent -> victims (pure) -> `preempt` on their lanes

Only the hub that leads goes round. What its clocks know is kept with each pass, so that the next leader
goes on with the same shares.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from cloud_hub import fleet, leader, news, settings
from cloud_hub import queues as hub_queues
from cloud_hub.scheduler import placement, plan, preemption, readiness, snapshot
from cloud_hub.store import agents, classes, ends, leadership, pool, schedule
from shared import backoff, fairness

log: Final = logging.getLogger(__name__)

IN_THREAD: Final = 200
"""From so many tasks on a plan is made in a thread: the loop has others to serve."""
HELD: Final = 1000
"""Leases that are looked at for a task that needs room."""
GATHER_S: Final = 0.01
"""Between two passes, unless there is more to place at once: what comes meanwhile goes together. With
hundreds of words a second a pass at each of them would cost more time than that."""
RIPEN_S: Final = 0.1
"""How often tasks are looked for that have waited long enough after a failure, at most."""
UPKEEP_S: Final = 1.0
"""How often counters are added up, and the agents that drain are looked up."""

Clocks = dict[int, fairness.FairClock]


class Scheduler:
    """Places queued tasks on agents, a batch at a time, as soon as there are both."""

    def __init__(
        self,
        connections: pool.Pool,
        members: fleet.Fleet,
        queues: hub_queues.Queues,
        policy: settings.Scheduler,
        lease_ttl_s: float,
    ) -> None:
        self._connections = connections
        self._fleet = members
        self._queues = queues
        self._policy = policy
        self.rules = snapshot.Rules(
            aging_s=policy.aging_s, aging_cap=policy.aging_cap, cooldown_s=policy.cooldown_s
        )
        self._lease_ttl_s = lease_ttl_s
        self._clocks: Clocks = {}
        self._ready = readiness.Readiness(members, self.rules)
        self._wanting = True
        """The last pass left tasks that wait for room."""
        self._given: set[int] = set()
        """Agents (ids) that the last plan gave something."""
        self._classes = classes.Known()
        self._preempted = self._ripened = -math.inf
        """When room was last made, or looked for in vain; and when tasks were last ripened (s, monotonic)."""
        self._wake = asyncio.Event()
        self.counts: Counter[str] = Counter()

    def wake(self) -> None:
        """Something was queued, or an agent has room."""
        self._wake.set()

    def room(self) -> None:
        """Leases ended."""
        if self._wanting:
            self._wake.set()

    def lead(self, fair: str) -> None:
        """This hub leads now; `fair` are the clocks of the one before it."""
        self._clocks = read_clocks(fair)
        self._classes.forget()
        self.wake()

    async def run(self, lead: leader.Leader, told: news.News) -> None:
        """Schedule while this hub leads, until cancelled; `told` hears what was done."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._go_round(lead, told), name="scheduler: passes")
            group.create_task(self._upkeep(lead), name="scheduler: upkeep")

    async def _go_round(self, lead: leader.Leader, told: news.News) -> None:
        pause = backoff.Backoff(base_s=0.05, cap_s=2.0, stable_s=0.0)
        while True:
            more = False
            before = self.counts["granted"]
            try:
                if lead.leading:
                    more = await self._pass(lead, told)
            except leadership.Deposed as deposed:
                log.info("no pass: %s", deposed)
            except pool.UNAVAILABLE as error:
                log.warning("no pass: PostgreSQL is not available: %s", error)
                self._classes.forget()
                await asyncio.sleep(pause.next())
                continue
            pause.succeeded(0.0)
            rested = time.monotonic() + (GATHER_S if self.counts["granted"] > before else 0.0)
            if more:
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(self._policy.idle_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await asyncio.sleep(max(0.0, rested - time.monotonic()))

    async def _pass(self, lead: leader.Leader, told: news.News) -> bool:
        """Place what can be placed; True if there may be more to place at once."""
        self._wake.clear()
        self._wanting = True
        async with pool.statement(self._connections) as connection:
            self._ready.refresh(await schedule.outstanding(connection), self._given)
            ready = self._ready.index
            look_for_room = time.monotonic() >= self._preempted + self._policy.preempt_every_s
            if not self._ready.agent_ids or not (ready.room or look_for_room):
                return False
            left = await self._room_of_queues(connection)
            await self._ripen(connection)
            passed_over, without_room = self._aside(ready, {name for name, more in left.items() if not more})
            heads = await schedule.heads(
                connection,
                min(2 * ready.room, self._policy.batch),
                self._classes,
                passed_over=passed_over,
                without_room=without_room,
                few=self.rules.unplaced_per_head if look_for_room else 0,
                rules=self.rules,
            )
        self.counts["passes"] += 1
        self._wanting = bool(without_room or not all(left.values()))
        if not heads:
            return False
        queues = {
            name: snapshot.Queue(name, self._queues.weight(name), left.get(name))
            for name in {task.queue for head in heads for task in head.tasks[:1]}
        }
        decided = await self._decide(heads, ready, queues)
        self._given = {one.choice.agent_id for one in decided.placements}
        self._wanting |= (
            decided.more
            or bool(decided.why)
            or len(decided.placements) < sum(len(head.tasks) for head in heads)
        )
        granted = await self._grant(lead, decided, told) if decided.placements else 0
        self._wanting |= granted < len(decided.placements)  # somebody held them, maybe to no end
        if decided.unplaced and look_for_room:
            await self._make_room(lead, told, decided.unplaced)
        return decided.more and granted > 0

    def _aside(self, ready: placement.Fleet, closed: Container[str]) -> tuple[list[int], list[int]]:
        """Classes (ids) of which nothing need be read, for nobody can run them or their queue is in
        `closed`; and those that could run, if there were room.
        """
        kinds: dict[tuple[str, str, str], tuple[bool, list[int]]] = {}
        passed_over, without_room = [], []
        for one in self._classes:
            kind = (one.model, one.version, one.selector)
            if kind not in kinds:
                able = ready.able(one.model, one.version or None, one.selector)
                with_room = (agent_id for agent_id in able if ready.credits(agent_id) > 0)
                kinds[kind] = bool(able), list(itertools.islice(with_room, 2))
            can_run, room = kinds[kind]
            if not can_run or one.queue in closed:
                passed_over.append(one.class_id)
            elif not room or (  # only at its origin, which must not get it
                room == [one.origin_agent]
                and ready.barred_origin(one.model, one.version or None, one.selector, one.origin_agent)
            ):
                without_room.append(one.class_id)
        return passed_over, without_room

    async def _ripen(self, connection: pool.Connection) -> None:
        if time.monotonic() >= self._ripened + RIPEN_S:
            await schedule.ripen(connection)
            self._ripened = time.monotonic()

    async def _room_of_queues(self, connection: pool.Connection) -> dict[str, int]:
        """Of the queues of which only so many tasks may run, how many more."""
        limited = self._queues.limited()
        running = await schedule.running(connection) if limited else {}
        return {
            name: max(0, most - running.get(name, 0))
            for name in limited
            if (most := self._queues.max_running(name)) is not None
        }

    async def _decide(
        self,
        heads: Sequence[snapshot.Head],
        ready: placement.Fleet,
        queues: Mapping[str, snapshot.Queue],
    ) -> plan.Plan:
        if sum(len(head.tasks) for head in heads) < IN_THREAD:
            return plan.plan(heads, ready, queues, self._clocks, self.rules)
        return await asyncio.to_thread(plan.plan, heads, ready, queues, self._clocks, self.rules)

    async def _grant(self, lead: leader.Leader, decided: plan.Plan, told: news.News) -> int:
        """Make leases of placements; what somebody else took or ended meanwhile is left out."""
        clocks = self._clocks | decided.clocks
        grants = [
            schedule.Grant(
                one.task.task_id,
                one.choice.agent_id,
                self._lease_ttl_s,
                one.priority,
                _why(one.choice, one.priority),
            )
            for one in decided.placements
        ]
        try:
            async with lead.deciding() as (connection, token):
                granted = await schedule.grant(connection, token, grants, write_clocks(clocks))
        except pool.UNAVAILABLE:
            # Perhaps it was committed, and only the word of it was lost: then their lanes have records.
            told.tell(ends.Outcome(told=frozenset(self._given)))
            raise
        self._clocks = clocks
        self.counts["granted"] += len(granted)
        told.leased({one.agent_id: one.number for one in granted})  # the last of each counts
        return len(granted)

    async def _make_room(
        self,
        lead: leader.Leader,
        told: news.News,
        waiting: Sequence[snapshot.Task],
    ) -> None:
        """Ask less urgent tasks to stop, if there are such."""
        self._preempted = time.monotonic()
        urgency = max(task.priority for task in waiting)
        if urgency == 0:
            return
        async with self._connections.connection() as connection:
            held = await schedule.held(connection, urgency, self._ready.agent_ids, HELD)
        if not held:
            return
        progress = self._fleet.progress()
        known = [
            replace(
                one,
                lost_s=progress.get((one.task_id, one.attempt), one.lost_s),
                # An agent that did not heed it, because it is older or was cut off, is asked again.
                stopping=one.stopping and (one.preempted_ago_s or 0.0) < self.rules.cooldown_s,
            )
            for one in held
        ]
        victims = preemption.victims(waiting, known, self._ready.index, self.rules)
        if not victims:
            return
        by_id = {one.task_id: one for one in known}
        clocks = self._clocks.copy()
        async with lead.writing() as connection:
            await schedule.stop(
                connection,
                [(one.task_id, one.attempt) for one in victims],
                [one.urgent for one in victims],
            )
            stopped = frozenset(one.agent_id for one in victims)
        self._refund([by_id[one.task_id] for one in victims], clocks)
        self._clocks = clocks
        self.counts["preempted"] += len(victims)
        told.tell(ends.Outcome(told=stopped))

    def _refund(self, stopped: Sequence[snapshot.Held], clocks: Clocks) -> None:
        """A queue is not charged for what its stopped tasks have left: it will be charged again."""
        for one in stopped:
            clock = clocks.get(one.priority)
            if clock is None:
                continue
            per_s = self._ready.index.speed(one.agent_id, one.model, one.version)
            clocks[one.priority] = clock = clock.copy()
            seconds = one.items_left / (per_s or self.rules.unmeasured_items_per_s)
            clock.refund(one.queue, self._queues.weight(one.queue), seconds)

    async def _upkeep(self, lead: leader.Leader) -> None:
        while True:
            try:
                async with self._connections.connection() as connection:
                    self._fleet.drain(await agents.draining(connection))
                if lead.leading:
                    async with lead.writing() as connection:
                        await classes.compact(connection)
            except leadership.Deposed as deposed:
                log.debug("upkeep put off: %s", deposed)
            except pool.UNAVAILABLE as error:
                log.debug("upkeep put off: %s", error)
            await asyncio.sleep(UPKEEP_S)


_why_encoder: Final = msgspec.json.Encoder()


def _why(choice: placement.Choice, priority: int) -> str:
    """The decision as it is kept with its lease: JSON, the names of `placement.Choice`."""
    return _why_encoder.encode(
        {
            "effective_priority": priority,
            "predicted_s": round(choice.predicted_s, 4),
            "wait_s": round(choice.wait_s, 4),
            "transfer_s": round(choice.transfer_s, 4),
            "run_s": round(choice.run_s, 4),
            "able": choice.able,
            "others": [(agent_id, round(predicted_s, 4)) for agent_id, predicted_s in choice.others],
        }
    ).decode()


_clocks_decoder: Final = msgspec.json.Decoder(dict[int, fairness.FairState])


def read_clocks(text: str) -> Clocks:
    """The clocks in `text`, as `write_clocks` wrote them; new ones if it cannot be read."""
    try:
        states = _clocks_decoder.decode(text) if text else {}
    except msgspec.DecodeError as error:
        log.warning("the shares begin anew, their clocks cannot be read: %s", error)
        states = {}
    return {priority: fairness.FairClock(state) for priority, state in states.items()}


def write_clocks(clocks: Mapping[int, fairness.FairClock]) -> str:
    """What `read_clocks` reads."""
    return msgspec.json.encode({priority: clock.state() for priority, clock in clocks.items()}).decode()

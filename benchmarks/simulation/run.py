"""The event loop of a simulation, on virtual time, and what it writes down.

Modelled: devices' jobs with the agents' own rule of what overflows, transfer to the agent, runs item by
item, preemption at item boundaries, heartbeats of some age, links that are cut. Not modelled: the hub's
database and brokers, whose times other benchmarks measure, and leases that run out.
"""

from __future__ import annotations

import heapq
import itertools
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.simulation import agents, hub, world
from edge_agent import overflow, settings

PASS_S: Final = 0.5
"""Between two passes of the hub."""
HEARTBEAT_S: Final = 5.0
FEW: Final = 0.02
"""Of a queue's backlog: when it comes to that, tasks of some model may be gone."""
OVERFLOW: Final = settings.Overflow()


@dataclass(slots=True)
class Books:
    """What was seen."""

    waits: list[array[float]] = field(default_factory=lambda: [array("d") for _ in range(10)])
    """By declared priority: from a task's arrival until it first ran."""
    served: dict[str, float] = field(default_factory=lambda: dict.fromkeys(world.WEIGHTS, 0.0))
    """By queue: seconds of executors given while each queue of the backlog had enough tasks waiting."""
    utilisation: float = 0.0
    """Of the fleet, meanwhile."""
    backlogged_s: float = 0.0
    preemptions: int = 0
    device_jobs: int = 0
    handed_over: int = 0
    placed: int = 0
    passes: int = 0
    hub_s: float = 0.0
    """Real seconds in the policy."""
    simulated_s: float = 0.0
    took_s: float = 0.0

    def wait_s(self, priority: int, share: float) -> float:
        """A quantile of the waits."""
        waits = sorted(self.waits[priority])
        return waits[min(len(waits) - 1, int(share * len(waits)))]

    def share_error(self, weights: Mapping[str, float]) -> float:
        """The largest deviation of a queue's share from its weight's, as a part of that."""
        served, whole = sum(self.served.values()), sum(weights.values())
        if not served:
            return 0.0
        return max(abs(self.served[queue] / served / (w / whole) - 1) for queue, w in weights.items())


class Simulation:
    """A world under a policy, from its first task to its last."""

    def __init__(self, place: world.World, policy: hub.Policy) -> None:
        self.books = Books()
        self._world = place
        self._policy = policy
        self._agents = place.agents
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        """(when, sequence, what happens, to what)."""
        self._sequence = itertools.count()
        self._changed: set[agents.Agent] = set()
        """Agents of which the hub will hear before its next pass."""
        self._late: defaultdict[str, list[tuple[Callable[..., None], tuple[Any, ...]]]] = defaultdict(list)
        """By site: what could not cross its link."""
        self._left = place.sizes.tasks
        self._backlogged = True

    def run(self) -> Books:
        began = time.perf_counter()
        for job in self._world.backlog():
            self._policy.submit(job)
        for cut in self._world.cuts():
            self._at(cut.from_s, self._cut, cut.site)
            self._at(cut.until_s, self._mend, cut.site)
        self._at(0.0, self._pass, 0)
        arrivals = self._world.arrivals()
        job_or_none = next(arrivals, None)
        now = 0.0
        while self._left:
            if job_or_none is not None and job_or_none.arrived_s <= self._events[0][0]:
                now = job_or_none.arrived_s
                self._arrive(now, job_or_none)
                job_or_none = next(arrivals, None)
            else:
                now, _, happens, what = heapq.heappop(self._events)
                happens(now, *what)
        self.books.simulated_s = now
        self.books.took_s = time.perf_counter() - began
        return self.books

    def _at(self, when: float, happens: Callable[..., None], *what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), happens, what))

    def _arrive(self, now: float, job: agents.Job) -> None:
        """A device publishes a job, or a client submits a task to the hub."""
        if job.agent_id is None:
            self._policy.submit(job)
            return
        agent = self._agents[job.agent_id]
        self.books.device_jobs += 1
        each_s = agent.s_per_item.get(job.model)
        situation = overflow.Situation(
            items_ahead=sum(agent.items_ahead[job.priority :]),
            items_per_s=0.0 if each_s is None else 1.0 / each_s,
            model_here=each_s is not None,
            hub_reachable=agent.reachable,
            handed_over=agent.handed_over,
        )
        if not overflow.decide(situation, priority=job.priority, remaining_s=None, policy=OVERFLOW).hand_over:
            self._accept(now, agent, job)
            return
        self.books.handed_over += 1
        agent.handed_over += 1
        job.origin, job.home, job.agent_id = agent.agent_id, agent.site, None
        self._cross(now, agent, self._submit, job)

    def _submit(self, now: float, job: agents.Job) -> None:
        self._policy.submit(job)

    def _pass(self, now: float, number: int) -> None:
        """The hub decides, and leases and commands go out."""
        books, policy = self.books, self._policy
        beats = round(HEARTBEAT_S / PASS_S)
        self._changed.update(self._agents[number % beats :: beats])
        began = time.perf_counter()
        for agent in self._changed:
            policy.report(agent, now)
        self._changed.clear()
        going = policy.decide(now)
        books.hub_s += time.perf_counter() - began
        books.passes += 1
        books.placed += len(going)
        for job, agent_id in going:
            agent = self._agents[agent_id]
            job.agent_id, job.granted_s = agent_id, now
            agent.leases.add(job)
            self._at(now + job.payload_bytes / agent.bytes_per_s, self._deliver, agent, job)
        began = time.perf_counter()
        stopping = policy.preempt(now)
        books.hub_s += time.perf_counter() - began
        for job in stopping:
            assert job.agent_id is not None
            job.stopping = True
            books.preemptions += 1
            self._cross(now, self._agents[job.agent_id], self._stop, job)
        self._measure(now, going)
        self._at(now + PASS_S, self._pass, number + 1)

    def _measure(self, now: float, going: Iterable[tuple[agents.Job, int]]) -> None:
        """Shares and utilisation count as long as each queue of the backlog has enough tasks waiting."""
        if not self._backlogged:
            return
        books = self.books
        left = ((self._policy.waiting(queue), count) for queue, count in self._world.backlogs.items())
        if all(waiting > FEW * count for waiting, count in left):
            for job, agent_id in going:
                if job.queue in world.WEIGHTS:
                    books.served[job.queue] += job.items * self._agents[agent_id].s_per_item[job.model]
            return
        self._backlogged = False
        books.backlogged_s = now
        busy_s = sum(one.busy_s + (now - one.began_s if one.running else 0.0) for one in self._agents)
        books.utilisation = busy_s / (len(self._agents) * max(now, PASS_S))

    def _cross(self, now: float, agent: agents.Agent, happens: Callable[..., None], *what: Any) -> None:
        """Something goes over an agent's link: now, or when the link is back."""
        if agent.reachable:
            happens(now, *what)
        else:
            self._late[agent.site].append((happens, what))

    def _deliver(self, now: float, agent: agents.Agent, job: agents.Job) -> None:
        self._cross(now, agent, self._lease, agent, job)

    def _lease(self, now: float, agent: agents.Agent, job: agents.Job) -> None:
        """A lease is there; unless it was preempted on its way."""
        if job.stopping:
            agent.leases.discard(job)
            self._return(now, agent, job)
        else:
            self._accept(now, agent, job)

    def _accept(self, now: float, agent: agents.Agent, job: agents.Job) -> None:
        agent.accept(job)
        self._changed.add(agent)
        if agent.running is None:
            self._next(now, agent)
        elif agent.is_behind():
            self._interrupt(now, agent)

    def _next(self, now: float, agent: agents.Agent) -> None:
        end_s = agent.next(now)
        if end_s is None:
            return
        job = agent.running
        assert job is not None
        self._at(end_s, self._end, agent, agent.token)
        if not job.started:
            job.started = True
            self.books.waits[job.priority].append(now - job.arrived_s)

    def _interrupt(self, now: float, agent: agents.Agent) -> None:
        pause_s = agent.interrupt(now)
        if pause_s is not None:
            self._at(pause_s, self._pause, agent, agent.token)

    def _pause(self, now: float, agent: agents.Agent, token: int) -> None:
        """An item boundary at which the running task gives way."""
        if token != agent.token:
            return
        job = agent.pause(now)
        if job.stopping:
            agent.drop(job)
            self._return(now, agent, job)
        else:
            agent.resume(job)
        self._next(now, agent)
        self._changed.add(agent)

    def _end(self, now: float, agent: agents.Agent, token: int) -> None:
        """A task has run."""
        if token != agent.token:
            return
        job = agent.end(now)
        if job.granted_s is not None:
            self._policy.ended(job)
        if job.origin is not None:
            self._agents[job.origin].handed_over -= 1
        self._left -= 1
        self._next(now, agent)
        self._changed.add(agent)

    def _stop(self, now: float, job: agents.Job) -> None:
        """The command to preempt is there: the task may run, wait, be on its way, or have ended."""
        assert job.agent_id is not None
        agent = self._agents[job.agent_id]
        if job not in agent.leases:
            return
        if agent.running is job:
            self._interrupt(now, agent)
        elif agent.take_back(job):
            self._return(now, agent, job)

    def _return(self, now: float, agent: agents.Agent, job: agents.Job) -> None:
        """A preempted task is queued again, with what it has done kept."""
        self._policy.ended(job)
        job.stopping, job.preempted_s, job.agent_id = False, now, None
        self._policy.submit(job)
        self._changed.add(agent)

    def _cut(self, now: float, site: int) -> None:
        for agent in self._world.sites[site]:
            agent.reachable = False
            self._changed.add(agent)

    def _mend(self, now: float, site: int) -> None:
        here = self._world.sites[site]
        for agent in here:
            agent.reachable = True
            self._changed.add(agent)
        for happens, what in self._late.pop(here[0].site, ()):
            happens(now, *what)

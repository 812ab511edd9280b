"""The hub's side of a simulation: what waits, and a policy that says where it goes.

`Backhaul` runs the hub's own code. `FirstCome` is what one writes first: in order of arrival, to any agent
that has the model and room.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, overload

from benchmarks.simulation import agents
from cloud_hub.scheduler import placement, plan, preemption, snapshot
from shared import fairness, selectors

Kind = tuple[str, str, str, int | None]
"""Model, queue, selector, origin: a class of tasks."""


class Policy(Protocol):
    """Where the hub's tasks go."""

    def submit(self, job: agents.Job) -> None:
        """A task is queued, for the first time or again."""

    def report(self, agent: agents.Agent, now: float) -> None:
        """What an agent advertises has changed."""

    def decide(self, now: float) -> list[tuple[agents.Job, int]]:
        """A pass: tasks that leave the queue, and the agents that get them."""

    def ended(self, job: agents.Job) -> None:
        """An agent holds a task no more; items that are left will be queued again."""

    def preempt(self, now: float) -> list[agents.Job]:
        """After a pass: held tasks that are to stop."""

    def waiting(self, queue: str) -> int:
        """Tasks of a queue that wait at the hub."""


class Line(Sequence[snapshot.Task]):
    """The queued tasks of one class and priority, as the policy sees them: made when they are looked at."""

    def __init__(self, class_id: int) -> None:
        self.class_id = class_id
        self.jobs: deque[agents.Job] = deque()
        self._now = 0.0
        self._made: list[snapshot.Task] = []
        self._rest: Iterator[agents.Job] = iter(())

    def at(self, now: float) -> Line:
        """The line as it stands now."""
        self._now = now
        self._made = []
        self._rest = iter(self.jobs)
        return self

    def add(self, job: agents.Job) -> None:
        """In order of age: one that comes again goes to where it was."""
        place = len(self.jobs)
        if place and self.jobs[-1].number > job.number:
            place = next(at for at, other in enumerate(self.jobs) if other.number > job.number)
        self.jobs.insert(place, job)

    def __len__(self) -> int:
        return len(self.jobs)

    @overload
    def __getitem__(self, place: int) -> snapshot.Task: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[snapshot.Task]: ...
    def __getitem__(self, place: int | slice) -> snapshot.Task | Sequence[snapshot.Task]:
        made = self._made
        until = place + 1 if isinstance(place, int) else min(len(self.jobs), place.stop)
        if len(made) < until:
            made.extend(self._task(job) for job in itertools.islice(self._rest, until - len(made)))
        return made[place]

    def _task(self, job: agents.Job) -> snapshot.Task:
        return snapshot.Task(
            job.number.to_bytes(16, "big"),
            self.class_id,
            job.model,
            None,
            job.queue,
            job.selector,
            job.priority,
            job.items,
            job.payload_bytes,
            self._now - job.arrived_s,
            job.origin,
            job.home,
        )


class Lines:
    """All that waits at the hub."""

    def __init__(self) -> None:
        self._classes: dict[Kind, int] = {}
        self._lines: dict[tuple[int, int], Line] = {}
        self._depths: dict[str, int] = {}

    def add(self, job: agents.Job) -> None:
        kind = (job.model, job.queue, job.selector, job.origin)
        job.class_id = self._classes.setdefault(kind, len(self._classes) + 1)
        line = self._lines.get((job.class_id, job.priority))
        if line is None:
            line = self._lines[job.class_id, job.priority] = Line(job.class_id)
        line.add(job)
        self._depths[job.queue] = self._depths.get(job.queue, 0) + 1

    def heads(self, now: float) -> list[snapshot.Head]:
        """Every class and priority that waits; none is cut."""
        return [
            snapshot.Head(class_id, priority, len(line), line.at(now))
            for (class_id, priority), line in self._lines.items()
        ]

    def take(self, class_id: int, priority: int) -> agents.Job:
        """The oldest of a line leaves."""
        line = self._lines[class_id, priority]
        job = line.jobs.popleft()
        if not line.jobs:
            del self._lines[class_id, priority]
        self._depths[job.queue] -= 1
        return job

    def depth(self, queue: str) -> int:
        return self._depths.get(queue, 0)

    def __bool__(self) -> bool:
        return bool(self._lines)


def _executor(agent: agents.Agent, now: float) -> snapshot.Executor:
    return snapshot.Executor(
        agent.agent_id,
        agent.site,
        agent.labels,
        agent.credits() if agent.reachable else 0,
        {(model, "1"): 1.0 / each_s for model, each_s in agent.s_per_item.items()},
        agent.predicted_wait_s(now),
        agent.bytes_per_s,
    )


class Backhaul:
    """The hub's policy."""

    def __init__(
        self, fleet: Sequence[agents.Agent], weights: Mapping[str, float], rules: snapshot.Rules
    ) -> None:
        self._rules = rules
        self._weights = weights
        self._agents = {agent.agent_id: agent for agent in fleet}
        self._fleet = placement.Fleet((_executor(agent, 0.0) for agent in fleet), rules)
        self._queues = {name: snapshot.Queue(name, weight) for name, weight in weights.items()}
        self._clocks: dict[int, fairness.FairClock] = {}
        self._lines = Lines()
        self._held: list[set[agents.Job]] = [set() for _ in range(10)]
        """By effective priority when granted."""
        self._stopping: set[agents.Job] = set()
        self._unplaced: list[snapshot.Task] = []

    def submit(self, job: agents.Job) -> None:
        self._lines.add(job)

    def report(self, agent: agents.Agent, now: float) -> None:
        credits_ = agent.credits() if agent.reachable else 0
        self._fleet.report(agent.agent_id, credits_, agent.predicted_wait_s(now))

    def waiting(self, queue: str) -> int:
        return self._lines.depth(queue)

    def decide(self, now: float) -> list[tuple[agents.Job, int]]:
        self._unplaced = []
        if not self._lines:
            return []
        made = plan.plan(self._lines.heads(now), self._fleet, self._queues, self._clocks, self._rules)
        self._clocks |= made.clocks
        self._unplaced = made.unplaced
        going = []
        for task, choice, level in made.placements:
            job = self._lines.take(task.class_id, task.priority)
            job.level = level
            self._held[level].add(job)
            going.append((job, choice.agent_id))
        return going

    def ended(self, job: agents.Job) -> None:
        if job.items:
            left_s = job.items * self._at(job).s_per_item[job.model]
            self._clocks[job.level].refund(job.queue, self._weights.get(job.queue, 1.0), left_s)
        self._held[job.level].discard(job)
        self._stopping.discard(job)

    def preempt(self, now: float) -> list[agents.Job]:
        lowest = next((level for level, jobs in enumerate(self._held) if jobs), 10)
        waiting = [task for task in self._unplaced if task.priority > lowest]
        if not waiting:
            return []
        jobs = {job.number.to_bytes(16, "big"): job for job in self._stoppable(waiting)}
        held = [self._book(task_id, job, now) for task_id, job in jobs.items()]
        victims = preemption.victims(waiting, held, self._fleet, self._rules)
        stopping = [jobs[victim.task_id] for victim in victims]
        self._stopping.update(stopping)
        return stopping

    def _stoppable(self, waiting: Sequence[snapshot.Task]) -> set[agents.Job]:
        """What is held where one of these could run, and is less urgent: no other could be a victim.

        A hub reads all of it from its database; here it would be most of the simulation's time.
        """
        urgency: dict[tuple[str, str], int] = {}
        for task in waiting:
            kind = (task.model, task.selector)
            urgency[kind] = max(task.priority, urgency.get(kind, 0))
        found = {job for job in self._stopping if self._at(job).reachable}
        for (model, selector), priority in urgency.items():
            able = self._fleet.able(model, None, selector)
            if len(able) < sum(map(len, self._held[:priority])):
                those = (job for agent_id in able for job in self._agents[agent_id].leases)
            else:
                those = (job for level in self._held[:priority] for job in level if job.agent_id in able)
            found.update(job for job in those if job.level < priority and self._at(job).reachable)
        return found

    def _at(self, job: agents.Job) -> agents.Agent:
        assert job.agent_id is not None
        return self._agents[job.agent_id]

    def _book(self, task_id: bytes, job: agents.Job, now: float) -> snapshot.Held:
        agent = self._at(job)
        assert job.granted_s is not None
        runs = agent.running is job
        return snapshot.Held(
            task_id,
            agent.agent_id,
            1,
            job.class_id,
            job.model,
            None,
            job.selector,
            job.level,
            job.items,
            (now - agent.began_s) % agent.s_per_item[job.model] if runs else 0.0,
            now - job.granted_s,
            None if job.preempted_s is None else now - job.preempted_s,
            job.stopping,
        )


class FirstCome:
    """In order of arrival, each to any agent that can run it and has room; nothing is ever preempted."""

    def __init__(self, fleet: Sequence[agents.Agent], seed: int) -> None:
        self._dice = random.Random(seed)
        self._agents = fleet
        self._able: dict[tuple[str, str], list[agents.Agent]] = {}
        self._room: dict[int, int] = {}
        self._lines: dict[tuple[str, str], Line] = {}
        self._depths: dict[str, int] = {}

    def submit(self, job: agents.Job) -> None:
        self._lines.setdefault((job.model, job.selector), Line(0)).add(job)
        self._depths[job.queue] = self._depths.get(job.queue, 0) + 1

    def report(self, agent: agents.Agent, now: float) -> None:
        self._room[agent.agent_id] = agent.credits() if agent.reachable else 0

    def waiting(self, queue: str) -> int:
        return self._depths.get(queue, 0)

    def decide(self, now: float) -> list[tuple[agents.Job, int]]:
        going = []
        turns = [(line.jobs[0].number, kind) for kind, line in self._lines.items() if line.jobs]
        heapq.heapify(turns)
        free = {
            kind: [one for one in self._those(kind) if self._room.get(one.agent_id, 0) > 0]
            for _, kind in turns
        }
        while turns:
            _, kind = turns[0]
            agent = self._any(free[kind])
            if agent is None:
                heapq.heappop(turns)
                continue
            jobs = self._lines[kind].jobs
            job = jobs.popleft()
            job.level = 0  # to the agents, too, all are alike
            self._depths[job.queue] -= 1
            self._room[agent.agent_id] -= 1
            going.append((job, agent.agent_id))
            if jobs:
                heapq.heapreplace(turns, (jobs[0].number, kind))
            else:
                heapq.heappop(turns)
        return going

    def ended(self, job: agents.Job) -> None:
        pass

    def preempt(self, now: float) -> list[agents.Job]:
        return []

    def _any(self, free: list[agents.Agent]) -> agents.Agent | None:
        """One of those that still have room."""
        while free:
            place = self._dice.randrange(len(free))
            if self._room[free[place].agent_id] > 0:
                return free[place]
            free[place] = free[-1]
            free.pop()
        return None

    def _those(self, kind: tuple[str, str]) -> list[agents.Agent]:
        able = self._able.get(kind)
        if able is None:
            model, selector = kind
            wanted = selectors.parse(selector)
            able = self._able[kind] = [
                one
                for one in self._agents
                if model in one.s_per_item and selectors.matches(wanted, one.labels)
            ]
        return able

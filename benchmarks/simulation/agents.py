"""A simulated agent: one executor that works off what its devices and the hub gave it, the most urgent first.

It looks for more urgent work at each item boundary, as the real one does between batches; a task that gives
way keeps its checkpoint. Times are virtual seconds.
"""

from __future__ import annotations

import heapq
import math
from typing import Final

from edge_agent import overflow, settings

LEASES: Final = settings.Leases()


class Job:
    """A task on its way through the world."""

    __slots__ = (
        "agent_id",
        "arrived_s",
        "class_id",
        "granted_s",
        "home",
        "items",
        "level",
        "model",
        "number",
        "origin",
        "payload_bytes",
        "preempted_s",
        "priority",
        "queue",
        "selector",
        "started",
        "stopping",
    )

    def __init__(
        self,
        number: int,
        arrived_s: float,
        model: str,
        queue: str,
        priority: int,
        items: int,
        *,
        selector: str = "",
        agent_id: int | None = None,
    ) -> None:
        self.number = number
        """In order of arrival: its age."""
        self.arrived_s = arrived_s
        self.model = model
        self.queue = queue
        self.priority = self.level = priority
        self.items = items
        """Left to run."""
        self.payload_bytes = items * 20_000
        self.selector = selector
        self.agent_id = agent_id
        """Who holds it, or whose device published it."""
        self.origin: int | None = None
        self.home: str | None = None
        self.class_id = 0
        self.started = self.stopping = False
        self.granted_s: float | None = None
        """When the hub last gave it to an agent; None for one that runs where it was published."""
        self.preempted_s: float | None = None


class Agent:
    """An executor with its queue."""

    __slots__ = (
        "_waiting",
        "agent_id",
        "began_s",
        "busy_s",
        "bytes_per_s",
        "device_items",
        "handed_over",
        "items_ahead",
        "labels",
        "leases",
        "reachable",
        "running",
        "s_per_item",
        "site",
        "speed",
        "token",
        "waiting_s",
    )

    def __init__(
        self, agent_id: int, site: str, labels: dict[str, str], speeds: dict[str, float], bytes_per_s: float
    ) -> None:
        self.agent_id = agent_id
        self.site = site
        self.labels = labels
        self.s_per_item = {model: 1.0 / speed for model, speed in speeds.items()}
        self.speed = sum(speeds.values()) / len(speeds)
        self.bytes_per_s = bytes_per_s
        self.reachable = True
        self.leases: set[Job] = set()
        """Of the hub, those that are still on their way included."""
        self.device_items = 0
        self.handed_over = 0
        """Its devices' jobs that the hub has."""
        self.items_ahead = [0] * 10
        """By effective priority: items that wait or run."""
        self.running: Job | None = None
        self.began_s = 0.0
        self.busy_s = 0.0
        self.token = 0
        """Of the event that ends what runs; an older one is void."""
        self.waiting_s = 0.0
        """Seconds of work that wait."""
        self._waiting: list[tuple[int, int, Job]] = []

    def credits(self) -> int:
        """How many more of the hub's tasks it would take, by the agent's own rule."""
        room = overflow.capacity(queued_items=self.device_items, items_per_s=self.speed, policy=LEASES)
        return room - len(self.leases)

    def predicted_wait_s(self, now: float) -> float:
        """Until a task that came now would run."""
        job = self.running
        if job is None:
            return self.waiting_s
        left_s = self.began_s + job.items * self.s_per_item[job.model] - now
        return self.waiting_s + max(0.0, left_s)

    def accept(self, job: Job) -> None:
        """A task is here; it waits for its turn."""
        self.items_ahead[job.level] += job.items
        if job.granted_s is None:
            self.device_items += job.items
        self._queue(job)

    def next(self, now: float) -> float | None:
        """Start the most urgent task; returns when it will have run."""
        if not self._waiting:
            return None
        job = heapq.heappop(self._waiting)[2]
        run_s = job.items * self.s_per_item[job.model]
        self.waiting_s = self.waiting_s - run_s if self._waiting else 0.0
        self.running = job
        self.began_s = now
        self.token += 1
        return now + run_s

    def interrupt(self, now: float) -> float | None:
        """When the item that runs now has run, and the task is to pause; None if it is done then."""
        job = self.running
        assert job is not None
        each_s = self.s_per_item[job.model]
        items = max(1, math.ceil((now - self.began_s) / each_s - 1e-9))
        if items >= job.items:
            return None
        self.token += 1
        return self.began_s + items * each_s

    def pause(self, now: float) -> Job:
        """At a boundary: the task that ran stops, with what it has done kept."""
        job = self.running
        assert job is not None
        self._ran(job, round((now - self.began_s) / self.s_per_item[job.model]), now)
        return job

    def end(self, now: float) -> Job:
        """The task that ran has run."""
        job = self.running
        assert job is not None
        self._ran(job, job.items, now)
        if job.granted_s is not None:
            self.leases.discard(job)
        return job

    def resume(self, job: Job) -> None:
        """A task that was paused waits for its turn again."""
        self._queue(job)

    def drop(self, job: Job) -> None:
        """A paused or waiting task leaves for the hub."""
        self.leases.discard(job)
        self.items_ahead[job.level] -= job.items

    def take_back(self, job: Job) -> bool:
        """A lease that waits leaves; False if it is not waiting here."""
        for place, (_, _, other) in enumerate(self._waiting):
            if other is job:
                self._waiting[place] = self._waiting[-1]
                self._waiting.pop()
                heapq.heapify(self._waiting)
                self.waiting_s -= job.items * self.s_per_item[job.model]
                self.drop(job)
                return True
        return False

    def is_behind(self) -> bool:
        """Whether something more urgent waits than what runs."""
        return self.running is not None and bool(self._waiting) and -self._waiting[0][0] > self.running.level

    def _queue(self, job: Job) -> None:
        heapq.heappush(self._waiting, (-job.level, job.number, job))
        self.waiting_s += job.items * self.s_per_item[job.model]

    def _ran(self, job: Job, items: int, now: float) -> None:
        self.running = None
        self.busy_s += now - self.began_s
        job.items -= items
        self.items_ahead[job.level] -= items
        if job.granted_s is None:
            self.device_items -= items

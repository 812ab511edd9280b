"""Where each queued task goes: a pure function of a snapshot, in one pass.

Order: priority, higher first; then the fair-share tag; then age, which the task id carries (UUIDv7).
Placement: among the agents that have the model ready and credits left, the one predicted to complete
the task first, from the wait it reports, what was just given to it, and its measured speed. An agent
never gets more than its credits, and a task goes back to the agent that handed it over only if that
one says it is idle now, or if no other agent of the fleet has its model.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

UNMEASURED_ITEMS_PER_S: Final = 10.0
"""What a model that has not run yet on an agent is taken to do there."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A queued task, as far as placing it needs to know it."""

    task_id: bytes
    model: str
    version: str | None
    """None: any."""
    priority: int
    tag: float
    items: int
    origin_agent: int | None


@dataclass(frozen=True, slots=True)
class Executor:
    """An agent that may be given work."""

    agent_id: int
    credits: int
    """How many more tasks it is ready to hold."""
    models: dict[tuple[str, str], float]
    """(name, version) of what it has ready, with the measured items per second; 0 if not measured."""
    predicted_wait_s: float
    """What a task would wait there before its turn, as the agent reported it."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A task is to run on an agent."""

    task_id: bytes
    agent_id: int
    predicted_s: float
    """Until completion, from now."""
    candidates: int
    """How many agents could have taken it."""


@dataclass(slots=True)
class _Load:
    """An agent's share in this pass: what it was given counts at once."""

    executor: Executor
    credits: int
    wait_s: float


@dataclass(slots=True)
class _Able:
    """The agents that can run one (model, version)."""

    owners: frozenset[int]
    """All of them, those without credits too."""
    heap: list[tuple[float, int, _Load]]
    """(predicted completion of one item, agent id, load) of those with credits left."""


def place(queued: Sequence[Candidate], executors: Sequence[Executor]) -> list[Placement]:
    """Placements for as many of `queued` as credits allow, in the order in which they should go.

    O((tasks + agents) log agents) for each (model, version) in the queue.
    """
    loads = [_Load(executor, executor.credits, executor.predicted_wait_s) for executor in executors]
    able: dict[tuple[str, str | None], _Able] = {}
    placements = []
    for task in sorted(queued, key=lambda t: (-t.priority, t.tag, t.task_id)):
        those = able.get((task.model, task.version))
        if those is None:
            those = able[task.model, task.version] = _able(loads, task.model, task.version)
        load = _take(those, task)
        if load is None:
            continue
        load.credits -= 1
        load.wait_s += task.items * _seconds_per_item(load.executor, task.model, task.version)
        placements.append(Placement(task.task_id, load.executor.agent_id, load.wait_s, len(those.owners)))
    return placements


def _seconds_per_item(executor: Executor, model: str, version: str | None) -> float:
    speeds = (s for (name, has), s in executor.models.items() if name == model and version in (None, has))
    return 1.0 / (max(speeds, default=0.0) or UNMEASURED_ITEMS_PER_S)


def _able(loads: Sequence[_Load], model: str, version: str | None) -> _Able:
    having = [
        load
        for load in loads
        if any(name == model and version in (None, has) for name, has in load.executor.models)
    ]
    heap = [
        (load.wait_s + _seconds_per_item(load.executor, model, version), load.executor.agent_id, load)
        for load in having
        if load.credits > 0
    ]
    heapq.heapify(heap)
    return _Able(frozenset(load.executor.agent_id for load in having), heap)


def _take(able: _Able, task: Candidate) -> _Load | None:
    """The agent that will complete `task` first, or None while no agent that may take it has credits.

    Waits only grow during a pass, so an entry is corrected when it comes to the top.
    """
    heap = able.heap
    passed_over: tuple[float, int, _Load] | None = None  # the origin
    found: _Load | None = None
    while heap and found is None:
        completion, agent_id, load = heap[0]
        now = load.wait_s + _seconds_per_item(load.executor, task.model, task.version)
        if load.credits <= 0:
            heapq.heappop(heap)
        elif now > completion:
            heapq.heapreplace(heap, (now, agent_id, load))
        elif agent_id == task.origin_agent and load.executor.predicted_wait_s and able.owners != {agent_id}:
            passed_over = heapq.heappop(heap)
        else:
            found = load
    if passed_over is not None:
        heapq.heappush(heap, passed_over)
    return found

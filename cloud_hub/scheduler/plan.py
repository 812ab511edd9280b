"""One pass of the scheduler: which queued tasks go where. Pure: the same snapshot gives the same plan."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cloud_hub.scheduler import order, placement, snapshot
from shared import fairness


class Why(enum.StrEnum):
    """Why tasks of a class wait on."""

    NO_EXECUTOR = "no_executor"
    """No executor of the fleet can run them."""
    NO_ROOM = "no_room"
    """Those that can run them have no credits left."""
    QUEUE_FULL = "queue_full"
    """As many of their queue run as may."""


class Placement(NamedTuple):
    """A task is to run on an executor."""

    task: snapshot.Task
    choice: placement.Choice
    priority: int
    """Effective: as raised by its wait."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass decided."""

    placements: list[Placement]
    """In the order in which they should go."""
    unplaced: list[snapshot.Task]
    """Tasks for which no executor had room, the most urgent first: the first of each class."""
    more: bool
    """The pass ended at a head that was cut: read on, and there is more to place."""
    clocks: dict[int, fairness.FairClock]
    """By effective priority: those that went on, to replace the given ones when the plan was applied."""
    why: dict[int, Why]
    """By class that was looked at and has tasks left: why they wait."""


def plan(
    heads: Iterable[snapshot.Head],
    executors: Iterable[snapshot.Executor] | placement.Fleet,
    queues: Mapping[str, snapshot.Queue],
    clocks: Mapping[int, fairness.FairClock],
    rules: snapshot.Rules,
) -> Plan:
    """Place as many tasks as credits and the queues' rooms allow, in the order in which they should go.

    `executors` are all of the fleet, those without credits too. A `Fleet` given for them is changed: what
    a plan gives counts there at once, and until the executor reports. A queue that is not in `queues`
    has weight 1 and no limit; a priority without a clock starts a new one.

    Costs O(log executors + log queues) for each task placed, and O(1) for each head.
    """
    heads = list(heads)
    fleet = placement.fleet(executors, rules)
    turns = order.Order(heads, queues, clocks, rules)
    placements: list[Placement] = []
    unplaced: list[snapshot.Task] = []
    why: dict[int, Why] = {}
    while (fleet.room or len(unplaced) < rules.unplaced) and (task := turns.next()) is not None:
        choice = fleet.place(task)
        if choice is not None:
            placements.append(Placement(task, choice, turns.level))
            turns.placed(choice.run_s)
        else:
            able = fleet.able(task.model, task.version, task.selector)
            why[task.class_id] = Why.NO_ROOM if able else Why.NO_EXECUTOR
            unplaced.extend(turns.blocked())
    if turns.full:
        for head in heads:
            if head.tasks and head.tasks[0].queue in turns.full:
                why[head.class_id] = Why.QUEUE_FULL
    unplaced.sort(key=lambda task: -order.effective(task.priority, task.waited_s, rules))
    return Plan(placements, unplaced[: rules.unplaced], turns.more, turns.close(), why)

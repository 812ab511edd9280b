"""Which tasks stop at their next item boundary, with their checkpoint, so that more urgent ones can run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from cloud_hub.scheduler import placement, snapshot


class Victim(NamedTuple):
    """A held task that is to stop."""

    task_id: bytes
    agent_id: int
    attempt: int
    urgent: bytes
    """The task that is to have its room."""


def victims(
    waiting: Sequence[snapshot.Task],
    held: Sequence[snapshot.Held],
    executors: Iterable[snapshot.Executor] | placement.Fleet,
    rules: snapshot.Rules,
) -> list[Victim]:
    """One victim at most for each task of `waiting`, which are those without room, the most urgent first.

    Of the tasks held by executors that can run the waiting one, those may be stopped whose priority,
    effective when they were granted, is below its *declared* priority, unless they were preempted less
    than `cooldown_s` ago. They go by

    1. lowest priority,
    2. least work lost: those that wait for their turn, or are just past an item,
    3. youngest grant.

    A task that is stopping already is room on its way, and counts for the first waiting task that its
    executor can run; so it does not matter how often this is asked before the stopped ones have left. An
    executor with credits below zero gives no room when one of its tasks stops, and is left alone.

    Nothing ping-pongs: say d(t) is the declared and e(t) the effective priority of t when granted, so that
    e(t) >= d(t). If a preempts b, then d(a) > e(b) >= d(b). So along any chain of preemptions the declared
    priority falls, and it never changes: no task is preempted, be it through others, by one that it
    preempted.
    """
    fleet = placement.fleet(executors, rules)
    urgency = max((task.priority for task in waiting), default=-1)
    urgency = max((task.priority for task in waiting), default=-1)
    useful = [one for one in held if fleet.credits(one.agent_id) >= 0]
    leaving = _Search([one for one in useful if one.stopping])
    staying = _Search(
        sorted(
            (
                one
                for one in useful
                if one.priority < urgency
                and not one.stopping
                and (one.preempted_ago_s is None or one.preempted_ago_s >= rules.cooldown_s)
            ),
            key=lambda one: (one.priority, one.lost_s, one.held_s, one.task_id),
        )
    )
    found = []
    for task in waiting:
        able = fleet.able(task.model, task.version, task.selector)
        barred = fleet.barred(task)
        if leaving.take(task, able, barred, None) is None:
            victim = staying.take(task, able, barred, task.priority)
            if victim is not None:
                found.append(Victim(victim.task_id, victim.agent_id, victim.attempt, task.task_id))
    return found


class _Search:
    """Held tasks, of which each is taken once. Tasks alike go on where the last one ended."""

    def __init__(self, held: Sequence[snapshot.Held]) -> None:
        self._held = held
        self._taken: set[int] = set()
        self._from: dict[tuple[str, str | None, str, int | None], int] = {}

    def take(
        self, task: snapshot.Task, able: Collection[int], barred: int | None, below: int | None
    ) -> snapshot.Held | None:
        """The first that is left on an executor that may have `task`, of a priority under `below`."""
        kind = (task.model, task.version, task.selector, barred)
        place = self._from.get(kind, 0)
        found = None
        while place < len(self._held):
            one = self._held[place]
            if below is not None and one.priority >= below:
                break
            if place not in self._taken and one.agent_id in able and one.agent_id != barred:
                self._taken.add(place)
                found = one
                break
            place += 1
        self._from[kind] = place
        return found

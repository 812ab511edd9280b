"""Who is next: priority, raised by waiting; then the fair share of queues; then age.

Fair shares are by start-time fair queueing (`shared.fairness` names the papers), and tags are not stored:
tasks of one queue and priority go in order of age, so the start tag of a queue's next task can be computed
when it is looked at. One clock for each effective priority.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cloud_hub.scheduler import snapshot
from shared import fairness

HIGHEST: Final = 9


def effective(priority: int, waited_s: float, rules: snapshot.Rules) -> int:
    """`priority`, raised by one for each `aging_s` waited, by `aging_cap` at most: so nothing starves."""
    if waited_s < rules.aging_s or rules.aging_s <= 0:
        return priority
    return min(HIGHEST, priority + min(rules.aging_cap, int(waited_s / rules.aging_s)))


class Order:
    """The queued tasks of a snapshot in the order in which they should go.

    `next` gives the most urgent task that is not yet decided; `placed` or `blocked` decides it. Where a
    head was cut, its last known task stands for those that follow: when their turn would come the
    order ends, for what is next is not known, and `more` is true.

    The clocks that were given stay as they are; `clocks` holds those that have gone on.
    """

    def __init__(
        self,
        heads: Iterable[snapshot.Head],
        queues: Mapping[str, snapshot.Queue],
        clocks: Mapping[int, fairness.FairClock],
        rules: snapshot.Rules,
    ) -> None:
        self.more = False
        self.level = HIGHEST + 1
        """The effective priority of the task that `next` gave."""
        self.clocks: dict[int, fairness.FairClock] = {}
        self.full: set[str] = set()
        """Queues that had tasks left when they had no room left."""
        self._given = clocks
        self._queues = queues
        self._rules = rules
        self._room = {name: queue.room for name, queue in queues.items() if queue.room is not None}
        self._blocked: set[int] = set()
        self._levels: list[dict[str, _Line]] = [{} for _ in range(HIGHEST + 1)]
        self._turns: list[tuple[float, bytes, _Line]] = []
        """The lines of this level, a heap by (start tag, id of the oldest task)."""
        self._waiting: list[_Line] = []
        """Lines of this level that wait on, because no executor had room."""
        for head in heads:
            if head.tasks:
                self._join(_Cursor(head))

    def next(self) -> snapshot.Task | None:
        """The task whose turn it is; None when there is none, or none that is known."""
        while self._turns or self._descend():
            line = self._turns[0][2]
            cursor = line.cursors[0][1]
            if cursor.class_id in self._blocked:
                self._leave(line)
            elif line.queue.name in self._room and self._room[line.queue.name] <= 0:
                self.full.add(line.queue.name)
                heapq.heappop(self._turns)
            elif cursor.at == cursor.known:
                self.more = True
                return None
            else:
                return cursor.tasks[cursor.at]
        return None

    def placed(self, cost_s: float) -> None:
        """The task that `next` gave goes into service, for `cost_s` seconds of an executor."""
        line = self._turns[0][2]
        queue = line.queue
        clock = self.clocks[self.level]
        clock.serve(clock.stamp(queue.name, queue.weight, cost_s, line.start))
        step = cost_s / queue.weight
        line.start += step
        line.longest = max(line.longest, step)
        if queue.name in self._room:
            self._room[queue.name] -= 1
        self._advance(line)
        if line.cursors:
            heapq.heapreplace(self._turns, (line.start, line.cursors[0][0], line))
        else:
            heapq.heappop(self._turns)

    def blocked(self) -> Sequence[snapshot.Task]:
        """No executor has room for the task that `next` gave, and so for none of its class, which leaves.

        Returns that task and the next of its head, `unplaced_per_head` at most.
        """
        line = self._turns[0][2]
        cursor = line.cursors[0][1]
        self._blocked.add(cursor.class_id)
        self._leave(line)
        return cursor.tasks[cursor.at : cursor.at + self._rules.unplaced_per_head]

    def close(self) -> dict[int, fairness.FairClock]:
        """End the pass here; returns `clocks`, which now know of those that wait on."""
        clock = self.clocks.get(self.level)
        if clock is not None:
            ahead = {line.queue.name: line.start for _, _, line in self._turns}
            clock.keep([fairness.Group(ahead, math.inf), *_groups(self._waiting)])
        self._waiting.clear()
        return self.clocks

    def _descend(self) -> bool:
        """Go on to the next lower level that has tasks."""
        self.close()
        while self.level > 0 and not self._turns:
            self.level -= 1
            lines = self._levels[self.level]
            if not lines:
                continue
            given = self._given.get(self.level)
            clock = self.clocks[self.level] = given.copy() if given else fairness.FairClock()
            for name, line in lines.items():
                line.start = clock.start(name)
            self._turns = [(line.start, line.cursors[0][0], line) for line in lines.values()]
            heapq.heapify(self._turns)
        return bool(self._turns)

    def _join(self, cursor: _Cursor) -> None:
        """Put a cursor into the line of its next task."""
        task = cursor.tasks[cursor.at]
        lines = self._levels[effective(task.priority, task.waited_s, self._rules)]
        line = lines.get(task.queue)
        if line is None:
            line = lines[task.queue] = _Line(self._queues.get(task.queue) or snapshot.Queue(task.queue))
        heapq.heappush(line.cursors, (task.task_id, cursor))

    def _advance(self, line: _Line) -> None:
        """The first task of a line was placed: what follows it takes its turn, maybe on a lower level."""
        cursor = line.cursors[0][1]
        cursor.at += 1
        if cursor.at < cursor.known:
            task = cursor.tasks[cursor.at]
            if effective(task.priority, task.waited_s, self._rules) == self.level:
                heapq.heapreplace(line.cursors, (task.task_id, cursor))
            else:
                heapq.heappop(line.cursors)
                self._join(cursor)
        elif not cursor.cut:
            heapq.heappop(line.cursors)

    def _leave(self, line: _Line) -> None:
        """The first cursor of a line is of a class without room."""
        cursor = heapq.heappop(line.cursors)[1]
        line.models.add(cursor.tasks[0].model)
        if line.cursors:
            heapq.heapreplace(self._turns, (line.start, line.cursors[0][0], line))
        else:
            heapq.heappop(self._turns)
            self._waiting.append(line)


class _Cursor:
    """A head, and how far it was worked off in this pass."""

    __slots__ = ("at", "class_id", "cut", "known", "tasks")

    def __init__(self, head: snapshot.Head) -> None:
        self.tasks = head.tasks
        self.known = len(head.tasks)
        self.cut = head.cut
        self.class_id = head.class_id
        self.at = 0


class _Line:
    """The tasks of one queue on one level."""

    __slots__ = ("cursors", "longest", "models", "queue", "start")

    def __init__(self, queue: snapshot.Queue) -> None:
        self.queue = queue
        self.start = 0.0
        """Start tag of the next task: fixed while it waits, whatever virtual time does."""
        self.longest = 0.0
        """The largest cost / weight of a task that it was given in this pass."""
        self.models: set[str] = set()
        """Those that it waits for."""
        self.cursors: list[tuple[bytes, _Cursor]] = []
        """A heap by the id of the next task: age."""


def _groups(lines: Iterable[_Line]) -> list[fairness.Group]:
    """Lines that wait for the same models, be it by way of others, wait for the same executors."""
    parts: list[tuple[set[str], list[_Line]]] = []
    for line in lines:
        models, members = set(line.models), [line]
        apart = []
        for part in parts:
            if part[0] & models:
                models |= part[0]
                members += part[1]
            else:
                apart.append(part)
        parts = [*apart, (models, members)]
    return [
        fairness.Group({one.queue.name: one.start for one in members}, max(one.longest for one in members))
        for _, members in parts
    ]

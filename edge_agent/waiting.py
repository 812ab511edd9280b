"""Tasks that wait for their turn, as the batcher holds them: by model, by stream, and in heaps. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final

import msgspec

from edge_agent import models

_SWEEP: Final = 64
"""Entries that have left are swept out of a heap when they are more than those that have not, and this."""

Order = tuple[float, float, int]
"""Of a task: what is smaller goes first."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A task that waits for its turn."""

    task_id: bytes
    seq: int
    """Its number in the journal: older is smaller."""
    model: models.Model
    priority: int
    queue: str
    tag: float
    """Its virtual start tag (see `shared.fairness`)."""
    items: int
    not_after: float | None = None
    """Monotonic seconds at which its answer is of no use any more."""
    payload_bytes: int = 0
    alone: bool = False
    """It goes on from a checkpoint: not in a batch with others."""
    stream: str | None = None
    """It runs after the tasks of that stream, on the same model, which came before it."""

    @property
    def key(self) -> models.Key:
        return self.model.key

    @property
    def long(self) -> bool:
        """Whether it takes more than one batch, or goes on after one."""
        return self.alone or self.items > self.model.max_batch

    @property
    def order(self) -> Order:
        """What is smaller goes first."""
        return (-self.priority, self.tag, self.seq)


class Entry:
    """A waiting task, as the heaps hold it."""

    __slots__ = ("gone", "order", "ready_at", "shown", "task")

    def __init__(self, task: Waiting, ready_at: float) -> None:
        self.task = task
        self.order = task.order
        """What is smaller goes first; of a stream's task no smaller than of those before it."""
        self.ready_at = ready_at
        """When it has waited long enough for company."""
        self.shown = False
        """Whether it stands among those that may go."""
        self.gone = False


class Line:
    """The tasks of one stream, by their age."""

    __slots__ = ("head", "last", "running", "waiting")

    def __init__(self) -> None:
        self.waiting = Heap()
        self.head: Entry | None = None
        """The first of them, while it may go."""
        self.running = 0
        """Those that were taken, and have not settled."""
        self.last: Order = (-math.inf, -math.inf, -1)
        """The order of the youngest that was ever in it."""

    def order_of(self, task: Waiting) -> Order:
        """The order of a task that comes: no better than of those before it, no worse than those behind.

        So whoever goes last of all is the last of its stream.
        """
        if task.seq > self.last[2]:
            self.last = (*max(self.last[:2], task.order[:2]), task.seq)
            return self.last
        place = task.order[:2]  # it comes again, or late: that is seldom
        place = max([place, *(one.order[:2] for one in self.waiting if one.task.seq < task.seq)])
        place = min([place, *(one.order[:2] for one in self.waiting if one.task.seq > task.seq)])
        return (*place, task.seq)


class Group:
    """The waiting tasks of one model."""

    __slots__ = ("best", "items", "model", "ready", "tasks")

    def __init__(self, model: models.Model) -> None:
        self.model = model
        self.best = Heap()
        self.ready = Heap()
        self.tasks = 0
        self.items = 0


class Heap:
    """Entries by key, the smallest first. One that has gone is dropped when it comes up, or swept out."""

    __slots__ = ("_gone", "_heap", "_pushed")

    def __init__(self) -> None:
        self._heap: list[tuple[Order, int, Entry]] = []
        self._pushed = 0
        self._gone = 0

    def __iter__(self) -> Iterator[Entry]:
        """All that are left, in no order."""
        return (entry for _, _, entry in self._heap if not entry.gone)

    def push(self, key: Order, entry: Entry) -> None:
        self._pushed += 1  # of equal keys the first; entries themselves have no order
        heapq.heappush(self._heap, (key, self._pushed, entry))

    def first_or_none(self) -> Entry | None:
        heap = self._heap
        while heap:
            entry = heap[0][2]
            if not entry.gone:
                return entry
            heapq.heappop(heap)
            self._gone -= 1
        return None

    def first(self) -> Entry:
        """The smallest; there must be one."""
        entry = self.first_or_none()
        if entry is None:
            raise IndexError("the heap is empty")
        return entry

    def left(self) -> None:
        """One of the entries is gone."""
        self._gone += 1
        if self._gone > _SWEEP and self._gone * 2 > len(self._heap):
            self._heap = [item for item in self._heap if not item[2].gone]
            heapq.heapify(self._heap)
            self._gone = 0

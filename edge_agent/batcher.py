"""What runs next, and with what in one batch. Pure: no clock, no I/O, no locks of its own.

A batch is of one model. Order is by priority (higher first), then by fair tag (lower first), then
by age. The task that is first of all decides the model; the batch then takes that model's tasks in
the same order for as long as they fit.

How many items make a full batch is the word of the model's policy (see `batch_size`), and whether one
that is not full is worth waiting for. Then, while nothing else waits, it waits until its oldest task has
waited `max_delay_ms`. With tasks of another model waiting too it goes at once, for they would pay for the
delay; so does a task whose deadline leaves no time to wait.

Tasks of one stream run in the order of their arrival, whatever their priorities and tags: each has its turn
no earlier than those before it, and goes when they have ended, or right behind them in the same batch. A
model that is out of memory is passed over until it is back (see `residents`).

The batcher holds the best tasks of a longer queue that the journal keeps: it refuses what is beyond
its capacity, and gives back its worst to make room for better ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edge_agent import batch_size, models, waiting

Waiting = waiting.Waiting

Sizing = Callable[[models.Model], batch_size.Policy]
"""What is known of a model's batches now."""

Away = Callable[[models.Model], bool]
"""Whether a model cannot run now, for it is out of memory; whoever is asked has it brought back."""


def whole(model: models.Model) -> batch_size.Policy:
    """Batches as large and as patient as the manifest lets them be."""
    return batch_size.Whole(model.max_batch)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of one model that run together."""

    model: models.Model
    tasks: tuple[Waiting, ...]

    @property
    def items(self) -> int:
        return sum(task.items for task in self.tasks)


class Batcher:
    """The tasks that wait in memory. Every call costs O(log n) of the tasks, amortised.

    Times are monotonic seconds, and never go back from call to call.
    """

    def __init__(self, capacity: int, sizing: Sizing = whole, away: Away | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: at least 1 is needed")
        self._capacity = capacity
        self._sizing = sizing
        self._away = away
        self._entries: dict[bytes, waiting.Entry] = {}
        self._groups: dict[models.Key, waiting.Group] = {}
        """Of each model the tasks that may go: all but those that wait for others of their stream."""
        self._lines: dict[tuple[models.Key, str], waiting.Line] = {}
        """Streams of which tasks wait, or run."""
        self._worst = waiting.Heap()
        self._deadlines = waiting.Heap()
        self._expired: list[Waiting] = []
        self._bytes = 0

    @property
    def depth(self) -> int:
        """How many tasks wait."""
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether there is no room for another task."""
        return len(self._entries) >= self._capacity

    @property
    def payload_bytes(self) -> int:
        """The bytes of all waiting tasks' payloads."""
        return self._bytes

    @property
    def items_by_model(self) -> dict[models.Key, int]:
        """How many items wait for each model."""
        return {key: group.items for key, group in self._groups.items()}

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._entries

    def offer(self, task: Waiting, now: float, *, anyway: bool = False) -> bool:
        """Let `task` wait here; False if there is no room. A task that waits here already stays as it is.

        `anyway`: for one that was here before and waits once more, or comes in another's place. Few are
        beyond the capacity, for few run at one time.
        """
        if task.task_id in self._entries:
            return True
        if self.full and not anyway:
            return False
        ready_at = now + task.model.manifest.batching.max_delay_ms / 1000
        if task.not_after is not None and task.not_after <= ready_at:
            ready_at = now
        entry = waiting.Entry(task, ready_at)
        if task.stream is None:
            self._show(entry)
        else:
            self._line_up(entry, (task.key, task.stream))
        priority, tag, seq = entry.order
        self._worst.push((-priority, -tag, -seq), entry)
        if task.not_after is not None:
            self._deadlines.push((task.not_after, 0.0, seq), entry)
        self._sizing(task.model).arrived(task.items, now)
        self._bytes += task.payload_bytes
        self._entries[task.task_id] = entry
        return True

    def settled(self, task: Waiting) -> None:
        """A task of a stream that was taken has ended, or was offered again: the next may go."""
        assert task.stream is not None
        place = task.key, task.stream
        line = self._lines[place]
        line.running -= 1
        if not line.running:
            self._advance(place, line)

    def take(self, now: float, *, ahead: bool = False) -> Batch | None:
        """The batch to run now, for an executor that is free; None if there is none yet (see `wake_at`).

        `ahead`: for one that is still busy. Only a full batch is worth taking then: a smaller one may
        grow while it waits. A task that has expired is never in it, whether `expired` was asked or not.
        """
        self._expire(now)
        if not self._groups:
            return None
        group = self._best()
        if group is None or not (self._is_full(group) if ahead else self._is_ready(group, now)):
            return None
        not_after = group.best.first().task.not_after
        left_s = None if not_after is None else not_after - now
        size = self._sizing(group.model).take(group.items, left_s)
        tasks: list[Waiting] = []
        items = 0
        while group.tasks > 0:
            task = group.best.first().task
            crowded = items + task.items > size
            if tasks and (crowded or task.alone or tasks[-1].alone):
                break
            self._remove(task.task_id, runs=True)
            tasks.append(task)
            items += task.items
        if self._lines:
            tasks += self._behind(tasks, size - items)
        return Batch(group.model, tuple(tasks))

    def wake_at(self, now: float) -> float | None:
        """When `take` or `expired` will next have something, if nothing more is offered; None for never."""
        self._expire(now)
        if self._expired:
            return now
        if not self._groups:
            return None
        here = self._here()
        if any(self._is_ready(group, now) for group in here):
            return now
        deadline = self._deadlines.first_or_none()
        wakes = [group.ready.first().ready_at for group in here]
        if deadline is not None and deadline.task.not_after is not None:
            wakes.append(deadline.task.not_after)
        return min(wakes, default=None)

    def first(self, now: float) -> Waiting | None:
        """The task that goes first, whether its batch is ready or not."""
        self._expire(now)
        group = self._best()
        return None if group is None else group.best.first().task

    def expired(self, now: float) -> list[Waiting]:
        """Tasks whose `not_after` has come; each is handed out once, and waits no longer."""
        self._expire(now)
        gone, self._expired = self._expired, []
        return gone

    def cancel(self, task_id: bytes) -> Waiting | None:
        """Take the task out; None if it does not wait here."""
        return self._remove(task_id) if task_id in self._entries else None

    def worst(self) -> Waiting | None:
        """The task that would go last."""
        return self._worst.first().task if self._entries else None

    def goes_before_worst(self, task: Waiting) -> bool:
        """Whether a task of no stream would go before that one: it stands no better than those before it in
        its own stream."""
        return bool(self._entries) and task.order < self._worst.first().order

    def evict_worst(self) -> Waiting | None:
        """Take out the task that would go last, to make room for a better one."""
        last = self.worst()
        return None if last is None else self._remove(last.task_id)

    def _best(self) -> waiting.Group | None:
        """The tasks of the model whose turn it is: one step for each model that waits, not for each task."""
        return min(self._here(), key=lambda group: group.best.first().order, default=None)

    def _here(self) -> Collection[waiting.Group]:
        """Those that can run: all, unless memory is short."""
        if self._away is None:
            return self._groups.values()
        return [group for group in self._groups.values() if not self._away(group.model)]

    def _is_full(self, group: waiting.Group) -> bool:
        return group.items >= self._sizing(group.model).size

    def _is_ready(self, group: waiting.Group, now: float) -> bool:
        delay_s = group.ready.first().ready_at - now
        return (
            len(self._groups) > 1
            or delay_s <= 0
            or self._is_full(group)
            or not self._sizing(group.model).waits(group.items, delay_s, now)
        )

    def _expire(self, now: float) -> None:
        while (entry := self._deadlines.first_or_none()) is not None:
            if entry.task.not_after is None or entry.task.not_after > now:
                return
            self._expired.append(self._remove(entry.task.task_id))

    def _remove(self, task_id: bytes, *, runs: bool = False) -> Waiting:
        entry = self._entries.pop(task_id)
        entry.gone = True
        task = entry.task
        self._bytes -= task.payload_bytes
        self._worst.left()
        if task.not_after is not None:
            self._deadlines.left()
        if entry.shown:
            self._hide(entry)
        if task.stream is not None:
            place = task.key, task.stream
            line = self._lines[place]
            line.waiting.left()
            line.running += runs
            self._advance(place, line)
        return task

    # What may go

    def _show(self, entry: waiting.Entry) -> None:
        """Nothing keeps this task from having its turn."""
        task = entry.task
        group = self._groups.get(task.key)
        if group is None:
            group = self._groups[task.key] = waiting.Group(task.model)
        entry.shown = True
        group.best.push(entry.order, entry)
        group.ready.push((entry.ready_at, 0.0, task.seq), entry)
        group.tasks += 1
        group.items += task.items

    def _hide(self, entry: waiting.Entry) -> None:
        """A task has left those that may go; it is `gone`."""
        task = entry.task
        group = self._groups[task.key]
        group.tasks -= 1
        group.items -= task.items
        if group.tasks == 0:
            del self._groups[task.key]
        else:
            group.best.left()
            group.ready.left()

    def _line_up(self, entry: waiting.Entry, place: tuple[models.Key, str]) -> None:
        """A task waits in its stream, and has its turn no earlier than those before it."""
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = waiting.Line()
        entry.order = line.order_of(entry.task)
        line.waiting.push((0.0, 0.0, entry.task.seq), entry)
        if line.head is not None and entry.task.seq < line.head.task.seq:
            self._stand_back(line)
        self._advance(place, line)

    def _stand_back(self, line: waiting.Line) -> None:
        """Somebody came before the task that was first in its line: another entry waits in its place."""
        before = line.head
        assert before is not None
        now = waiting.Entry(before.task, before.ready_at)
        now.order = before.order
        before.gone = True
        self._hide(before)
        line.waiting.left()
        line.head = None
        line.waiting.push((0.0, 0.0, now.task.seq), now)
        self._worst.left()
        priority, tag, seq = now.order
        self._worst.push((-priority, -tag, -seq), now)
        if now.task.not_after is not None:
            self._deadlines.left()
            self._deadlines.push((now.task.not_after, 0.0, seq), now)
        self._entries[now.task.task_id] = now

    def _advance(self, place: tuple[models.Key, str], line: waiting.Line) -> None:
        """Let the first task of a line have its turn, unless one before it runs."""
        first = line.waiting.first_or_none()
        line.head = None if line.running else first
        if line.head is not None and not line.head.shown:
            self._show(line.head)
        if first is None and not line.running:
            del self._lines[place]

    def _behind(self, tasks: Sequence[Waiting], room: int) -> list[Waiting]:
        """Tasks that come right behind these in their streams, as long as they fit: taken, too."""
        found: list[Waiting] = []
        for task in tasks:
            line = None if task.stream is None else self._lines.get((task.key, task.stream))
            while line is not None and not task.alone and not task.long:
                entry = line.waiting.first_or_none()
                if entry is None or entry.task.alone or entry.task.items > room:
                    break
                found.append(self._remove(entry.task.task_id, runs=True))
                room -= entry.task.items
        return found

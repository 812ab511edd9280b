"""The tasks whose turn comes next, in memory; a bounded view of the queue that the journal keeps.

When more wait than fit, the window holds the best of them and knows that it is behind; as it drains, it
is filled again from the journal. A task that arrives and goes before the worst one here takes its place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from edge_agent import batcher, clock, models, settings
from edge_agent.journal import journal, records
from edge_agent.trials import watch
from shared import fairness


@dataclass(frozen=True, slots=True)
class Turn:
    """Tasks that run together now."""

    model: models.Model
    tasks: list[records.Task]


class Window:
    """What waits or runs here, and how much more waits in the journal."""

    def __init__(
        self,
        book: journal.Journal,
        catalogue: models.Catalogue,
        policy: settings.Engine,
        weights: dict[str, float],
        sizing: batcher.Sizing = batcher.whole,
        away: batcher.Away | None = None,
    ) -> None:
        self._journal = book
        self._catalogue = catalogue
        self._policy = policy
        self._weights = weights
        self._batcher = batcher.Batcher(policy.window, sizing, away)
        self._clocks: dict[int, fairness.FairClock] = {}
        self._tasks: dict[bytes, records.Task] = {}
        """In the batcher, running, or waiting for the commit of their end."""
        self._runs_on: dict[bytes, models.Model] = {}
        """Of each of them that is not only held to be ended."""
        self._streaming: dict[bytes, batcher.Waiting] = {}
        """Those of a stream whose turn has come, until they end or wait again."""
        self._payload_bytes = 0
        self._behind = False
        """True while tasks may wait in the journal that are not here."""
        self._refilling = False
        self._ended_meanwhile: set[bytes] = set()
        """Tasks that ended while the journal was being read, which may still show them."""
        self._renewed_meanwhile: set[bytes] = set()
        """Tasks that changed then: what is being read may be the older ones."""
        self._held: set[bytes] = set()
        """Tasks here only to be ended: nothing else may take them from the journal."""
        self._stuck: set[bytes] = set()
        """Tasks that wait for a model that is not here (any more)."""
        self.routes: Mapping[str, watch.Route] = {}
        """By model, where it is not one version for all who name none."""
        self.tasks_total = 0
        """Tasks that wait or run, those in the journal alone included."""
        self.items: Counter[tuple[str, int]] = Counter()
        """Their items, by model and priority."""
        self.device_items = 0
        """Items of the agent's own devices."""

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._tasks

    def get(self, task_id: bytes) -> records.Task | None:
        return self._tasks.get(task_id)

    @property
    def wants_more(self) -> bool:
        """True if tasks wait in the journal and there is room for them here."""
        return self._behind and not self._refilling and self._batcher.depth <= self._policy.window // 2

    @property
    def is_empty(self) -> bool:
        """True if nothing waits for its turn, here or in the journal."""
        return not (self._behind or self._refilling or self._batcher.depth)

    def recover(self, counts: records.Counts) -> None:
        """The journal was opened with these waiting."""
        self._behind = counts.waiting > 0
        self.tasks_total = counts.waiting
        self.items.update(counts.waiting_items)
        self.device_items = sum(counts.waiting_items.values()) - counts.leased_items

    def stamp(self, priority: int, queue: str, cost_s: float) -> float:
        """The fair-share tag of a task that joins the queue now."""
        clock_ = self._clocks.setdefault(priority, fairness.FairClock())
        return clock_.stamp(queue, self._weights.get(queue, 1.0), max(cost_s, 1e-6))

    def refund(self, task: records.Task, cost_s: float) -> None:
        """A stamped task leaves without having run here: its queue is not charged for it."""
        if task.priority in self._clocks:
            self._clocks[task.priority].refund(
                task.queue, self._weights.get(task.queue, 1.0), max(cost_s, 1e-6)
            )

    def items_ahead(self, priority: int) -> int:
        """Items that run before a task of `priority` that joins now: all models share the threads."""
        return sum(items for (_, level), items in self.items.items() if level >= priority)

    def offer(self, arrived: Iterable[records.Task]) -> None:
        """Tasks that the journal has committed and that are to run here."""
        for task in arrived:
            self._count(task, +1)
            if self._may_overtake(task) or not self._admit(task):
                self._behind = True

    def retry(self, task: records.Task) -> None:
        """A task that is here waits for its turn again."""
        self._replace(self._tasks[task.task_id], task)
        model = self._runs_on[task.task_id] = self._model(task)
        self._batcher.offer(self._waiting(task, model), time.monotonic(), anyway=True)
        self._settle(task.task_id)

    def renew(self, before: records.Task, task: records.Task) -> None:
        """A task that was counted as `before` has a newer attempt: under that it waits or runs now."""
        held = self._tasks.get(task.task_id)
        if held is None:
            self._count(before, -1)
            self._count(task, +1)
            self._behind = True
            if self._refilling:
                self._renewed_meanwhile.add(task.task_id)
            return
        waits = self._batcher.cancel(task.task_id) is not None
        now = msgspec.structs.replace(
            held,
            hub_attempt=task.hub_attempt,
            attempt=task.attempt,
            items_done=task.items_done if waits else held.items_done,  # what runs knows best how far it is
        )
        self._replace(held, now)
        if waits:
            model = self._runs_on[now.task_id] = self._model(now)
            self._batcher.offer(self._waiting(now, model), time.monotonic(), anyway=True)

    def progressed(self, task_id: bytes, items_done: int) -> records.Task:
        """A task that runs has come so far; as it is now, under the newest of its attempts."""
        held = self._tasks[task_id]
        now = msgspec.structs.replace(held, items_done=items_done)
        self._replace(held, now)
        return now

    def hold(self, task: records.Task) -> None:
        """Keep a task that waits in the journal alone from being run: it is to end."""
        self._tasks[task.task_id] = task
        self._held.add(task.task_id)
        self._stuck.discard(task.task_id)

    def remove(self, task_id: bytes) -> bool:
        """Take a task out that has not started; False if it is not waiting here."""
        if task_id in self._held:
            self._held.discard(task_id)
            return True
        return self._batcher.cancel(task_id) is not None

    def take_leased(self) -> list[records.Task]:
        """The hub's tasks that have not started, taken out."""
        leased = [task for task in self._tasks.values() if task.origin is records.Origin.HUB]
        return [task for task in leased if self.remove(task.task_id)]

    def ended(self, task_id: bytes) -> bool:
        """The task is not in the journal any more, or not ours; whether others that waited for it may go."""
        if self._refilling:
            self._ended_meanwhile.add(task_id)
        settled = self._settle(task_id)
        task = self._tasks.pop(task_id, None)
        self._runs_on.pop(task_id, None)
        if task is not None:
            self._payload_bytes -= len(task.payload or b"")
            self._count(task, -1)
        return settled

    def expired(self) -> list[records.Task]:
        """Tasks whose deadline has passed while they waited."""
        return [self._tasks[one.task_id] for one in self._batcher.expired(time.monotonic())]

    def take(self, *, ahead: bool) -> Turn | None:
        """What runs now, if it is time; `ahead`: what will run when an executor is free again."""
        batch = self._batcher.take(time.monotonic(), ahead=ahead)
        if batch is None:
            return None
        for one in batch.tasks:
            if one.priority in self._clocks:
                self._clocks[one.priority].serve(one.tag)
            if one.stream is not None:
                self._streaming[one.task_id] = one
        return Turn(batch.model, [self._tasks[one.task_id] for one in batch.tasks])

    def goes_before(self, task: records.Task) -> bool:
        """Whether what is next may run between two slices of `task`: what is more urgent, and of the same
        priority what takes one batch."""
        first = self._batcher.first(time.monotonic())
        if first is None or first.priority < task.priority:
            return False
        return first.priority > task.priority or not first.long

    def wake_at(self) -> float | None:
        """When to look again, if nothing arrives before (s, monotonic)."""
        return self._batcher.wake_at(time.monotonic())

    async def refill(self) -> list[records.Task]:
        """Read the tasks from the journal whose turn comes next; what was found, some of it known before."""
        limit = len(self._tasks) + len(self._stuck) + self._policy.window - self._batcher.depth
        self._behind = False  # unless a task comes meanwhile that finds no room
        self._refilling = True
        try:
            found = await self._journal.waiting(limit)
            is_all = len(found) < limit
            # Those of streams by their age: where there is no room for all, the youngest find none.
            streaming = sorted(filter(self._is_of_stream, found), key=lambda task: task.seq)
            found = [task for task in found if not self._is_of_stream(task)]
            if not is_all and self._catalogue.carrying:
                # What is left may have come before what was found, and go behind it by its priority alone.
                streaming = await self._journal.oldest(self._catalogue.carrying, limit)
        finally:
            self._refilling = False
        renewed, self._renewed_meanwhile = self._renewed_meanwhile, set()
        if renewed.isdisjoint(task.task_id for task in streaming):
            found += streaming  # else none of them: those behind it must not be here before it
        ended = self._ended_meanwhile | renewed
        self._ended_meanwhile = set()
        if not is_all:
            self._behind = True
        for task in found:
            if task.task_id not in ended and not self._admit(task):
                self._behind = True
        return [task for task in found if task.task_id not in ended]

    def _admit(self, task: records.Task) -> bool:
        """Let a task in if there is room, or if it goes before one that is here."""
        if task.task_id in self._tasks or task.task_id in self._stuck:
            return True
        try:
            model = self._model(task)
        except models.UnknownModel:
            self._stuck.add(task.task_id)
            return True
        if self._payload_bytes + len(task.payload or b"") > self._policy.window_bytes:
            task = task.without_payload()
        waiting = self._waiting(task, model)
        now = time.monotonic()
        if not self._batcher.offer(waiting, now):
            # One of a stream takes nobody's place: that may be the place of one before it.
            if waiting.stream is not None or not self._batcher.goes_before_worst(waiting):
                return False
            worst = self._batcher.evict_worst()
            assert worst is not None
            evicted = self._tasks.pop(worst.task_id)
            del self._runs_on[worst.task_id]
            self._payload_bytes -= len(evicted.payload or b"")
            self._behind = True
            self._batcher.offer(waiting, now, anyway=True)
        self._tasks[task.task_id] = task
        self._runs_on[task.task_id] = model
        self._payload_bytes += len(task.payload or b"")
        return True

    def models_changed(self) -> None:
        """A model was loaded: tasks that waited for it may run."""
        self._stuck.clear()
        self._behind = True

    def reroute(self, name: str) -> None:
        """Another version of that model serves now: tasks that wait here and name none go there. Those in the
        journal do anyway."""
        for task_id, before in list(self._runs_on.items()):
            task = self._tasks[task_id]
            if before.name != name or task.version is not None or (now := self._model(task)) is before:
                continue
            if self._batcher.cancel(task_id) is not None:  # or it runs
                self._runs_on[task_id] = now
                self._batcher.offer(self._waiting(task, now), time.monotonic(), anyway=True)

    def needs(self, key: models.Key) -> bool:
        """Whether a task waits or runs here that runs on that version, or may wait in the journal."""
        return self._behind or self._refilling or any(model.key == key for model in self._runs_on.values())

    def _model(self, task: records.Task) -> models.Model:
        version = task.version
        if version is None and (route := self.routes.get(task.model)) is not None:
            version = route(task.task_id, task.runs_in, task.tags)
        return self._catalogue.resolve(task.model, version, came_before=True)

    def _waiting(self, task: records.Task, model: models.Model) -> batcher.Waiting:
        remaining = task.remaining_ms(clock.wall_us())
        return batcher.Waiting(
            task_id=task.task_id,
            seq=task.seq,
            model=model,
            priority=task.priority,
            queue=task.queue,
            tag=task.tag,
            items=task.items_left,
            not_after=None if remaining is None else time.monotonic() + remaining / 1000,
            payload_bytes=len(task.payload or b""),
            alone=task.items_done > 0,
            stream=task.runs_in if model.manifest.states else None,
        )

    def _settle(self, task_id: bytes) -> bool:
        """A task whose turn had come has ended, or waits again: if it is of a stream, the next may go."""
        waited = self._streaming.pop(task_id, None)
        if waited is not None:
            self._batcher.settled(waited)
        return waited is not None

    def _may_overtake(self, task: records.Task) -> bool:
        """Whether tasks of its stream that came before may not be here yet: then it must not be, either."""
        if not self._is_of_stream(task):
            return False
        return self._behind or self._refilling or bool(self._stuck)

    def _is_of_stream(self, task: records.Task) -> bool:
        return task.model in self._catalogue.carrying and task.runs_in is not None

    def _replace(self, before: records.Task, now: records.Task) -> None:
        self._tasks[now.task_id] = now
        self._payload_bytes += len(now.payload or b"") - len(before.payload or b"")
        self._count(before, -1)
        self._count(now, +1)

    def _count(self, task: records.Task, sign: int) -> None:
        self.tasks_total += sign
        self.items[task.model, task.priority] += sign * task.items_left
        if task.origin is records.Origin.DEVICE:
            self.device_items += sign * task.items_left

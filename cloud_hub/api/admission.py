"""Who gets into a queue that has a limit: a pure decision about all the requests of one commit.

Requests are judged in the order in which they came, each as a whole. What an idempotency key shows to be
there already takes no room. A full queue refuses, or lets its lowest tasks give way: those of the lowest
priority, of these the youngest. A new task is the youngest of its priority, so it gets in only where lower
ones give way; and one that an agent handed over never does, for its site has promised it to a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cloud_hub.store import queues
from cloud_hub.store import tasks as task_store

RETRY_S: Final = 5.0
"""When to come again to a full queue: it is not known how fast it empties."""


class Full(Exception):
    """As many tasks wait in a queue as may, and the new ones are not above any that could give way."""

    def __init__(self, queue: queues.Queue, queued: int, count: int) -> None:
        """`count` new tasks came to `queue`, in which `queued` wait."""
        most = queue.max_queued or 0
        says = f"queue {queue.name!r} is full: {queued:,} tasks wait in it, and {most:,} may"
        if queue.when_full is queues.WhenFull.DROP_LOWEST:
            says += ", none of them of a lower priority that could give way"
        if self.never(queue, count):
            says = f"{count:,} tasks are more than the {most:,} that may wait in queue {queue.name!r}"
        super().__init__(says)
        self.queue = queue.name
        self.fits = not self.never(queue, count)
        """Whether there could ever be room for so many at once."""

    @staticmethod
    def never(queue: queues.Queue, count: int) -> bool:
        return queue.max_queued is not None and count > queue.max_queued > 0


class Place(NamedTuple):
    """Where in a queue a task stands."""

    queue: str
    priority: int


@dataclass(slots=True)
class Admission:
    """What was decided."""

    refused: dict[int, Full] = field(default_factory=dict)
    """By the place of the request."""
    shed: Counter[Place] = field(default_factory=Counter)
    """How many of the youngest tasks give way, once the new ones are stored."""


Request = Sequence[task_store.Submission]


def admit(
    requests: Sequence[Request],
    bounded: Mapping[str, queues.Queue],
    depths: queues.Depths,
    known: frozenset[str],
) -> Admission:
    """Decide about `requests`; `bounded` are the queues with a limit among theirs, `depths` what waits there.

    `known`: the idempotency keys whose tasks are there already.
    """
    decided = Admission()
    waiting = {name: _Waiting(depths.get(name, {})) for name in bounded}
    seen = set(known)
    for place, request in enumerate(requests):
        fresh, keys = _fresh(request, bounded, seen)
        plans = {name: waiting[name].plan(bounded[name], new) for name, new in fresh.items()}
        full = next((name for name, plan in plans.items() if plan is None), None)
        if full is not None:
            decided.refused[place] = Full(bounded[full], waiting[full].queued, fresh[full].total())
            continue
        seen |= keys
        for name, plan in plans.items():
            assert plan is not None
            waiting[name].change(fresh[name], plan)
            decided.shed.update({Place(name, priority): count for priority, count in plan.items()})
    return decided


def _fresh(
    request: Request, bounded: Mapping[str, queues.Queue], seen: set[str]
) -> tuple[dict[str, Counter[int]], set[str]]:
    """The new tasks of a request by queue and priority, of those queues that have a limit; and their keys."""
    fresh: dict[str, Counter[int]] = {}
    keys: set[str] = set()
    for task in request:
        metadata = task.job.metadata
        key = metadata.idempotency_key
        if metadata.queue not in bounded or key in seen or key in keys:
            continue
        if key is not None:
            keys.add(key)
        fresh.setdefault(metadata.queue, Counter())[task.job.priority] += 1
    return fresh, keys


class _Waiting:
    """What waits in one queue, as it will be after the requests that were admitted so far."""

    def __init__(self, depths: Mapping[int, queues.Depth]) -> None:
        self.queued = sum(depth.queued for depth in depths.values())
        self._sheddable = Counter({priority: depth.sheddable for priority, depth in depths.items()})

    def plan(self, queue: queues.Queue, new: Counter[int]) -> Counter[int] | None:
        """How many waiting tasks must give way to the new ones, by priority; None if these do not get in.

        Never more than come: a limit that was lowered lets tasks be done, it does not end them.
        """
        assert queue.max_queued is not None
        need = min(new.total(), self.queued + new.total() - queue.max_queued)
        plan: Counter[int] = Counter()
        if need <= 0:
            return plan
        if queue.when_full is not queues.WhenFull.DROP_LOWEST:
            return None
        for priority in range(min(new)):
            if count := min(need, self._sheddable[priority]):
                plan[priority] = count
                need -= count
        return None if need else plan

    def change(self, new: Counter[int], plan: Counter[int]) -> None:
        self.queued += new.total() - plan.total()
        self._sheddable.update(new)
        self._sheddable.subtract(plan)

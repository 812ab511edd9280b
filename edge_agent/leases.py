"""The hub's tasks that are here, and how far each has come: what heartbeats say, and leases live by."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.journal import records


class Report(NamedTuple):
    """One lease; see `shared.signals.LeaseReport`."""

    task_id: bytes
    attempt: int
    progress: int
    done: int
    running_s: float


@dataclass(slots=True)
class _Lease:
    """A task under lease."""

    attempt: int
    done: int
    boundary: float | None = None
    """Of one that runs, the monotonic time of its last item boundary."""
    before: int | None = None
    """Of one that runs slice by slice, what its progress was before; it moves by its own items alone."""
    since: int = 0
    """And its items that have been done since."""


class Leases:
    """Kept by the runner. Tasks that are not leased are passed over, so it need not ask which are."""

    def __init__(self) -> None:
        self._leases: dict[bytes, _Lease] = {}

    def note(self, tasks: Iterable[records.Task]) -> None:
        """These are here; of one that is known the newer attempt counts."""
        for task in tasks:
            if task.leased and task.hub_attempt is not None:
                known = self._leases.get(task.task_id)
                if known is None:
                    self._leases[task.task_id] = _Lease(task.hub_attempt, task.items_done)
                    continue
                known.attempt = max(known.attempt, task.hub_attempt)
                if known.boundary is None:
                    known.done = task.items_done

    def starts(self, task_ids: Iterable[bytes]) -> None:
        """These begin to run, in one batch."""
        for task_id in task_ids:
            lease = self._leases.get(task_id)
            if lease is not None:
                lease.boundary = time.monotonic()

    def moves(self, task_id: bytes, done: int, items_of_all: int) -> None:
        """A task that runs slice by slice is at a boundary; the agent has done `items_of_all`."""
        lease = self._leases.get(task_id)
        if lease is not None:
            if lease.before is None:
                lease.before = items_of_all
            lease.since += done - lease.done
            lease.done = done
            lease.boundary = time.monotonic()

    def waits(self, task: records.Task) -> None:
        """A task that ran waits again."""
        self.ends(task.task_id)
        self.note([task])

    def ends(self, task_id: bytes) -> None:
        self._leases.pop(task_id, None)

    def reports(self, items_of_all: int) -> Iterator[Report]:
        """What to say of each. Progress counts items: of a task that runs slice by slice its own, of any
        other those of the whole agent; so a lease is kept alive by work and by nothing else."""
        now = time.monotonic()
        for task_id, lease in self._leases.items():
            progress = items_of_all if lease.before is None else lease.before + lease.since
            running_s = 0.0 if lease.boundary is None else now - lease.boundary
            yield Report(task_id, lease.attempt, progress, lease.done, running_s)

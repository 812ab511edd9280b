"""Weighted fair shares among queues, by start-time fair queueing.

Each task gets a virtual start tag when it is queued, and the lowest tag goes first. So "who is next"
is the head of an ordered index, however many tasks and queues there are, and no task has to be
looked at again when others come or go.

    S = max(v, F(queue))        the start tag of a task, v being the virtual time
    F(queue) = S + cost / weight
    v = S of the task in service; when all queues are empty, the largest F

Source: P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for
Integrated Services Packet Switching Networks", SIGCOMM 1996. Its theorem 1 is the promise: while
two queues f and g both have work, what they were served, each divided by its weight, differs by at
most cost_max(f) / weight(f) + cost_max(g) / weight(g), whatever the order and the costs of tasks,
and without knowing how fast the server is.

Tags of different priorities are never compared, so each priority has a clock of its own.

Tags need not be stored with tasks where those of one queue go in order of age: then the tag of a queue's
next task is what `start` says at any time, and `stamp` and `serve` when it goes into service come to the
same. Where several servers take from one order, and not each can serve each queue, virtual time may pass
queues that wait for a busy server: `keep` is for them.

For the bound with D servers see W. Jin, J. S. Chase, J. Kaur, "Interposed Proportional Sharing for a
Storage Service Utility", SIGMETRICS 2004 (SFQ(D)); start tags without regard to the order of arrival go
back to A. Demers, S. Keshav, S. Shenker, "Analysis and Simulation of a Fair Queueing Algorithm",
SIGCOMM 1989.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

_MANY: Final = 1024
"""So many queues are remembered, at least, before those without work are looked for and forgotten."""


class FairState(msgspec.Struct, frozen=True):
    """What a clock must not forget when its process ends; encodes as JSON or MessagePack."""

    virtual_time: float = 0.0
    finish: dict[str, float] = {}
    """By queue: where its next task starts, unless virtual time has passed that."""
    waiting: dict[str, float] = {}
    """By queue that waits though virtual time may have passed it: where its next task starts."""


class Group(NamedTuple):
    """Queues that wait for the same servers."""

    tags: Mapping[str, float]
    """Their start tags."""
    slack: float
    """How far virtual time may be ahead of the first of them: about the largest cost / weight of a task,
    since by theorem 1 queues that share a server are no farther apart than two such."""


class FairClock:
    """The virtual time of one server, or of a group that takes from one order."""

    def __init__(self, state: FairState | None = None) -> None:
        state = state or FairState()
        self._now = state.virtual_time
        self._finish = dict(state.finish)
        self._waiting = dict(state.waiting)
        self._room = _MANY

    @property
    def now(self) -> float:
        """The virtual time: it never goes back."""
        return self._now

    def start(self, queue: str) -> float:
        """The start tag that a task of `queue` would get now."""
        waiting = self._waiting.get(queue)
        return max(self._now, self._finish.get(queue, 0.0)) if waiting is None else waiting

    def stamp(self, queue: str, weight: float, cost: float, start: float | None = None) -> float:
        """The start tag of a task that joins `queue` now; or that was looked at before, and was told `start`.

        `cost` is what the task takes, in any unit that all queues share (items, or seconds);
        `weight` the queue's share against the others'. Both must be above zero.
        A queue that had nothing to do starts from now: idleness earns no credit.
        """
        if not (weight > 0 and cost > 0):
            raise ValueError(f"queue {queue!r}: weight {weight} and cost {cost} must both be above zero")
        if start is None:
            start = self.start(queue)
        if len(self._finish) >= self._room:
            self._forget()
            self._room = max(_MANY, 2 * len(self._finish))
        self._finish[queue] = start + cost / weight
        return start

    def serve(self, tag: float) -> None:
        """A task with that start tag goes into service."""
        self._now = max(self._now, tag)

    def keep(self, groups: Iterable[Group]) -> None:
        """These queues, and no others, wait on; what each is due is not forgotten.

        Virtual time may have passed queues that could not be served, for want of a server that takes their
        tasks. Their tags stay as they are, within the slack of their group; beyond it the whole group is
        moved on by the same time. So its queues stay as far apart as they were, and go on to share
        their servers by weight; and against those that were served elsewhere, and against newcomers,
        they earn no more credit than the slack.
        """
        self._waiting = {}
        for group in groups:
            behind = self._now - min(group.tags.values(), default=self._now)
            on = max(0.0, behind - group.slack)
            for queue, tag in group.tags.items():
                self._waiting[queue] = tag + on if tag < self._now else tag

    def refund(self, queue: str, weight: float, cost: float) -> None:
        """A task that was stamped leaves without being served, or for the part that was not: cancelled,
        expired, handed over, preempted.

        The queue's next tasks are not charged for it. Those that wait with tags of their own keep them.
        """
        waiting = self._waiting.get(queue)
        if waiting is not None:
            self._waiting[queue] = min(waiting, max(self._now, waiting - cost / weight))
        finish = self._finish.get(queue)
        if finish is not None:
            self._finish[queue] = max(self._now, finish - cost / weight)

    def rest(self) -> None:
        """All queues are empty: the next task of any of them starts alike."""
        self._now = max(self._now, *self._finish.values(), 0.0)
        self._finish.clear()

    def copy(self) -> FairClock:
        """A clock that goes on from here by itself."""
        return FairClock(self.state())

    def state(self) -> FairState:
        """What to store, so that `FairClock(state)` goes on from here."""
        self._forget()
        return FairState(self._now, dict(self._finish), dict(self._waiting))

    def _forget(self) -> None:
        """A queue whose last task ends before now is as one that never was."""
        self._finish = {queue: finish for queue, finish in self._finish.items() if finish > self._now}

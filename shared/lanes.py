"""The lane protocol: durable, numbered, acknowledged streams over a link that keeps no promise.

A sender numbers records 1, 2, 3… on each lane and keeps them in its own durable store until the
receiver's cursor, the highest contiguous number it has committed, passes them. It sends batches of
contiguous records inside a window. The receiver applies a batch and moves its cursor in one
transaction, and only then acknowledges the cursor. So the link may lose, repeat, delay or reorder
anything:

- a batch seen before is acknowledged again and not applied;
- a batch that overlaps the cursor is applied from the first new record on;
- a gap is answered with the cursor and `rewind`, and the sender goes on after the cursor;
- a sender that can no longer fill a gap says so with the `floor` of its batches, the lowest number
  that it still keeps; the receiver then counts the records between as missing and goes on.

`Sender` and `Receiver` are pure: they hold numbers, never records, do no I/O and are told the time.
Both sides of Backhaul run this code. The shape is that of a TCP connection whose peers survive
their own death: cumulative acknowledgement and go-back-N (RFC 9293, 3.8), small batches held back
while one is unacknowledged (Nagle, RFC 896).
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WINDOW: Final = 8
"""Batches in flight on a lane, at most."""

BACKLOG_WINDOW: Final = 2
"""Batches in flight on a lane that drains a backlog: what a live record waits behind, at most."""

BACKLOG_SHARE: Final = 4
"""While live records flow, one batch in so many may be of a backlog."""

ACK_TIMEOUT_S: Final = 5.0
"""Without an acknowledgement for so long, a sender sends again."""

ACK_TIMEOUT_CAP_S: Final = 60.0
"""Up to here the time-out doubles while nobody answers."""

PATIENCE_CAP_S: Final = 300.0
"""Up to here it follows a link that was seen to be slow: some minutes for a large record."""


class Lane(NamedTuple):
    """One lane of one agent: what it carries, and which generation of it.

    A new generation is opened when a backlog is found at connect, so that live records do not
    stand behind old ones; each generation is numbered from 1.
    """

    name: str
    generation: int = 1

    def __str__(self) -> str:
        return f"{self.name}.{self.generation}"

    @classmethod
    def parse(cls, text: str) -> Lane:
        """The lane that a topic's last level names; ValueError if it names none.

        A lane has one spelling: two of them would be two cursors for one stream.
        """
        name, _, generation = text.rpartition(".")
        if name and generation.isdecimal():
            lane = cls(name, int(generation))
            if lane.generation >= 1 and str(lane) == text:
                return lane
        raise ValueError(f"{text!r} is not a lane: it would read NAME.GENERATION, as in 'results.1'")


class Span(NamedTuple):
    """The numbers of contiguous records, first and last included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


class JournalRegressed(Exception):
    """The receiver has committed numbers that this sender has never given to the link.

    The store was put back to an older state (a restored snapshot, a cloned disk): going on would
    give the same numbers to other records. The owner must take a new epoch.
    """


@dataclass(slots=True)
class Sender:
    """Decides what one lane sends next. `acked ≤ sent ≤ numbered`, always."""

    acked: int = 0
    """The receiver's cursor, as far as we know."""
    numbered: int = 0
    """The highest number that our store has committed."""
    window: int = WINDOW
    sent: int = field(init=False)
    """The highest number given to the link since the last rewind."""
    _in_flight: deque[int] = field(init=False, default_factory=deque)
    """The last number of each unacknowledged batch, in order."""
    _timeout_s: float = field(init=False, default=ACK_TIMEOUT_S)
    _due: float | None = field(init=False, default=None)
    """When the oldest batch in flight counts as lost."""
    _rewound_to: int | None = field(init=False, default=None)
    _reach: int = field(init=False)
    """The highest number that can be out there: numbered before this sender began, or sent by it."""
    _waiting_since: float | None = field(init=False, default=None)
    """Since when we wait for progress: since the last, or since we sent after all was committed."""
    _probing: bool = field(init=False, default=False)
    """True from a time-out to the next progress."""

    def __post_init__(self) -> None:
        self.sent = self.acked
        self._reach = self.numbered

    @property
    def floor(self) -> int:
        """The lowest number that the store still keeps; said in every batch."""
        return self.acked + 1

    @property
    def unsent(self) -> int:
        return self.numbered - self.sent

    @property
    def unacknowledged(self) -> int:
        """Records that the receiver has not committed yet: what is left to sync."""
        return self.numbered - self.acked

    @property
    def idle(self) -> bool:
        """True while nothing is in flight: then even a small batch goes at once."""
        return not self._in_flight

    @property
    def open(self) -> bool:
        """True if there is something to send and a place in the window.

        After a time-out one batch asks whether anybody listens: a whole window each time would
        fill the broker while the receiver is away, and a slow link while it is not.
        """
        return self.unsent > 0 and len(self._in_flight) < (1 if self._probing else self.window)

    def append(self, numbered: int) -> None:
        """The store has committed records up to `numbered`."""
        self.numbered = max(self.numbered, numbered)

    def send(self, span: Span, now: float) -> None:
        """The records of `span` were given to the link at `now` (s, monotonic).

        ValueError unless they follow what was sent before, within what is numbered.
        """
        if span.first != self.sent + 1 or not span.first <= span.last <= self.numbered:
            raise ValueError(f"{span} does not follow {self.sent} within {self.numbered}")
        self.sent = span.last
        self._reach = max(self._reach, span.last)
        self._in_flight.append(span.last)
        if self._due is None:
            self._due = now + self._timeout_s
        if self._waiting_since is None:
            self._waiting_since = now

    def delivered(self, now: float) -> None:
        """The broker has taken a batch from us: what is in flight has the whole time-out from now.

        So the time that a batch takes on a thin link is not taken for a loss. Optional: without it
        the time-out follows the link all the same, at the price of batches sent twice.
        """
        if self._due is not None:
            self._due = now + self._timeout_s

    def acknowledge(self, cursor: int, now: float, *, rewind: bool = False) -> bool:
        """Take the receiver's cursor; True if it moved, so that records may be deleted.

        With `rewind` the receiver saw a gap after `cursor`. Several batches of one flight report
        the same gap, so one rewind is done for each cursor until there is progress or a time-out.

        Raises JournalRegressed if the cursor is beyond what was ever sent: numbered before this
        sender began, or sent since. What was numbered since and not sent may have the number of
        another record that the receiver has.
        """
        if cursor > self._reach:
            raise JournalRegressed(
                f"the receiver has committed {cursor} records, but this store has sent only "
                f"{self._reach}: it was put back to an older state and needs a new epoch"
            )
        moved = cursor > self.acked
        if moved:
            self.acked = cursor
            self.sent = max(self.sent, cursor)
            while self._in_flight and self._in_flight[0] <= cursor:
                self._in_flight.popleft()
            self._learn(now)
            self._due = now + self._timeout_s if self._in_flight else None
            self._probing = False
        if rewind and cursor == self.acked and self._rewound_to != cursor and self.sent > cursor:
            self._rewind()
            self._rewound_to = cursor
        return moved

    def reconnect(self) -> None:
        """The link is new: what was in flight may be lost, so go on after the cursor."""
        self._rewind()
        self._rewound_to = None
        self._timeout_s = ACK_TIMEOUT_S
        self._waiting_since = None
        self._probing = False

    def tick(self, now: float) -> bool:
        """True if no acknowledgement came in time and the lane rewound to its cursor."""
        if self._due is None or now < self._due:
            return False
        self._timeout_s = max(self._timeout_s, min(self._timeout_s * 2, ACK_TIMEOUT_CAP_S))
        self._rewind()
        self._rewound_to = None
        self._probing = True
        return True

    @property
    def due(self) -> float | None:
        """When `tick` wants to be called (s, monotonic), if anything is in flight."""
        return self._due

    def _learn(self, now: float) -> None:
        """There was progress: the next time, wait twice as long as it took.

        With the time-out always at its shortest, a link that takes longer for one batch would be
        filled with copies of its window faster than it empties, for ever. The time since the last
        progress is known even where batches went twice, unlike a round trip (RFC 6298, Karn).
        """
        waited = 0.0 if self._waiting_since is None else now - self._waiting_since
        self._timeout_s = max(ACK_TIMEOUT_S, min(2 * waited, PATIENCE_CAP_S))
        self._waiting_since = now if self._in_flight else None

    def _rewind(self) -> None:
        self.sent = self.acked
        self._in_flight.clear()
        self._due = None


class Verdict(enum.Enum):
    """What a receiver does with a batch."""

    APPLY = enum.auto()
    """Commit the new records of the batch with the cursor, then acknowledge."""
    REPEAT = enum.auto()
    """All of it was committed before: acknowledge again."""
    GAP = enum.auto()
    """Records before it have not come: acknowledge the cursor, with `rewind`."""


class Decision(NamedTuple):
    """A receiver's answer to one batch."""

    verdict: Verdict
    skip: int = 0
    """How many records at the head of the batch are committed already."""
    lost: int = 0
    """How many records before the batch no store has any more: to be counted as missing."""


@dataclass(slots=True)
class Receiver:
    """Decides what becomes of each batch that arrives on one lane."""

    cursor: int = 0
    """The highest contiguous number committed."""

    def receive(self, span: Span, floor: int) -> Decision:
        """Judge a batch; `floor` is the lowest number that its sender still keeps."""
        if span.last <= self.cursor:
            return Decision(Verdict.REPEAT)
        if span.first <= self.cursor + 1:
            return Decision(Verdict.APPLY, skip=self.cursor + 1 - span.first)
        if span.first <= floor:
            return Decision(Verdict.APPLY, lost=span.first - self.cursor - 1)
        return Decision(Verdict.GAP)

    def commit(self, last: int) -> None:
        """The records up to `last` are committed together with the cursor."""
        self.cursor = max(self.cursor, last)


@dataclass(slots=True)
class Turns:
    """Whose turn it is when live lanes and backlogs share one link.

    Live lanes go first. While they have something to send, one batch in BACKLOG_SHARE is of a
    backlog, so that it drains under any load; when they have nothing, a backlog goes freely, its
    own small window being all that a live record can find before it.
    """

    _live_batches: int = 0

    def take(self, live: bool, backlog: bool) -> str | None:
        """'live', 'backlog' or None, given which of them has a batch ready; counts the turn."""
        if live and (not backlog or self._live_batches < BACKLOG_SHARE - 1):
            self._live_batches += 1
            return "live"
        if backlog:
            self._live_batches = 0
            return "backlog"
        return None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of one lane. "0 missing of 1,204,331" is computed from them, never assumed."""

    numbered: int
    """Records that the sender has given a number."""
    cursor: int
    """Records that the receiver has passed."""
    committed: int
    """Records that the receiver has really committed."""

    @property
    def missing(self) -> int:
        """Records passed by the cursor without being committed: lost for good."""
        return self.cursor - self.committed

    @property
    def waiting(self) -> int:
        """Records still to come."""
        return max(0, self.numbered - self.cursor)

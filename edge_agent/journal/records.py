"""What goes into the journal and what comes out of it. No I/O; pyarrow is not loaded here."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec


class Origin(enum.StrEnum):
    """Where a task came from."""

    DEVICE = "device"
    """A device of this site, which waits for the reply."""
    HUB = "hub"
    """The hub, which leased one attempt to us."""


class Holder(enum.StrEnum):
    """Who is to run a task."""

    EDGE = "edge"
    HUB = "hub"
    """It was handed over and is not back yet."""


def remaining_ms(deadline_ms: int, accepted_us: int, now_us: int) -> int:
    """What is left at `now_us` of a deadline that was `deadline_ms` at `accepted_us` (wall clock).

    Between 0 and the whole deadline, whatever the clock did meanwhile: one that was set back cannot give
    a task more time than it ever had.
    """
    elapsed_ms = (now_us - accepted_us) // 1000
    return deadline_ms - min(max(elapsed_ms, 0), deadline_ms)


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task in the journal; its fields are the columns of the table `tasks`, but for the last that a task
    of many items, a tagged one, or one of a named stream has in a table beside."""

    seq: int = 0
    """Place in the order of arrival at this journal."""
    task_id: bytes
    origin: Origin
    holder: Holder = Holder.EDGE
    hub_attempt: int | None = None
    """The attempt under which the hub knows this task to be here: the number of its lease, or 0 for
    a task of a device's that was handed over and taken back. None if the hub does not know it."""
    model: str
    version: str | None
    priority: int
    queue: str
    tag: float
    """Virtual start tag of the fair share: lower goes first within a priority."""
    device: str | None
    content_type: str
    items: int
    items_done: int = 0
    """Those before it are not run again: the checkpoint of a task of many items, 0 while there is none."""
    attempt: int = 0
    """Of the hub's tasks the lease's number; of a device's how often it was tried before."""
    max_attempts: int
    crashes: int = 0
    """How often the agent died while this task was running."""
    timeout_ms: int | None
    deadline_ms: int | None
    """From `accepted_us` on."""
    accepted_us: int
    """The agent's wall clock at acceptance; data, and the start of the deadline."""
    response_topic: str | None = None
    correlation: bytes | None = None
    client_id: str | None = None
    mqtt_version: int | None = None
    """The protocol level of the device's message: 4 is MQTT 3.1.1, 5 is MQTT 5."""
    traceparent: str | None = None
    idempotency_key: str | None = None
    tags: str | None = None
    """JSON, an object of texts: those of the job's user properties by which its version is chosen, if any."""
    stream: str | None = None
    """The stream that its job named; see `runs_in`."""
    payload: bytes | None = None
    """None where it was not asked for; `Journal.payloads` reads it."""

    @property
    def items_left(self) -> int:
        return self.items - self.items_done

    @property
    def runs_in(self) -> str | None:
        """The stream it belongs to, should its model carry a state from item to item: the one that its job
        named, or its device's. None: its items are a stream of their own.

        The device of a leased task may be one of another site, where another may have its name.
        """
        if self.stream is None and self.origin is Origin.DEVICE:
            return self.device
        return self.stream

    @property
    def leased(self) -> bool:
        """True for a task of which the hub has leased us an attempt; it may be our own device's."""
        return bool(self.hub_attempt)

    @property
    def withdrawn(self) -> bool:
        """True for a device's task that was once handed over and is ours again: the hub must hear its end."""
        return self.origin is Origin.DEVICE and self.hub_attempt is not None

    def remaining_ms(self, now_us: int) -> int | None:
        """What is left of the deadline at `now_us` (wall clock); None if there is no deadline."""
        if self.deadline_ms is None:
            return None
        return remaining_ms(self.deadline_ms, self.accepted_us, now_us)

    def again(self) -> Task:
        """The same task for its next attempt."""
        return msgspec.structs.replace(self, attempt=self.attempt + 1)

    def without_payload(self) -> Task:
        return msgspec.structs.replace(self, payload=None)


NOWHERE: Final = ""
"""The topic of a reply that is for no device: whoever asked waits at the local port."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message to a device: the answer to its job."""

    task_id: bytes
    topic: str
    """NOWHERE, and the journal keeps it for the task's idempotency key alone."""
    correlation: bytes | None
    content_type: str
    body: bytes


class Accepted(NamedTuple):
    """What became of a job that was handed in."""

    task: Task | None
    """None if a job with this idempotency key has ended before."""
    task_id: bytes
    repeated: bool
    """True if the job's idempotency key was known: nothing was added."""
    reply: Reply | None
    """The reply of the task that has ended before, if it had one, addressed as this job asks."""


class Taken(NamedTuple):
    """What became of leases that came."""

    new: Sequence[Task] = ()
    """Tasks that were not to run here before, with payloads."""
    renewed: Sequence[Renewed] = ()


class Renewed(NamedTuple):
    """A task that was to run here already, and does so now under a newer attempt."""

    before: Task
    task: Task


class ResultRow(NamedTuple):
    """One item's result: the columns of `wire.RESULTS`, in their order; instants and times in µs."""

    task_id: bytes
    item: int
    attempt: int
    device: str | None
    model: str
    version: str
    outcome: str
    label: str | None
    score: float | None
    output: str | None
    error: str | None
    observed_at: int
    clock_offset_us: int | None
    clock_error_us: int | None
    wait_us: int | None
    run_us: int | None


class AttemptRow(NamedTuple):
    """How an attempt ended: the columns of `wire.ATTEMPTS`, in their order."""

    task_id: bytes
    attempt: int
    state: str
    reason: str | None
    error: str | None
    retriable: bool
    items_done: int
    run_us: int | None


class HandedOver(NamedTuple):
    """A record of the lane `tasks`: its number, then columns of `wire.TASKS`.

    Of a task that was taken back, or has ended, there is nothing but the first two.
    """

    number: int
    task_id: bytes
    model: str | None
    version: str | None
    priority: int | None
    queue: str | None
    device: str | None
    content_type: str | None
    payload: bytes | None
    items: int | None
    timeout_ms: int | None
    deadline_ms: int | None
    traceparent: str | None
    max_attempts: int | None
    idempotency_key: str | None
    response_topic: str | None
    correlation: bytes | None
    observed_at: int | None

    def at(self, now_us: int) -> HandedOver:
        """The record as it leaves at `now_us`: of its deadline what is left, of one withdrawn its id."""
        if self.payload is None or self.observed_at is None:
            return _WITHDRAWN._replace(number=self.number, task_id=self.task_id)
        if self.deadline_ms is None:
            return self
        return self._replace(deadline_ms=remaining_ms(self.deadline_ms, self.observed_at, now_us))


_WITHDRAWN: Final = HandedOver(
    0, b"", "", None, 0, "", None, "", None, 0, None, None, None, 0, None, None, None, 0
)
"""The least that `wire.TASKS` asks of a record."""


class Part(NamedTuple):
    """What a reply will say of some items that are done, in their order."""

    first: int
    """The first of them."""
    failed: int
    """How many of them failed."""
    error: str | None
    """Why the first of those did."""
    items: str
    """JSON, without the brackets of the list."""


class Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """How far a task of many items has come."""

    task_id: bytes
    items_done: int
    rows: Sequence[ResultRow] = ()
    """Of the items since the last checkpoint."""
    part: Part | None = None
    """The same for the reply, if a device waits for one."""


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The end of a task here: what the hub and the device are told."""

    task_id: bytes
    rows: Sequence[ResultRow] = ()
    reply: Reply | None = None
    attempt: AttemptRow | None = None
    given_back: bool = False
    """True for a device's task that the hub leased us and wants back: it waits here for the hub's result,
    as it did before."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The end of a handed-over task, as the hub reports it: the hub has its rows already."""

    task_id: bytes
    reply: Reply | None = None


class Numbers(NamedTuple):
    """The sender's side of one up lane."""

    numbered: int
    acked: int


class Cursor(NamedTuple):
    """The receiver's side of one down lane."""

    cursor: int
    """The highest contiguous number that was passed."""
    committed: int
    """How many records up to it were really committed."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a journal holds."""

    waiting: int
    """Tasks to run here."""
    waiting_items: Mapping[tuple[str, int], int]
    """Their items that are not done, by model and priority."""
    leased_items: int
    """Those of them that are the hub's."""
    handed_over: int
    """Tasks that the hub holds for us."""
    unreplied: int
    """Replies that the site's broker has not acknowledged."""
    to_sync: int
    """Records that the hub has not acknowledged."""


@dataclass(slots=True)
class Counters:
    """What a journal has done since it was opened."""

    commits: int = 0
    operations: int = 0
    refused: int = 0
    """Jobs and leases for which there was no room."""
    bytes_appended: int = 0
    """Payloads, records and replies as they were given to us."""
    bytes_written: int = 0
    """What the commits wrote to the write-ahead log; a checkpoint writes at most as much again."""
    recovered_from_corruption: int = 0
    """Damaged files that were moved aside for a fresh journal."""
    crashes_found: int = 0
    """Tasks that were running when the agent died."""

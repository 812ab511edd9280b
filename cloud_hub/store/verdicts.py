"""What a report, a lost lease or a wish means for a task: pure, by the table of `shared.tasks`.

- Who completes a task has completed it, even if its lease was lost meanwhile.
- Otherwise only the holder of the current lease decides, or the origin about a task that it took back.
- A failure that is worth another try, and a lease that was lost, count against `max_attempts`; a task
  that was put back (preempted) has not failed.
- A task that has ended stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from shared import tasks
from shared.tasks import Reason, State

RETRY_BASE_S: Final = 1.0
RETRY_CAP_S: Final = 300.0
"""A task that failed waits between 0 and RETRY_BASE_S * 2^failures seconds, at most RETRY_CAP_S."""

MAX_GRANTS: Final = 10_000
"""Attempts are numbered in 16 bits: a task that is put back for ever ends here."""

OWN_ATTEMPT: Final = 0
"""The number of an attempt that a task's origin made on its own, after it took the task back."""

REPORTED: Final = (State.COMPLETED, State.FAILED, State.TERMINATED, State.QUEUED)
"""How an attempt may end; QUEUED: put back."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs a task now."""

    agent_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A task and its lease, locked, as far as judging it needs to know them."""

    task_id: bytes
    state: State
    model: str
    items: int
    items_done: int
    attempt: int
    failures: int
    max_attempts: int
    overdue: bool
    """Its deadline has passed."""
    origin_agent: int | None
    origin_epochs: frozenset[int] = frozenset()
    """All epochs of the origin's place."""
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One record of wire.ATTEMPTS."""

    task_id: bytes
    attempt: int
    state: State
    reason: str | None
    error: str | None
    retriable: bool
    items_done: int
    run_us: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """Where a task goes. Its lease, if it has one, is gone with it."""

    standing: Standing
    state: State
    items_done: int
    failures: int
    reason: Reason | None = None
    error: str | None = None
    delay_s: float = 0.0
    """A queued task waits so long before it may be granted."""


def judge(standing: Standing, agent_id: int, report: Report, jitter: float) -> Change | None:
    """What an agent's report about an attempt means for the task; None: nothing.

    `jitter`, between 0 and 1, is the share of the longest back-off that a failed task will wait.
    """
    if standing.state in tasks.FINAL:
        return None
    own = report.attempt == OWN_ATTEMPT and agent_id in standing.origin_epochs
    current = standing.lease == Lease(agent_id, report.attempt)
    if report.state is State.COMPLETED and credible(standing, agent_id, report):
        return _to(standing, State.COMPLETED, items_done=standing.items)
    done = min(max(standing.items_done, report.items_done), standing.items)
    if current and report.state is State.QUEUED:
        return _requeued(standing, items_done=done, error=report.error)
    if current and report.state is State.FAILED and report.retriable:
        failures = standing.failures + 1
        longest = min(RETRY_CAP_S, RETRY_BASE_S * 2.0 ** min(failures, 30))
        return _requeued(
            standing, failures=failures, items_done=done, error=report.error, delay_s=jitter * longest
        )
    if (own or current) and report.state is not State.QUEUED:
        state, reason = closing(report)
        return _to(standing, state, reason=reason, error=report.error)
    return None


def credible(standing: Standing, agent_id: int, report: Report) -> bool:
    """Whether there was such an attempt: one that was granted, or the origin's own."""
    if report.attempt == OWN_ATTEMPT:
        return agent_id in standing.origin_epochs
    return 1 <= report.attempt <= standing.attempt


def closing(report: Report) -> tuple[State, Reason | None]:
    """The final state of a task for which this was the last word."""
    if report.state is State.COMPLETED:
        return State.COMPLETED, None
    if report.state is State.FAILED:
        return State.TERMINATED, Reason.EXHAUSTED if report.retriable else Reason.NOT_RETRIABLE
    try:
        return State.TERMINATED, Reason(report.reason or "")
    except ValueError:  # of a newer agent, or none: final is what counts
        return State.TERMINATED, Reason.NOT_RETRIABLE


def lost(standing: Standing, items_done: int = 0) -> Change:
    """The lease ran out, or its holder came back with a fresh journal; rows of `items_done` items are here.

    If they are all here the task is complete: only the word that says so was lost.
    """
    if items_done >= standing.items:
        return _to(standing, State.COMPLETED, items_done=standing.items)
    if standing.overdue:
        return _to(standing, State.TERMINATED, reason=Reason.EXPIRED)
    return _requeued(
        standing,
        failures=standing.failures + 1,
        items_done=max(standing.items_done, items_done),
        error="the lease was lost",
    )


def shed(standing: Standing) -> Change | None:
    """Its queue is full and it is the lowest in it; None if it does not wait any more."""
    if standing.state is not State.QUEUED:
        return None
    return _to(standing, State.TERMINATED, reason=Reason.SHED)


def cancelled(standing: Standing) -> Change | None:
    """Somebody wants the task no more; None if it has ended already."""
    if standing.state in tasks.FINAL:
        return None
    return _to(standing, State.TERMINATED, reason=Reason.CANCELLED)


def expired(standing: Standing) -> Change | None:
    """The deadline passed while the task waited; None if it does not wait any more."""
    if standing.state is not State.QUEUED or not standing.overdue:
        return None
    return _to(standing, State.TERMINATED, reason=Reason.EXPIRED)


def _requeued(
    standing: Standing,
    *,
    failures: int | None = None,
    items_done: int | None = None,
    error: str | None = None,
    delay_s: float = 0.0,
) -> Change:
    """Back into the queue, unless that was the task's last attempt."""
    failures = standing.failures if failures is None else failures
    if failures >= standing.max_attempts or standing.attempt >= MAX_GRANTS:
        return _to(standing, State.TERMINATED, reason=Reason.EXHAUSTED, failures=failures, error=error)
    return replace(
        _to(standing, State.QUEUED, failures=failures, items_done=items_done, error=error), delay_s=delay_s
    )


def _to(
    standing: Standing,
    state: State,
    *,
    reason: Reason | None = None,
    failures: int | None = None,
    items_done: int | None = None,
    error: str | None = None,
) -> Change:
    """The change, each step of its way checked against the table."""
    way = _way(standing.state, state, reason)
    for source, target in pairwise(way):
        tasks.check(source, target)
    return Change(
        standing=standing,
        state=state,
        items_done=standing.items_done if items_done is None else items_done,
        failures=standing.failures if failures is None else failures,
        reason=reason,
        error=error,
    )


def _way(source: State, target: State, reason: Reason | None) -> list[State]:
    """The states that a task passes through at once on its way.

    One whose attempt was lost, and is reported after all, is PROCESSING again before that; one that
    ends because it failed has FAILED before that.
    """
    way = [source]
    ran = target is State.COMPLETED or reason in (Reason.EXHAUSTED, Reason.NOT_RETRIABLE)
    if source is State.QUEUED and ran:
        way.append(State.PROCESSING)
    if reason in (Reason.EXHAUSTED, Reason.NOT_RETRIABLE):
        way.append(State.FAILED)
    return [*way, target]

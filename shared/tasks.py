"""The states of a task, the one table of its transitions, and its identity.

The journal, the store, the API and the diagram in the docs all follow this table; the database
restates it as constraints.
"""

from __future__ import annotations

import enum
import re
from typing import Final

import uuid_utils

PRIORITIES: Final = range(10)
"""0 to 9; a higher number goes first."""

DEFAULT_QUEUE: Final = "default"
"""The weight class of a task that names none."""


class State(enum.StrEnum):
    """Where a task is in its life."""

    SUBMITTED = "SUBMITTED"
    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    TERMINATED = "TERMINATED"


class Reason(enum.StrEnum):
    """Why a task was TERMINATED."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    NOT_RETRIABLE = "not_retriable"
    SHED = "shed"
    """Its queue was full, and it was the lowest in it."""


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.SUBMITTED: frozenset({State.QUEUED, State.REJECTED}),
    State.QUEUED: frozenset({State.PROCESSING, State.TERMINATED}),
    State.PROCESSING: frozenset({State.COMPLETED, State.FAILED, State.QUEUED, State.TERMINATED}),
    State.FAILED: frozenset({State.QUEUED, State.TERMINATED}),
    State.COMPLETED: frozenset(),
    State.REJECTED: frozenset(),
    State.TERMINATED: frozenset({State.QUEUED}),  # a dead letter that was asked to run again
}

FINAL: Final = frozenset({State.COMPLETED, State.REJECTED, State.TERMINATED})
"""States in which a task stays unless somebody asks for a dead letter to run again."""


class IllegalTransition(ValueError):
    """A task was asked to go where the table does not lead."""


def check(source: State, target: State) -> None:
    """Raise `IllegalTransition` unless the table leads from `source` to `target`."""
    if target not in TRANSITIONS[source]:
        ways = ", ".join(sorted(TRANSITIONS[source])) or "nowhere"
        raise IllegalTransition(
            f"a task cannot go from {source} to {target}; from {source} it goes to {ways}"
        )


def new_id() -> bytes:
    """A new task id: 16 bytes of a UUIDv7 (RFC 9562, 5.7), ordered by time within this process."""
    return uuid_utils.uuid7().bytes


def format_id(task_id: bytes) -> str:
    """The id as people and topics write it: 8-4-4-4-12 lower-case hexadecimal."""
    digits = task_id.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_DIGITS: Final = re.compile(r"[0-9A-Fa-f]{32}")


def parse_id(text: str) -> bytes:
    """The 16 bytes of a written id, hyphens or not; ValueError says what is wrong with it."""
    digits = text.replace("-", "")
    if not _DIGITS.fullmatch(digits):  # bytes.fromhex alone would skip spaces, and return fewer bytes
        raise ValueError(f"{text!r} is not a task id: a UUID has 32 hexadecimal digits")
    return bytes.fromhex(digits)


class Outcome(enum.StrEnum):
    """What became of one item; every item of an accepted task ends in one row with one of these."""

    OK = "ok"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

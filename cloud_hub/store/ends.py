"""What follows when a task ends: the word to its origin, the call back of somebody else's lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared import tasks


@dataclass(frozen=True, slots=True)
class End:
    """A task that reached a final state."""

    task_id: bytes
    state: tasks.State
    reason: tasks.Reason | None
    model: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did, for those who wait: to be told after the commit."""

    ended: list[End] = field(default_factory=list)
    queued: dict[str, int] = field(default_factory=dict)
    """Tasks that went back into the queue, by model."""
    told: frozenset[int] = frozenset()
    """Agents (ids) whose down lanes have new records."""

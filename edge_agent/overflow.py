"""What goes to the hub instead of waiting here: a pure policy, with the numbers behind each decision.

Only a task that has just arrived is judged, so that what overflows is what would wait longest.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from edge_agent import settings


class Why(enum.StrEnum):
    """The rule that decided."""

    ROOM = "room"
    """It will run here in time."""
    WAIT = "wait"
    """It would wait longer than `max_wait_s`."""
    DEADLINE = "deadline"
    """It would wait longer than its share of the deadline."""
    NO_MODEL = "no_model"
    """The model is not here."""
    KEPT = "kept"
    """It would wait long, but its priority is never handed over."""
    STATE = "state"
    """It would wait long, but the state that its model carries is here."""
    UNREACHABLE = "unreachable"
    """It would wait long, but the hub cannot be reached."""
    HUB_FULL = "hub_full"
    """It would wait long, but the hub holds as much of ours as it may."""
    DISABLED = "disabled"


class Situation(NamedTuple):
    """What is known when a task arrives."""

    items_ahead: int
    """Items that would run before it, those of the batch that runs included."""
    items_per_s: float
    """Measured for its model; 0 while nothing was measured."""
    model_here: bool
    hub_reachable: bool
    handed_over: int
    """Tasks of ours that the hub holds."""
    state_here: bool = False
    """Whether the model carries a state from item to item."""


class Decision(NamedTuple):
    """Where a task goes, and why."""

    hand_over: bool
    why: Why
    predicted_wait_s: float
    limit_s: float
    situation: Situation


def predicted_wait_s(items_ahead: int, items_per_s: float) -> float:
    """Seconds until `items_ahead` items have run; 0 while the speed is not known."""
    return items_ahead / items_per_s if items_per_s > 0 else 0.0


def decide(
    situation: Situation, *, priority: int, remaining_s: float | None, policy: settings.Overflow
) -> Decision:
    """Whether a task of `priority`, with `remaining_s` left of its deadline, is handed over.

    In order: a model that is not here can only run elsewhere, so it goes whatever the link; then
    the wait against both limits; then whether the hub may be asked.
    """
    wait = predicted_wait_s(situation.items_ahead, situation.items_per_s)
    by_deadline = float("inf") if remaining_s is None else remaining_s * policy.deadline_share
    limit = min(policy.max_wait_s, by_deadline)

    def decided(hand_over: bool, why: Why) -> Decision:
        return Decision(hand_over, why, wait, limit, situation)

    if not policy.enabled:
        return decided(False, Why.DISABLED)
    if not situation.model_here:
        return decided(True, Why.NO_MODEL)
    if wait <= limit:
        return decided(False, Why.ROOM)
    if situation.state_here:
        return decided(False, Why.STATE)
    if priority >= policy.keep_priority:
        return decided(False, Why.KEPT)
    if not situation.hub_reachable:
        return decided(False, Why.UNREACHABLE)
    if situation.handed_over >= policy.max_handed_over:
        return decided(False, Why.HUB_FULL)
    return decided(True, Why.DEADLINE if by_deadline < policy.max_wait_s else Why.WAIT)


def capacity(*, queued_items: int, items_per_s: float, policy: settings.Leases) -> int:
    """How many of the hub's tasks an agent is ready to hold.

    Work for `ahead_s` seconds, less what its own site's queue already fills: so its devices come first
    and the hub's work stops arriving before they have to wait.
    """
    if policy.slots <= 0:
        return 0
    if items_per_s <= 0:
        return min(policy.slots, 1)
    room = int(items_per_s * policy.ahead_s) - queued_items
    return max(0, min(policy.slots, max(room, 1 if queued_items == 0 else 0)))

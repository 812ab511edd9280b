"""The overflow policy: pure, so its promises are tables and properties."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import overflow, settings

POLICY = settings.Overflow(max_wait_s=1.0, deadline_share=0.5, max_handed_over=100, keep_priority=9)
BUSY = overflow.Situation(
    items_ahead=300, items_per_s=100.0, model_here=True, hub_reachable=True, handed_over=0
)

SITUATIONS = st.builds(
    overflow.Situation,
    items_ahead=st.integers(0, 10_000),
    items_per_s=st.floats(0, 10_000),
    model_here=st.booleans(),
    hub_reachable=st.booleans(),
    handed_over=st.integers(0, 200),
)


@pytest.mark.parametrize(
    ("change", "priority", "remaining_s", "why", "hand_over"),
    [
        ({}, 5, None, overflow.Why.WAIT, True),
        ({"items_ahead": 100}, 5, None, overflow.Why.ROOM, False),
        ({"items_ahead": 0, "items_per_s": 0.0}, 5, None, overflow.Why.ROOM, False),
        ({"items_ahead": 60}, 5, 1.0, overflow.Why.DEADLINE, True),
        ({"items_ahead": 60}, 5, 10.0, overflow.Why.ROOM, False),
        ({}, 9, None, overflow.Why.KEPT, False),
        ({"hub_reachable": False}, 5, None, overflow.Why.UNREACHABLE, False),
        ({"handed_over": 100}, 5, None, overflow.Why.HUB_FULL, False),
        ({"model_here": False}, 9, None, overflow.Why.NO_MODEL, True),
        ({"model_here": False, "hub_reachable": False}, 5, None, overflow.Why.NO_MODEL, True),
    ],
)
def test_each_rule_decides_where_it_should(
    change: dict[str, Any], priority: int, remaining_s: float | None, why: overflow.Why, hand_over: bool
) -> None:
    """A task goes where the first rule that applies sends it, and the decision names that rule."""
    situation = BUSY._replace(**change)
    decision = overflow.decide(situation, priority=priority, remaining_s=remaining_s, policy=POLICY)
    assert (decision.why, decision.hand_over) == (why, hand_over)


@given(SITUATIONS, st.integers(0, 9), st.none() | st.floats(0, 100))
def test_disabled_hands_nothing_over(
    situation: overflow.Situation, priority: int, remaining_s: float | None
) -> None:
    """With overflow off, no situation sends a task away."""
    policy = msgspec.structs.replace(POLICY, enabled=False)
    assert not overflow.decide(situation, priority=priority, remaining_s=remaining_s, policy=policy).hand_over


@given(SITUATIONS, st.integers(0, 9), st.none() | st.floats(0, 100))
def test_an_unreachable_hub_gets_only_what_cannot_run_here(
    situation: overflow.Situation, priority: int, remaining_s: float | None
) -> None:
    """Without the hub the site works on alone: only a task whose model is not here waits for it."""
    decision = overflow.decide(situation, priority=priority, remaining_s=remaining_s, policy=POLICY)
    if decision.hand_over and not situation.hub_reachable:
        assert not situation.model_here


@given(SITUATIONS, st.integers(0, 9), st.none() | st.floats(0, 100), st.integers(1, 1000))
def test_more_ahead_never_brings_a_task_back_here(
    situation: overflow.Situation, priority: int, remaining_s: float | None, more: int
) -> None:
    """A longer queue never makes the policy keep what a shorter one handed over."""
    longer = situation._replace(items_ahead=situation.items_ahead + more)
    before = overflow.decide(situation, priority=priority, remaining_s=remaining_s, policy=POLICY)
    after = overflow.decide(longer, priority=priority, remaining_s=remaining_s, policy=POLICY)
    assert after.hand_over or not before.hand_over


@given(st.integers(0, 100_000), st.floats(0, 10_000), st.integers(0, 500), st.floats(0.01, 10))
def test_capacity_is_bounded_and_gives_way_to_the_sites_own_queue(
    queued: int, speed: float, slots: int, ahead_s: float
) -> None:
    """An agent never offers more than its slots, and never more when its own devices wait longer."""
    policy = settings.Leases(slots=slots, ahead_s=ahead_s)
    here = overflow.capacity(queued_items=queued, items_per_s=speed, policy=policy)
    assert 0 <= here <= slots
    assert overflow.capacity(queued_items=queued + 1, items_per_s=speed, policy=policy) <= here

"""The demo's plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import phases


@given(st.floats(phases.SHORTEST_S, 3600))
def test_phases_fill_the_duration(duration_s: float) -> None:
    """Whatever the duration, all four acts have their turn in it, in order, and no cut is too long."""
    plan = phases.plan(duration_s, "a", "b")
    assert sum(phase.seconds for phase in plan) == pytest.approx(duration_s)
    acts = [phase.act for phase in plan]
    assert acts == list(phases.Act) * (len(acts) // 4)
    assert all(phase.seconds > 0 for phase in plan)
    assert all(phase.seconds <= phases.LONGEST_CUT_S for phase in plan if phase.act is phases.Act.CUT)


@given(st.floats(phases.CYCLE_S * 2, 3600))
def test_a_long_demo_goes_round_and_round(duration_s: float) -> None:
    """An hour shows sixty bursts, and not one that lasts for half an hour."""
    rounds = len(phases.plan(duration_s, "a", "b")) // 4
    assert duration_s / rounds == pytest.approx(phases.CYCLE_S, rel=0.35)


def test_too_short_a_demo_is_refused() -> None:
    """A demo in which nothing could be seen says so."""
    with pytest.raises(ValueError, match="too short"):
        phases.plan(phases.SHORTEST_S / 2, "a", "b")

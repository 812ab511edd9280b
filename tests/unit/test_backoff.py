"""Back-off: spread, bounded, and begun anew only after a success that held."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import backoff

SECONDS = st.floats(min_value=0.001, max_value=3600.0)


@given(attempt=st.integers(0, 10_000), base=SECONDS, cap=SECONDS, seed=st.integers())
def test_a_wait_lies_within_its_bounds(attempt: int, base: float, cap: float, seed: int) -> None:
    """No wait is negative, above the cap, or above the base doubled with every attempt."""
    delay = backoff.full_jitter(attempt, base, cap, random.Random(seed))
    assert 0.0 <= delay <= cap
    if attempt < 64:
        assert delay <= base * 2**attempt


def test_the_jitter_is_full() -> None:
    """A fleet spreads over the whole interval: every tenth of it gets its share of the first waits."""
    waits = [backoff.Backoff(10.0, 60.0, random.Random(seed)).next() for seed in range(1000)]
    tenths = [sum(tenth <= wait < tenth + 1 for wait in waits) for tenth in range(10)]
    assert min(tenths) > 50
    assert sum(tenths) == 1000


class Longest(random.Random):
    """Chooses the upper bound, so that the bound can be seen."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_bound_doubles_up_to_the_cap() -> None:
    """Each failure doubles the longest possible wait, until the cap."""
    waits = backoff.Backoff(1.0, 10.0, Longest())
    assert [waits.next() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_only_a_stable_success_begins_anew() -> None:
    """A success that did not last leaves the waits as long as they were; one that held shortens them."""
    waits = backoff.Backoff(1.0, 10.0, Longest(), stable_s=5.0)
    assert [waits.next(), waits.next()] == [1.0, 2.0]
    waits.succeeded(after_s=4.9)
    assert waits.next() == 4.0
    waits.succeeded(after_s=5.0)
    assert waits.next() == 1.0


def test_stable_is_as_long_as_the_cap_unless_told() -> None:
    """By default a success must hold for the longest wait."""
    waits = backoff.Backoff(1.0, 10.0, Longest())
    waits.next()
    waits.succeeded(after_s=9.9)
    assert waits.next() == 2.0
    waits.succeeded(after_s=10.0)
    assert waits.next() == 1.0


@pytest.mark.parametrize(("base", "cap"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_bounds_that_make_no_sense_are_refused(base: float, cap: float) -> None:
    """A base of zero would be a storm, a cap below the base a mistake."""
    with pytest.raises(ValueError, match="back-off"):
        backoff.Backoff(base, cap)

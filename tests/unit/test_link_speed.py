"""The speed of the link down, out of what arrives anyway."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import link_speed

LATENCY_S = 0.03


class Way:
    """From a hub whose clock is `offset_s` behind ours, over a link that carries one after the other."""

    def __init__(self, offset_s: float) -> None:
        self.speed = link_speed.LinkSpeed()
        self.offset_s = offset_s
        self._now = self._free = 1_760_000_000.0

    def carry(self, sizes: list[int], bytes_per_s: float, *, every_s: float = 1.0) -> None:
        for size in sizes:
            self._now += every_s
            self._free = max(self._free, self._now) + size / bytes_per_s
            received = self._free + LATENCY_S + self.offset_s
            self.speed.arrived(size, round(self._now * 1e6), round(received * 1e6))


large = st.integers(link_speed.LARGE, 1 << 20)


@given(st.floats(1e4, 1e6), st.floats(-3600, 3600), st.lists(large, min_size=1, max_size=20), st.floats(0, 5))
def test_the_speed_is_found_whatever_the_clocks_say(
    bytes_per_s: float, offset_s: float, sizes: list[int], every_s: float
) -> None:
    """Small batches show latency and offset, so large ones show their bytes, be they queued for the link."""
    way = Way(offset_s)
    way.carry([100], bytes_per_s)
    way.carry(sizes, bytes_per_s, every_s=every_s)
    assert way.speed.bytes_per_s == pytest.approx(bytes_per_s, rel=0.1)


def test_nothing_is_said_of_a_link_that_carried_nothing_large() -> None:
    """Small batches, and those of a hub that does not say when it sent them, are no measure."""
    way = Way(5.0)
    way.carry([10, 5000, link_speed.LARGE - 1], 1e4)
    way.speed.arrived(1 << 20, 0, 1_760_000_100_000_000)
    assert way.speed.bytes_per_s == 0.0


def test_a_link_that_becomes_slow_is_noticed() -> None:
    """A score of batches later the new speed counts, and a lucky one among them does not undo it."""
    chance = random.Random(3)
    way = Way(-7.0)

    def some() -> list[int]:
        return [chance.randrange(1 << 16, 1 << 18) for _ in range(20)]

    def carry(sizes: list[int], bytes_per_s: float) -> None:
        for size in sizes:  # between answers to heartbeats
            way.carry([200], bytes_per_s, every_s=2.0)
            way.carry([size], bytes_per_s, every_s=2.0)

    carry(some(), 1e7)
    assert way.speed.bytes_per_s == pytest.approx(1e7, rel=0.5)
    carry(some(), 1e5)
    assert way.speed.bytes_per_s == pytest.approx(1e5, rel=0.2)
    carry([1 << 17], 1e7)
    assert way.speed.bytes_per_s == pytest.approx(1.25e5, rel=0.2)


@pytest.mark.parametrize("step_s", [600.0, -600.0])
def test_a_hub_whose_clock_is_set_is_measured_again(step_s: float) -> None:
    """Either way: within two windows what was the quickest before counts no more."""
    way = Way(0.0)
    for step in (0.0, step_s):
        way.offset_s = step
        for _ in range(80):
            way.carry([200], 1e6, every_s=5.0)
            way.carry([1 << 17], 1e6, every_s=5.0)
    assert way.speed.bytes_per_s == pytest.approx(1e6, rel=0.2)

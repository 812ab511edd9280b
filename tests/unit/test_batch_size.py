"""How many items run together, and whether to wait for more: on simulated models."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import batch_size

Curve = Callable[[int], float]
"""Seconds of a run, by its size."""


def flat(count: int) -> float:
    """Whatever the size, one run takes as long: a graph of a fixed batch, or a server far away."""
    return 0.02


def linear(count: int) -> float:
    """Batching brings nothing."""
    return 0.05 * count


def steps(count: int) -> float:
    """A GPU: a start, then waves of 16 items."""
    return 0.004 + 0.003 * -(-count // 16)


def crowded(count: int) -> float:
    """A cache that overflows beyond eight items."""
    return 0.003 + 0.001 * count + 0.004 * max(0, count - 8)


class Model:
    """A model under load: as many items wait as there is need for."""

    def __init__(self, bound: int, curve: Curve, noise: float = 0.0) -> None:
        self.learnt = batch_size.Learnt(bound)
        self.curve = curve
        self._chance = random.Random(7)
        self._noise = noise
        for count in {1, bound}:
            self.learnt.ran(count, self.seconds(count))

    def seconds(self, count: int) -> float:
        """Most runs are near the curve; now and then one is disturbed, and takes three times as long."""
        disturbed = 3.0 if self._noise and self._chance.random() < 0.05 else 1.0
        return self.curve(count) * disturbed * self._chance.lognormvariate(0.0, self._noise)

    def run(self, seconds: float, waiting: int = 1000) -> float:
        """Run for so long; items per second, had there been no noise."""
        took, done, usual = 0.0, 0, 0.0
        while took < seconds:
            count = self.learnt.take(waiting, None)
            assert 1 <= count <= self.learnt.sizes[-1]
            spent = self.seconds(count)
            self.learnt.ran(count, spent, 0.0)
            took += spent
            usual += self.curve(count) + batch_size.BESIDE_S
            done += count
        return done / usual

    @property
    def best(self) -> float:
        """Items per second at the best of the sizes."""
        return max(size / (self.curve(size) + batch_size.BESIDE_S) for size in self.learnt.sizes)


def test_what_others_took_of_a_run_says_nothing_about_its_size() -> None:
    """On a busy machine long runs are stretched on the clock; deadlines count it, the choice does not."""
    learnt = batch_size.Learnt(32)
    for count in learnt.sizes:
        stretched = 2.0 if count > 4 else 1.0
        learnt.ran(count, 3e-4 * count * stretched, 0.0, work_s=3e-4 * count)
    assert learnt.size == 32
    assert learnt.seconds(32) == pytest.approx(2 * 32 * 3e-4)
    assert max(learnt.take(100, 0.01) for _ in range(20)) == 8


def test_a_first_run_that_had_to_allocate_does_not_count() -> None:
    """A batch larger than those before it is slow; it is the second that tells, and a word of the warm-up
    gives way to it."""
    learnt = batch_size.Learnt(32)
    for count in (1, 32):
        learnt.ran(count, 0.01 * count)
    for _ in range(10):
        learnt.ran(16, 0.0016, 0.0)
    learnt.ran(32, 0.5, 0.0)
    assert learnt.run_s[32] > 0.1
    learnt.ran(32, 0.0032, 0.0)
    assert learnt.run_s[32] == pytest.approx(0.0032)
    for _ in range(batch_size.LATEST):
        learnt.ran(16, 0.0016, 0.0)
    learnt.ran(32, 0.5, 0.0)
    assert learnt.run_s[32] == pytest.approx(0.0032)


def test_a_few_slow_runs_do_not_say_that_more_at_once_is_slower() -> None:
    """A size is not given up for a smaller one before it was measured some times."""
    learnt = batch_size.Learnt(32)
    for _ in range(5):
        learnt.ran(16, 0.005, 0.0)
    for number in range(1, batch_size.FEW + 2):
        learnt.ran(32, 0.016, 0.0)
        assert learnt.size == (32 if number <= batch_size.FEW else 16)


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(
    ("curve", "bound", "size"), [(flat, 32, 32), (linear, 32, 1), (steps, 128, 128), (crowded, 64, 8)]
)
def test_the_best_size_is_found_and_kept_to(curve: Curve, bound: int, size: int, noise: float) -> None:
    """On each curve, noisy or not, the pace is soon within a tenth of the best there is, tries included."""
    model = Model(bound, curve, noise)
    model.run(30.0)
    assert model.run(60.0) > 0.9 * model.best
    if not noise:
        assert model.learnt.size == size


def test_looking_costs_little_from_the_start() -> None:
    """Learning the worst of curves from nothing, tries included, costs less than a tenth."""
    for curve, bound in ((flat, 32), (linear, 32), (steps, 128), (crowded, 64)):
        model = Model(bound, curve)
        assert model.run(120.0) > 0.9 * model.best


def test_a_change_is_followed() -> None:
    """When the device slows down for large batches, the size shrinks; when it recovers, it grows again."""
    model = Model(64, flat, noise=0.1)
    model.run(20.0)
    assert model.learnt.size == 64
    model.curve = crowded
    model.run(30.0)
    assert model.run(20.0) > 0.9 * model.best
    model.curve = flat
    model.run(60.0)
    assert model.run(20.0) > 0.9 * model.best


def test_what_was_measured_long_ago_is_forgotten() -> None:
    """A size's seconds are those of its latest runs."""
    learnt = batch_size.Learnt(4)
    for _ in range(100):
        learnt.ran(4, 1.0, 0.4)
    assert learnt.run_s == {4: 1.0}
    assert learnt.read_s == pytest.approx(0.1)
    for _ in range(batch_size.LATEST):
        learnt.ran(4, 2.0, 0.4)
    assert learnt.run_s == {4: 2.0}


def test_one_disturbed_run_changes_nothing() -> None:
    """The median passes over a run that took a hundred times as long."""
    model = Model(32, steps)
    model.run(5.0)
    size = model.learnt.size
    model.learnt.ran(size, 100 * steps(size), 0.0)
    assert model.learnt.size == size


def test_decoding_is_no_reason_for_large_batches() -> None:
    """What each item costs by itself no batch makes cheaper: then small ones are as good."""
    run_s = {1: 0.001, 2: 0.0012, 4: 0.0016, 8: 0.0024}
    quick, slow = batch_size.Learnt(8), batch_size.Learnt(8)
    for count, seconds in run_s.items():
        quick.ran(count, seconds, 0.0)
        slow.ran(count, seconds, 0.1 * count)
    assert quick.size == 8
    assert slow.size == 1


def test_tiny_runs_are_put_together_though_the_graph_gains_nothing() -> None:
    """A batch costs something beside its run."""
    learnt = batch_size.Learnt(64)
    for count in learnt.sizes:
        learnt.ran(count, 2e-5 * count, 0.0)
    assert learnt.size >= 32


def test_batches_of_odd_numbers_count_too() -> None:
    """Tasks of three items never make a batch of sixteen: fifteen tell of it, nine don't."""
    learnt = batch_size.Learnt(16)
    learnt.ran(9, 0.9, 0.0)
    assert learnt.run_s == {}
    learnt.ran(15, 1.5, 0.0)
    assert learnt.run_s == {16: pytest.approx(1.6)}


@given(
    bound=st.integers(1, 200),
    ran=st.lists(st.tuples(st.integers(1, 250), st.floats(1e-6, 10), st.floats(0, 1)), max_size=60),
    asked=st.lists(st.tuples(st.integers(1, 500), st.none() | st.floats(-1, 10)), max_size=20),
)
def test_no_size_is_beyond_the_bound_or_breaks_the_first_deadline(
    bound: int, ran: list[tuple[int, float, float]], asked: list[tuple[int, float | None]]
) -> None:
    """Whatever was measured: between 1 and the bound; and where a size keeps the deadline, one that does."""
    learnt = batch_size.Learnt(bound)
    for count, run_s, read_s in ran:
        learnt.ran(count, run_s, read_s)
    for waiting, left_s in asked:
        size = learnt.take(waiting, left_s)
        assert 1 <= size <= bound
        assert 1 <= learnt.size <= bound
        if left_s is not None and learnt.seconds(1) <= left_s:
            assert learnt.seconds(size) <= left_s


# --- waiting ------------------------------------------------------------------------------------


def arriving(curve: Curve, per_s: float, bound: int = 32) -> batch_size.Learnt:
    """A known curve, and items that have come at this rate for ten seconds, up to second 10."""
    learnt = batch_size.Learnt(bound)
    for count in learnt.sizes:
        learnt.ran(count, curve(count), 0.0)
    for number in range(int(10 * per_s)):
        learnt.arrived(1, number / per_s)
    return learnt


@pytest.mark.parametrize(
    ("curve", "per_s", "delay_s", "waits"),
    [
        pytest.param(steps, 1000, 0.005, True, id="a GPU, and five more come"),
        pytest.param(steps, 100, 0.005, False, id="nobody will come in time"),
        pytest.param(steps, 50, 0.05, False, id="two will come, but the GPU idles most of the time"),
        pytest.param(linear, 1000, 0.05, False, id="throughput does not rise"),
        pytest.param(flat, 40, 0.05, True, id="a remote server at its limit"),
    ],
)
def test_waiting_has_to_be_worth_it(curve: Curve, per_s: float, delay_s: float, waits: bool) -> None:
    """Company must come within the delay, throughput must rise with it, and the executor be busy."""
    assert arriving(curve, per_s).waits(1, delay_s, 10.0) is waits


def test_when_no_more_come_nobody_waits() -> None:
    """The rate of arrivals fades: what came a minute ago is no reason to wait."""
    learnt = arriving(steps, 1000)
    assert learnt.arrivals_per_s(10.0) == pytest.approx(1000, rel=0.01)
    assert not learnt.waits(1, 0.005, 70.0)


def test_a_full_batch_never_waits() -> None:
    """What waits is as many as are worth running together, or more."""
    learnt = arriving(flat, 1000)
    assert not learnt.waits(learnt.size, 1.0, 10.0)
    assert not learnt.waits(learnt.size + 1, 1.0, 10.0)


def test_before_anything_is_measured_nobody_waits() -> None:
    """There is no sign yet that it would bring anything."""
    learnt = batch_size.Learnt(8)
    for number in range(1000):
        learnt.arrived(1, number / 1000)
    assert not learnt.waits(1, 1.0, 1.0)


@given(
    each=st.floats(0.1, 1.0),
    per_s=st.floats(1, 1e5),
    delay_s=st.floats(0, 1),
    waiting=st.integers(1, 64),
    gain=st.floats(0, 0.07),
)
def test_without_a_margin_nobody_ever_waits(
    each: float, per_s: float, delay_s: float, waiting: int, gain: float
) -> None:
    """Where the best size is faster by less than the margin, waiting is never worth it; a batch's own cost is
    small beside such runs."""
    learnt = batch_size.Learnt(32)
    for count in learnt.sizes:
        learnt.ran(count, count * each * (1 - gain * count / 32), 0.0)
    learnt.arrived(int(per_s) + 1, 0.0)
    assert not learnt.waits(waiting, delay_s, 0.0)

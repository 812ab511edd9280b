"""Weighted fair shares: the promises of start-time fair queueing."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import fairness


class Flow(NamedTuple):
    """A queue that always has work: its weight, and the costs of its tasks over and over."""

    weight: float
    costs: list[int]


flows = st.lists(
    st.builds(
        Flow,
        weight=st.floats(0.1, 50),
        costs=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    ),
    min_size=2,
    max_size=4,
)


@given(flows=flows)
def test_shares_follow_weights(flows: list[Flow]) -> None:
    """While queues have work, service over weight differs by one task of each at most, in any interval.

    Theorem 1 of the paper, with costs of 1 to 100: |W_f / w_f - W_g / w_g| <= l_f / w_f + l_g / w_g.
    """
    clock = fairness.FairClock()
    sequence = itertools.count()
    ready: list[tuple[float, int, int, int]] = []
    sources = [itertools.cycle(flow.costs) for flow in flows]

    def arrive(number: int) -> None:
        cost = next(sources[number])
        tag = clock.stamp(f"q{number}", flows[number].weight, cost)
        heapq.heappush(ready, (tag, next(sequence), number, cost))

    for number in range(len(flows)):
        for _ in range(3):
            arrive(number)
    served = [0.0] * len(flows)
    ahead: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0])
    for _ in range(300):
        tag, _, number, cost = heapq.heappop(ready)
        clock.serve(tag)
        served[number] += cost / flows[number].weight
        arrive(number)
        for one, other in itertools.combinations(range(len(flows)), 2):
            ahead[one, other].append(served[one] - served[other])
    for (one, other), differences in ahead.items():
        bound = sum(max(flows[number].costs) / flows[number].weight for number in (one, other))
        # The difference over any interval is the step between two of these.
        assert max(differences) - min(differences) <= bound * (1 + 1e-9)


@given(idle=st.integers(1, 200), weight=st.floats(0.1, 10), cost=st.floats(0.1, 100))
def test_idleness_earns_no_credit(idle: int, weight: float, cost: float) -> None:
    """A queue that had nothing to do starts at the virtual time of now, not where it left off."""
    clock = fairness.FairClock()
    clock.serve(clock.stamp("sleepy", weight, cost))
    for _ in range(idle):
        clock.serve(clock.stamp("busy", 1, 10))
    tags = [clock.stamp("sleepy", weight, cost) for _ in range(3)]
    assert tags[0] >= clock.now
    assert tags[0] == max(clock.now, cost / weight)
    assert tags == sorted(set(tags))


def test_a_newcomer_waits_for_one_task_not_for_a_backlog() -> None:
    """Ten thousand tasks queued before it do not stand before another queue's first task."""
    clock = fairness.FairClock()
    backlog = [clock.stamp("bulk", 1, 1) for _ in range(10_000)]
    clock.serve(backlog[0])
    clock.serve(backlog[1])
    newcomer = clock.stamp("line", 1, 1)
    assert newcomer <= backlog[2]


def test_tasks_that_left_unserved_are_not_charged() -> None:
    """After its backlog went elsewhere, a queue's next task is not behind that backlog's tags."""
    clock = fairness.FairClock()
    clock.serve(clock.stamp("bulk", 2, 10))
    for _ in range(1000):
        clock.stamp("bulk", 2, 10)
    for _ in range(1000):
        clock.refund("bulk", 2, 10)
    assert clock.stamp("bulk", 2, 10) == pytest.approx(5)
    clock.refund("unknown", 1, 1)


def test_a_queue_that_waits_gets_its_refund_at_once() -> None:
    """What a preempted task did not run makes its queue's next one come sooner, never before now."""
    clock = fairness.FairClock()
    clock.serve(100)
    clock.keep([fairness.Group({"a": 130.0, "b": 90.0}, slack=20.0)])
    clock.refund("a", 2, 20)
    clock.refund("b", 1, 20)
    assert (clock.start("a"), clock.start("b")) == (120, 90)
    clock.refund("a", 1, 50)
    assert clock.start("a") == 100


def test_a_refund_never_reaches_into_the_past() -> None:
    """Taking back more than is left does not earn a queue credit either."""
    clock = fairness.FairClock()
    clock.serve(clock.stamp("a", 1, 10))
    clock.serve(clock.stamp("a", 1, 10))
    clock.refund("a", 1, 1000)
    assert clock.stamp("a", 1, 1) == clock.now == 10


def test_after_a_rest_all_queues_start_alike() -> None:
    """When everything was served, what was served before counts for nobody and against nobody."""
    clock = fairness.FairClock()
    for _ in range(5):
        clock.serve(clock.stamp("a", 1, 10))
    clock.rest()
    assert clock.stamp("a", 1, 1) == clock.stamp("b", 1, 1) == 50


def test_virtual_time_never_goes_back() -> None:
    """Tasks served out of order, as several executors do, do not turn the clock back."""
    clock = fairness.FairClock()
    tags = [clock.stamp("a", 1, 1) for _ in range(3)]
    clock.serve(tags[2])
    clock.serve(tags[0])
    assert clock.now == tags[2]


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9), st.booleans()), max_size=40))
def test_a_clock_goes_on_from_its_stored_state(steps: list[tuple[str, float, bool]]) -> None:
    """Stored as JSON and read again, a clock gives the tags that it would have given."""
    clock = fairness.FairClock()
    for queue, cost, serve in steps:
        tag = clock.stamp(queue, 1, cost)
        if serve:
            clock.serve(tag)
    stored = msgspec.json.decode(msgspec.json.encode(clock.state()), type=fairness.FairState)
    again = fairness.FairClock(stored)
    assert again.now == clock.now
    for queue in "abcd":
        assert again.stamp(queue, 2, 3) == clock.stamp(queue, 2, 3)


def test_queues_without_work_are_forgotten() -> None:
    """Names of queues may come and go for years: only those with work are remembered."""
    clock = fairness.FairClock()
    for number in range(100_000):
        clock.serve(clock.stamp(f"q{number}", 1, 1))
        clock.serve(clock.stamp("always", 1, 1))
    assert len(clock.state().finish) <= 3
    assert len(clock._finish) <= 2048


@pytest.mark.parametrize(("weight", "cost"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_a_weight_or_cost_of_nothing_is_refused(weight: float, cost: float) -> None:
    """They would stop the queue, or let it have everything."""
    with pytest.raises(ValueError, match="must both be above zero"):
        fairness.FairClock().stamp("a", weight, cost)


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9), st.booleans()), max_size=40))
def test_a_tag_can_be_computed_when_it_is_looked_at(steps: list[tuple[str, float, bool]]) -> None:
    """`start` says what `stamp` will, and changes nothing."""
    clock = fairness.FairClock()
    for queue, cost, serve in steps:
        expected = clock.start(queue)
        assert clock.start(queue) == expected == clock.stamp(queue, 2, cost)
        if serve:
            clock.serve(expected)


def test_those_that_wait_while_time_passes_stay_as_far_apart() -> None:
    """Virtual time passed two that wait: both are moved on alike, to within the slack; who is ahead stays."""
    clock = fairness.FairClock()
    clock.serve(100)
    tags = {"near": 3.0, "far": 10.0, "ahead": 200.0}
    clock.keep([fairness.Group(tags, slack=20.0)])
    assert {queue: clock.start(queue) for queue in tags} == {"near": 80, "far": 87, "ahead": 200}
    again = fairness.FairClock(clock.state())
    assert again.start("near") == 80, "what is due is stored"
    assert again.stamp("near", 1, 5, start=80) == 80
    again.keep([])
    assert again.start("near") == again.now == 100, "who waits no more has no claim"


def test_a_small_delay_is_made_up_for() -> None:
    """Within the slack nothing is moved: who was passed over for one task goes first."""
    clock = fairness.FairClock()
    clock.serve(100)
    clock.keep([fairness.Group({"a": 95.0}, slack=10.0), fairness.Group({"b": 96.0}, slack=4.0)])
    assert (clock.start("a"), clock.start("b"), clock.start("c")) == (95, 96, 100)


def test_a_copy_goes_its_own_way() -> None:
    """What is tried on a copy is not done to the clock."""
    clock = fairness.FairClock()
    clock.serve(clock.stamp("a", 1, 5))
    other = clock.copy()
    assert other.state() == clock.state()
    other.serve(other.stamp("a", 1, 5))
    assert other.now == 5
    assert clock.now == 0

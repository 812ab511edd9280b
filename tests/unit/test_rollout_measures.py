"""What is counted of a version: it adds up, stays bounded, and is near the truth."""

from __future__ import annotations

import math
import statistics
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.rollouts import evidence, measures

results = st.lists(
    st.tuples(st.floats(0, 1e10), st.one_of(st.none(), st.sampled_from("abcdef")), st.booleans()),
    max_size=60,
)
Results = list[tuple[float, str | None, bool]]


def measured(found: Results) -> measures.Measures:
    made = measures.Measures()
    for run_us, label, failed in found:
        made.add(run_us, label, failed=failed)
    return made


def labelled(**counts: int) -> measures.Measures:
    return measures.Measures(items=sum(counts.values()), labels=counts)


@given(found=results, cut=st.integers(0, 60))
def test_the_whole_is_its_parts_merged(found: Results, cut: int) -> None:
    """However results are split between agents and stages, the sum says the same."""
    whole, first, rest = measured(found), measured(found[:cut]), measured(found[cut:])
    for made, agreed in ((whole, False), (first, False), (whole, True), (rest, True)):
        made.compare(agreed=agreed)
    first.merge(rest)
    assert (first.compared, first.agreed, first.agreement) == (2, 1, 0.5)
    assert first == whole
    assert msgspec.json.decode(msgspec.json.encode(whole), type=measures.Measures) == whole


@given(found=results)
def test_every_result_is_counted_once(found: Results) -> None:
    """One that failed is an item and a failure; one that did not has a run time and a label, or none."""
    whole = measured(found)
    well = sum(not failed for _, _, failed in found)
    assert (whole.items, whole.failed) == (len(found), len(found) - well)
    assert sum(whole.run_us) == sum(whole.labels.values()) == well
    assert whole.error_rate == (None if not found else (len(found) - well) / len(found))


@given(run_us=st.floats(1, 2**32 - 1))
def test_a_run_time_is_kept_to_four_percent(run_us: float) -> None:
    """From a microsecond to over an hour the middle of a bucket is that near to what fell into it."""
    one = measured([(run_us, None, False)])
    assert one.quantile(0.5) == pytest.approx(run_us, rel=0.04)


@given(one=st.floats(0, 1e13), other=st.floats(0, 1e13))
def test_longer_runs_are_in_later_buckets(one: float, other: float) -> None:
    """And none is outside of them, however short or long."""
    low, high = sorted((one, other))
    assert 0 <= measures.bucket(low) <= measures.bucket(high) < measures.BUCKETS


@given(times=st.lists(st.floats(1, 1e9), min_size=1, max_size=50), q=st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_is_the_nearest_rank(times: list[float], q: float) -> None:
    """To the width of a bucket."""
    rank = max(1, math.ceil(q * len(times)))
    made = measured([(run_us, None, False) for run_us in times])
    assert made.quantile(q) == pytest.approx(sorted(times)[rank - 1], rel=0.04)


def test_labels_are_bounded() -> None:
    """A model that says something new each time takes no more room, and none is lost; nulls are apart."""
    made = measured([(1.0, f"text {number}", False) for number in range(1000)] + [(1.0, None, False)] * 7)
    assert len(made.labels) == measures.MOST_LABELS + 2
    assert made.labels[measures.OTHERS] == 1000 - measures.MOST_LABELS
    assert made.labels[measures.UNLABELLED] == 7
    made.merge(measured([(1.0, f"other {number}", False) for number in range(300)]))
    assert len(made.labels) == measures.MOST_LABELS + 2
    assert sum(made.labels.values()) == 1307


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (labelled(a=1), labelled(a=9), 0.0),
        (labelled(a=1), labelled(b=1), 1.0),
        (labelled(a=50, b=50), labelled(a=7, b=3), 0.2),
        (labelled(a=1, b=1), labelled(a=1, b=1, c=2), 0.5),
    ],
)
def test_drift_is_the_total_variation_distance(
    one: measures.Measures, other: measures.Measures, distance: float
) -> None:
    """0 for the same shares, 1 where nothing is in common; it is of shares and not of counts."""
    assert one.drift(other) == pytest.approx(distance)


@given(one=results, other=results)
def test_drift_is_a_distance(one: Results, other: Results) -> None:
    """Of itself 0, both ways the same, between 0 and 1; None where one of them has said nothing."""
    mine, theirs = measured(one), measured(other)
    distance = mine.drift(theirs)
    assert theirs.drift(mine) == distance
    if distance is None:
        assert not mine.labels or not theirs.labels
    else:
        assert 0 <= distance <= 1
        assert mine.drift(mine) == 0


def test_labels_without_room_are_no_drift() -> None:
    """Two versions that say the same thousand texts in another order differ in none of them for sure."""
    texts: Results = [(1.0, f"text {number}", False) for number in range(1000)]
    assert measured(texts).drift(measured(texts[::-1])) == 0


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 0, 0, 1),
        (0, 10, 0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1),
        (1, 100, 0.0018, 0.0545),
    ],
)
def test_the_interval_of_a_proportion_is_wilsons(count: int, total: int, low: float, high: float) -> None:
    """As tables of the score interval have it."""
    assert evidence.wilson(count, total) == pytest.approx((low, high), abs=1e-4)


@given(total=st.integers(1, 10**6), data=st.data())
def test_the_interval_holds_what_was_seen_and_narrows(total: int, data: st.DataObject) -> None:
    """It lies around the proportion within 0 and 1, and ten times as many tell more."""
    count = data.draw(st.integers(0, total))
    low, high = evidence.wilson(count, total)
    assert 0 <= low <= count / total + 1e-12
    assert count / total - 1e-12 <= high <= 1
    narrow = evidence.wilson(10 * count, 10 * total)
    assert narrow.high - narrow.low < high - low


@given(times=st.lists(st.floats(1, 1e9), min_size=1, max_size=200))
def test_the_interval_of_a_quantile_is_around_it(times: list[float]) -> None:
    """Of run times however they are spread."""
    made = measured([(run_us, None, False) for run_us in times])
    found = evidence.quantile(made, 0.95)
    middle = made.quantile(0.95)
    assert found is not None
    assert middle is not None
    assert found.low <= middle <= found.high


@settings(max_examples=20)
@given(random=st.builds(Random, st.integers(0, 2**32)), kinds=st.integers(2, 60), each=st.integers(50, 200))
def test_the_same_labels_by_chance_are_known_for_that(random: Random, kinds: int, each: int) -> None:
    """Two samples of one distribution are about as far apart as chance is said to bring them."""
    spread = []
    for _ in range(5):
        one, other = (
            measured([(1.0, str(random.randrange(kinds)), False) for _ in range(each)]) for _ in range(2)
        )
        found = evidence.drift(one, other)
        assert found is not None
        assert found.by_chance < found.at_most_by_chance
        spread.append(found.seen - found.by_chance)
    assert abs(statistics.mean(spread)) < 0.12


def test_what_chance_adds_to_a_drift_is_taken_off() -> None:
    """Fifty labels of two hundred results look apart, of which little is likely; a real difference stays."""
    even = labelled(**{f"l{number}": 4 for number in range(50)})
    uneven = labelled(**{f"l{number}": 2 + number % 5 for number in range(50)})
    other = labelled(**{f"x{number}": 4 for number in range(50)})
    noise, real = evidence.drift(even, uneven), evidence.drift(even, other)
    assert noise is not None
    assert real is not None
    assert noise.seen > 0.1
    assert noise.likely == 0
    assert real.seen == 1
    assert real.likely > 0.9

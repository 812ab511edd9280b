"""How fast tasks may come to a queue, and how fast they do."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub import queues
from cloud_hub.store import queues as queue_store
from shared import jobs


def job(queue: str = "archive", priority: int | None = None) -> jobs.Job:
    metadata = jobs.Metadata(queue=queue, priority=priority)
    return jobs.Job(model="m", metadata=metadata, content_type=jobs.PNG, payload=b"p", items=1)


def known(hubs: int = 1, **settings: Any) -> queues.Queues:
    """Queues of which one, `archive`, has settings; nothing here asks the database."""
    found = queues.Queues(cast(Any, None), lambda: hubs)
    found.know({"archive": queue_store.Queue(name="archive", **settings)})
    return found


# The bucket


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    gaps=st.lists(st.floats(0, 3), min_size=60, max_size=60),
    per_second=st.floats(0.5, 100),
)
def test_over_time_no_more_is_taken_than_the_rate(
    sizes: list[int], gaps: list[float], per_second: float
) -> None:
    """In any time from the start no more was taken than the rate gives, one burst, and one last batch."""
    bucket, now, taken = queues.Bucket(0.0), 0.0, 0
    for size, gap in zip(sizes, gaps, strict=False):
        now += gap
        if bucket.take(size, per_second, now) == 0:
            before, taken = taken, taken + size
            assert before <= per_second * now + max(1.0, per_second) + 1e-6


@given(size=st.integers(1, 500), spent=st.integers(0, 300), per_second=st.floats(0.1, 100))
def test_who_comes_when_told_gets_in(size: int, spent: int, per_second: float) -> None:
    """After the time that a refusal names the same batch is taken, however large it is."""
    bucket = queues.Bucket(0.0)
    bucket.take(spent, per_second, 0.0)
    wait_s = bucket.take(size, per_second, 0.0)
    assert wait_s == 0 or bucket.take(size, per_second, wait_s + 1e-6) == 0


# Queues


def test_a_queue_without_settings_has_weight_1_and_no_limits() -> None:
    """What nobody has set up works, and is not slowed."""
    found = known(weight=3.0, max_running=2, max_queued=5)
    assert (found.weight("archive"), found.weight("default")) == (3.0, 1.0)
    assert (found.max_running("archive"), found.max_running("default")) == (2, None)
    assert found.limited() == ("archive",)
    assert list(found.bounded(["archive", "default"])) == ["archive"]
    with found.submitting([job("default")] * 10_000):
        pass


def test_a_queue_gives_its_priority_to_tasks_that_name_none() -> None:
    """A task's own word goes first."""
    found = known(default_priority=2)
    assert found.with_priority(job()).priority == 2
    assert found.with_priority(job(priority=7)).priority == 7
    assert found.with_priority(job("default")).priority == 5


def test_too_fast_is_refused_whole_and_takes_nothing() -> None:
    """A batch whose queue is out of tokens leaves the tokens of its other queues as they were."""
    found = known(max_per_second=1.0)
    with found.submitting([job()]):
        pass
    with pytest.raises(queues.TooFast) as refused, found.submitting([job("default"), job()]):
        pass
    assert 0 < refused.value.retry_after_s <= 1
    assert set(found.rates()) == {"archive"}


def test_what_is_not_stored_gives_its_tokens_back() -> None:
    """A submission that fails has not come."""
    found = known(max_per_second=1.0)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), found.submitting([job()]):
            raise ZeroDivisionError
    assert found.rates() == {}


def test_hubs_divide_what_a_queue_takes() -> None:
    """Each of several hubs takes its part of the rate."""
    found = known(hubs=4, max_per_second=8.0)
    with found.submitting([job(), job()]):
        pass
    with pytest.raises(queues.TooFast), found.submitting([job()]):
        pass


def test_a_rate_is_what_came_lately() -> None:
    """A steady stream shows its rate; a minute after its end there is nothing of it."""
    rate = queues.Rate()
    for tick in range(600):
        rate.add(2, tick / 10)
    assert rate.at(60.0) == pytest.approx(20.0, rel=0.05)
    assert rate.at(120.0) < 0.1


def test_memory_of_rates_is_bounded() -> None:
    """Queues that nobody uses any more are forgotten, however many there were."""
    found = known()
    for name in range(5000):
        found._rate(f"q{name}", float(name)).add(1, float(name))
    assert len(found._rates) < 3000

"""Where a task goes: tables of the score, and promises that hold whatever was reported and given before."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.scheduler import placement, snapshot
from tests.unit import snapshots

RULES = snapshots.RULES


def place(executors: Sequence[snapshot.Executor], *tasks: snapshot.Task) -> list[int | None]:
    """The agents that get the tasks, given one after the other."""
    fleet = placement.Fleet(executors, RULES)
    choices = [fleet.place(one) for one in tasks]
    return [choice and choice.agent_id for choice in choices]


def test_the_score_is_wait_transfer_run_and_distance() -> None:
    """Each part can be read from the choice, and the runners-up with what they would have taken."""
    executors = [
        snapshots.executor(1, predicted_wait_s=1.0),
        snapshots.executor(2, site="west", predicted_wait_s=2.0, models={("m", "1"): 50.0}, bytes_per_s=2e6),
        snapshots.executor(3, credits_=0),
        snapshots.executor(4, models={("n", "1"): 1.0}),
    ]
    choice = placement.Fleet(executors, RULES).place(
        snapshots.task(1, items=100, payload_bytes=10**6, home="east")
    )
    assert choice is not None
    assert (choice.agent_id, choice.able) == (1, 3)
    assert (choice.wait_s, choice.transfer_s, choice.run_s) == pytest.approx((1.0, 1.0, 1.0))
    assert choice.predicted_s == pytest.approx(3.0)
    (other,) = choice.others
    assert other[0] == 2
    assert other[1] == pytest.approx(2.0 + 0.5 + 2.0 + RULES.away_s)


def test_what_was_never_measured_is_assumed() -> None:
    """A new agent, and a new link, count at what the rules say of them."""
    new = snapshots.executor(1, models={("m", "1"): 0.0}, bytes_per_s=0.0)
    choice = placement.Fleet([new], RULES).place(snapshots.task(1, items=20, payload_bytes=2_500_000))
    assert choice is not None
    assert choice.run_s == pytest.approx(20 / RULES.unmeasured_items_per_s)
    assert choice.transfer_s == pytest.approx(2_500_000 / RULES.unmeasured_bytes_per_s)


def test_the_fastest_version_that_will_do_counts() -> None:
    """Any version: the faster one; a pinned one: its own speed."""
    both = [snapshots.executor(1, models={("m", "1"): 10.0, ("m", "2"): 20.0})]
    for version, run_s in ((None, 1.0), ("1", 2.0), ("2", 1.0)):
        choice = placement.Fleet(both, RULES).place(snapshots.task(1, items=20, version=version))
        assert choice is not None
        assert choice.run_s == pytest.approx(run_s)


def test_what_is_given_counts_at_once() -> None:
    """Of two agents alike the one with the shorter wait gets more, until both are as long."""
    executors = [snapshots.executor(1, 30, predicted_wait_s=0.1), snapshots.executor(2, 30)]
    agents = place(executors, *(snapshots.task(n) for n in range(30)))
    assert agents[:10] == [2] * 10
    assert (agents.count(1), agents.count(2)) == (10, 20)


def test_work_divides_by_speed() -> None:
    """An agent three times as fast gets three times as much."""
    executors = [snapshots.executor(1, 100, models={("m", "1"): 300.0}), snapshots.executor(2, 100)]
    agents = place(executors, *(snapshots.task(n) for n in range(100)))
    assert 70 <= agents.count(1) <= 80


def test_small_tasks_go_to_who_is_free_and_large_ones_to_who_is_fast() -> None:
    """The ranking is by the task's size: the same two agents, two answers."""
    executors = [
        snapshots.executor(1, predicted_wait_s=0.0, models={("m", "1"): 10.0}),
        snapshots.executor(2, predicted_wait_s=2.0, models={("m", "1"): 100.0}),
    ]
    assert place(executors, snapshots.task(1, items=1)) == [1]
    assert place(executors, snapshots.task(1, items=1000)) == [2]


def test_home_is_preferred_by_a_little() -> None:
    """At a tie or a little behind the own site is taken; far behind it is not."""
    home = snapshots.task(1, home="west")
    near = snapshots.executor(2, site="west", predicted_wait_s=RULES.away_s * 0.9)
    assert place([snapshots.executor(1), near], home) == [2]
    far = snapshots.executor(2, site="west", predicted_wait_s=RULES.away_s * 1.1)
    assert place([snapshots.executor(1), far], home) == [1]
    strangers = [snapshots.executor(n, site="north") for n in range(3, 20)]
    assert place([*strangers, near], home) == [2], "however many stand before it in the general ranking"


def test_a_task_does_not_go_back_to_its_origin() -> None:
    """Overflow waits for another rather than return to one that is busy, unless that one is alone."""
    waiting = snapshots.task(1, origin_agent=1, home="east")
    busy = snapshots.executor(1, predicted_wait_s=0.1)
    assert place([busy, snapshots.executor(2, credits_=0)], waiting) == [None]
    assert place([busy, snapshots.executor(2, predicted_wait_s=9.0)], waiting) == [2]
    assert place([busy, snapshots.executor(3, models={("other", "1"): 1.0})], waiting) == [1]
    assert place([snapshots.executor(1), snapshots.executor(2, credits_=0)], waiting) == [1]


@pytest.mark.parametrize(
    ("selector", "able"),
    [
        ("", [1, 2, 3]),
        ("site=east", [1, 2]),
        ("agent=agent-2", [2]),
        ("gpu=yes", [2, 3]),
        ("gpu=yes,site=east", [2]),
        ("gpu=no", []),
        ("gpu", []),
        ("gpu=no,gpu=yes", []),
    ],
)
def test_all_of_a_selector_must_match(selector: str, able: list[int]) -> None:
    """Labels are hard limits, site and agent among them."""
    executors = [
        snapshots.executor(1),
        snapshots.executor(2, labels={"gpu": "yes"}),
        snapshots.executor(3, site="west", labels={"gpu": "yes"}),
    ]
    fleet = placement.Fleet(executors, RULES)
    assert sorted(fleet.able("m", None, selector)) == able
    assert sorted(fleet.able("m", "2", selector)) == []
    assert (fleet.place(snapshots.task(1, selector=selector)) is None) == (not able)


@given(
    speeds=st.lists(
        st.tuples(st.floats(0, 100), st.floats(1, 1000), st.floats(1e4, 1e8)), min_size=1, max_size=40
    ),
    size=st.integers(0, 4),
)
def test_a_task_of_a_rankings_size_goes_to_the_very_best(
    speeds: list[tuple[float, float, float]], size: int
) -> None:
    """The choice is the minimum of the score, and the runners-up are next to it, as if all were compared."""
    executors = [
        snapshots.executor(n, predicted_wait_s=wait_s, models={("m", "1"): speed}, bytes_per_s=bytes_per_s)
        for n, (wait_s, speed, bytes_per_s) in enumerate(speeds)
    ]
    one = snapshots.task(1, items=4**size, payload_bytes=2 * 16**size)
    scores = sorted(
        e.predicted_wait_s + one.payload_bytes / e.bytes_per_s + one.items / e.models["m", "1"]
        for e in executors
    )
    choice = placement.Fleet(executors, RULES).place(one)
    assert choice is not None
    assert choice.predicted_s == pytest.approx(scores[0])
    assert [score for _, score in choice.others] == pytest.approx(scores[1 : placement.CONSIDERED])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("place"), snapshots.TASKS.map(lambda those: those[:5])),
        st.tuples(st.just("put"), snapshots.EXECUTORS),
        st.tuples(st.just("remove"), st.integers(0, 4)),
        st.tuples(st.just("report"), st.tuples(st.integers(0, 4), st.integers(-1, 4), st.floats(0, 3))),
    ),
    max_size=15,
)


@given(STEPS, st.sampled_from([0, 16]))
def test_an_index_that_is_kept_places_as_one_made_anew(steps: list[tuple[str, object]], few: int) -> None:
    """Whatever was put, reported, removed and placed before: only what executors last said counts.

    With so few executors as here they would all be compared; so they are ranked as well.
    """
    with mock.patch.object(placement, "FEW", few):
        _follow(steps)


def _follow(steps: list[tuple[str, object]]) -> None:
    kept = placement.Fleet(rules=RULES)
    now: dict[int, snapshot.Executor] = {}
    for what, value in steps:
        match what, value:
            case "put", list(executors):
                for one in executors:
                    now[one.agent_id] = one
                    kept.put(one)
            case "remove", int(agent_id):
                now.pop(agent_id, None)
                kept.remove(agent_id)
            case "report", (int(agent_id), int(credits_), float(wait_s)) if agent_id in now:
                old = now[agent_id]
                now[agent_id] = snapshot.Executor(
                    agent_id, old.site, old.labels, credits_, old.models, wait_s, old.bytes_per_s
                )
                kept.report(agent_id, credits_, wait_s)
            case "place", list(tasks):
                for one in now.values():  # what was given to it before is no longer so
                    kept.report(one.agent_id, one.credits, one.predicted_wait_s)
                fresh = placement.Fleet(now.values(), RULES)
                for task in tasks:
                    assert kept.place(task) == fresh.place(task)
                    assert kept.room == fresh.room == sum(max(0, fresh.credits(n)) for n in now)


def test_an_executor_that_got_faster_comes_first() -> None:
    """Measured anew, with the credits and the wait of before: the ranking knows."""
    executors = [snapshots.executor(n) for n in range(40)]
    fleet = placement.Fleet(executors, RULES)
    one = snapshots.task(1, items=100)
    first = fleet.place(one)
    assert first is not None
    assert first.agent_id == 0
    fleet.put(snapshots.executor(33, models={("m", "1"): 200.0}))
    second = fleet.place(one)
    assert second is not None
    assert second.agent_id == 33


def test_a_ranking_stays_as_large_as_its_executors() -> None:
    """Reports come for years: outdated entries are dropped."""
    fleet = placement.Fleet([snapshots.executor(n) for n in range(50)], RULES)
    assert fleet.place(snapshots.task(1)) is not None
    (pool,) = fleet._pools.values()
    (ranking,) = pool._rankings.values()
    for n in range(20_000):
        fleet.report(n % 50, 1, 1000.0 - n / 20)
    assert len(ranking.heap) <= 200


def test_kinds_are_forgotten_before_they_fill_the_memory() -> None:
    """Selectors are what users write: their number is not bounded, what is kept of them is."""
    fleet = placement.Fleet([snapshots.executor(1, 10**6)], RULES)
    for n in range(placement._KINDS + 10):
        fleet.place(snapshots.task(n, selector=f"lot={n}"))
    assert len(fleet._pools) <= placement._KINDS
    assert fleet.place(snapshots.task(1)) is not None


def test_an_executor_whose_wait_fell_while_it_had_no_room_comes_first() -> None:
    """Its queue is empty, it holds all that it would take, a lease ends: it is the first that has room."""
    others = [snapshots.executor(n, 5, predicted_wait_s=1.0) for n in range(2, placement.FEW + 10)]
    kept = placement.Fleet([*others, snapshots.executor(1, 5, predicted_wait_s=100.0)], RULES)
    assert kept.place(snapshots.task(1)) is not None  # which ranks them
    kept.put(snapshots.executor(1, 0, predicted_wait_s=0.0))
    kept.credit(1, 5)
    choice = kept.place(snapshots.task(2))
    assert choice is not None
    assert choice.agent_id == 1

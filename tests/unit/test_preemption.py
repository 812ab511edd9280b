"""Who must stop: the order of victims, what is left alone, and that nobody ping-pongs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.scheduler import plan, preemption, snapshot
from tests.unit import snapshots

RULES = snapshots.RULES
FULL = [snapshots.executor(n, credits_=0) for n in (1, 2)]


def urgent(number: int = 1000, priority: int = 8, **changes: Any) -> snapshot.Task:
    return snapshots.task(number, priority=priority, **changes)


def stopped(waiting: list[snapshot.Task], held: list[snapshot.Held], executors: Any = FULL) -> list[int]:
    victims = preemption.victims(waiting, held, executors, RULES)
    assert len({one.urgent for one in victims}) == len({one.task_id for one in victims}) == len(victims)
    return [int.from_bytes(one.task_id, "big") for one in victims]


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"priority": 3}, {"priority": 2, "lost_s": 9.0, "held_s": 99.0}),
        ({"lost_s": 0.2}, {"lost_s": 0.1, "held_s": 99.0}),
        ({"held_s": 5.0}, {"held_s": 4.0}),
    ],
)
def test_victims_go_by_priority_then_loss_then_youth(worse: dict[str, Any], better: dict[str, Any]) -> None:
    """Each tie-breaker counts only where those before it are equal."""
    held = [snapshots.held(1, **worse), snapshots.held(2, agent_id=2, **better)]
    assert stopped([urgent()], held) == [2]
    assert stopped([urgent(), urgent(1001)], held) == [2, 1], "one victim for each that waits"


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, True),
        ({"priority": 7}, True),
        ({"priority": 8}, False),
        ({"priority": 9}, False),
        ({"preempted_ago_s": RULES.cooldown_s - 1}, False),
        ({"preempted_ago_s": RULES.cooldown_s}, True),
        ({"stopping": True}, False),
        ({"agent_id": 3}, False),
    ],
)
def test_who_may_be_stopped(changes: dict[str, Any], stops: bool) -> None:
    """Only the less urgent, not soon after the last time, and only where the waiting task can run."""
    other = snapshots.executor(3, credits_=0, models={("n", "1"): 1.0})
    assert bool(stopped([urgent()], [snapshots.held(1, **changes)], [*FULL, other])) == stops


def test_aging_does_not_preempt() -> None:
    """What was raised by waiting goes first into room that comes free, but stops nobody."""
    aged = urgent(priority=2, waited_s=540.0)
    assert stopped([aged], [snapshots.held(1, priority=2)]) == []


def test_selectors_and_versions_limit_victims_too() -> None:
    """Room that a waiting task cannot use is not made."""
    held = [snapshots.held(1, agent_id=1), snapshots.held(2, agent_id=2)]
    assert stopped([urgent(selector="agent=agent-2")], held) == [2]
    assert stopped([urgent(version="2")], held) == []


def test_room_at_the_origin_is_no_room() -> None:
    """Overflow would not be placed where it came from, so nobody stops for it there."""
    executors = [snapshots.executor(n, credits_=0, predicted_wait_s=1.0) for n in (1, 2)]
    held = [snapshots.held(1, agent_id=1), snapshots.held(2, agent_id=2, priority=4)]
    assert stopped([urgent(origin_agent=1)], held, executors) == [2]
    assert stopped([urgent(origin_agent=1)], held, executors[:1]) == [1], "alone in having the model"


def test_room_on_its_way_is_counted() -> None:
    """Asked again before the first victims have left, it names no more; a second urgent task gets another."""
    held = [snapshots.held(1, stopping=True), snapshots.held(2, agent_id=2)]
    assert stopped([urgent()], held) == []
    assert stopped([urgent(), urgent(1001)], held) == [2]
    elsewhere = [snapshots.executor(3, credits_=0, models={("n", "1"): 1.0})]
    held = [snapshots.held(1, agent_id=3, stopping=True), snapshots.held(2)]
    assert stopped([urgent()], held, [*FULL, *elsewhere]) == [2], "but only where it can run"


def test_an_agent_that_holds_too_much_gives_no_room() -> None:
    """With credits below zero, one task less is still one too many."""
    assert stopped([urgent()], [snapshots.held(1)], [snapshots.executor(1, credits_=-1)]) == []


HELD = st.lists(
    st.builds(
        snapshots.held,
        st.integers(1, 10**6),
        st.integers(0, 4),
        model=st.sampled_from(snapshots.MODELS),
        priority=st.integers(0, 9),
        lost_s=st.floats(0, 5),
        held_s=st.floats(0, 100),
        preempted_ago_s=st.none() | st.floats(0, 60),
        stopping=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda one: one.task_id,
)


@given(snapshots.TASKS, HELD, snapshots.EXECUTORS)
def test_nobody_stops_in_vain(
    waiting: list[snapshot.Task], held: list[snapshot.Held], executors: list[snapshot.Executor]
) -> None:
    """Each victim is less urgent than its task, which can take its room; and each stops once."""
    agents = {one.agent_id: one for one in executors}
    tasks = {one.task_id: one for one in waiting}
    books = {one.task_id: one for one in held}
    victims = preemption.victims(waiting, held, executors, RULES)
    assert victims == preemption.victims(waiting, held, list(reversed(executors)), RULES)
    assert len({one.urgent for one in victims}) == len({one.task_id for one in victims}) == len(victims)
    for victim in victims:
        task, book = tasks[victim.urgent], books[victim.task_id]
        assert (book.agent_id, book.attempt) == (victim.agent_id, victim.attempt)
        assert book.priority < task.priority
        assert not book.stopping
        assert book.preempted_ago_s is None or book.preempted_ago_s >= RULES.cooldown_s
        assert agents[victim.agent_id] in snapshots.takers(executors, task)


@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 30), st.integers(0, 40)), min_size=4, max_size=30
    ),
    aging_s=st.sampled_from([0.0, 2.0, 7.0]),
    cooldown_s=st.sampled_from([0.0, 5.0]),
)
def test_nothing_ping_pongs(arrivals: list[tuple[int, int, int]], aging_s: float, cooldown_s: float) -> None:
    """Who was preempted by another, even through others, never preempts it; and in the end all has run.

    Two agents, more work than they can take, with aging, and with no cool-down to help.
    """
    rules = snapshot.Rules(aging_s=aging_s, cooldown_s=cooldown_s)
    arrivals = sorted(arrivals, key=lambda one: one[2])  # ids carry the age
    left = {number: items for number, (_, items, _) in enumerate(arrivals, 1)}
    running: dict[int, tuple[int, int, int]] = {}  # agent: (task, effective priority, since)
    preempted_at: dict[int, int] = {}
    beaten: set[tuple[int, int]] = set()  # (who preempted, who was)
    now = 0
    while left:
        queued = [
            snapshots.task(number, priority=priority, items=left[number], waited_s=float(now - at))
            for number, (priority, _, at) in enumerate(arrivals, 1)
            if number in left and at <= now and number not in {task for task, _, _ in running.values()}
        ]
        executors = [
            snapshots.executor(n, credits_=int(n not in running), models={("m", "1"): 1.0}) for n in (1, 2)
        ]
        decided = plan.plan(snapshots.heads(queued), executors, {}, {}, rules)
        for placed in decided.placements:
            number = int.from_bytes(placed.task.task_id, "big")
            running[placed.choice.agent_id] = (number, placed.priority, now)
        books = [
            snapshots.held(
                task,
                agent_id=agent,
                priority=level,
                held_s=float(now - since),
                preempted_ago_s=float(now - preempted_at[task]) if task in preempted_at else None,
            )
            for agent, (task, level, since) in running.items()
        ]
        full = [snapshots.executor(n, credits_=0) for n in (1, 2)]
        for victim in preemption.victims(decided.unplaced, books, full, rules):
            number, by = (int.from_bytes(one, "big") for one in (victim.task_id, victim.urgent))
            beaten |= {(by, number)} | {(by, lower) for upper, lower in beaten if upper == number}
            assert (number, by) not in beaten
            preempted_at[number] = now
            del running[victim.agent_id]
        now += 1
        for agent, (task, _, _) in list(running.items()):
            left[task] -= 1
            if not left[task]:
                del left[task], running[agent]
        assert now <= 41 + sum(items for _, items, _ in arrivals), (
            "at least one agent works while work is there"
        )

"""A pass as a whole: work conserving, in order, fair over time, starving nobody, within every limit."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.scheduler import order, placement, plan, snapshot
from shared import fairness
from tests.unit import snapshots

RULES = snapshots.RULES


def effective(task: snapshot.Task) -> int:
    return order.effective(task.priority, task.waited_s, RULES)


@given(snapshots.TASKS, snapshots.EXECUTORS, snapshots.ROOMS)
def test_limits_are_hard(
    tasks: list[snapshot.Task], executors: list[snapshot.Executor], queues: dict[str, snapshot.Queue]
) -> None:
    """Credits, rooms, models, versions, selectors, origins are never overstepped; nothing goes twice."""
    made = plan.plan(snapshots.heads(tasks), executors, queues, {}, RULES)
    agents = {one.agent_id: one for one in executors}
    given_ = Counter(one.choice.agent_id for one in made.placements)
    assert all(given_[e.agent_id] <= max(0, e.credits) for e in executors)
    for name, count in Counter(one.task.queue for one in made.placements).items():
        room = queues[name].room if name in queues else None
        assert room is None or count <= room
    for one in made.placements:
        assert agents[one.choice.agent_id] in snapshots.takers(executors, one.task)
        assert one.choice.able == sum(snapshots.runs(e, one.task) for e in executors)
        assert one.priority == effective(one.task)
    ids = [one.task.task_id for one in made.placements] + [one.task_id for one in made.unplaced]
    assert len(ids) == len(set(ids))


@given(snapshots.TASKS, snapshots.EXECUTORS, snapshots.ROOMS)
def test_nothing_waits_that_could_run(
    tasks: list[snapshot.Task], executors: list[snapshot.Executor], queues: dict[str, snapshot.Queue]
) -> None:
    """Work conserving: what is left has a full queue, or nobody with credits that may take it."""
    heads = snapshots.heads(tasks)
    made = plan.plan(heads, executors, queues, {}, RULES)
    placed = {one.task.task_id for one in made.placements}
    spent = Counter(one.choice.agent_id for one in made.placements)
    running = Counter(one.task.queue for one in made.placements)
    named = {one.task_id for one in made.unplaced}
    assert not made.more
    for waiting in (one for head in heads for one in head.tasks if one.task_id not in placed):
        queue = queues.get(waiting.queue)
        if queue is not None and queue.room is not None and running[waiting.queue] >= queue.room:
            continue
        takers = snapshots.takers(executors, waiting)
        assert all(spent[one.agent_id] >= one.credits for one in takers)
        able = any(snapshots.runs(one, waiting) for one in executors)
        assert made.why[waiting.class_id] == (plan.Why.NO_ROOM if able else plan.Why.NO_EXECUTOR)
        assert any(one.class_id == waiting.class_id for one in made.unplaced)
    assert not placed & named


@given(snapshots.TASKS, snapshots.EXECUTORS)
def test_a_higher_priority_is_never_passed_over(
    tasks: list[snapshot.Task], executors: list[snapshot.Executor]
) -> None:
    """No inversion but by aging: placements fall in effective priority, and so do those without room."""
    made = plan.plan(snapshots.heads(tasks), executors, {}, {}, RULES)
    for those in ([one.task for one in made.placements], made.unplaced):
        levels = [effective(one) for one in those]
        assert levels == sorted(levels, reverse=True)


@given(snapshots.TASKS, snapshots.EXECUTORS, snapshots.ROOMS, st.integers(1, 5))
def test_passes_with_cut_heads_come_to_what_one_pass_does(
    tasks: list[snapshot.Task],
    executors: list[snapshot.Executor],
    queues: dict[str, snapshot.Queue],
    limit: int,
) -> None:
    """However few tasks of a head are read at a time, in the end the same tasks have gone."""
    whole = plan.plan(snapshots.heads(tasks), executors, queues, {}, RULES)
    fleet = placement.Fleet(executors, RULES)
    clocks: dict[int, fairness.FairClock] = {}
    left = list(tasks)
    pieces: list[plan.Placement] = []
    while True:
        part = plan.plan(snapshots.heads(left, limit), fleet, queues, clocks, RULES)
        pieces += part.placements
        clocks |= part.clocks
        gone = {one.task.task_id for one in part.placements}
        left = [one for one in left if one.task_id not in gone]
        for one in part.placements:
            queue = queues.get(one.task.queue)
            if queue is not None and queue.room is not None:
                queues = queues | {queue.name: snapshot.Queue(queue.name, queue.weight, queue.room - 1)}
        if not part.more:
            break
        assert part.placements, "a pass that says there is more has got on"
    assert sorted(one.task.task_id for one in pieces) == sorted(one.task.task_id for one in whole.placements)


@given(snapshots.TASKS, snapshots.EXECUTORS, snapshots.ROOMS, st.randoms())
def test_equal_snapshots_give_equal_plans(
    tasks: list[snapshot.Task],
    executors: list[snapshot.Executor],
    queues: dict[str, snapshot.Queue],
    shuffle: random.Random,
) -> None:
    """Decisions depend on what is there, not on the order in which it was listed or indexed."""
    heads = snapshots.heads(tasks)
    once = plan.plan(heads, executors, queues, {}, RULES)
    fleet = placement.Fleet(shuffle.sample(executors, len(executors)), RULES)
    again = plan.plan(shuffle.sample(heads, len(heads)), fleet, queues, {}, RULES)
    assert once.placements == again.placements
    assert once.unplaced == again.unplaced
    assert once.why == again.why
    assert {n: c.state() for n, c in once.clocks.items()} == {n: c.state() for n, c in again.clocks.items()}


def test_shares_follow_weights_over_a_busy_period() -> None:
    """Weights of 1, 2 and 5, costs of 1 to 100, executors of many speeds: seconds divide within 1 %."""
    dice = random.Random(7)
    weights = {"bulk": 1.0, "lab": 2.0, "line": 5.0}
    costs = {"bulk": (1, 100), "lab": (1, 1), "line": (50, 100)}
    queues = {name: snapshot.Queue(name, weight) for name, weight in weights.items()}
    speeds = {n: dice.uniform(1, 20) for n in range(20)}
    waiting: dict[str, deque[snapshot.Task]] = {name: deque() for name in weights}
    clocks: dict[int, fairness.FairClock] = {}
    served = dict.fromkeys(weights, 0.0)
    number = 0
    free = [(0.0, n) for n in speeds]
    fleet = placement.Fleet(
        snapshots.executor(n, credits_=0, models={("m", "1"): speed}) for n, speed in speeds.items()
    )
    while sum(served.values()) < 60_000:
        now, _ = free[0]
        due = [heapq.heappop(free)[1] for _ in range(1, 1 + sum(at <= now for at, _ in free))]
        for name, line in waiting.items():
            while len(line) < len(due):
                number += 1
                line.append(snapshots.task(number, queue=name, items=dice.randint(*costs[name])))
        heads = [snapshot.Head(n, 5, 10**6, list(line)) for n, line in enumerate(waiting.values(), 1)]
        for n in due:
            fleet.report(n, 1, 0.0)
        made = plan.plan(heads, fleet, queues, clocks, RULES)
        assert len(made.placements) == len(due)
        clocks |= made.clocks
        for one in made.placements:
            assert waiting[one.task.queue].popleft() == one.task
            served[one.task.queue] += one.choice.run_s
            heapq.heappush(free, (now + one.choice.run_s, one.choice.agent_id))
    whole = sum(served.values())
    for name, weight in weights.items():
        assert served[name] / whole == pytest.approx(weight / 8, rel=0.01)


def test_nothing_starves() -> None:
    """Three times more urgent work than can run, for ever: with aging the lowest waits ten steps at the most
    and then its turn by age; without aging it never runs.
    """

    def waits(rules: snapshot.Rules) -> float | None:
        waiting = {0: snapshots.task(0, priority=0, queue="lab")}
        born = {0: 0}
        clocks: dict[int, fairness.FairClock] = {}
        for now in range(400):
            for n in range(1, 4):
                number = 10 * now + n
                waiting[number] = snapshots.task(number, priority=9)
                born[number] = now
            aged = [one._replace(waited_s=float(now - born[number])) for number, one in waiting.items()]
            made = plan.plan(snapshots.heads(aged), [snapshots.executor(1, credits_=1)], {}, clocks, rules)
            clocks |= made.clocks
            for one in made.placements:
                del waiting[int.from_bytes(one.task.task_id, "big")]
            if 0 not in waiting:
                return float(now)
        return None

    assert waits(snapshot.Rules(aging_s=0)) is None
    waited = waits(snapshot.Rules(aging_s=10))
    assert waited is not None
    assert waited <= 10 * 9 + 2


def test_unplaced_names_some_of_each_class() -> None:
    """Enough for preemption to make room for many at once, and never more than it can look at."""
    tasks = [snapshots.task(n, priority=n % 2 * 8) for n in range(100)] + [snapshots.task(200, model="n")]
    rules = snapshot.Rules(unplaced_per_head=3)
    made = plan.plan(snapshots.heads(tasks), [snapshots.executor(1, credits_=0)], {}, {}, rules)
    assert [int.from_bytes(one.task_id, "big") for one in made.unplaced] == [1, 3, 5, 200]
    few = plan.plan(
        snapshots.heads(snapshots.task(n, origin_agent=n) for n in range(100)),
        [snapshots.executor(1, credits_=0)],
        {},
        {},
        snapshot.Rules(unplaced=10),
    )
    assert len(few.unplaced) == 10


def test_a_head_without_tasks_is_passed_over() -> None:
    """Its tasks went while the snapshot was taken."""
    made = plan.plan([snapshot.Head(1, 5, 3, [])], [snapshots.executor(1)], {}, {}, RULES)
    assert made == plan.Plan([], [], False, {}, {})


def test_an_empty_world_needs_no_decision() -> None:
    """No heads, no executors: an empty plan."""
    assert plan.plan([], [], {}, {}, RULES).placements == []
    made = plan.plan(snapshots.heads([snapshots.task(1)]), [], {}, {}, RULES)
    assert made.why == {1: plan.Why.NO_EXECUTOR}

"""Who is next: priority, aging, fair shares, age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.scheduler import order, snapshot
from shared import fairness
from tests.unit import snapshots

WEIGHTS = {"bulk": snapshot.Queue("bulk", 1.0), "lab": snapshot.Queue("lab", 3.0)}


def drain(
    heads: Iterable[snapshot.Head],
    queues: Mapping[str, snapshot.Queue] | None = None,
    clocks: Mapping[int, fairness.FairClock] | None = None,
    rules: snapshot.Rules = snapshots.RULES,
    cost_s: float = 1.0,
) -> tuple[list[snapshot.Task], order.Order]:
    """All in the order in which they go, when there is room for each."""
    turns = order.Order(heads, queues or {}, clocks or {}, rules)
    went = []
    while (task := turns.next()) is not None:
        went.append(task)
        turns.placed(cost_s * task.items)
    turns.close()
    return went, turns


@pytest.mark.parametrize(
    ("priority", "waited_s", "cap", "raised"),
    [
        (0, 0, 9, 0),
        (0, 59.9, 9, 0),
        (0, 60, 9, 1),
        (3, 150, 9, 5),
        (3, 1e6, 9, 9),
        (3, 1e6, 2, 5),
        (9, 600, 9, 9),
    ],
)
def test_waiting_raises_priority_step_by_step(priority: int, waited_s: float, cap: int, raised: int) -> None:
    """One for each `aging_s`, up to the cap, never above nine."""
    assert order.effective(priority, waited_s, snapshot.Rules(aging_s=60, aging_cap=cap)) == raised
    assert order.effective(priority, waited_s, snapshots.NO_AGING) == priority


@given(snapshots.TASKS)
def test_higher_effective_priority_goes_first(tasks: list[snapshot.Task]) -> None:
    """No inversion, whatever the classes and queues."""
    went, _ = drain(snapshots.heads(tasks))
    levels = [order.effective(one.priority, one.waited_s, snapshots.RULES) for one in went]
    assert levels == sorted(levels, reverse=True)
    assert sorted(one.task_id for one in went) == sorted(one.task_id for one in tasks)


@given(snapshots.TASKS)
def test_within_queue_and_priority_the_oldest_goes_first(tasks: list[snapshot.Task]) -> None:
    """Age decides across classes: a queue's tasks of two models go as they came."""
    went, _ = drain(snapshots.heads(tasks))
    lines: dict[tuple[str, int], list[bytes]] = {}
    for one in went:
        level = order.effective(one.priority, one.waited_s, snapshots.RULES)
        lines.setdefault((one.queue, level), []).append(one.task_id)
    assert all(line == sorted(line) for line in lines.values())


def test_one_head_may_stand_on_two_levels() -> None:
    """Its oldest tasks have aged past another queue's, its young ones have not."""
    tasks = [snapshots.task(n, priority=4, waited_s=130 - 50 * n) for n in range(3)]
    tasks += [snapshots.task(10 + n, queue="lab") for n in range(2)]
    went, _ = drain(snapshots.heads(tasks))
    assert [int.from_bytes(one.task_id, "big") for one in went] == [0, 1, 10, 11, 2]


@given(counts=st.lists(st.integers(1, 100), min_size=2, max_size=2), cut=st.integers(1, 30))
def test_shares_follow_weights_from_pass_to_pass(counts: list[int], cut: int) -> None:
    """However small the passes, and with costs of 1 to 100, seconds divide as the weights do."""
    sizes = {"bulk": counts[0], "lab": counts[1]}
    clocks: dict[int, fairness.FairClock] = {}
    served: Counter[str] = Counter()
    number = 0
    while sum(served.values()) < 60 * sum(counts):
        tasks = [
            snapshots.task(number + 2 * n + place, queue=name, items=size)
            for place, (name, size) in enumerate(sizes.items())
            for n in range(cut)
        ]
        number += 2 * cut
        some = [snapshot.Head(one.class_id, 5, 10**6, one.tasks) for one in snapshots.heads(tasks)]
        went, turns = drain(some, WEIGHTS, clocks)
        assert turns.more, "heads that were cut end the pass"
        clocks |= turns.clocks
        for one in went:
            served[one.queue] += one.items
    assert abs(served["bulk"] - served["lab"] / 3) <= sizes["bulk"] + sizes["lab"] / 3


def test_an_idle_queue_earns_no_credit_and_pays_no_debt() -> None:
    """Who was alone for long, and who was away for long, share at once when both are there."""
    clocks: dict[int, fairness.FairClock] = {}
    for n in range(200):
        _, turns = drain(snapshots.heads([snapshots.task(n, items=10)]), WEIGHTS, clocks)
        clocks |= turns.clocks
    both = [snapshots.task(1000 + n, queue=("bulk", "lab")[n % 2]) for n in range(800)]
    went, _ = drain(snapshots.heads(both), WEIGHTS, clocks)
    assert Counter(one.queue for one in went[100:500]) == {"bulk": 100, "lab": 300}
    late = Counter(one.queue for one in went[:40])
    assert late["lab"] - 10 <= 3 * late["bulk"] + 30, "ahead by the one task that ran last, and no more"


def test_shares_hold_for_those_that_wait_for_a_busy_executor() -> None:
    """Others are served elsewhere and virtual time runs on: two that wait still share by weight.

    Model n has one place in each pass, for which `bulk` and `lab` wait; `line` takes a hundred of model m.
    """
    clocks: dict[int, fairness.FairClock] = {}
    served: Counter[str] = Counter()
    for number in range(400):
        tasks = [snapshots.task(n, queue="line", items=1) for n in range(number, number + 100)]
        tasks += [
            snapshots.task(10**6 + n, queue=name, model="n") for n, name in enumerate([*WEIGHTS, *WEIGHTS])
        ]
        turns = order.Order(snapshots.heads(tasks), WEIGHTS, clocks, snapshots.RULES)
        places = 1
        while (task := turns.next()) is not None:
            if task.model == "n" and not places:
                turns.blocked()
                continue
            places -= task.model == "n"
            served[task.queue] += 1
            turns.placed(1.0)
        clocks |= turns.close()
    assert served == {"bulk": 100, "lab": 300, "line": 40_000}
    assert clocks[5].start("line") - clocks[5].start("bulk") <= 100, "they lag by no more than one pass"


def test_who_waited_elsewhere_holds_nobody_up_afterwards() -> None:
    """A queue whose executors were full while another was served earned no claim on the other's."""
    clocks: dict[int, fairness.FairClock] = {}
    for number in range(50):
        tasks = [snapshots.task(n, queue="line") for n in range(number * 20, number * 20 + 20)]
        tasks.append(snapshots.task(10**6, model="n"))
        turns = order.Order(snapshots.heads(tasks), {}, clocks, snapshots.RULES)
        while (task := turns.next()) is not None:
            if task.model == "n":
                turns.blocked()
            else:
                turns.placed(1.0)
        clocks |= turns.close()
    went, _ = drain(
        snapshots.heads([snapshots.task(n, queue=("line", "bulk")[n % 2]) for n in range(40)]), {}, clocks
    )
    assert abs(Counter(one.queue for one in went[:20])["line"] - 10) <= 1


def test_the_order_ends_where_a_cut_head_would_go_on() -> None:
    """Another queue's turns that are surely before are still taken, and nothing that might come after."""
    tasks = [snapshots.task(n, items=2) for n in range(4)] + [
        snapshots.task(10 + n, queue="lab") for n in range(9)
    ]
    bulk, lab = snapshots.heads(tasks)
    cut = snapshot.Head(bulk.class_id, 5, 100, bulk.tasks[:2])
    went, turns = drain([cut, lab])
    assert turns.more
    # bulk's third would start at 4, as lab's fifth would, and is older.
    assert [one.queue for one in went] == ["bulk", "lab", "lab", "bulk", "lab", "lab"]


def test_a_class_without_room_ends_nothing() -> None:
    """Its cut heads leave with it, and other classes of its queue go on."""
    tasks = [snapshots.task(n) for n in range(4)] + [snapshots.task(10 + n, model="n") for n in range(3)]
    first, second = snapshots.heads(tasks)
    cut = snapshot.Head(first.class_id, 5, 100, first.tasks[:2])
    lower = snapshot.Head(first.class_id, 2, 100, [one._replace(priority=2) for one in first.tasks[2:]])
    turns = order.Order([cut, lower, second], {}, {}, snapshots.RULES)
    turns.next()
    turns.placed(1.0)
    turns.next()
    assert turns.blocked() == first.tasks[1:2]
    rest = []
    while (task := turns.next()) is not None:
        rest.append(task)
        turns.placed(1.0)
    assert rest == second.tasks
    assert not turns.more


def test_a_full_queue_steps_aside() -> None:
    """Its room counts over all priorities, and the others go on."""
    tasks = [snapshots.task(n, priority=9 - n % 3) for n in range(9)] + [snapshots.task(20, queue="lab")]
    went, turns = drain(snapshots.heads(tasks), {"bulk": snapshot.Queue("bulk", 1.0, 4)})
    assert Counter(one.queue for one in went) == {"bulk": 4, "lab": 1}
    assert [one.priority for one in went] == [9, 9, 9, 8, 5]
    assert turns.full == {"bulk"}
    assert not turns.more


@given(snapshots.TASKS)
def test_equal_snapshots_give_equal_orders(tasks: list[snapshot.Task]) -> None:
    """The clocks given are read and not moved, so a plan that failed can be made again."""
    clocks = {level: fairness.FairClock() for level in range(5)}
    clocks[4].serve(clocks[4].stamp("bulk", 1, 7))
    before = {level: clock.state() for level, clock in clocks.items()}
    once, _ = drain(snapshots.heads(tasks), WEIGHTS, clocks)
    again, _ = drain(reversed(snapshots.heads(tasks)), WEIGHTS, clocks)
    assert once == again
    assert {level: clock.state() for level, clock in clocks.items()} == before

"""What runs next: the order, the batches, the waiting, and the bounds."""

from __future__ import annotations

import random
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent import batcher, models
from shared import manifests


def model(name: str = "m", max_batch: int = 4, max_delay_ms: float = 0.0) -> models.Model:
    manifest = manifests.parse(
        f'name = "{name}"\nversion = "1"\n[[inputs]]\nname = "x"\nkind = "tensor"\nshape = [1]\n'
        '[[outputs]]\nname = "y"\nkind = "raw"\n'
        f"[batching]\nmax_batch = {max_batch}\nmax_delay_ms = {max_delay_ms}\n",
        Path("model.toml"),
    )
    return models.Model(manifest, Path(name), Path(name) / "model.onnx", "0" * 64)


M = model()
PATIENT = model("patient", max_delay_ms=10)


def task(
    seq: int,
    of: models.Model = M,
    *,
    priority: int = 5,
    tag: float = 0.0,
    items: int = 1,
    not_after: float | None = None,
    payload_bytes: int = 0,
) -> batcher.Waiting:
    return batcher.Waiting(
        task_id=seq.to_bytes(16, "big"),
        seq=seq,
        model=of,
        priority=priority,
        queue="default",
        tag=tag,
        items=items,
        not_after=not_after,
        payload_bytes=payload_bytes,
    )


def full(*tasks: batcher.Waiting, now: float = 0.0, capacity: int = 1000) -> batcher.Batcher:
    made = batcher.Batcher(capacity)
    for one in tasks:
        assert made.offer(one, now)
    return made


def taken(made: batcher.Batcher, now: float = 0.0) -> list[int]:
    """The numbers of the tasks of the next batch."""
    batch = made.take(now)
    return [] if batch is None else [one.seq for one in batch.tasks]


# --- order --------------------------------------------------------------------------------------


def test_priority_goes_before_fairness_and_fairness_before_age() -> None:
    """Higher priority, then lower tag, then older."""
    single = model(max_batch=1)
    made = full(
        task(1, single, priority=1, tag=0),
        task(2, single, tag=7),
        task(3, single, tag=3),
        task(4, single, tag=3),
        task(5, single, priority=9, tag=99),
    )
    assert [taken(made)[0] for _ in range(5)] == [5, 3, 4, 2, 1]
    assert made.take(0) is None


def test_the_first_task_decides_the_model() -> None:
    """A batch is of one model, that of the best task; the others' turn comes by their own best."""
    other = model("other")
    made = full(task(1, tag=1), task(2, other, tag=0), task(3, tag=3), task(4, other, tag=9))
    assert taken(made) == [2, 4]
    assert taken(made) == [1, 3]


def test_two_versions_of_a_model_never_share_a_batch() -> None:
    """A result names the version that gave it, so a batch has one."""
    newer = models.Model(
        manifests.parse(
            'name = "m"\nversion = "2"\n[[inputs]]\nname = "x"\nkind = "tensor"\nshape = [1]\n'
            '[[outputs]]\nname = "y"\nkind = "raw"\n',
            Path("model.toml"),
        ),
        Path("m"),
        Path("m/model.onnx"),
        "1" * 64,
    )
    made = full(task(1), task(2, newer), task(3))
    assert taken(made) == [1, 3]
    assert taken(made) == [2]


# --- what is learnt -----------------------------------------------------------------------------


class Told:
    """A policy that says what it is told to, and knows what it was asked."""

    def __init__(self, size: int, *, other: int | None = None, patient: bool = False) -> None:
        self.size = size
        self._other = other
        self._patient = patient
        self.asked: list[tuple[int, float | None]] = []
        self.came = 0

    def take(self, waiting: int, left_s: float | None) -> int:
        self.asked.append((waiting, left_s))
        return self.size if self._other is None else self._other

    def waits(self, waiting: int, delay_s: float, now: float) -> bool:
        return self._patient

    def arrived(self, items: int, now: float) -> None:
        self.came += items


def told(policy: Told, *tasks: batcher.Waiting) -> batcher.Batcher:
    made = batcher.Batcher(1000, lambda model: policy)
    for one in tasks:
        assert made.offer(one, 0.0)
    return made


def test_a_batch_has_the_size_that_was_learnt() -> None:
    """So many are a full batch, also for an executor that is still busy; another size may be tried."""
    policy = Told(2)
    made = told(policy, *(task(seq, model(max_batch=8)) for seq in range(5)))
    assert policy.came == 5
    ahead = made.take(0, ahead=True)
    assert ahead is not None
    assert ahead.items == 2
    assert taken(made) == [2, 3]
    assert made.take(0, ahead=True) is None
    assert taken(told(Told(2, other=3), *(task(seq) for seq in range(5)))) == [0, 1, 2]


def test_the_policy_knows_the_deadline_of_the_first() -> None:
    """The first task's, not that of one behind it; none where it has none."""
    policy = Told(2)
    made = told(policy, task(1, tag=1, not_after=7.0), task(2, tag=2, not_after=3.0), task(3, tag=3))
    assert [taken(made, 2.0), taken(made, 2.0)] == [[1, 2], [3]]
    assert policy.asked == [(3, 5.0), (1, None)]


def test_where_waiting_is_not_worth_it_nothing_waits() -> None:
    """The delay of the manifest is what may be waited, not what must."""
    assert taken(told(Told(4, patient=False), task(1, PATIENT))) == [1]
    made = told(Told(4, patient=True), task(1, PATIENT))
    assert made.take(0) is None
    assert made.wake_at(0) == pytest.approx(0.01)
    assert taken(made, 0.01) == [1]


# --- batches ------------------------------------------------------------------------------------


def test_a_batch_holds_at_most_max_batch_items() -> None:
    """Tasks of several items count by their items; the one that does not fit begins the next batch."""
    made = full(task(1, items=2), task(2, items=1), task(3, items=2), task(4, items=1))
    assert taken(made) == [1, 2]
    assert taken(made) == [3, 4]


def test_a_task_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    """It is handed out alone, to be run in slices."""
    made = full(task(1, items=50), task(2))
    batch = made.take(0)
    assert batch is not None
    assert (len(batch.tasks), batch.items, batch.model) == (1, 50, M)
    assert taken(made) == [2]


def test_without_a_delay_a_free_executor_never_waits() -> None:
    """The default: one task alone runs at once."""
    made = full(task(1))
    assert made.wake_at(0) == 0
    assert taken(made) == [1]


def test_a_task_waits_for_company_no_longer_than_its_delay() -> None:
    """A batch that is not full waits until its oldest task has waited long enough; wake_at says when."""
    made = batcher.Batcher(10)
    made.offer(task(1, PATIENT), 5.0)
    made.offer(task(2, PATIENT), 5.006)
    assert made.take(5.009) is None
    assert made.wake_at(5.009) == pytest.approx(5.010)
    assert taken(made, 5.0101) == [1, 2]
    assert made.wake_at(5.0101) is None


def test_a_full_batch_does_not_wait() -> None:
    """Company is complete: it goes at once."""
    made = full(*(task(number, PATIENT) for number in range(1, 5)))
    assert made.wake_at(0) == 0
    assert taken(made) == [1, 2, 3, 4]


def test_nothing_waits_for_company_while_others_wait_for_it() -> None:
    """With another model's tasks waiting, the best goes at once: a delay would keep all waiting."""
    made = full(task(1, PATIENT, priority=9), task(2))
    assert made.wake_at(0) == 0
    assert taken(made) == [1]
    assert taken(made) == [2]


def test_a_deadline_that_leaves_no_time_is_not_waited_away() -> None:
    """A task that would expire while it waits for company goes at once."""
    made = full(task(1, PATIENT, not_after=0.008))
    assert made.wake_at(0) == 0
    assert taken(made) == [1]


# --- deadlines, cancelling ----------------------------------------------------------------------


def test_an_expired_task_is_never_run() -> None:
    """It is handed out as expired, once; a batch formed at the same moment is without it."""
    made = full(task(1, not_after=3.0), task(2), task(3, not_after=2.0))
    assert made.expired(1.9) == []
    assert taken(made, 3.0) == [2]
    assert [one.seq for one in made.expired(3.0)] == [3, 1]
    assert made.expired(3.0) == []
    assert made.depth == 0


def test_wake_at_knows_of_deadlines() -> None:
    """The owner is woken to tell the device that its task has expired, and at once if it has."""
    slow = model("slow", max_delay_ms=60_000)
    made = full(task(1, slow), task(2, slow, not_after=70.0), now=0)
    assert made.wake_at(0) == 60
    made = full(task(1, slow, not_after=70.0), task(2, slow), now=15)
    made.cancel(task(1).task_id)
    assert made.wake_at(15) == 75
    made = full(task(1, not_after=1.0))
    assert made.take(2.0) is None
    assert made.wake_at(2.0) == 2.0


def test_a_cancelled_task_is_out() -> None:
    """It is given back, and no batch has it."""
    made = full(task(1), task(2), task(3))
    cancelled = made.cancel(task(2).task_id)
    assert cancelled is not None
    assert cancelled.seq == 2
    assert made.cancel(task(2).task_id) is None
    assert taken(made) == [1, 3]


# --- bounds -------------------------------------------------------------------------------------


def test_beyond_its_capacity_it_takes_nothing() -> None:
    """A full batcher refuses; what waits there already may be offered again."""
    made = full(task(1), task(2), capacity=2)
    assert made.full
    assert not made.offer(task(3), 0)
    assert made.offer(task(1), 0)
    assert made.depth == 2


def test_the_worst_makes_room_for_a_better_one() -> None:
    """The owner can compare with what would go last, and take that out."""
    made = full(task(1, tag=5), task(2, priority=1, tag=0), task(3, priority=1, tag=0), capacity=3)
    worst = made.worst()
    assert worst is not None
    assert worst.seq == 3
    better = task(4, tag=9)
    assert better.order < worst.order
    assert made.evict_worst() == worst
    assert made.offer(better, 0)
    assert made.depth == 3
    empty = batcher.Batcher(1)
    assert empty.worst() is None
    assert empty.evict_worst() is None


def test_a_batcher_without_room_is_a_mistake() -> None:
    """It would hold nothing, and the agent would do nothing, in silence."""
    with pytest.raises(ValueError, match="at least 1"):
        batcher.Batcher(0)


def test_a_hundred_times_the_tasks_cost_about_the_same_each() -> None:
    """Operations cost O(log n): with a hundred times the tasks, each is not even ten times slower."""

    def per_task(count: int) -> float:
        shuffled = list(range(1, count + 1))
        random.Random(3).shuffle(shuffled)
        waiting = [task(seq, tag=seq, not_after=1e6 + seq) for seq in shuffled]
        began = time.process_time()
        made = full(*waiting, capacity=count)
        while made.evict_worst() and made.take(1.0):
            pass
        return (time.process_time() - began) / count

    assert per_task(20_000) < 10 * min(per_task(200) for _ in range(5))


# --- the whole, against a plain list ------------------------------------------------------------

MODELS = [model("a", 1), model("b", 3), model("c", 5, max_delay_ms=10), model("d", 2, max_delay_ms=3)]


class AgainstAList(RuleBasedStateMachine):
    """Any sequence of calls gives what the same rules give on a plain list, and nothing is ever lost."""

    @initialize(capacity=st.integers(1, 30))
    def begin(self, capacity: int) -> None:
        self.batcher = batcher.Batcher(capacity)
        self.capacity = capacity
        self.waiting: list[batcher.Waiting] = []
        self.seq = 0
        self.now = 0.0
        self.since: dict[int, float] = {}
        self.offered = 0
        self.left = 0

    @rule(
        of=st.sampled_from(MODELS),
        priority=st.integers(0, 2),
        tag=st.integers(0, 5),
        items=st.integers(1, 6),
        limit=st.none() | st.floats(0, 0.05),
    )
    def offer(self, of: models.Model, priority: int, tag: int, items: int, limit: float | None) -> None:
        self.seq += 1
        one = task(
            self.seq,
            of,
            priority=priority,
            tag=tag,
            items=items,
            not_after=None if limit is None else self.now + limit,
            payload_bytes=items * 10,
        )
        self.expire()
        accepted = self.batcher.offer(one, self.now)
        assert accepted == (len(self.waiting) < self.capacity)
        if accepted:
            self.waiting.append(one)
            self.since[one.seq] = self.now
            self.offered += 1

    @rule(step=st.floats(0, 0.02))
    def wait(self, step: float) -> None:
        self.now += step

    def expire(self) -> None:
        due = {one.seq for one in self.waiting if one.not_after is not None and one.not_after <= self.now}
        assert {one.seq for one in self.batcher.expired(self.now)} == due
        self.waiting = [one for one in self.waiting if one.seq not in due]
        self.left += len(due)

    @rule()
    def take(self) -> None:
        self.expire()
        wake = self.batcher.wake_at(self.now)
        batch = self.batcher.take(self.now)
        assert (batch is not None) == (wake is not None and wake <= self.now)
        if not self.waiting:
            assert batch is None
            return
        best = min(self.waiting, key=lambda one: one.order)
        mine = sorted((one for one in self.waiting if one.key == best.key), key=lambda one: one.order)
        if batch is None:
            assert len(mine) == len(self.waiting)
            assert sum(one.items for one in mine) < best.model.max_batch
            delay = best.model.manifest.batching.max_delay_ms / 1000
            assert all(self.now < self.since[one.seq] + delay for one in mine)
            return
        room = best.model.max_batch - mine[0].items
        expected = [mine[0]]
        for one in mine[1:]:
            room -= one.items
            if room < 0:
                break
            expected.append(one)
        assert list(batch.tasks) == expected
        self.waiting = [one for one in self.waiting if one not in expected]
        self.left += len(expected)

    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        self.expire()
        if self.waiting:
            one = self.waiting.pop(pick % len(self.waiting))
            assert self.batcher.cancel(one.task_id) == one
            self.left += 1

    @rule()
    def evict(self) -> None:
        self.expire()
        last = max(self.waiting, key=lambda one: one.order, default=None)
        assert self.batcher.evict_worst() == last
        if last is not None:
            self.waiting.remove(last)
            self.left += 1

    @invariant()
    def counts(self) -> None:
        assert self.batcher.depth == len(self.waiting) == self.offered - self.left
        assert self.batcher.payload_bytes == sum(one.payload_bytes for one in self.waiting)
        items: dict[models.Key, int] = {}
        for one in self.waiting:
            items[one.key] = items.get(one.key, 0) + one.items
        assert self.batcher.items_by_model == items


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1e9), st.integers(1, 9)), max_size=200))
def test_memory_stays_in_proportion(rows: list[tuple[int, float, int]]) -> None:
    """Tasks that come and go leave nothing behind, whichever way they went."""
    made = batcher.Batcher(10)
    for seq, (priority, tag, way) in enumerate(rows * 5, 1):
        made.offer(task(seq, PATIENT, priority=priority, tag=tag, not_after=1e6), 0)
        if way % 2:
            made.cancel(task(seq).task_id)
        elif made.full:
            made.evict_worst()
    assert len(made._worst._heap) <= 200
    assert len(made._deadlines._heap) <= 200


# --- streams ------------------------------------------------------------------------------------


def of_stream(
    seq: int, stream: str, *, priority: int = 5, tag: float = 0.0, items: int = 1
) -> batcher.Waiting:
    return msgspec.structs.replace(task(seq, priority=priority, tag=tag, items=items), stream=stream)


def test_tasks_of_a_stream_go_in_the_order_of_their_arrival() -> None:
    """Whatever their priorities and tags; a batch takes several, first those that are first in theirs."""
    made = full(
        of_stream(1, "a", priority=0),
        of_stream(2, "a", priority=9),
        of_stream(3, "b", tag=5),
        of_stream(4, "b", tag=0),
        task(5, priority=1),
    )
    assert taken(made) == [3, 5, 1, 4]


def test_a_stream_waits_for_the_end_of_what_runs() -> None:
    """The others go on; what is tried again goes before what came after it."""
    made = full(*(of_stream(seq, "a") for seq in range(1, 7)), of_stream(7, "b"))
    batch = made.take(0.0)
    assert batch is not None
    assert [one.seq for one in batch.tasks] == [1, 7, 2, 3]
    assert taken(made) == []
    for one in batch.tasks[2:]:  # those behind the one that is tried again
        made.offer(one, 0.0, anyway=True)
        made.settled(one)
    made.settled(batch.tasks[1])
    assert taken(made) == []
    made.offer(batch.tasks[0], 0.0, anyway=True)
    made.settled(batch.tasks[0])
    assert taken(made) == [1, 2, 3, 4]


def test_the_next_of_a_stream_may_go_when_the_first_is_cancelled_or_evicted() -> None:
    """And who makes room is the last of a stream, never one before it."""
    made = full(of_stream(1, "a"), of_stream(2, "a", priority=0), of_stream(3, "a", priority=9))
    worst = made.worst()
    assert worst is not None
    assert worst.seq == 3
    assert made.cancel((1).to_bytes(16, "big")) is not None
    first = made.first(0.0)
    assert first is not None
    assert first.seq == 2
    assert made.evict_worst() == worst
    assert taken(made) == [2]
    assert made.depth == 0


def test_of_a_stream_that_is_tried_again_the_last_makes_room() -> None:
    """Its tasks stand behind one another as they did before, whatever their own priorities."""
    made = full(of_stream(1, "a", priority=0), of_stream(2, "a", priority=9))
    batch = made.take(0.0)
    assert batch is not None
    assert [one.seq for one in batch.tasks] == [1, 2]
    for one in batch.tasks:
        made.offer(one, 0.0, anyway=True)
        made.settled(one)
    worst = made.worst()
    assert worst is not None
    assert worst.seq == 2
    assert taken(made) == [1, 2]


def test_who_came_before_the_first_of_a_stream_takes_its_place() -> None:
    """A task that waited, and waits anew under a newer attempt, is again where it was."""
    made = full(of_stream(1, "a"), of_stream(2, "a"), of_stream(3, "a"))
    one = made.cancel((1).to_bytes(16, "big"))
    assert one is not None
    assert made.offer(one, 0.0)
    assert taken(made) == [1, 2, 3]


@given(
    arrivals=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 9), st.integers(1, 5)), max_size=40
    ),
    chance=st.randoms(use_true_random=False),
)
def test_no_stream_is_ever_out_of_order(
    arrivals: list[tuple[str | None, int, int]], chance: random.Random
) -> None:
    """Under retries, cancellations and batches of any kind every task has its turn, and those of a stream one
    after the other."""
    made = batcher.Batcher(1000)
    for seq, (stream, priority, items) in enumerate(arrivals):
        one = task(seq, priority=priority, items=items)
        assert made.offer(msgspec.structs.replace(one, stream=stream), 0.0)
    ended: list[int] = []
    running: dict[str | None, int] = {}
    while made.depth:
        batch = made.take(0.0)
        assert batch is not None
        again: set[str | None] = set()
        for one in batch.tasks:
            if one.stream in again or chance.random() < 0.2:
                again.add(one.stream) if one.stream is not None else None
                made.offer(one, 0.0, anyway=True)
            else:
                ended.append(one.seq)
                if one.stream is not None:
                    assert running.get(one.stream, -1) < one.seq
                    running[one.stream] = one.seq
            if one.stream is not None:
                made.settled(one)
    assert sorted(ended) == list(range(len(arrivals)))


def test_a_model_that_is_away_is_passed_over() -> None:
    """Others go on; when it is back its tasks have their turn."""
    gone = {"m"}
    made = batcher.Batcher(10, away=lambda model: model.name in gone)
    made.offer(task(1, priority=9), 0.0)
    assert taken(made) == []
    assert made.wake_at(0.0) is None
    made.offer(task(2, PATIENT), 0.0)
    assert taken(made) == [2]
    gone.clear()
    assert taken(made) == [1]

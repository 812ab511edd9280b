"""Who gets into a queue that has a limit."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.api import admission
from cloud_hub.store import queues
from cloud_hub.store import tasks as task_store
from shared import jobs

ROOM = queues.Queue(name="archive", max_queued=10)
DROPS = queues.Queue(name="archive", max_queued=10, when_full=queues.WhenFull.DROP_LOWEST)


def task(priority: int = 5, queue: str = "archive", key: str | None = None) -> task_store.Submission:
    metadata = jobs.Metadata(priority=priority, queue=queue, idempotency_key=key)
    return task_store.Submission(
        job=jobs.Job(model="m", metadata=metadata, content_type=jobs.PNG, payload=b"p", items=1)
    )


def depths(**by_priority: int | tuple[int, int]) -> dict[str, dict[int, queues.Depth]]:
    """What waits, as p5=7: of priority 5; or p5=(7, 3): three of them of no device's."""
    found = {int(name[1:]): n if isinstance(n, tuple) else (n, n) for name, n in by_priority.items()}
    return {"archive": {priority: queues.Depth(*pair) for priority, pair in found.items()}}


def admit(
    *requests: list[task_store.Submission],
    queue: queues.Queue = ROOM,
    waits: queues.Depths | None = None,
    known: frozenset[str] = frozenset(),
) -> admission.Admission:
    return admission.admit(requests, {queue.name: queue}, waits or {}, known)


def test_a_request_gets_in_whole_or_not_at_all() -> None:
    """A batch that does not fit is refused whole, and one after it that fits gets in."""
    decided = admit([task()] * 4, [task()] * 3, waits=depths(p5=4), queue=ROOM)
    assert list(decided.refused) == [1]
    decided = admit([task()] * 4, [task()] * 3, [task()] * 2, waits=depths(p5=4))
    assert list(decided.refused) == [1]
    assert "10" in str(decided.refused[1])


def test_what_is_there_already_takes_no_room() -> None:
    """A repeated idempotency key is let through a full queue, for its task is in it; in one group too."""
    again = [task(key="a"), task(key="b")]
    assert not admit(again, waits=depths(p5=10), known=frozenset({"a", "b"})).refused
    assert not admit([task(key="a")], [task(key="a")], waits=depths(p5=9)).refused
    assert list(admit([task(key="a")], [task(key="b")], waits=depths(p5=9)).refused) == [1]


def test_only_queues_with_a_limit_are_asked() -> None:
    """A full queue keeps nobody out of another."""
    assert not admit([task(queue="default")] * 50, waits=depths(p5=10)).refused


def test_the_lowest_gives_way_to_a_higher_one() -> None:
    """A full queue that drops makes room below the new task, the lowest priority first."""
    decided = admit([task(7)] * 3, queue=DROPS, waits=depths(p1=2, p4=3, p7=5))
    assert not decided.refused
    assert decided.shed == {("archive", 1): 2, ("archive", 4): 1}


def test_the_lowest_itself_is_refused() -> None:
    """A new task of the lowest priority is the youngest of it, and does not get into a full queue."""
    for priority in (1, 0):
        decided = admit([task(priority)], queue=DROPS, waits=depths(p1=2, p7=8))
        assert list(decided.refused) == [0]
        assert not decided.shed


def test_a_batch_of_several_priorities_goes_by_its_lowest() -> None:
    """No task of a batch gives way to another one of it."""
    assert list(admit([task(9), task(1)], queue=DROPS, waits=depths(p1=10)).refused) == [0]


def test_what_a_device_waits_for_never_gives_way() -> None:
    """Tasks that agents handed over count, and are not shed."""
    assert list(admit([task(9)], queue=DROPS, waits=depths(p1=(10, 0))).refused) == [0]
    assert admit([task(9)], queue=DROPS, waits=depths(p1=(10, 1))).shed == {("archive", 1): 1}


def test_a_limit_that_was_lowered_ends_nothing_by_itself() -> None:
    """No more tasks give way than come, however overfull the queue is."""
    assert admit([task(9)], queue=DROPS, waits=depths(p1=50)).shed == {("archive", 1): 1}


def test_more_than_may_ever_wait_is_told_apart() -> None:
    """A batch above the limit will never fit, which is another fault than a queue that is full now."""
    assert admit([task()] * 11).refused[0].fits is False
    assert admit([task()] * 2, waits=depths(p5=9)).refused[0].fits is True


@given(
    waits=st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4),
    requests=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=6),
    drops=st.booleans(),
)
def test_a_queue_never_grows_beyond_its_limit(
    waits: dict[int, tuple[int, int]], requests: list[list[int]], drops: bool
) -> None:
    """Whatever comes: what waits after is within the limit or no more than before, nothing gives way to a
    lower one, and nobody is shed who is not there."""
    before = {priority: queues.Depth(free + devices, free) for priority, (free, devices) in waits.items()}
    queue = DROPS if drops else ROOM
    decided = admit(
        *([task(priority) for priority in request] for request in requests),
        queue=queue,
        waits={"archive": before},
    )
    came = Counter(
        priority
        for place, request in enumerate(requests)
        if place not in decided.refused
        for priority in request
    )
    shed = Counter({place.priority: count for place, count in decided.shed.items()})
    depth = sum(one.queued for one in before.values())
    assert depth + came.total() - shed.total() <= max(10, depth)
    assert shed.total() <= came.total()
    assert all(
        count <= came[priority] + before.get(priority, queues.Depth(0, 0)).sheddable
        for priority, count in shed.items()
    )
    assert not shed or min(shed) < max(came)

"""The simple placement policy: pure, so its promises are tables and properties."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.scheduler import policy

MODELS = ("m", "n")


def task(number: int, **changes: object) -> policy.Candidate:
    fields: dict[str, object] = {
        "task_id": number.to_bytes(16, "big"),
        "model": "m",
        "version": None,
        "priority": 5,
        "tag": 0.0,
        "items": 1,
        "origin_agent": None,
    }
    return policy.Candidate(**{**fields, **changes})  # type: ignore[arg-type]


def executor(
    agent_id: int, credits_: int = 10, speed: float = 100.0, wait_s: float = 0.0, model: str = "m"
) -> policy.Executor:
    return policy.Executor(agent_id, credits_, {(model, "1"): speed}, wait_s)


TASKS = st.lists(
    st.builds(
        task,
        st.integers(1, 10**9),
        model=st.sampled_from(MODELS),
        version=st.sampled_from([None, "1", "2"]),
        priority=st.integers(0, 9),
        tag=st.floats(0, 10),
        items=st.integers(1, 50),
        origin_agent=st.none() | st.integers(0, 4),
    ),
    max_size=40,
    unique_by=lambda t: t.task_id,
)
EXECUTORS = st.lists(
    st.builds(
        policy.Executor,
        agent_id=st.integers(0, 4),
        credits=st.integers(0, 8),
        models=st.dictionaries(
            st.tuples(st.sampled_from(MODELS), st.sampled_from(["1", "2"])), st.floats(0, 1000), max_size=4
        ),
        predicted_wait_s=st.floats(0, 10),
    ),
    max_size=5,
    unique_by=lambda e: e.agent_id,
)


def can_run(one: policy.Executor, task_: policy.Candidate) -> bool:
    return any(name == task_.model and task_.version in (None, version) for name, version in one.models)


@given(TASKS, EXECUTORS)
def test_nobody_gets_more_than_its_credits(
    tasks: list[policy.Candidate], executors: list[policy.Executor]
) -> None:
    """However much is queued, an agent is given no more tasks than it has credits, and no task twice."""
    placements = policy.place(tasks, executors)
    given_ = Counter(one.agent_id for one in placements)
    assert all(given_[e.agent_id] <= e.credits for e in executors)
    assert len({one.task_id for one in placements}) == len(placements)


@given(TASKS, EXECUTORS)
def test_a_task_goes_only_where_its_model_is(
    tasks: list[policy.Candidate], executors: list[policy.Executor]
) -> None:
    """A placement names an agent that has the model, in the version if one was asked for."""
    by_id = {one.task_id: one for one in tasks}
    agents = {one.agent_id: one for one in executors}
    for placement in policy.place(tasks, executors):
        assert can_run(agents[placement.agent_id], by_id[placement.task_id])


@given(TASKS, EXECUTORS)
def test_no_credit_stays_idle_while_a_task_that_fits_waits(
    tasks: list[policy.Candidate], executors: list[policy.Executor]
) -> None:
    """Work conserving: a task is left out only if every agent that may run it is out of credits."""
    placements = policy.place(tasks, executors)
    placed = {one.task_id for one in placements}
    spent = Counter(one.agent_id for one in placements)
    for waiting in (one for one in tasks if one.task_id not in placed):
        able = [one for one in executors if can_run(one, waiting)]
        others = [one for one in able if one.agent_id != waiting.origin_agent or not one.predicted_wait_s]
        assert all(spent[one.agent_id] == one.credits for one in (others or able))


@given(TASKS, EXECUTORS)
def test_a_higher_priority_is_never_passed_over(
    tasks: list[policy.Candidate], executors: list[policy.Executor]
) -> None:
    """Placements come in order of priority, then tag, then age."""
    by_id = {one.task_id: one for one in tasks}
    order = [by_id[one.task_id] for one in policy.place(tasks, executors)]
    keys = [(-one.priority, one.tag, one.task_id) for one in order]
    assert keys == sorted(keys)


def test_the_soonest_free_agent_is_chosen() -> None:
    """Of two agents alike, the one with the shorter wait gets the task; then the load evens out."""
    placements = policy.place(
        [task(n) for n in range(1, 31)], [executor(1, 30, wait_s=0.1), executor(2, 30, wait_s=0.0)]
    )
    assert placements[0].agent_id == 2
    shares = Counter(one.agent_id for one in placements)
    assert shares == {1: 10, 2: 20}


def test_a_faster_agent_gets_more() -> None:
    """Work divides by measured speed."""
    placements = policy.place(
        [task(n) for n in range(1, 101)], [executor(1, 100, speed=300.0), executor(2, 100, speed=100.0)]
    )
    shares = Counter(one.agent_id for one in placements)
    assert 70 <= shares[1] <= 80


def test_a_task_does_not_go_back_to_its_origin_while_others_have_its_model() -> None:
    """Overflow waits for another agent rather than return to the one that is busy, unless it is alone."""
    waiting = task(1, origin_agent=1)
    busy = executor(1, wait_s=0.1)
    assert policy.place([waiting], [busy, executor(2, credits_=0)]) == []
    assert policy.place([waiting], [busy, executor(2, wait_s=9.0)])[0].agent_id == 2
    assert policy.place([waiting], [busy, executor(3, model="other")])[0].agent_id == 1
    assert policy.place([waiting], [executor(1), executor(2, credits_=0)])[0].agent_id == 1, "idle by now"

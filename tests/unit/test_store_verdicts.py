"""What reports, lost leases and wishes mean for tasks: the pure rules of the store."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.store import verdicts
from shared import tasks
from shared.tasks import Reason, State

AGENT, OTHER, ORIGIN = 1, 2, 3

STANDING = verdicts.Standing(
    task_id=tasks.new_id(),
    state=State.PROCESSING,
    model="faces",
    items=10,
    items_done=4,
    attempt=2,
    failures=0,
    max_attempts=3,
    overdue=False,
    origin_agent=ORIGIN,
    origin_epochs=frozenset({ORIGIN}),
    lease=verdicts.Lease(AGENT, 2),
)
QUEUED = replace(STANDING, state=State.QUEUED, lease=None)


def report(
    state: State, attempt: int = 2, *, retriable: bool = False, items_done: int = 0
) -> verdicts.Report:
    return verdicts.Report(
        task_id=STANDING.task_id,
        attempt=attempt,
        state=state,
        reason=None,
        error="boom",
        retriable=retriable,
        items_done=items_done,
        run_us=5,
    )


states = st.sampled_from([State.QUEUED, State.PROCESSING, State.COMPLETED, State.TERMINATED])
agents = st.sampled_from([AGENT, OTHER, ORIGIN])


@st.composite
def standings(draw: st.DrawFn) -> verdicts.Standing:
    """A task as the database can hold it."""
    state = draw(states)
    attempt = draw(st.integers(1 if state is State.PROCESSING else 0, 12))
    origin = draw(st.sampled_from([None, ORIGIN]))
    return replace(
        STANDING,
        state=state,
        attempt=attempt,
        max_attempts=(most := draw(st.integers(1, 5))),
        failures=draw(st.integers(0, most - 1)),
        items_done=draw(st.integers(0, 10)),
        overdue=draw(st.booleans()),
        origin_agent=origin,
        origin_epochs=frozenset() if origin is None else frozenset({origin}),
        lease=verdicts.Lease(draw(agents), attempt) if state is State.PROCESSING else None,
    )


reports = st.builds(
    report,
    st.sampled_from(verdicts.REPORTED),
    st.integers(-1, 13),
    retriable=st.booleans(),
    items_done=st.integers(-1, 20),
)


def holds(change: verdicts.Change) -> None:
    """What the database's constraints say of the row after a change."""
    standing = change.standing
    assert change.state in (State.QUEUED, State.COMPLETED, State.TERMINATED)
    assert (change.reason is not None) == (change.state is State.TERMINATED)
    assert 0 <= change.items_done <= standing.items
    assert change.state is not State.COMPLETED or change.items_done == standing.items
    assert change.failures < standing.max_attempts or change.state is State.TERMINATED
    assert change.delay_s == 0 or change.state is State.QUEUED


@given(standings(), agents, reports, st.floats(0, 1))
def test_every_change_goes_by_the_table_and_the_constraints(
    standing: verdicts.Standing, agent_id: int, word: verdicts.Report, jitter: float
) -> None:
    """Whatever is reported of whatever task, by whomever: no illegal transition, no row that is refused."""
    change = verdicts.judge(standing, agent_id, word, jitter)
    if change is not None:
        holds(change)
        assert standing.state not in tasks.FINAL
        assert change.delay_s <= verdicts.RETRY_CAP_S
    for other in (verdicts.cancelled(standing), verdicts.expired(standing)):
        if other is not None:
            holds(other)
    if standing.lease is not None:
        holds(verdicts.lost(standing))


@given(standings(), reports, st.floats(0, 1))
def test_a_stranger_can_only_complete(
    standing: verdicts.Standing, word: verdicts.Report, jitter: float
) -> None:
    """Who neither holds the lease nor owns the task changes nothing, but that a finished task is finished."""
    stranger = 99
    change = verdicts.judge(standing, stranger, word, jitter)
    assert change is None or change.state is State.COMPLETED


def test_completing_wins_from_a_lost_lease() -> None:
    """The agent that was cut off and finished anyway has completed the task, whoever holds it now."""
    change = verdicts.judge(STANDING, OTHER, report(State.COMPLETED, attempt=1), 0)
    assert change is not None
    assert change.state is State.COMPLETED
    again = verdicts.judge(QUEUED, OTHER, report(State.COMPLETED, attempt=1), 0)
    assert again is not None
    assert again.state is State.COMPLETED


def test_an_attempt_that_was_never_granted_completes_nothing() -> None:
    """Neither an attempt of the future nor a stranger's attempt 0 is believed."""
    assert verdicts.judge(STANDING, OTHER, report(State.COMPLETED, attempt=3), 0) is None
    assert verdicts.judge(STANDING, OTHER, report(State.COMPLETED, attempt=0), 0) is None


def test_a_failure_worth_another_try_waits_longer_each_time() -> None:
    """The longest back-off doubles with each failure up to its cap, and the wait is any part of it."""
    longest = []
    for failures in range(12):
        standing = replace(STANDING, failures=failures, max_attempts=100)
        change = verdicts.judge(standing, AGENT, report(State.FAILED, retriable=True), 1.0)
        none = verdicts.judge(standing, AGENT, report(State.FAILED, retriable=True), 0.0)
        assert change is not None
        assert none is not None
        assert (change.state, change.failures) == (State.QUEUED, failures + 1)
        assert none.delay_s == 0
        longest.append(change.delay_s)
    assert longest[:4] == [2.0, 4.0, 8.0, 16.0]
    assert longest[-1] == verdicts.RETRY_CAP_S


def test_failures_end_a_task_and_put_backs_do_not() -> None:
    """The last failure is the end of a task; being preempted is no failure, and keeps the items done."""
    last = replace(STANDING, failures=2)
    failed = verdicts.judge(last, AGENT, report(State.FAILED, retriable=True), 0.5)
    assert failed is not None
    assert (failed.state, failed.reason, failed.error) == (State.TERMINATED, Reason.EXHAUSTED, "boom")
    back = verdicts.judge(last, AGENT, report(State.QUEUED, items_done=7), 0.5)
    assert back is not None
    assert (back.state, back.failures, back.items_done) == (State.QUEUED, 2, 7)
    hopeless = verdicts.judge(STANDING, AGENT, report(State.FAILED), 0.5)
    assert hopeless is not None
    assert hopeless.reason is Reason.NOT_RETRIABLE


def test_a_task_that_is_put_back_for_ever_ends() -> None:
    """Attempts are numbered in 16 bits, and a task that nobody wants must not break the grants of all."""
    worn = replace(STANDING, attempt=verdicts.MAX_GRANTS, lease=verdicts.Lease(AGENT, verdicts.MAX_GRANTS))
    change = verdicts.judge(worn, AGENT, report(State.QUEUED, attempt=verdicts.MAX_GRANTS), 0)
    assert change is not None
    assert change.reason is Reason.EXHAUSTED


def test_a_lost_lease_of_an_overdue_task_expires_it() -> None:
    """Past its deadline a task whose agent is gone is not queued again."""
    change = verdicts.lost(replace(STANDING, overdue=True))
    assert (change.state, change.reason) == (State.TERMINATED, Reason.EXPIRED)
    assert verdicts.expired(replace(STANDING, overdue=True)) is None, "of a running task its agent judges"


def test_the_origin_has_the_last_word_on_what_it_took_back() -> None:
    """An origin's own attempt ends the task however it ended, whoever else runs it."""
    for state, reason in (
        (State.COMPLETED, None),
        (State.FAILED, Reason.NOT_RETRIABLE),
        (State.TERMINATED, Reason.NOT_RETRIABLE),
    ):
        for standing in (STANDING, QUEUED):
            change = verdicts.judge(standing, ORIGIN, report(state, attempt=0), 0)
            assert change is not None
            assert change.reason == reason
            assert change.state in tasks.FINAL

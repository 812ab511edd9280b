"""A task's life follows one table, and its id says when it was born."""

from __future__ import annotations

import re
import threading
import time
import uuid
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import tasks
from shared.tasks import State

DESIGN = """
    SUBMITTED -> QUEUED | REJECTED
    QUEUED -> PROCESSING | TERMINATED
    PROCESSING -> COMPLETED | FAILED | QUEUED | TERMINATED
    FAILED -> QUEUED | TERMINATED
    TERMINATED -> QUEUED
"""
"""As the design draws it, with the last line for dead letters, which may be queued again."""


def test_the_table_is_that_of_the_design() -> None:
    """Each arrow that is drawn is in the table, and no other."""
    drawn = {state: frozenset[State]() for state in State}
    for source, targets in re.findall(r"(\w+) -> (.*)", DESIGN):
        drawn[State(source)] = frozenset(State(target) for target in targets.split(" | "))
    assert drawn == tasks.TRANSITIONS


@pytest.mark.parametrize(("source", "target"), list(product(State, State)))
def test_only_what_the_table_says_is_allowed(source: State, target: State) -> None:
    """`check` follows the table; a refusal says from where, to where, and where else it goes."""
    if target in tasks.TRANSITIONS[source]:
        tasks.check(source, target)
        return
    ways = ", ".join(sorted(tasks.TRANSITIONS[source])) or "nowhere"
    with pytest.raises(tasks.IllegalTransition, match=f"from {source} to {target}; .* goes to {ways}$"):
        tasks.check(source, target)


def test_every_state_can_be_reached_and_left_unless_it_is_final() -> None:
    """From SUBMITTED every state is reached; what leads nowhere, or only back by request, is final."""
    reached, ahead = {State.SUBMITTED}, [State.SUBMITTED]
    while ahead:
        new = tasks.TRANSITIONS[ahead.pop()] - reached
        reached |= new
        ahead += new
    assert reached == set(State)
    assert {state for state in State if not tasks.TRANSITIONS[state]} | {State.TERMINATED} == tasks.FINAL


def test_words_are_those_of_the_design() -> None:
    """What the database's constraints, the API and the wire spell out is spelt like this."""
    reasons = {"cancelled", "expired", "exhausted", "not_retriable", "shed"}
    assert {reason.value for reason in tasks.Reason} == reasons
    assert {outcome.value for outcome in tasks.Outcome} == {"ok", "failed", "expired", "cancelled"}
    assert all(state.value == state.name for state in State)
    assert list(tasks.PRIORITIES) == list(range(10))


def test_ids_are_ordered_by_birth() -> None:
    """Of two ids made in one process the later is greater, and no two are equal."""
    ids = [tasks.new_id() for _ in range(20_000)]
    assert ids == sorted(set(ids))


def test_ids_of_several_threads_are_unique_and_each_thread_s_are_ordered() -> None:
    """Threads that make ids at one time neither collide nor disturb each other's order."""
    made: list[list[bytes]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda ids=ids: ids.extend(tasks.new_id() for _ in range(3_000)))
        for ids in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in made)
    assert len({one for ids in made for one in ids}) == 12_000


def test_an_id_is_a_uuid_of_version_7() -> None:
    """Its first 48 bits are the milliseconds of its birth; results are partitioned by them (RFC 9562)."""
    before = time.time_ns() // 1_000_000
    made = tasks.new_id()
    after = time.time_ns() // 1_000_000
    assert len(made) == 16
    assert uuid.UUID(bytes=made).version == 7
    assert uuid.UUID(bytes=made).variant == uuid.RFC_4122
    assert before <= int.from_bytes(made[:6]) <= after


@given(st.binary(min_size=16, max_size=16))
def test_an_id_is_read_as_it_was_written(task_id: bytes) -> None:
    """An id is written as every UUID is, and read with hyphens or without, in either case."""
    text = tasks.format_id(task_id)
    assert text == str(uuid.UUID(bytes=task_id))
    assert all(tasks.parse_id(form) == task_id for form in (text, text.upper(), text.replace("-", "")))


@given(first=st.binary(min_size=16, max_size=16), second=st.binary(min_size=16, max_size=16))
def test_written_ids_keep_their_order(first: bytes, second: bytes) -> None:
    """Sorting the texts sorts the ids."""
    assert (first < second) == (tasks.format_id(first) < tasks.format_id(second))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "g" * 32,
        "a" * 31,
        "a" * 33,
        "aa" * 15 + "  ",
        "aa " * 10 + "aa",
        "0x" + "a" * 30,
        "é" * 32,
        "٣" * 32,
    ],
)
def test_what_is_no_id(text: str) -> None:
    """Anything but 32 hexadecimal digits is refused, and the error quotes it."""
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a task id")):
        tasks.parse_id(text)

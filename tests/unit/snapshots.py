"""Snapshots for tests of the scheduler's policy: a builder of each value, and Hypothesis strategies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from cloud_hub.scheduler import snapshot
from shared import selectors

RULES = snapshot.Rules(aging_s=60.0)
NO_AGING = snapshot.Rules(aging_s=0)

MODELS = ("m", "n")
VERSIONS = ("1", "2")
QUEUES = ("bulk", "lab", "line")
SELECTORS = ("", "site=east", "gpu=yes", "gpu=yes,site=west", "gpu=no")
SITES = ("east", "west")


def task(number: int, **changes: Any) -> snapshot.Task:
    """A task whose id is as old as its number is small."""
    fields: dict[str, Any] = {
        "task_id": number.to_bytes(16, "big"),
        "class_id": 0,
        "model": "m",
        "version": None,
        "queue": "bulk",
        "selector": "",
        "priority": 5,
        "items": 1,
        "payload_bytes": 0,
        "waited_s": 0.0,
        "origin_agent": None,
        "home": None,
    }
    return snapshot.Task(**{**fields, **changes})


def executor(agent_id: int, credits_: int = 10, **changes: Any) -> snapshot.Executor:
    """An agent at a site, with model `m` in version 1 unless told otherwise."""
    site = changes.pop("site", "east")
    labels = {"site": site, "agent": f"agent-{agent_id}"} | changes.pop("labels", {})
    fields: dict[str, Any] = {"models": {("m", "1"): 100.0}, "predicted_wait_s": 0.0, "bytes_per_s": 1e6}
    return snapshot.Executor(agent_id, site, labels, credits_, **{**fields, **changes})


def held(number: int, agent_id: int = 1, **changes: Any) -> snapshot.Held:
    """A task that an agent has held for ten seconds."""
    fields: dict[str, Any] = {
        "attempt": 1,
        "class_id": 0,
        "model": "m",
        "version": None,
        "selector": "",
        "priority": 2,
        "items_left": 10,
        "lost_s": 0.1,
        "held_s": 10.0,
    }
    return snapshot.Held(number.to_bytes(16, "big"), agent_id, **{**fields, **changes})


def heads(tasks: Iterable[snapshot.Task], limit: int | None = None) -> list[snapshot.Head]:
    """The tasks as a store would give them: by class and priority, the oldest first, `limit` of each.

    Classes are numbered here: what the tasks say of them is replaced.
    """
    numbers: dict[tuple[object, ...], int] = {}
    found: defaultdict[tuple[int, int], list[snapshot.Task]] = defaultdict(list)
    for one in sorted(tasks):
        kind = (one.model, one.version, one.queue, one.selector, one.origin_agent)
        number = numbers.setdefault(kind, len(numbers) + 1)
        found[number, one.priority].append(one._replace(class_id=number))
    return [
        snapshot.Head(class_id, priority, len(those), those[:limit])
        for (class_id, priority), those in found.items()
    ]


def runs(one: snapshot.Executor, task_: snapshot.Task) -> bool:
    """Whether an executor may run a task, by the plain reading of the rules."""
    return any(
        name == task_.model and task_.version in (None, version) for name, version in one.models
    ) and selectors.matches(selectors.parse(task_.selector), one.labels)


def takers(executors: Iterable[snapshot.Executor], task_: snapshot.Task) -> list[snapshot.Executor]:
    """The executors that may be given a task, by the plain reading of the rule about origins."""
    able = [one for one in executors if runs(one, task_)]
    if len(able) == 1:
        return able
    return [one for one in able if one.agent_id != task_.origin_agent or one.predicted_wait_s <= 0]


TASKS = st.lists(
    st.builds(
        task,
        st.integers(1, 10**9),
        model=st.sampled_from(MODELS),
        version=st.sampled_from([None, *VERSIONS]),
        queue=st.sampled_from(QUEUES),
        selector=st.sampled_from(SELECTORS),
        priority=st.integers(0, 9),
        items=st.integers(1, 50),
        payload_bytes=st.sampled_from([0, 1000, 10**6]),
        waited_s=st.floats(0, 700),
        origin_agent=st.none() | st.integers(0, 4),
        home=st.sampled_from([None, *SITES]),
    ),
    max_size=40,
    unique_by=lambda one: one.task_id,
).map(lambda those: [one._replace(waited_s=w) for one, w in zip(sorted(those), _ages(those), strict=True)])
"""Of one snapshot: who is older has waited longer."""

EXECUTORS = st.lists(
    st.builds(
        executor,
        st.integers(0, 4),
        st.integers(-2, 8),
        site=st.sampled_from(SITES),
        labels=st.sampled_from([{}, {"gpu": "yes"}, {"gpu": "no"}]),
        models=st.dictionaries(
            st.tuples(st.sampled_from(MODELS), st.sampled_from(VERSIONS)), st.floats(0, 1000), max_size=4
        ),
        predicted_wait_s=st.sampled_from([0.0, 0.5, 5.0]),
        bytes_per_s=st.sampled_from([0.0, 1e5, 1e7]),
    ),
    max_size=5,
    unique_by=lambda one: one.agent_id,
)

ROOMS = st.dictionaries(st.sampled_from(QUEUES), st.none() | st.integers(0, 6)).map(
    lambda rooms: {name: snapshot.Queue(name, 1.0, room) for name, room in rooms.items()}
)


def _ages(those: Iterable[snapshot.Task]) -> list[float]:
    return sorted((one.waited_s for one in those), reverse=True)

"""What a task waits for, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloud_hub.api import waiting
from cloud_hub.api.waiting import Code
from cloud_hub.scheduler import snapshot
from cloud_hub.store import explain, queues

TASK = explain.Standing(
    class_id=1,
    model="defects",
    version=None,
    queue="archive",
    selector="",
    origin_agent=None,
    priority=5,
    items=1,
    waited_s=3.0,
    backs_off_s=None,
)
PRESS = waiting.Agent(
    agent_id=1,
    place="lyon/press-a",
    online=True,
    draining=False,
    labels={"site": "lyon", "agent": "press-a"},
    models={("defects", "3"): 40.0},
    capacity=4,
    leases=0,
    predicted_wait_s=0.0,
)
NOTHING = explain.Before(higher=0, same=0, beside=0, mean_items=1.0)


def judge(
    *agents: waiting.Agent,
    task: explain.Standing = TASK,
    before: explain.Before = NOTHING,
    queue: queues.Queue | None = None,
    running: int = 0,
) -> waiting.Wait:
    found = queue or queues.Queue(name="archive")
    return waiting.judge(task, before, agents, found, running, snapshot.Rules())


@pytest.mark.parametrize(
    ("agents", "task", "code", "says"),
    [
        ([], {}, Code.NO_AGENT, "no agent has model defects"),
        ([PRESS], {"version": "4"}, Code.NO_AGENT, "defects 4"),
        ([replace(PRESS, models={})], {}, Code.NO_AGENT, "defects"),
        ([PRESS], {"selector": "site=gdansk"}, Code.SELECTOR, "site=gdansk"),
        ([replace(PRESS, online=False)], {}, Code.OFFLINE, "lyon/press-a"),
        ([replace(PRESS, draining=True)], {}, Code.DRAINING, "lyon/press-a"),
        ([replace(PRESS, leases=4)], {}, Code.NO_ROOM, "lyon/press-a 4 of 4"),
        ([PRESS], {}, Code.TURN, "next"),
    ],
)
def test_what_stands_in_its_way_is_named(
    agents: list[waiting.Agent], task: dict[str, Any], code: Code, says: str
) -> None:
    """The first thing that leaves no agent to run it is what a task waits for."""
    causes = judge(*agents, task=replace(TASK, **task)).causes
    assert causes[0].code is code
    assert says in causes[0].text


def test_a_queue_at_its_limit_is_named_with_its_numbers() -> None:
    """So many run, so many may."""
    wait = judge(PRESS, queue=queues.Queue(name="archive", max_running=2), running=2)
    assert [cause.code for cause in wait.causes] == [Code.QUEUE_LIMIT]
    assert "2 tasks of queue archive run" in wait.causes[0].text


def test_a_task_that_backs_off_says_until_when() -> None:
    """A failed attempt is the first thing to know."""
    wait = judge(PRESS, task=replace(TASK, backs_off_s=12.4))
    assert (wait.causes[0].code, "12 s" in wait.causes[0].text) == (Code.BACKING_OFF, True)
    assert wait.turn_in_s is None


def test_its_turn_is_predicted_from_what_is_before_it_and_what_the_fleet_does() -> None:
    """Ahead: 100 higher, 300 older and as many beside; agents of 40 and 60 items a second; 2 items each."""
    fast = replace(PRESS, agent_id=2, place="lyon/press-b", models={("defects", "3"): 60.0}, leases=4)
    before = explain.Before(higher=100, same=300, beside=900, mean_items=2.0)
    wait = judge(replace(PRESS, leases=4), fast, before=before)
    assert wait.turn_in_s == pytest.approx(2 * 700 / 100)
    assert [cause.code for cause in wait.causes] == [Code.NO_ROOM, Code.TURN]


def test_its_origin_is_no_help_while_others_could_run_it() -> None:
    """Room at the agent that handed it over, because it is busy, is not room."""
    home = replace(PRESS, predicted_wait_s=4.0)
    other = replace(PRESS, agent_id=2, place="lyon/press-b", leases=4)
    task = replace(TASK, origin_agent=1)
    assert judge(home, other, task=task).causes[0].code is Code.NO_ROOM
    assert judge(home, task=task).causes[0].code is Code.TURN


@pytest.mark.parametrize(("seconds", "text"), [(0.02, "20 ms"), (40, "40 s"), (600, "10 min"), (7200, "2 h")])
def test_durations_are_in_the_unit_that_matters(seconds: float, text: str) -> None:
    """One number, one unit."""
    assert waiting.duration(seconds) == text

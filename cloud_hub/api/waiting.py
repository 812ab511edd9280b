"""What a queued task waits for, in words: a pure function of the task, the fleet and its queue.

The rules are the scheduler's (`cloud_hub.scheduler.placement`); here they are told one by one, to people.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloud_hub.scheduler import snapshot
from cloud_hub.store import explain, queues
from shared import selectors

NAMED: Final = 3
"""Agents that a sentence names; of more it says how many."""


class Code(enum.StrEnum):
    """What a task waits for."""

    BACKING_OFF = "backing_off"
    NO_AGENT = "no_agent"
    """No agent has the model."""
    SELECTOR = "selector"
    """No agent that has the model has the labels that the task asks for."""
    OFFLINE = "offline"
    """Those that can run it are not online."""
    DRAINING = "draining"
    """Those that can run it get no more work."""
    QUEUE_LIMIT = "queue_limit"
    """As many of its queue run as may."""
    NO_ROOM = "no_room"
    """Those that can run it hold as many tasks as they want."""
    TURN = "turn"
    """Nothing stands in its way but those before it."""


class Cause(NamedTuple):
    """One thing that a task waits for."""

    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent, as far as running a task goes."""

    agent_id: int
    place: str
    """SITE/NAME."""
    online: bool
    draining: bool
    labels: Mapping[str, str]
    """With `site` and `agent` among them."""
    models: Mapping[tuple[str, str], float]
    """(name, version) of what it has ready, with the measured items per second."""
    capacity: int
    leases: int
    predicted_wait_s: float

    @property
    def credits(self) -> int:
        return max(0, self.capacity - self.leases)

    def speed(self, task: explain.Standing, rules: snapshot.Rules) -> float | None:
        """Items of the task's model per second; None if it does not have that model."""
        speeds = [
            items_per_s
            for (name, version), items_per_s in self.models.items()
            if name == task.model and task.version in (None, version)
        ]
        return (max(speeds) or rules.unmeasured_items_per_s) if speeds else None


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a task waits, and for how long it may."""

    causes: list[Cause]
    able: list[Agent]
    """Online, not draining, with its model and its labels."""
    turn_in_s: float | None
    """Until its turn, if the fleet goes on as it does; None: something else stands in its way."""


def judge(
    task: explain.Standing,
    before: explain.Before,
    agents: Sequence[Agent],
    queue: queues.Queue,
    running: int,
    rules: snapshot.Rules,
) -> Wait:
    """What `task` waits for, the most telling first; `running`: how many tasks of its queue run."""
    able, obstacle = _able(task, agents, rules)
    causes = [] if obstacle is None else [obstacle]
    if task.backs_off_s is not None:
        text = "an attempt failed: it is about to be tried again"
        if task.backs_off_s > 0:
            text = f"an attempt failed: it is tried again in {duration(task.backs_off_s)}"
        causes.insert(0, Cause(Code.BACKING_OFF, text))
    if queue.max_running is not None and running >= queue.max_running:
        causes.append(
            Cause(
                Code.QUEUE_LIMIT,
                f"{running:,} tasks of queue {queue.name} run, and {queue.max_running:,} may at one time",
            )
        )
    if able and not any(agent.credits for agent in _preferred(task, able)):
        causes.append(Cause(Code.NO_ROOM, _no_room(able)))
    stuck = {cause.code for cause in causes} - {Code.NO_ROOM}
    turn_in_s = None if stuck else _turn_in_s(task, before, able, rules)
    if turn_in_s is not None:
        text = f"its turn comes in about {duration(turn_in_s)}" if turn_in_s else "its turn is next"
        causes.append(Cause(Code.TURN, text))
    return Wait(causes, able, turn_in_s)


def _able(
    task: explain.Standing, agents: Sequence[Agent], rules: snapshot.Rules
) -> tuple[list[Agent], Cause | None]:
    """The agents that can run the task, or the first thing that leaves none of them."""
    wanted = selectors.parse(task.selector)
    model = task.model if task.version is None else f"{task.model} {task.version}"
    having = [agent for agent in agents if agent.speed(task, rules) is not None]
    if not having:
        return [], Cause(Code.NO_AGENT, f"no agent has model {model} ready")
    matching = [agent for agent in having if selectors.matches(wanted, agent.labels)]
    if not matching:
        text = f"its selector {task.selector} matches no agent that has model {model}: {_named(having)}"
        return [], Cause(Code.SELECTOR, text)
    online = [agent for agent in matching if agent.online]
    if not online:
        return [], Cause(Code.OFFLINE, f"no agent that can run it is online: {_named(matching)}")
    taking = [agent for agent in online if not agent.draining]
    if not taking:
        return [], Cause(Code.DRAINING, f"the agents that can run it are draining: {_named(online)}")
    return taking, None


def _preferred(task: explain.Standing, able: Sequence[Agent]) -> Sequence[Agent]:
    """Without the one that handed it over, unless that one is idle now or nobody else could run it."""
    others = [one for one in able if one.agent_id != task.origin_agent or not one.predicted_wait_s]
    return others or able


def _no_room(able: Sequence[Agent]) -> str:
    held = ", ".join(f"{one.place} {one.leases:,} of {one.capacity:,}" for one in able[:NAMED])
    more = f" and {len(able) - NAMED:,} more" if len(able) > NAMED else ""
    return f"every agent that can run it holds as many of the hub's tasks as it wants: {held}{more}"


def _turn_in_s(
    task: explain.Standing, before: explain.Before, able: Sequence[Agent], rules: snapshot.Rules
) -> float | None:
    """What goes before it, over what the agents that can run it do together.

    Queues of its priority are taken to take turns, one for one.
    """
    speed = sum(agent.speed(task, rules) or 0.0 for agent in able)
    tasks = before.higher + before.same + min(before.beside, before.same)
    return tasks * before.mean_items / speed if speed else None


def _named(agents: Sequence[Agent]) -> str:
    names = ", ".join(agent.place for agent in agents[:NAMED])
    return names + (f" and {len(agents) - NAMED:,} more" if len(agents) > NAMED else "")


def duration(seconds: float) -> str:
    """In the unit that matters."""
    for limit, size, unit in ((1, 0.001, "ms"), (90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"

"""Why a task waits, and why it went where it went: over REST."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from cloud_hub.api import context, fleet_view, problems, snapshots, task_view, tasks, waiting
from cloud_hub.scheduler import order
from cloud_hub.store import explain, pool, schedule
from cloud_hub.store import queues as queue_store
from cloud_hub.store import tasks as task_store
from shared import tasks as words

ABLE: Final = 20
"""Agents that could run a task which an explanation lists."""

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


class Cause(BaseModel):
    """One thing that a task waits for."""

    code: waiting.Code = Field(description="For programs", examples=[waiting.Code.NO_ROOM])
    text: str = Field(description="For people", examples=["no agent has model surface-defects 4 ready"])


class Before(BaseModel):
    """What waits for the same model before the task."""

    higher: int = Field(description="Tasks of higher priorities", examples=[12])
    same: int = Field(description="Older tasks of its own class and priority", examples=[340])
    same_is_more: bool = Field(description="There are more than `same`: counting stopped", examples=[False])
    beside: int = Field(
        description="Tasks of its priority in other classes, which take turns with its own", examples=[0]
    )


class Able(BaseModel):
    """An agent that could run the task now."""

    agent: str = Field(description="SITE/NAME", examples=["lyon-press/press-a"])
    credits: int = Field(description="How many more of the hub's tasks it would take", examples=[0])
    items_per_s: float = Field(description="Of the task's model; assumed where not measured", examples=[40.0])


class Waiting(BaseModel):
    """How a task waits."""

    model: str = Field(description="The model of its class", examples=["surface-defects"])
    version: str | None = Field(description="Its version; null: any", examples=["3"])
    queue: str = Field(description="The queue of its class", examples=["default"])
    selector: str = Field(description="The labels that its class asks for; empty: none", examples=[""])
    origin: str | None = Field(description="SITE/NAME of who handed it over", examples=[None])
    priority: int = Field(description="As it was submitted", examples=[5])
    effective_priority: int = Field(description="As raised by its wait", examples=[6])
    waited_s: float = Field(description="Since it was submitted", examples=[340.0])
    before: Before = Field(description="What stands before it")
    causes: list[Cause] = Field(description="What it waits for, the most telling first")
    able: list[Able] = Field(description="Agents that could run it, those with most room first")
    able_count: int = Field(description="How many those are", examples=[3])
    turn_in_s: float | None = Field(
        description="About how long until its turn; null: something else stands in its way", examples=[8.5]
    )


class Score(BaseModel):
    """What an agent was predicted to take for the task."""

    agent: str = Field(description="SITE/NAME", examples=["lyon-press/press-b"])
    predicted_s: float = Field(description="Until completion", examples=[1.4])


class Decision(BaseModel):
    """Why an attempt went where it went, and what became of it."""

    attempt: int = Field(description="Its number", examples=[1])
    agent: str = Field(description="SITE/NAME of the agent that was chosen", examples=["lyon-press/press-a"])
    predicted_s: float | None = Field(description="Until completion there", examples=[0.9])
    wait_s: float | None = Field(description="Of this, before its turn", examples=[0.2])
    transfer_s: float | None = Field(description="Of this, for its body", examples=[0.1])
    run_s: float | None = Field(description="Of this, running", examples=[0.6])
    able: int | None = Field(description="How many agents could have run it", examples=[3])
    others: list[Score] = Field(description="The runners-up, best first")
    effective_priority: int | None = Field(description="By which it came to its turn", examples=[6])
    tag: float | None = Field(description="Its start tag in the fair share of its queue", examples=[None])
    cause: str | None = Field(description="Why it was placed again", examples=[None])
    preempted_for: str | None = Field(description="The task for which it was to make room", examples=[None])
    more: dict[str, Any] = Field(description="What else the scheduler noted")
    stopping: bool = Field(description="It runs, and was asked to make room", examples=[False])
    state: words.State = Field(
        description="PROCESSING while it runs; QUEUED if it was put back or lost",
        examples=[words.State.COMPLETED],
    )
    reason: str | None = Field(description="Why it ended, where there is more to say", examples=[None])
    error: str | None = Field(description="What failed", examples=[None])
    granted_at: datetime | None = Field(description="When it was decided")
    ended_at: datetime | None = Field(description="When the hub learned of its end")


class Explanation(BaseModel):
    """Why a task is where it is."""

    task_id: str = Field(description="The task's id, a UUIDv7", examples=[task_view.ID])
    state: words.State = Field(description="Where it is in its life", examples=[words.State.QUEUED])
    reason: words.Reason | None = Field(description="Why it was TERMINATED", examples=[None])
    error: str | None = Field(description="What failed last", examples=[None])
    waiting: Waiting | None = Field(description="How it waits; null: it does not")
    decisions: list[Decision] = Field(description="Of each attempt, oldest first")


@router.get(
    "/{task_id}/explain",
    summary="Why a task waits, or went where it went",
    responses=problems.documented(problems.NOT_FOUND, problems.INVALID),
)
async def why(
    hub: context.Dependency,
    task_id: Annotated[str, Path(description="The task's id", examples=[task_view.ID])],
) -> Explanation:
    """What it waits for and what stands before it; what each decision weighed, and how it ended."""
    wanted = tasks.parse_id(task_id, "task_id")
    task = await tasks.find(hub, wanted)
    async with hub.connection() as connection:
        stands = await explain.standing(connection, wanted)
        return Explanation.model_construct(
            task_id=words.format_id(wanted),
            state=task.state,
            reason=task.reason,
            error=task.error,
            waiting=None if stands is None else await _waiting(hub, connection, task, stands),
            decisions=await _decisions(connection, wanted),
        )


async def _waiting(
    hub: context.Hub, connection: pool.Connection, task: task_store.Task, stands: explain.Standing
) -> Waiting:
    before = await explain.before(connection, task.task_id, stands)
    agents = [_agent(one) for one in await snapshots.read_agents(hub, connection)]
    queue = await queue_store.find(connection, stands.queue) or queue_store.Queue(name=stands.queue)
    running = (await schedule.running(connection)).get(stands.queue, 0)
    found = waiting.judge(stands, before, agents, queue, running, hub.rules)
    able = sorted(found.able, key=lambda one: (-one.credits, one.place))[:ABLE]
    return Waiting.model_construct(
        model=stands.model,
        version=stands.version,
        queue=stands.queue,
        selector=stands.selector,
        origin=str(task.origin) if task.origin else None,
        priority=stands.priority,
        effective_priority=order.effective(stands.priority, stands.waited_s, hub.rules),
        waited_s=round(stands.waited_s, 3),
        before=Before(
            higher=before.higher,
            same=min(before.same, explain.MOST),
            same_is_more=before.same > explain.MOST,
            beside=before.beside,
        ),
        causes=[Cause(code=cause.code, text=cause.text) for cause in found.causes],
        able=[
            Able(agent=one.place, credits=one.credits, items_per_s=one.speed(stands, hub.rules) or 0.0)
            for one in able
        ],
        able_count=len(found.able),
        turn_in_s=None if found.turn_in_s is None else round(found.turn_in_s, 1),
    )


def _agent(seen: fleet_view.Agent) -> waiting.Agent:
    said = seen.telemetry
    return waiting.Agent(
        agent_id=seen.agent_id,
        place=f"{seen.site}/{seen.name}",
        online=seen.online,
        draining=seen.draining,
        labels={**(said.labels if said else {}), "site": seen.site, "agent": seen.name},
        models={(model.name, model.version): model.items_per_s for model in (said.models if said else ())},
        capacity=said.capacity if said else 0,
        leases=seen.leases,
        predicted_wait_s=said.predicted_wait_s if said else 0.0,
    )


async def _decisions(connection: pool.Connection, task_id: bytes) -> list[Decision]:
    attempts = [one for one in await task_store.attempts(connection, task_id) if one.attempt]
    noted = await explain.decisions(connection, task_id)
    whys = {attempt: _read(decision.why) for attempt, decision in noted.items()}
    others = {attempt: _scores(why.pop("others", None)) for attempt, why in whys.items()}
    ids = {agent_id for scores in others.values() for agent_id, _ in scores}
    names = await explain.names(connection, ids)
    return [
        _decision(one, whys.get(one.attempt, {}), others.get(one.attempt, ()), names, noted.get(one.attempt))
        for one in attempts
    ]


_KNOWN: Final[Mapping[str, tuple[type, ...]]] = {
    "predicted_s": (int, float),
    "wait_s": (int, float),
    "transfer_s": (int, float),
    "run_s": (int, float),
    "able": (int,),
    "effective_priority": (int,),
    "tag": (int, float),
    "cause": (str,),
    "preempted_for": (str,),
}
"""What the scheduler notes, and of which types; all else is shown as it is."""


def _decision(
    attempt: task_store.Attempt,
    why: Mapping[str, Any],
    others: Sequence[tuple[int, float]],
    names: Mapping[int, str],
    noted: explain.Decision | None,
) -> Decision:
    known: dict[str, Any] = {
        name: value for name, value in why.items() if isinstance(value, _KNOWN.get(name, ()))
    }
    return Decision.model_construct(
        **dict.fromkeys(_KNOWN) | known,
        attempt=attempt.attempt,
        agent=str(attempt.agent),
        others=[
            Score(agent=names.get(agent_id, f"agent {agent_id}"), predicted_s=predicted_s)
            for agent_id, predicted_s in others
        ],
        more={name: value for name, value in why.items() if name not in known},
        stopping=noted is not None and noted.stopping,
        state=attempt.state,
        reason=attempt.reason,
        error=attempt.error,
        granted_at=attempt.granted_at,
        ended_at=attempt.ended_at,
    )


def _read(why: str | None) -> dict[str, Any]:
    """What the scheduler noted; of another version of it, whatever that is."""
    if why is None:
        return {}
    try:
        found = msgspec.json.decode(why)
    except msgspec.DecodeError:
        found = why
    return found if isinstance(found, dict) else {"why": found}


def _scores(others: Any) -> Sequence[tuple[int, float]]:
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(others, list[tuple[int, float]])
    return ()

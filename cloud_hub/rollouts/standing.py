"""How rollouts stand: what the policy decides on and what people are shown, read from the store.

Both look at the same: the agents in scope as the fleet's telemetry has them, and the tallies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

import msgspec

from cloud_hub import desired
from cloud_hub.rollouts import policy
from cloud_hub.store import agents, pool, rollouts, tallies, targets
from shared import signals, topics
from shared.rollouts import gates, stages

Heard: TypeAlias = Callable[[agents.Agent], tuple[float, signals.Telemetry | None] | None]
"""How long ago (s) this hub heard of an agent, and what it said; None: nothing fresher than the store."""


class Judged(msgspec.Struct, frozen=True):
    """How a gate stood; `gates.Judgement` as it is kept and shown."""

    gate: str
    verdict: gates.Verdict
    value: float | None
    evidence: int
    said: str
    needed: bool


class Progress(msgspec.Struct, frozen=True):
    """How far a stage is, or was when it was left: the evidence of a step. JSON."""

    stage: int
    agents: int = 0
    """Exposed by it and the stages before it."""
    ready: int = 0
    """Of these, those that have both versions loaded."""
    new_results: int = 0
    """Of the new version while it lasted; where the stage only shadows, comparisons."""
    judgements: list[Judged] = []


decode: Final = msgspec.json.Decoder(Progress).decode
"""The progress in a step's evidence."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A rollout, and how it stands."""

    rollout: rollouts.Rollout
    at: datetime
    """When that was, by PostgreSQL's clock."""
    situation: policy.Situation | None
    """What a decision rests on; None: it has ended."""
    progress: Sequence[Progress]
    """Of each stage: of those left as it was then, of those to come how many agents they would expose."""
    results: Mapping[str, int]
    """Of the new version in all stages, by agent; none where it has ended."""
    events: Sequence[rollouts.Event]


@dataclass(frozen=True, slots=True)
class _Seen:
    """An agent of the fleet as it is now."""

    place: topics.Agent
    online: bool
    labels: Mapping[str, str]
    reports: Mapping[str, signals.TrialReport]
    """By rollout."""
    chosen: Mapping[str, targets.Target]
    """The targets that count for it, by model."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """The agents that a rollout concerns."""

    seen: Sequence[_Seen]
    members: Sequence[policy.Agent]
    """The same."""

    @property
    def exposed(self) -> list[topics.Agent]:
        return [member.place for member in self.members if member.exposure is not None]


async def read(
    connection: pool.Connection,
    found: Sequence[rollouts.Rollout],
    heard: Heard,
    silent_after_s: float,
) -> list[Standing]:
    """How these rollouts stand, in their order. An agent not heard for `silent_after_s` is offline."""
    at = await rollouts.now(connection)
    rollout_ids = [rollout.rollout_id for rollout in found]
    events = await rollouts.events(connection, rollout_ids)
    active = [rollout for rollout in found if rollout.ended_at is None]
    models = {rollout.plan.model for rollout in active}
    fleet = await _fleet(connection, models, heard, silent_after_s, at) if active else []

    def gather() -> dict[bytes, _Scope]:
        return {rollout.rollout_id: _scope(rollout, fleet) for rollout in active}

    # Each agent is dealt by each stage: of a large fleet too much for the loop that serves it.
    scopes = await asyncio.to_thread(gather) if fleet else gather()
    counted = {
        rollout.rollout_id: await tallies.sides(connection, rollout, scopes[rollout.rollout_id].exposed)
        for rollout in active
    }

    def judge() -> list[Standing]:
        return [
            _standing(
                rollout,
                at,
                scopes.get(rollout.rollout_id),
                counted.get(rollout.rollout_id),
                events.get(rollout.rollout_id, []),
            )
            for rollout in found
        ]

    return await asyncio.to_thread(judge) if fleet else judge()


async def take(
    connection: pool.Connection, standing: Standing, kind: rollouts.Kind, by: rollouts.By, reason: str
) -> None:
    """Take a step from where a rollout stands, with that as its evidence. Raises rollouts.Moved."""
    begins = kind is rollouts.Kind.PROMOTED
    await rollouts.take(
        connection,
        standing.rollout,
        kind,
        by,
        reason,
        evidence=msgspec.json.encode(standing.progress[standing.rollout.stage]),
        compared=said(standing.situation.agents) if begins and standing.situation else None,
    )


async def _fleet(
    connection: pool.Connection,
    models: Container[str],
    heard: Heard,
    silent_after_s: float,
    at: datetime,
) -> list[_Seen]:
    """The agents whose labels are known, with the targets of `models` that count for each."""
    aims = [aim for aim in await targets.every(connection) if aim.model in models]
    found = []
    for row in await agents.fleet(connection):
        since_s = (at - row.last_seen).total_seconds()
        telemetry = row.telemetry
        if fresher := heard(row):
            since_s, telemetry = min(since_s, fresher[0]), fresher[1] or telemetry
        if telemetry is None:
            continue
        labels = telemetry.labels | {"site": row.place.site, "agent": row.place.name}
        found.append(
            _Seen(
                place=row.place,
                online=row.online and since_s < silent_after_s,
                labels=labels,
                reports={report.rollout: report for report in telemetry.trials},
                chosen={aim.model: aim for aim in desired.models(aims, labels)},
            )
        )
    return found


def _scope(rollout: rollouts.Rollout, fleet: Sequence[_Seen]) -> _Scope:
    scope = [
        seen
        for seen in fleet
        if desired.concerns(rollout.plan, seen.chosen.get(rollout.plan.model), seen.labels)
    ]
    members = [
        policy.Agent(
            place=seen.place,
            online=seen.online,
            exposure=_exposure(rollout, seen, rollout.stage),
            before=_exposure(rollout, seen, rollout.stage - 1),
            report=seen.reports.get(rollout.name),
        )
        for seen in scope
    ]
    return _Scope(scope, members)


def _standing(
    rollout: rollouts.Rollout,
    at: datetime,
    scope: _Scope | None,
    counted: tallies.Sides | None,
    events: Sequence[rollouts.Event],
) -> Standing:
    """How a rollout stands; `scope` and `counted` are None if it has ended."""
    left = {event.stage: decode(event.evidence) for event in events if event.evidence is not None}
    progress = [left.get(stage, Progress(stage)) for stage in range(len(rollout.plan.stages))]
    if scope is None or counted is None:
        return Standing(rollout, at, None, progress, {}, events)
    situation = _situation(rollout, scope, counted)
    for stage in range(rollout.stage, len(progress)):
        progress[stage] = Progress(stage, agents=_exposed(rollout, scope.seen, stage))
    progress[rollout.stage] = _now(situation)
    return Standing(rollout, at, situation, progress, counted.results, events)


def _situation(rollout: rollouts.Rollout, scope: _Scope, counted: tallies.Sides) -> policy.Situation:
    plan = rollout.plan
    new = counted.new
    since = _since(said(scope.members), rollout.compared)
    new.compared, new.agreed = since.compared, since.agreed
    new.items += since.unrecorded
    new.failed += since.unrecorded
    has_old = any(plan.model in seen.chosen for seen in scope.seen)
    return policy.Situation(
        rollout=policy.Rollout(
            model=plan.model,
            version=plan.version,
            stages=plan.stages,
            stage=rollout.stage,
            stage_since=rollout.stage_since,
            gates=plan.gates,
            min_results=plan.min_results,
            soak_s=plan.soak_s,
            patience_s=plan.patience_s,
            on_fail=plan.on_fail,
        ),
        agents=scope.members,
        new=new,
        old=counted.old if has_old else None,
    )


def said(members: Iterable[policy.Agent]) -> dict[str, rollouts.Said]:
    """By agent: what it has counted itself, if there is anything."""
    found = {str(member.place): _said(member.report) for member in members if member.report is not None}
    return {agent: its for agent, its in found.items() if its.compared or its.unrecorded}


def _said(report: signals.TrialReport) -> rollouts.Said:
    counts = max(0, report.compared), max(0, report.agreed)  # whatever an agent says, a count is one
    return rollouts.Said(*counts, report.life, max(0, report.unrecorded))


def _since(now: Mapping[str, rollouts.Said], before: Mapping[str, rollouts.Said]) -> rollouts.Said:
    """What agents have counted since. One that lives another life, or has less than before, began anew."""
    compared = agreed = unrecorded = 0
    for agent, its in now.items():
        was = before.get(agent, rollouts.Said())
        if was.life != its.life or was.compared > its.compared or was.unrecorded > its.unrecorded:
            was = rollouts.Said()
        compared += its.compared - was.compared
        agreed += max(0, its.agreed - was.agreed)
        unrecorded += its.unrecorded - was.unrecorded
    return rollouts.Said(compared, min(agreed, compared), unrecorded=unrecorded)


def _exposure(rollout: rollouts.Rollout, seen: _Seen, stage: int) -> stages.Exposure | None:
    reached = rollout.plan.stages[: stage + 1]
    return stages.exposure(reached, rollout.name, str(seen.place), seen.labels)


def _exposed(rollout: rollouts.Rollout, scope: Sequence[_Seen], stage: int) -> int:
    return sum(_exposure(rollout, seen, stage) is not None for seen in scope)


def _now(situation: policy.Situation) -> Progress:
    """How far the stage is that a rollout is in."""
    rollout, new = situation.rollout, situation.new
    exposed = [agent for agent in situation.agents if agent.exposure is not None]
    shadows = rollout.stages[rollout.stage].mode is stages.Mode.SHADOW
    return Progress(
        stage=rollout.stage,
        agents=len(exposed),
        ready=sum(agent.is_ready for agent in exposed),
        new_results=new.compared if shadows else new.items,
        judgements=[
            Judged(
                gate=str(one.gate),
                verdict=one.verdict,
                value=one.value,
                evidence=one.evidence,
                said=one.said,
                needed=one.needed,
            )
            for one in policy.judge(situation)
        ],
    )

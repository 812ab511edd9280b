"""Rollouts as the API and the dashboard show them: how far each stage is, what was done and why."""

from __future__ import annotations

from datetime import datetime

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from cloud_hub.rollouts import policy, standing
from cloud_hub.store import rollouts
from shared.rollouts import gates, stages, trials

MAX_STAGES = 50
MAX_GATES = 20
MAX_REASON = 1000
YEAR_S = 366 * 86_400.0
ID = "01990d8a-6f2b-7c41-9d3e-5b8f0a1c2d3e"


class Plan(BaseModel):
    """A rollout that is to begin."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(description="The model", examples=["surface-defects"])
    version: str = Field(description="The version that the agents are to serve", examples=["1.3.0"])
    selector: str = Field(
        "",
        description="Which agents: `key=value`, several with commas between; empty: all agents. It is the "
        "target of this selector that the version is written to in the end",
        examples=["site=lyon"],
    )
    stages: list[str] = Field(
        min_length=1,
        max_length=MAX_STAGES,
        description="One after the other; each adds agents, or more of their jobs",
        examples=[["internal", "seed:10%", "25%/shadow:50%", "100%"]],
    )
    gates: list[str] = Field(
        default_factory=lambda: [str(gate) for gate in gates.DEFAULT],
        max_length=MAX_GATES,
        description="What the new version must be like in each stage",
        examples=[[str(gate) for gate in gates.DEFAULT]],
    )
    min_results: int = Field(
        100, ge=1, le=10**9, description="Results of the new version that a stage needs", examples=[100]
    )
    soak_s: float = Field(
        300.0, ge=0, le=YEAR_S, description="How long a stage lasts at least", examples=[300.0]
    )
    patience_s: float | None = Field(
        None, gt=0, le=YEAR_S, description="After which a stage that lacks something is paused; null: never"
    )
    on_fail: policy.OnFail = Field(
        policy.OnFail.ROLL_BACK, description="What is done when a gate fails or an agent refuses the version"
    )


class Change(BaseModel):
    """What is said with a step."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=MAX_REASON, description="Why, for the history", examples=["holiday"])
    stage: int | None = Field(
        None,
        ge=0,
        description="The stage that it is meant for, from 0: if the rollout is in another, nothing is done. "
        "So what got no answer can be asked again",
    )


class Judgement(BaseModel):
    """How a gate stands."""

    gate: str = Field(description="The gate", examples=["errors<=1%"])
    verdict: gates.Verdict = Field(
        description="`open`: more results will tell", examples=[gates.Verdict.PASSED]
    )
    value: float | None = Field(
        description="What was measured, in the unit of the limit; null: nothing yet", examples=[0.2]
    )
    evidence: int = Field(description="Results or comparisons that it rests on", examples=[540])
    said: str = Field(description="The same in a sentence")
    needed: bool = Field(description="False: there is nothing here that this gate could judge")


class Progress(BaseModel):
    """How far a stage is, or was when it was left."""

    stage: int = Field(description="The stage, from 0", examples=[1])
    agents: int = Field(description="Agents that it and the stages before it expose", examples=[7])
    ready: int = Field(description="Of these, those that have the new version loaded", examples=[6])
    new_results: int = Field(
        description="Results of the new version while it lasts; where it only shadows, comparisons",
        examples=[540],
    )
    judgements: list[Judgement] = Field(description="How the gates stand, in their order")


class Event(BaseModel):
    """A step that was taken."""

    number: int = Field(description="From 1", examples=[2])
    at: datetime = Field(description="When")
    kind: rollouts.Kind = Field(description="What was done", examples=[rollouts.Kind.PROMOTED])
    stage: int = Field(description="The stage that the rollout was in before, from 0", examples=[0])
    by: rollouts.By = Field(description="Who decided", examples=[rollouts.By.POLICY])
    reason: str = Field(description="Why")
    evidence: Progress | None = Field(description="How far the stage was then; null: there was none before")


class Participant(BaseModel):
    """An agent whose version the rollout changes."""

    agent: str = Field(description="SITE/NAME", examples=["lyon-press/press-a"])
    online: bool = Field(description="Present by its word and heard of lately")
    mode: stages.Mode | None = Field(description="How it is exposed by now; null: not yet")
    state: str | None = Field(
        description="How far it is with the new version, by its word; null: it is not exposed",
        examples=[trials.State.READY.value],
    )
    reason: str | None = Field(
        description="Why it refused the version or went back from it; null: it did not"
    )
    version_results: int = Field(description="Its results of the new version", examples=[51])


class Rollout(BaseModel):
    """A rollout, and how far its stages are."""

    rollout_id: str = Field(description="Its id", examples=[ID])
    model: str = Field(description="The model", examples=["surface-defects"])
    version: str = Field(description="The version that the agents are to serve", examples=["1.3.0"])
    selector: str = Field(description="Which agents; empty: all agents", examples=["site=lyon"])
    stages: list[str] = Field(description="The stages", examples=[["internal", "5%", "100%"]])
    gates: list[str] = Field(description="The gates", examples=[["errors<=1%"]])
    min_results: int = Field(description="Results that a stage needs", examples=[100])
    soak_s: float = Field(description="How long a stage lasts at least", examples=[300.0])
    patience_s: float | None = Field(description="After which a stage that lacks something is paused")
    on_fail: policy.OnFail = Field(description="What is done when a gate fails")
    state: rollouts.State = Field(description="Where it is in its life", examples=[rollouts.State.RUNNING])
    stage: int = Field(description="The stage that it is in or ended in, from 0", examples=[1])
    stage_since: datetime = Field(description="Since when")
    started_at: datetime = Field(description="When it began")
    ended_at: datetime | None = Field(description="When it ended; null: it has not")
    reason: str = Field(description="Of the latest step; while it runs, what its stage waits for")
    progress: list[Progress] = Field(description="Stage by stage")


class WholeRollout(Rollout):
    """A rollout with the agents that it concerns, and its history."""

    agents: list[Participant] = Field(description="Whose version it changes, by name; none once it has ended")
    history: list[Event] = Field(description="Its steps, the first one first")


class Rollouts(BaseModel):
    """Rollouts."""

    rollouts: list[Rollout] = Field(description="The active ones first, then those that ended last")


def rollout(found: standing.Standing) -> Rollout:
    """One rollout."""
    it, plan = found.rollout, found.rollout.plan
    reason = it.reason
    if found.situation is not None and it.state is rollouts.State.RUNNING:
        reason = policy.decide(found.situation, found.at).reason
    return Rollout.model_construct(
        rollout_id=it.name,
        model=plan.model,
        version=plan.version,
        selector=plan.selector,
        stages=[str(stage) for stage in plan.stages],
        gates=[str(gate) for gate in plan.gates],
        min_results=plan.min_results,
        soak_s=plan.soak_s,
        patience_s=plan.patience_s,
        on_fail=plan.on_fail,
        state=it.state,
        stage=it.stage,
        stage_since=it.stage_since,
        started_at=it.started_at,
        ended_at=it.ended_at,
        reason=reason,
        progress=[_progress(one) for one in found.progress],
    )


def whole_rollout(found: standing.Standing) -> WholeRollout:
    members = found.situation.agents if found.situation else ()
    return WholeRollout.model_construct(
        **dict(rollout(found)),
        agents=[_participant(member, found) for member in sorted(members, key=lambda member: member.place)],
        history=[_event(event) for event in found.events],
    )


def _participant(member: policy.Agent, found: standing.Standing) -> Participant:
    state = member.report.state if member.report else trials.State.WAITING.value
    return Participant.model_construct(
        agent=str(member.place),
        online=member.online,
        mode=member.exposure and member.exposure.mode,
        state=state if member.exposure else None,
        reason=(member.report.reason or None) if member.report else None,
        version_results=found.results.get(str(member.place), 0),
    )


def _progress(found: standing.Progress) -> Progress:
    return Progress.model_construct(
        stage=found.stage,
        agents=found.agents,
        ready=found.ready,
        new_results=found.new_results,
        judgements=[Judgement.model_construct(**msgspec.structs.asdict(one)) for one in found.judgements],
    )


def _event(found: rollouts.Event) -> Event:
    evidence = None if found.evidence is None else standing.decode(found.evidence)
    return Event.model_construct(
        number=found.number,
        at=found.at,
        kind=found.kind,
        stage=found.stage,
        by=found.by,
        reason=found.reason,
        evidence=evidence and _progress(evidence),
    )

"""What becomes of a rollout now: it waits, goes on, pauses or goes back. Pure, of a situation and a time.

In this order:

1. An exposed agent refused the new version or went back by itself, or a gate failed: what `on_fail` says.
2. Nobody is exposed by this stage who was not before, and equally: the next stage.
3. Everything is there (agents ready, results enough, needed gates passed, time to soak over): the next stage.
4. `patience_s` is over: a pause, for a person to look at it. Where only time is missing, that has no end.
5. Otherwise it waits, and says for what.

After the last stage the rollout is complete, unless no agent was exposed by any of its stages: what nobody
ran is not declared good. While no agent is in its scope nothing goes on: the fleet may not be known yet.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared import signals, topics
from shared.rollouts import gates, measures, stages, trials

_NAMED: Final = 3
"""So many agents are named in a reason; of the others it says how many they are."""


class Step(enum.StrEnum):
    """What to do with a rollout."""

    WAIT = "wait"
    PROMOTE = "promote"
    COMPLETE = "complete"
    PAUSE = "pause"
    ROLL_BACK = "roll_back"


class OnFail(enum.StrEnum):
    """What a rollout does when the new version is no good."""

    ROLL_BACK = "roll_back"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A running rollout, as far as deciding about it needs to know it."""

    model: str
    version: str
    """The new one."""
    stages: Sequence[stages.Stage]
    stage: int
    """The one that runs, from 0."""
    stage_since: datetime
    gates: Sequence[gates.Gate] = gates.DEFAULT
    min_results: int = 100
    """Of the new version, in each stage; shadowed jobs compared, in a stage that only shadows."""
    soak_s: float = 300.0
    """How long a stage lasts, at least."""
    patience_s: float | None = None
    """How long a stage may lack anything but time before a person is asked; None: for ever."""
    on_fail: OnFail = OnFail.ROLL_BACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """An agent in the rollout's scope: one whose version this rollout would change, exposed by now or not."""

    place: topics.Agent
    online: bool
    exposure: stages.Exposure | None
    """By all stages so far, this one included."""
    before: stages.Exposure | None
    """By the stages before this one."""
    report: signals.TrialReport | None = None
    """What it said last of this rollout."""

    @property
    def is_ready(self) -> bool:
        return self.report is not None and self.report.state == trials.State.READY

    @property
    def went_back(self) -> bool:
        """Whether it refused the new version, or went back to the old one by itself."""
        return self.report is not None and self.report.state in trials.BACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a decision rests on."""

    rollout: Rollout
    agents: Sequence[Agent]
    """All in the rollout's scope."""
    new: measures.Measures
    """Of the new version in this stage."""
    old: measures.Measures | None
    """Of the old version, in all stages and before, on agents that have results of the new one; None: there
    is no old version."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in one sentence, and how the gates stand."""

    step: Step
    reason: str
    judgements: Sequence[gates.Judgement] = ()


def decide(situation: Situation, now: datetime) -> Decision:
    """What becomes of a running rollout now."""
    rollout = situation.rollout
    stage = rollout.stages[rollout.stage]
    exposed = [agent for agent in situation.agents if agent.exposure is not None]
    joined = [agent for agent in exposed if agent.exposure != agent.before]
    judgements = judge(situation)
    if wrong := _failures(rollout, exposed, judgements):
        step = Step.ROLL_BACK if rollout.on_fail is OnFail.ROLL_BACK else Step.PAUSE
        return Decision(step, wrong, judgements)
    is_last = rollout.stage == len(rollout.stages) - 1
    onward = Step.COMPLETE if is_last else Step.PROMOTE
    if not joined and situation.agents and (exposed or not is_last):
        return Decision(onward, f"stage {stage}: no agent is in it that was not before", judgements)
    missing = _missing(situation, exposed, joined, judgements)
    passed_s = (now - rollout.stage_since).total_seconds()
    if not missing and passed_s >= rollout.soak_s:
        return Decision(onward, _praise(situation, stage, exposed, passed_s), judgements)
    if missing and rollout.patience_s is not None and passed_s >= rollout.patience_s:
        lacks = f"stage {stage} is not through after {passed_s:.0f} s: {'; '.join(missing)}"
        return Decision(Step.PAUSE, lacks, judgements)
    if passed_s < rollout.soak_s:
        missing.append(f"{rollout.soak_s - passed_s:.0f} s more to soak")
    return Decision(Step.WAIT, f"stage {stage}: {'; '.join(missing)}", judgements)


def judge(situation: Situation) -> list[gates.Judgement]:
    """How the gates stand in the stage that runs: of one that only shadows, agreement alone is needed."""
    rollout = situation.rollout
    shadows = rollout.stages[rollout.stage].mode is stages.Mode.SHADOW
    return gates.judge(
        rollout.gates,
        situation.new,
        situation.old,
        rollout.min_results,
        answering=not shadows,
        shadowed=shadows,
    )


def _failures(
    rollout: Rollout, exposed: Sequence[Agent], judgements: Sequence[gates.Judgement]
) -> str | None:
    """What speaks against the new version; None if nothing does."""
    back = [
        f"{agent.place} {_WENT[agent.report.state]} {rollout.model}@{rollout.version}"
        f" ({agent.report.reason or 'without a reason'})"
        for agent in _by_place(exposed)
        if agent.went_back and agent.report is not None
    ]
    if back:
        return _some(back)
    failed = [judgement.said for judgement in judgements if judgement.verdict is gates.Verdict.FAILED]
    return "; ".join(failed) or None


_WENT: Final[dict[str, str]] = {
    trials.State.REFUSED: "refused",
    trials.State.ROLLED_BACK: "went back from",
}


def _missing(
    situation: Situation,
    exposed: Sequence[Agent],
    joined: Sequence[Agent],
    judgements: Sequence[gates.Judgement],
) -> list[str]:
    """What a stage still lacks, apart from time; empty if nothing."""
    rollout = situation.rollout
    if not exposed:
        return ["no agent is in any stage so far" if situation.agents else "no agent is in its scope"]
    missing = []
    if not any(agent.online for agent in joined):
        missing.append(f"of the agents that it adds ({len(joined)}) none is online")
    late = [
        f"{agent.place} {agent.report.state if agent.report else trials.State.WAITING}"
        for agent in _by_place(exposed)
        if agent.online and not agent.is_ready
    ]
    if late:
        missing.append(f"not ready: {_some(late)}")
    counted, of = _results(situation)
    if counted < rollout.min_results:
        missing.append(f"{counted} of {rollout.min_results} {of}")
    missing += [
        judgement.said
        for judgement in judgements
        if judgement.needed and judgement.verdict is not gates.Verdict.PASSED
    ]
    return missing


def _results(situation: Situation) -> tuple[int, str]:
    """How much this stage has to show, and what that is."""
    if situation.rollout.stages[situation.rollout.stage].mode is stages.Mode.SHADOW:
        return situation.new.compared, "shadowed jobs"
    return situation.new.items, "results"


def _praise(situation: Situation, stage: stages.Stage, exposed: Sequence[Agent], passed_s: float) -> str:
    counted, of = _results(situation)
    return (
        f"stage {stage}: every needed gate passed on {counted} {of} after {passed_s:.0f} s; "
        f"exposed: {len(exposed)} of {len(situation.agents)} agents"
    )


def _by_place(agents: Sequence[Agent]) -> list[Agent]:
    return sorted(agents, key=lambda agent: agent.place)


def _some(said: Sequence[str]) -> str:
    """The first of them, and how many others there are."""
    more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return ", ".join(said[:_NAMED]) + more

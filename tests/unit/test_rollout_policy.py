"""When a rollout goes on, waits, pauses or goes back."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts import policy
from shared import signals, topics
from shared.rollouts import gates, measures, stages, trials

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SERVE = stages.Exposure(stages.Mode.SERVE)
SHADOW = stages.Exposure(stages.Mode.SHADOW)
STAGES = stages.parse_all("internal,25%,100%")


def counted(items: int, failed: int = 0, compared: int = 0, agreed: int = 0) -> measures.Measures:
    made = measures.Measures(compared=compared, agreed=agreed)
    for number in range(items):
        made.add(1000.0, "ok", failed=number < failed)
    return made


def report(state: str, reason: str = "") -> signals.TrialReport:
    return signals.TrialReport(rollout="r", state=state, reason=reason)


def agent(
    name: str = "press-a",
    exposure: stages.Exposure | None = SERVE,
    before: stages.Exposure | None = None,
    state: str | None = trials.State.READY,
    online: bool = True,
    reason: str = "",
) -> policy.Agent:
    said = report(state, reason) if state else None
    place = topics.Agent("lyon", name)
    return policy.Agent(place=place, online=online, exposure=exposure, before=before, report=said)


def situation(
    *agents: policy.Agent,
    new: measures.Measures | None = None,
    old: measures.Measures | None = None,
    **fields: Any,
) -> policy.Situation:
    """A rollout at its second of three stages, with one ready agent and all it needs, but for `fields`."""
    second = policy.Rollout(model="defects", version="2", stages=STAGES, stage=1, stage_since=BEGAN)
    return policy.Situation(
        rollout=dataclasses.replace(second, **fields),
        agents=agents or (agent(),),
        new=counted(100) if new is None else new,
        old=counted(1000) if old is None else old,
    )


def decided(found: policy.Situation, after_s: float = 3600) -> policy.Decision:
    return policy.decide(found, BEGAN + timedelta(seconds=after_s))


def test_a_stage_that_has_all_it_needs_is_followed_by_the_next() -> None:
    """And after the last the rollout is complete; the reason says on what it rests."""
    onward = decided(situation())
    assert onward.step is policy.Step.PROMOTE
    assert (
        onward.reason
        == "stage 25%: every needed gate passed on 100 results after 3600 s; exposed: 1 of 1 agents"
    )
    assert [judged.verdict for judged in onward.judgements] == ["passed", "passed", "passed", "open"]
    assert decided(situation(stage=2)).step is policy.Step.COMPLETE


@pytest.mark.parametrize(
    ("found", "after_s", "lacks"),
    [
        (situation(), 299, "1 s more to soak"),
        (situation(new=counted(99)), 3600, "99 of 100 results"),
        (situation(old=counted(0)), 3600, "latency_p95: 0 results of each"),
        (situation(agent(state="loading")), 3600, "not ready: lyon/press-a loading"),
        (situation(agent(state=None)), 3600, "not ready: lyon/press-a waiting"),
        (situation(agent(state="meditating")), 3600, "not ready: lyon/press-a meditating"),
        (situation(agent(online=False)), 3600, "of the agents that it adds (1) none is online"),
        (situation(new=counted(100, failed=2)), 3600, "too near to tell"),
        (situation(agent(exposure=None), stage=2), 3600, "no agent is in any stage"),
    ],
)
def test_what_is_missing_is_waited_for_and_said(found: policy.Situation, after_s: float, lacks: str) -> None:
    """Each condition alone holds a stage up, and the reason names it."""
    waiting = decided(found, after_s)
    assert waiting.step is policy.Step.WAIT
    assert lacks in waiting.reason


def test_agents_that_are_offline_hold_nobody_up() -> None:
    """While another of the stage's agents is there and has shown what is needed."""
    assert decided(situation(agent("a"), agent("b", online=False, state=None))).step is policy.Step.PROMOTE


@pytest.mark.parametrize(
    ("on_fail", "step"), [("roll_back", policy.Step.ROLL_BACK), ("pause", policy.Step.PAUSE)]
)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (agent(state="refused", reason="no key"), "lyon/press-a refused defects@2 (no key)"),
        (
            agent(state="rolled_back", reason="errors", online=False),
            "lyon/press-a went back from defects@2 (errors)",
        ),
    ],
)
def test_an_agent_that_went_back_is_enough(
    on_fail: str, step: policy.Step, bad: policy.Agent, reason: str
) -> None:
    """Among any number of good ones, and from the first moment on; what follows is the rollout's choice."""
    wrong = decided(situation(agent("a"), bad, agent("z"), on_fail=policy.OnFail(on_fail)), 0)
    assert wrong.step is step
    assert wrong.reason == reason


def test_of_many_agents_that_went_back_some_are_named() -> None:
    """In the order of their names; how many there are is said of the others."""
    many = [agent(f"press-{number}", state="refused", reason="no key") for number in range(9, 0, -1)]
    reason = decided(situation(*many)).reason
    assert reason.startswith("lyon/press-1 refused")
    assert reason.endswith("lyon/press-3 refused defects@2 (no key) and 6 more")


def test_who_is_not_exposed_any_more_has_no_say() -> None:
    """A report of an agent that changed its labels is an old one."""
    assert (
        decided(situation(agent("a"), agent("b", exposure=None, state="refused"))).step is policy.Step.PROMOTE
    )


def test_a_gate_that_failed_ends_it_at_once() -> None:
    """Long before the results and the time are there."""
    wrong = decided(situation(new=counted(12, failed=9)), 1)
    assert wrong.step is policy.Step.ROLL_BACK
    assert wrong.reason == "errors 75% of 12 results, beyond errors<=1%"


def test_a_stage_that_adds_nobody_is_passed_over() -> None:
    """5 % of three agents may be none. It needs no results and no soaking; after the last it is complete."""
    known = agent(before=SERVE)
    assert decided(situation(known, new=counted(0)), 0).step is policy.Step.PROMOTE
    assert decided(situation(agent(exposure=None)), 0).step is policy.Step.PROMOTE
    assert decided(situation(known, stage=2), 0).step is policy.Step.COMPLETE


def test_to_be_exposed_more_than_before_is_to_be_in_the_stage() -> None:
    """An agent that shadowed and is to serve now must show that it can."""
    found = situation(agent(before=SHADOW), new=counted(0))
    assert decided(found, 0).step is policy.Step.WAIT


def test_what_nobody_ran_is_not_declared_good() -> None:
    """An empty fleet, perhaps one that is not known yet, goes through no stage, and patience with it ends."""
    nobody = dataclasses.replace(situation(), agents=())
    assert decided(nobody).step is policy.Step.WAIT
    impatient = dataclasses.replace(nobody, rollout=dataclasses.replace(nobody.rollout, patience_s=60))
    assert decided(impatient).step is policy.Step.PAUSE


def test_a_stage_that_shadows_needs_comparisons_alone() -> None:
    """The new version answers nothing there, so errors and run times of its answers are not waited for."""
    shadowing = stages.parse_all("shadow,100%")
    few = situation(agent(exposure=SHADOW), new=counted(0, compared=99, agreed=99), stages=shadowing, stage=0)
    assert "99 of 100 shadowed jobs" in decided(few).reason
    enough = dataclasses.replace(few, new=counted(0, compared=100, agreed=98))
    assert decided(enough).step is policy.Step.PROMOTE
    apart = dataclasses.replace(few, new=counted(0, compared=20, agreed=2))
    assert decided(apart).step is policy.Step.ROLL_BACK


def test_patience_ends_in_a_pause_that_says_what_is_missing() -> None:
    """Not before it is over, and not where nothing but time to soak is missing."""
    slow = situation(new=counted(40), patience_s=600.0)
    assert decided(slow, 599).step is policy.Step.WAIT
    paused = decided(slow, 600)
    assert paused.step is policy.Step.PAUSE
    assert paused.reason.startswith("stage 25% is not through after 600 s: 40 of 100 results")
    assert decided(situation(patience_s=10.0), 20).step is policy.Step.WAIT


def test_without_an_old_version_the_new_one_is_judged_by_itself() -> None:
    """A model's first version has nothing to be compared with, and is not held up by that."""
    first = dataclasses.replace(situation(), old=None)
    assert decided(first).step is policy.Step.PROMOTE


exposures = st.sampled_from([None, SHADOW, stages.Exposure(stages.Mode.SPLIT, 10.0), SERVE])
some_agents = st.lists(
    st.builds(
        agent,
        name=st.sampled_from(["a", "b", "c", "d"]),
        exposure=exposures,
        before=exposures,
        state=st.sampled_from([None, "waiting", "ready", "ready", "ready", "refused", "rolled_back"]),
        online=st.booleans(),
    ),
    max_size=4,
)
some_measures = st.builds(
    counted,
    items=st.integers(0, 150),
    failed=st.integers(0, 4),
    compared=st.just(150),
    agreed=st.integers(130, 150),
)
some_situations = st.builds(
    lambda agents, new, old, **fields: dataclasses.replace(
        situation(new=new, **fields), agents=agents, old=old
    ),
    agents=some_agents,
    new=some_measures,
    old=st.one_of(st.none(), some_measures),
    stages=st.sampled_from([STAGES, stages.parse_all("shadow,traffic:5%,100%")]),
    stage=st.integers(0, 2),
    patience_s=st.one_of(st.none(), st.floats(0, 600)),
    on_fail=st.sampled_from(policy.OnFail),
)


@given(found=some_situations, after_s=st.floats(0, 1000))
def test_nothing_goes_on_that_is_not_good(found: policy.Situation, after_s: float) -> None:
    """Whatever the situation: on with a failed gate never; with one open that is needed, an agent that is not
    ready, too few results or too little time only where the stage adds nobody."""
    step = decided(found, after_s)
    assert step.reason
    if step.step not in (policy.Step.PROMOTE, policy.Step.COMPLETE):
        return
    rollout = found.rollout
    assert (step.step is policy.Step.COMPLETE) == (rollout.stage == len(rollout.stages) - 1)
    assert all(judged.verdict is not gates.Verdict.FAILED for judged in step.judgements)
    exposed = [one for one in found.agents if one.exposure]
    assert not any(one.went_back for one in exposed)
    assert exposed or step.step is policy.Step.PROMOTE
    if any(one.exposure != one.before for one in exposed):
        assert all(judged.verdict is gates.Verdict.PASSED for judged in step.judgements if judged.needed)
        assert all(one.is_ready for one in exposed if one.online)
        shadows = rollout.stages[rollout.stage].mode is stages.Mode.SHADOW
        assert (found.new.compared if shadows else found.new.items) >= rollout.min_results
        assert after_s >= rollout.soak_s


@given(found=some_situations, after_s=st.floats(600, 10_000))
def test_patience_leaves_nothing_waiting(found: policy.Situation, after_s: float) -> None:
    """With patience, whatever happens: when it and the time to soak are over, something is done."""
    if found.rollout.patience_s is not None:
        assert decided(found, after_s).step is not policy.Step.WAIT


@given(
    chosen=st.lists(
        st.sampled_from(["internal", "5%", "25%", "traffic:10%", "shadow", "50%/shadow:20%", "100%"]),
        min_size=1,
        max_size=6,
    ),
    rollout_id=st.uuids().map(str),
    fleet=st.lists(st.sampled_from(["internal", "seed", "wide"]), min_size=1, max_size=12),
)
def test_a_good_version_reaches_the_end(chosen: list[str], rollout_id: str, fleet: list[str]) -> None:
    """Each stage is passed once, and then it is complete, unless none of its stages exposed anybody."""
    planned = [stages.parse(text) for text in chosen]
    good = counted(100, compared=100, agreed=100)
    for number in range(len(planned)):
        agents = []
        for index, ring in enumerate(fleet):
            place = topics.Agent("lyon", f"press-{index}")
            before, exposure = (
                stages.exposure(planned[:reached], rollout_id, str(place), {"ring": ring})
                for reached in (number, number + 1)
            )
            agents.append(agent(place.name, exposure, before))
        found = situation(*agents, new=good, stages=planned, stage=number)
        step = decided(found).step
        if number < len(planned) - 1:
            assert step is policy.Step.PROMOTE
        else:
            anybody = any(one.exposure for one in agents)
            assert step is (policy.Step.COMPLETE if anybody else policy.Step.WAIT)

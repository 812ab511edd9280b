"""Which target counts for an agent, and which rollouts concern it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from cloud_hub import desired
from cloud_hub.rollouts import policy
from cloud_hub.store import rollouts, targets
from shared import selectors, topics
from shared.rollouts import stages

LABELS = {"site": "lyon", "agent": "press-a", "gpu": "h100"}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def target(selector: str, version: str = "1", model: str = "defects", at: int = 0) -> targets.Target:
    return targets.Target(
        model=model,
        selector=selector,
        version=version,
        changed_at=BEGAN + timedelta(seconds=at),
        sha256="ab" * 32,
        size=1,
        signed=None,
    )


def versions(*found: targets.Target) -> dict[str, str]:
    return {one.model: one.version for one in desired.models(found, LABELS)}


def test_the_target_that_asks_for_most_labels_counts() -> None:
    """One for the site goes before one for all, and one for the agent's site and hardware before that."""
    everywhere, site = target("", "1", at=9), target("site=lyon", "2", at=5)
    machine = target("gpu=h100,site=lyon", "3")
    assert versions(everywhere) == {"defects": "1"}
    assert versions(everywhere, site) == {"defects": "2"}
    assert versions(machine, site, everywhere) == {"defects": "3"}


def test_of_equals_the_newest_counts() -> None:
    """Of two that ask for one label each, the one that was set last."""
    older, newer = target("site=lyon", "1", at=1), target("gpu=h100", "2", at=2)
    assert versions(older, newer) == versions(newer, older) == {"defects": "2"}


def test_targets_for_others_do_not_count() -> None:
    """A label that the agent does not have, or has otherwise, rules a target out."""
    assert versions(target("site=york"), target("line=4"), target("site=lyon,line=4")) == {}


def test_each_model_is_decided_by_itself() -> None:
    """Targets of one model say nothing about another."""
    found = versions(target("", "1"), target("site=lyon", "7", model="ocr"), target("site=york", "8", "x"))
    assert found == {"defects": "1", "ocr": "7"}


TERMS = st.lists(
    st.sampled_from(["site=lyon", "site=york", "gpu=h100", "line=4", "agent=press-a"]), max_size=3
)


def is_possible(terms: list[str]) -> bool:
    """Whether no label is asked to be two things."""
    return len({term.partition("=")[0] for term in terms}) == len(set(terms))


@given(
    drawn=st.lists(st.tuples(TERMS, st.integers(0, 3)), max_size=8),
    shuffled=st.randoms(use_true_random=False),
)
def test_the_choice_is_one_that_fits_and_none_fits_better(
    drawn: list[tuple[list[str], int]], shuffled: st.DataObject
) -> None:
    """Whatever the targets and their order: the chosen one fits, and no other that fits goes before it."""
    found = []
    for number, (terms, at) in enumerate(drawn):
        if is_possible(terms):
            found.append(target(selectors.normal(",".join(terms)), str(number), at=at))
    chosen = desired.models(found, LABELS)
    fitting = [one for one in found if selectors.matches(selectors.parse(one.selector), LABELS)]
    assert len(chosen) == bool(fitting)
    mixed = list(found)
    shuffled.shuffle(mixed)  # type: ignore[attr-defined]
    for one in fitting:
        mine, best = (len(selectors.parse(each.selector)) for each in (one, chosen[0]))
        assert (mine, one.changed_at) <= (best, chosen[0].changed_at)
    if len({one.selector for one in found}) == len(found):  # as the store has them
        assert desired.models(mixed, LABELS) == chosen


# Rollouts


def plan(selector: str, version: str = "new") -> rollouts.Plan:
    return rollouts.Plan(
        model="defects",
        version=version,
        selector=selector,
        stages=stages.parse_all("internal,50%,100%"),
        gates=(),
        min_results=1,
        soak_s=0.0,
        patience_s=None,
        on_fail=policy.OnFail.PAUSE,
    )


def rollout(selector: str = "", stage: int = 2) -> rollouts.Rollout:
    return rollouts.Rollout(
        rollout_id=bytes(16),
        plan=plan(selector),
        state=rollouts.State.RUNNING,
        stage=stage,
        stage_since=BEGAN,
        started_at=BEGAN,
        ended_at=None,
        reason="",
        compared={},
    )


@given(
    drawn=st.lists(st.tuples(TERMS, st.integers(0, 3), st.sampled_from(["1", "2", "new"])), max_size=6),
    terms=TERMS,
)
def test_a_rollout_concerns_those_whose_version_its_target_will_change(
    drawn: list[tuple[list[str], int, str]], terms: list[str]
) -> None:
    """So that completing it changes nothing for anybody whom its stages have passed by."""
    assume(is_possible(terms))
    selector = selectors.normal(",".join(terms))
    found = {
        its: target(its, version, at=at)
        for its_terms, at, version in drawn
        if is_possible(its_terms)
        for its in [selectors.normal(",".join(its_terms))]
    }
    old = next(iter(desired.models(found.values(), LABELS)), None)
    found[selector] = target(selector, "new", at=9)
    then = next(iter(desired.models(found.values(), LABELS)), None)
    changes = (old and old.version) != (then and then.version)
    assert desired.concerns(plan(selector), old, LABELS) == changes


def test_an_agent_takes_part_from_its_stage_on() -> None:
    """Before its stage it is told nothing of the rollout; from then on how it is exposed, and what it had."""
    place = topics.Agent("lyon", "press-a")
    chosen = [target("", "1")]
    taken = [desired.trials(chosen, [rollout(stage=stage)], place, LABELS) for stage in range(3)]
    assert taken[0] == []
    (last,) = taken[2]
    assert (last.exposure, last.old) == (stages.Exposure(stages.Mode.SERVE), chosen[0])
    assert desired.trials([], [rollout("site=york")], place, LABELS) == []
    (alone,) = desired.trials([], [rollout("site=lyon")], place, LABELS)
    assert alone.old is None

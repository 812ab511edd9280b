"""Stages: what they say in text, whom they expose, and where jobs go then."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import tasks
from shared.rollouts import route, shares, stages

ROLLOUT = "0197a8a2-6a3f-7c1e-9b3a-4f7f3c2d1e00"
LYON = {"site": "lyon", "agent": "press-a", "ring": "seed"}

words = st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,6}[a-z0-9])?", fullmatch=True)
percents = st.one_of(
    st.floats(0, 100, exclude_min=True, allow_subnormal=False),
    st.sampled_from([0.1, 1.0, 5.0, 25.0, 100.0]),
)
tags = st.lists(st.tuples(words, words), unique=True, max_size=3).map(tuple)
selectors_ = st.dictionaries(
    st.one_of(words, st.just("ring")), st.one_of(words, st.just("shadow")), max_size=2
).map(lambda labels: ",".join(f"{key}={value}" for key, value in sorted(labels.items())))


@st.composite
def some_stage(draw: st.DrawFn) -> stages.Stage:
    """Any stage that makes sense."""
    who, percent, mode = draw(selectors_), draw(percents), draw(st.sampled_from(stages.Mode))
    match mode:
        case stages.Mode.SERVE:
            return stages.Stage(who, percent)
        case stages.Mode.SHADOW:
            return stages.Stage(who, percent, mode, draw(percents))
        case _:
            tagged = draw(tags)
            traffic = draw(st.one_of(percents, st.just(0.0)) if tagged else percents)
            return stages.Stage(who, percent, mode, traffic, tagged)


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("internal", stages.Stage("ring=internal")),
        ("seed:10%", stages.Stage("ring=seed", 10.0)),
        ("5%", stages.Stage("", 5.0)),
        ("0.5%", stages.Stage("", 0.5)),
        ("100%", stages.Stage()),
        ("site=lyon", stages.Stage("site=lyon")),
        ("site=lyon&line=4:50%", stages.Stage("line=4,site=lyon", 50.0)),
        ("site=lyon/traffic:10%", stages.Stage("site=lyon", 100.0, stages.Mode.SPLIT, 10.0)),
        ("tag:group=beta", stages.Stage("", 100.0, stages.Mode.SPLIT, 0.0, (("group", "beta"),))),
        ("traffic:5%+tag:group=beta", stages.Stage("", 100.0, stages.Mode.SPLIT, 5.0, (("group", "beta"),))),
        ("25%/shadow:50%", stages.Stage("", 25.0, stages.Mode.SHADOW, 50.0)),
        ("shadow", stages.Stage("", 100.0, stages.Mode.SHADOW)),
        ("ring=shadow", stages.Stage("ring=shadow")),
        (" seed : 10 % / traffic:1% ", stages.Stage("ring=seed", 10.0, stages.Mode.SPLIT, 1.0)),
    ],
)
def test_a_stage_says_who_and_how(text: str, stage: stages.Stage) -> None:
    """Each form of the grammar means what its documentation says."""
    assert stages.parse(text) == stage


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no stage"),
        ("/shadow", "no stage"),
        ("5%/", "no stage"),
        ("0%", "percentage"),
        ("101%", "percentage"),
        ("five%", "percentage"),
        ("-5%", "percentage"),
        ("1e1%", "percentage"),
        ("seed:10", "letters"),
        (":10%", "nobody"),
        ("site=", "letters"),
        ("site=a&site=b", "both"),
        ("two words", "letters"),
        ("5%/half", "traffic"),
        ("traffic:10", "percentage"),
        ("traffic:10%+traffic:20%", "traffic"),
        ("traffic:10%+shadow", "traffic"),
        ("shadow:0%", "percentage"),
        ("tag:beta", "letters"),
        ("tag:a=b+tag:a=b", "twice"),
        ("site=a/b", "traffic"),
        ("seed/10%/shadow", "traffic"),
    ],
)
def test_what_is_no_stage_is_refused_with_words(text: str, word: str) -> None:
    """Nothing is guessed; the message quotes the stage and names what is wrong with it."""
    with pytest.raises(stages.BadStage, match=word) as wrong:
        stages.parse(text)
    assert repr(text.strip()) in str(wrong.value)


@given(stage=some_stage())
def test_a_stage_is_read_back_as_it_was_written(stage: stages.Stage) -> None:
    """Text and JSON are as good as the value, and the text is one stage of a list with commas."""
    assert stages.parse(str(stage)) == stage
    assert stages.parse_all(f"{stage},{stage}") == (stage, stage)
    assert msgspec.json.decode(msgspec.json.encode(stage), type=stages.Stage) == stage


@given(text=st.text(alphabet="ring=sed:10.5%/trafcghow+tag&, -é", max_size=24))
def test_no_text_surprises(text: str) -> None:
    """Whatever is written is a stage in one canonical form, or BadStage."""
    try:
        read = stages.parse(text)
    except stages.BadStage:
        return
    assert stages.parse(str(read)) == read


@pytest.mark.parametrize(
    "fields",
    [
        {"percent": 0.0},
        {"percent": math.nan},
        {"traffic": 50.0},
        {"tags": (("a", "b"),)},
        {"mode": stages.Mode.SHADOW, "traffic": 0.0},
        {"mode": stages.Mode.SPLIT, "traffic": 0.0},
        {"who": "site=b,line=a"},
        {"who": "site=a/b"},
        {"mode": stages.Mode.SPLIT, "tags": (("a", "b c"),)},
    ],
)
def test_a_stage_that_makes_no_sense_cannot_be_made(fields: dict[str, object]) -> None:
    """Not by code, and not by JSON: so whatever is a Stage can be written and followed."""
    with pytest.raises(stages.BadStage):
        stages.Stage(**fields)  # type: ignore[arg-type]
    if not isinstance(fields.get("percent"), float) or not math.isnan(fields["percent"]):  # type: ignore[arg-type]
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(fields), type=stages.Stage)


def exposure(*texts: str, agent: str = "lyon/press-a") -> stages.Exposure | None:
    return stages.exposure([stages.parse(text) for text in texts], ROLLOUT, agent, LYON)


def test_the_strongest_stage_so_far_counts() -> None:
    """To serve goes before to split, and that before to shadow, in whatever order the stages came."""
    shadow, split, serve = "shadow:50%", "site=lyon/traffic:10%", "seed"
    assert exposure("internal", "site=york") is None
    assert exposure(shadow) == stages.Exposure(stages.Mode.SHADOW, 50.0)
    assert exposure(shadow, split) == exposure(split, shadow) == stages.Exposure(stages.Mode.SPLIT, 10.0)
    assert exposure(serve, split, shadow) == stages.Exposure(stages.Mode.SERVE)


def test_shares_and_tags_of_stages_that_split_add_up() -> None:
    """The largest share counts, and a tag of any of them."""
    assert exposure("tag:group=beta", "traffic:30%+tag:line=4", "traffic:10%") == stages.Exposure(
        stages.Mode.SPLIT, 30.0, (("group", "beta"), ("line", "4"))
    )


@given(rollout=st.uuids().map(str), percent=percents)
def test_a_percentage_is_of_the_agents_that_the_stage_asks_for(rollout: str, percent: float) -> None:
    """Those whose place in this rollout is below it, and of other agents none."""
    stage = stages.Stage("ring=seed", percent)
    for number in range(20):
        agent = f"lyon/press-{number}"
        exposed = stages.exposure([stage], rollout, agent, LYON)
        assert (exposed is not None) == (shares.of_agent(rollout, agent) < percent)
        assert stages.exposure([stage], rollout, agent, {"ring": "wide"}) is None


RANK = {None: 0, stages.Mode.SHADOW: 1, stages.Mode.SPLIT: 2, stages.Mode.SERVE: 3}


@given(
    reached=st.lists(some_stage(), max_size=6),
    agent=words,
    labels=st.dictionaries(st.sampled_from(["ring", "line"]), words, max_size=2),
    jobs=st.lists(st.binary(min_size=16, max_size=16), max_size=8),
    tagged=st.dictionaries(words, words, max_size=2),
)
def test_no_stage_takes_back_what_one_before_it_gave(
    reached: list[stages.Stage],
    agent: str,
    labels: dict[str, str],
    jobs: list[bytes],
    tagged: dict[str, str],
) -> None:
    """An agent's exposure only grows from stage to stage, and what went to the new version still does."""
    mode: stages.Mode | None = None
    answered_by_new: set[bytes] = set()
    for number in range(len(reached) + 1):
        exposed = stages.exposure(reached[:number], ROLLOUT, f"lyon/{agent}", labels)
        now = exposed.mode if exposed else None
        assert RANK[now] >= RANK[mode]
        mode = now
        new = {job for job in jobs if route.route(exposed, ROLLOUT, job, tagged) is route.Route.NEW}
        assert new >= answered_by_new
        answered_by_new = new


def within_binomial_bounds(hits: int, total: int, percent: float) -> bool:
    """Whether so many hits are within five standard deviations: chance is outside once in two million."""
    share = percent / 100
    return abs(hits - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1


@pytest.mark.parametrize("percent", [1.0, 5.0, 25.0, 50.0, 90.0])
@given(rollout=st.uuids().map(str))
def test_a_share_is_as_large_as_it_says(percent: float, rollout: str) -> None:
    """Of many agents, and of many jobs of one agent, about P percent; and 5 % are among the 25 %."""
    agents = sum(shares.of_agent(rollout, f"lyon/press-{number}") < percent for number in range(500))
    jobs = sum(shares.of_job(rollout, number.to_bytes(16)) < percent for number in range(500))
    assert within_binomial_bounds(agents, 500, percent)
    assert within_binomial_bounds(jobs, 500, percent)


def test_a_share_never_moves() -> None:
    """Where an agent and a job stand is the same in every process and release: journals rely on it."""
    assert shares.of_agent(ROLLOUT, "lyon/press-a") == pytest.approx(71.05805553409095)
    assert shares.of_job(ROLLOUT, bytes(16)) == pytest.approx(65.13110859887394)


def test_jobs_are_dealt_apart_from_agents_and_rollouts() -> None:
    """Who was lucky in one rollout is not in the next: of one half of the jobs half is there again."""
    ids = [tasks.new_id() for _ in range(2000)]
    first = {job for job in ids if shares.of_job("one", job) < 50}
    both = sum(shares.of_job("other", job) < 50 for job in first)
    assert within_binomial_bounds(both, len(first), 50)


def test_each_mode_routes_as_it_is_called() -> None:
    """Not exposed: old. Serve: new. Split: new or old. Shadow: always answered by the old one."""
    ids = [tasks.new_id() for _ in range(300)]

    def routes(exposed: stages.Exposure | None) -> set[route.Route]:
        return {route.route(exposed, ROLLOUT, job, {}) for job in ids}

    old, new, shadowed = route.Route.OLD, route.Route.NEW, route.Route.OLD_SHADOWED
    assert routes(None) == {old}
    assert routes(stages.Exposure(stages.Mode.SERVE)) == {new}
    assert routes(stages.Exposure(stages.Mode.SPLIT, 50.0)) == {old, new}
    assert routes(stages.Exposure(stages.Mode.SPLIT, 100.0)) == {new}
    assert routes(stages.Exposure(stages.Mode.SPLIT, 0.0, (("group", "beta"),))) == {old}
    assert routes(stages.Exposure(stages.Mode.SHADOW)) == {shadowed}
    assert routes(stages.Exposure(stages.Mode.SHADOW, 50.0)) == {old, shadowed}


def test_a_tag_sends_a_job_to_the_new_version_whatever_its_hash() -> None:
    """Any of the tags is enough, and another value of the same property is not."""
    exposed = stages.Exposure(stages.Mode.SPLIT, 0.0, (("group", "beta"), ("line", "4")))
    assert route.route(exposed, ROLLOUT, tasks.new_id(), {"line": "4", "x": "y"}) is route.Route.NEW
    assert route.route(exposed, ROLLOUT, tasks.new_id(), {"group": "alpha"}) is route.Route.OLD

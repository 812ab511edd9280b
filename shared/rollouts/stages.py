"""The stages of a rollout: which agents are exposed to the new version, and how, in text and as values.

    STAGE   = AGENTS | TRAFFIC | AGENTS/TRAFFIC     several with commas between
    AGENTS  = WHO | P% | WHO:P%                     left out: all agents
    WHO     = NAME | KEY=VALUE[&KEY=VALUE...]       NAME is the label ring=NAME
    TRAFFIC = SPLIT[+SPLIT...] | shadow | shadow:P% left out: the new version serves all their jobs
    SPLIT   = traffic:P% | tag:KEY=VALUE            jobs by a hash, or by a user property, whatever their hash

`internal,seed:10%,25%/shadow:50%,tag:group=beta,100%` are five stages.

Stages add up: an agent is exposed by the strongest of all the stages so far, so no stage takes back what one
before it gave.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from shared import selectors
from shared.rollouts import numbers, shares

RING: Final = "ring"
"""The label that a bare name in a stage asks for."""


class BadStage(ValueError):
    """A stage that cannot be read or makes no sense; the message says what is wrong with it."""


class Mode(enum.StrEnum):
    """What the new version does on an agent that is exposed to it."""

    SHADOW = "shadow"
    """It runs jobs that the old version has answered, to be compared; it answers none."""
    SPLIT = "split"
    """It answers some of the jobs."""
    SERVE = "serve"
    """It answers all of them."""


Tags = tuple[tuple[str, str], ...]


class Stage(msgspec.Struct, frozen=True):
    """Which agents a stage exposes, and how. Raises BadStage where that makes no sense."""

    who: str = ""
    """A selector in its normal form; '' is all agents."""
    percent: float = 100.0
    """Of those agents, by a stable hash."""
    mode: Mode = Mode.SERVE
    traffic: float = 100.0
    """Percent of the jobs that it answers or shadows, by a stable hash; 0 where tags alone say which."""
    tags: Tags = ()
    """User properties, any of which sends a job to the new version; only where the mode is SPLIT."""

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        """The one way of writing it: `parse` reads it back as the same stage."""
        agents, traffic = _agents_text(self), _traffic_text(self)
        return "/".join(filter(None, (agents, traffic))) or "100%"


class Exposure(msgspec.Struct, frozen=True):
    """How an agent is exposed to the new version; fields as those of a stage."""

    mode: Mode
    traffic: float = 100.0
    tags: Tags = ()


def parse(text: str) -> Stage:
    """The stage that `text` describes. Raises BadStage."""
    text = text.strip()
    agents, slash, traffic = text.partition("/")
    if not slash and _is_traffic(text):
        agents, traffic = "", text
    elif not agents or (slash and not traffic):
        raise BadStage(
            f"{text!r} is no stage: write who (internal, site=lyon, 5%), what (shadow), or who/what"
        )
    try:
        who, percent = _parse_agents(agents)
        mode, share, tags = _parse_traffic(traffic)
        return Stage(who, percent, mode, share, tags)
    except BadStage as wrong:
        raise BadStage(f"stage {text!r}: {wrong}") from None


def parse_all(text: str) -> tuple[Stage, ...]:
    """The stages in `text`, which has commas between them. Raises BadStage, also where there is none."""
    return tuple(parse(one) for one in text.split(","))


def exposure(
    reached: Sequence[Stage], rollout_id: str, agent: str, labels: Mapping[str, str]
) -> Exposure | None:
    """How an agent is exposed by the stages reached so far, the one that runs included; None: not at all.

    `agent` is `site/name`; `labels` include its `site` and `agent`, as everywhere for selectors. The
    strongest stage counts: to serve before to split, and that before to shadow. Of several that split, the
    largest share and all tags.
    """
    point = shares.of_agent(rollout_id, agent)
    ours = [
        stage
        for stage in reached
        if point < stage.percent and selectors.matches(selectors.parse(stage.who), labels)
    ]
    for mode in (Mode.SERVE, Mode.SPLIT, Mode.SHADOW):
        if alike := [stage for stage in ours if stage.mode is mode]:
            tags = dict.fromkeys(tag for stage in alike for tag in stage.tags)
            return Exposure(mode, max(stage.traffic for stage in alike), tuple(tags))
    return None


def _is_traffic(text: str) -> bool:
    return text == "shadow" or text.startswith(("shadow:", "traffic:", "tag:"))


def _parse_agents(text: str) -> tuple[str, float]:
    """The selector and the percentage of a stage's agents."""
    text = text.strip()
    if not text:
        return "", 100.0
    if text.endswith("%"):
        who, colon, share = text.rpartition(":")
        percent = _percent(share)
        if colon and not who:
            raise BadStage("nobody stands before the ':'")
        return _selector(who), percent
    return _selector(text), 100.0


def _selector(who: str) -> str:
    who = who.strip()
    if not who:
        return ""
    if "=" not in who:
        who = f"{RING}={who}"
    try:
        return selectors.normal(who.replace("&", ","))
    except selectors.BadSelector as wrong:
        raise BadStage(str(wrong)) from None


def _parse_traffic(text: str) -> tuple[Mode, float, Tags]:
    """The mode, the percentage of jobs and the tags of a stage."""
    text = text.strip()
    if not text:
        return Mode.SERVE, 100.0, ()
    if text == "shadow":
        return Mode.SHADOW, 100.0, ()
    if text.startswith("shadow:"):
        return Mode.SHADOW, _percent(text.removeprefix("shadow:")), ()
    traffic, tags = 0.0, []
    for way in (way.strip() for way in text.split("+")):
        if way.startswith("traffic:") and not traffic:
            traffic = _percent(way.removeprefix("traffic:"))
        elif way.startswith("tag:"):
            key, _, value = way.removeprefix("tag:").partition("=")
            tags.append((key.strip(), value.strip()))
        else:
            raise BadStage(f"{way!r} is not traffic:P%, tag:KEY=VALUE, shadow or shadow:P%")
    return Mode.SPLIT, traffic, tuple(tags)


def _percent(text: str) -> float:
    number = numbers.parse(text.strip().removesuffix("%").rstrip()) if text.strip().endswith("%") else None
    if number is None or not 0 < number <= 100:
        raise BadStage(f"{text.strip()!r} is not a percentage of more than 0% and at most 100%")
    return number


def _agents_text(stage: Stage) -> str:
    who = stage.who.replace(",", "&")
    name = who.removeprefix(f"{RING}=")
    if name != who and "=" not in name and not _is_traffic(name):
        who = name
    share = "" if stage.percent == 100 else f"{numbers.plain(stage.percent)}%"
    return ":".join(filter(None, (who, share)))


def _traffic_text(stage: Stage) -> str:
    share = f"{numbers.plain(stage.traffic)}%"
    match stage.mode:
        case Mode.SERVE:
            return ""
        case Mode.SHADOW:
            return "shadow" if stage.traffic == 100 else f"shadow:{share}"
        case Mode.SPLIT:
            ways = [f"traffic:{share}"] if stage.traffic else []
            return "+".join(ways + [f"tag:{key}={value}" for key, value in stage.tags])


def _check(stage: Stage) -> None:
    """Raise BadStage unless `stage` makes sense and can be written."""
    try:
        if selectors.normal(stage.who) != stage.who:
            raise BadStage(f"{stage.who!r} is not a selector in its normal form")
        for key, value in stage.tags:
            selectors.check(key, value)
    except selectors.BadSelector as wrong:
        raise BadStage(str(wrong)) from None
    if "/" in stage.who or any("/" in part for tag in stage.tags for part in tag):
        raise BadStage("a stage cannot ask for a label or tag with '/' in it: that parts agents from traffic")
    if not 0 < stage.percent <= 100:
        raise BadStage(f"{stage.percent:g}% of the agents: more than 0 and at most 100 are needed")
    match stage.mode:
        case Mode.SERVE:
            sensible = stage.traffic == 100 and not stage.tags
        case Mode.SHADOW:
            sensible = 0 < stage.traffic <= 100 and not stage.tags
        case Mode.SPLIT:
            sensible = 0 < stage.traffic <= 100 or (stage.traffic == 0 and bool(stage.tags))
    if not sensible:
        raise BadStage(
            f"to {stage.mode} {stage.traffic:g}% of the jobs with the tags {list(stage.tags)} makes no sense"
        )
    if len(set(stage.tags)) < len(stage.tags):
        raise BadStage("a tag is there twice")

"""Topics are built and read in one place, and mean one thing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import lanes, topics

names = st.from_regex(topics._NAME, fullmatch=True)
agents = st.builds(topics.Agent, names, names.filter(lambda name: name not in topics.RESERVED_AGENT_NAMES))
PRESS = topics.Agent("plant-a", "press-7")


def matches(topic: str, pattern: str) -> bool:
    """Whether an MQTT filter covers a topic (MQTT 5, 4.7)."""
    form = "/".join({"+": "[^/]*", "#": ".*"}.get(level, re.escape(level)) for level in pattern.split("/"))
    return re.fullmatch(form, topic) is not None


def test_the_topics_are_those_of_the_design() -> None:
    """Other programs, access lists and devices rely on these very words."""
    assert topics.job("plant-a", "camera-3", "surface@2") == "backhaul/v1/plant-a/jobs/camera-3/surface@2"
    assert topics.result("plant-a", "0190-…") == "backhaul/v1/plant-a/results/0190-…"
    assert topics.up(PRESS, "results.2") == "backhaul/v1/plant-a/press-7/up/results.2"
    assert topics.up(PRESS, topics.TELEMETRY) == "backhaul/v1/plant-a/press-7/up/telemetry"
    assert topics.up(PRESS, topics.ACK) == "backhaul/v1/plant-a/press-7/up/ack"
    assert topics.down(PRESS, "leases.1") == "backhaul/v1/plant-a/press-7/down/leases.1"
    assert topics.down(PRESS, topics.ACK) == "backhaul/v1/plant-a/press-7/down/ack"
    assert topics.presence(PRESS) == "backhaul/v1/plant-a/press-7/presence"
    assert str(PRESS) == "plant-a/press-7"


@given(site=names, device=names, model=names, version=st.none() | names)
def test_a_job_is_read_as_it_was_written(site: str, device: str, model: str, version: str | None) -> None:
    """A job's topic tells site, device and model, and is covered by its site's filter alone."""
    wanted = model if version is None else f"{model}@{version}"
    topic = topics.job(site, device, wanted)
    assert topics.parse_job(topic) == topics.Job(site, device, wanted)
    assert matches(topic, topics.jobs(site))
    assert not matches(topic, topics.jobs(site + "x"))


@given(agent=agents, name=names, generation=st.integers(1, 99))
def test_a_message_is_read_as_it_was_written(agent: topics.Agent, name: str, generation: int) -> None:
    """A topic between agent and hub tells both, its direction and its lane, and its own filter covers it."""
    lane = str(lanes.Lane(name, generation))
    assert topics.parse(topics.up(agent, lane)) == topics.Message(agent, "up", lane)
    assert topics.parse(topics.down(agent, lane)) == topics.Message(agent, "down", lane)
    assert topics.parse(topics.presence(agent)) == topics.Message(agent, "presence", "")
    assert matches(topics.up(agent, lane), topics.all_up())
    assert matches(topics.up(agent, lane), topics.own_up(agent))
    assert matches(topics.up(agent, topics.TELEMETRY), topics.all_telemetry())
    assert not matches(topics.up(agent, lane), topics.all_telemetry())
    assert matches(topics.down(agent, lane), topics.all_down(agent))
    assert matches(topics.presence(agent), topics.all_presence())


@given(agent=agents, other=agents, lane=names)
def test_an_agents_prefix_is_its_own(agent: topics.Agent, other: topics.Agent, lane: str) -> None:
    """What an agent may write and read is a prefix that no other agent's topics have."""
    mine = f"{topics.ROOT}/{agent}/"
    for topic in (
        topics.up(agent, lane),
        topics.down(agent, lane),
        topics.presence(agent),
        topics.all_down(agent),
    ):
        assert topic.startswith(mine)
    if other != agent:
        assert not topics.up(other, lane).startswith(mine)
        assert not topics.presence(other).startswith(mine)


@given(site=names, device=names, model=names)
def test_a_job_is_never_taken_for_an_agents_message(site: str, device: str, model: str) -> None:
    """Not even where a device is named like a direction and the site's broker is the cloud's."""
    for name in (device, "up", "down"):
        with pytest.raises(topics.BadTopic):
            topics.parse(topics.job(site, name, model))
    with pytest.raises(topics.BadTopic):
        topics.parse(topics.result(site, "presence"))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "backhaul/v1",
        "backhaul/v2/s/a/up/results.1",
        "/backhaul/v1/s/a/up/results.1",
        "backhaul/v1/s/a/up",
        "backhaul/v1/s/a/up/",
        "backhaul/v1/s/a/up/x/y",
        "backhaul/v1/s/a/sideways/x",
        "backhaul/v1/s/a/presence/x",
        "backhaul/v1/s/a/presence/",
        "backhaul/v1//a/presence",
        "backhaul/v1/s//up/ack",
        "backhaul/v1/s/+/up/ack",
    ],
)
def test_a_topic_of_nobody(topic: str) -> None:
    """What is no topic of an agent's is refused by name."""
    with pytest.raises(topics.BadTopic):
        topics.parse(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "backhaul/v1/s/jobs/d",
        "backhaul/v1/s/jobs/d/m/x",
        "backhaul/v2/s/jobs/d/m",
        "backhaul/v1/s/a/up/ack",
    ],
)
def test_a_topic_of_no_job(topic: str) -> None:
    """What is no job's topic is refused with the form that it should have."""
    with pytest.raises(topics.BadTopic, match="SITE/jobs/DEVICE/MODEL"):
        topics.parse_job(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "$SYS", "-a", ".a", "a b", "ä", "a\n", "x" * 65])
def test_a_name_that_cannot_be_a_level(name: str) -> None:
    """Separators, wildcards and what is hard to type are no names; the error says of what."""
    with pytest.raises(topics.BadTopic, match=r"^line "):
        topics.check_name(name, "line")


@pytest.mark.parametrize("name", ["jobs", "results", "a/b"])
def test_a_name_that_cannot_be_an_agents(name: str) -> None:
    """The words of a site's own topics are no agent's names."""
    with pytest.raises(topics.BadTopic, match=r"^agent "):
        topics.check_agent_name(name)


def test_ordinary_names_are_taken() -> None:
    """Names as people give them are returned as they are."""
    assert topics.check_name("Camera_3.left-2", "device") == "Camera_3.left-2"
    assert topics.check_agent_name("press-7") == "press-7"

"""Every MQTT topic of Backhaul, built and parsed here and nowhere else.

    backhaul/v1/{site}/jobs/{device}/{model}        a device's job, to its site's broker
    backhaul/v1/{site}/results/{task_id}            the reply, when the device named no response topic
    backhaul/v1/{site}/{agent}/up/{lane}            records of an up lane, to the cloud's broker (QoS 1)
    backhaul/v1/{site}/{agent}/up/telemetry         heartbeats (QoS 0)
    backhaul/v1/{site}/{agent}/up/ack               cursors of down lanes
    backhaul/v1/{site}/{agent}/down/{lane}          records of a down lane (QoS 1)
    backhaul/v1/{site}/{agent}/down/ack             cursors of up lanes
    backhaul/v1/{site}/{agent}/presence             retained birth; the will sets it offline

Identity comes first, so that a broker's access list is a prefix: an agent may write
`backhaul/v1/{site}/{agent}/up/#` and its presence, and read `backhaul/v1/{site}/{agent}/down/#`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

ROOT: Final = "backhaul/v1"
TELEMETRY: Final = "telemetry"
ACK: Final = "ack"
RESERVED_AGENT_NAMES: Final = frozenset({"jobs", "results"})
"""An agent's level of a topic is where a site's own `jobs` and `results` stand."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class BadTopic(ValueError):
    """A topic, or a name for a level of one, that is not Backhaul's."""


class Agent(NamedTuple):
    """The place of an agent: its site and its name there."""

    site: str
    name: str

    def __str__(self) -> str:
        return f"{self.site}/{self.name}"


class Job(NamedTuple):
    """Where a device publishes: `model` may end in `@version`."""

    site: str
    device: str
    model: str


class Message(NamedTuple):
    """One topic between an agent and the hub. `lane` is empty for presence."""

    agent: Agent
    direction: str
    lane: str


def check_name(name: str, what: str) -> str:
    """`name`, if it may stand as one level of a topic; BadTopic says `what` it was meant for."""
    if not _NAME.fullmatch(name):
        raise BadTopic(
            f"{what} {name!r} is not a name: use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def check_agent_name(name: str) -> str:
    """`name`, if it may name an agent."""
    if name in RESERVED_AGENT_NAMES:
        raise BadTopic(f"agent {name!r}: that name is taken by a topic of the site; choose another")
    return check_name(name, "agent")


def job(site: str, device: str, model: str) -> str:
    return f"{ROOT}/{site}/jobs/{device}/{model}"


def jobs(site: str) -> str:
    """The filter of an agent's intake: every device and model of its site."""
    return f"{ROOT}/{site}/jobs/+/+"


def parse_job(topic: str) -> Job:
    """The parts of a job's topic; BadTopic if it is not one."""
    levels = topic.split("/")
    if len(levels) != 6 or levels[:2] != ["backhaul", "v1"] or levels[3] != "jobs":
        raise BadTopic(f"{topic!r} is not a job's topic: use {ROOT}/SITE/jobs/DEVICE/MODEL")
    return Job(levels[2], levels[4], levels[5])


def result(site: str, task_id: str) -> str:
    return f"{ROOT}/{site}/results/{task_id}"


def up(agent: Agent, lane: str) -> str:
    return f"{ROOT}/{agent.site}/{agent.name}/up/{lane}"


def down(agent: Agent, lane: str) -> str:
    return f"{ROOT}/{agent.site}/{agent.name}/down/{lane}"


def presence(agent: Agent) -> str:
    return f"{ROOT}/{agent.site}/{agent.name}/presence"


def all_down(agent: Agent) -> str:
    """The filter of an agent's uplink: all that is sent down to it."""
    return f"{ROOT}/{agent.site}/{agent.name}/down/+"


def own_up(agent: Agent) -> str:
    """The filter of the hub that serves an agent: all that it sends up."""
    return f"{ROOT}/{agent.site}/{agent.name}/up/+"


def all_telemetry() -> str:
    """What every hub listens to, whoever serves the agent."""
    return f"{ROOT}/+/+/up/{TELEMETRY}"


def all_presence() -> str:
    """Likewise."""
    return f"{ROOT}/+/+/presence"


def all_up() -> str:
    """All that any agent sends up: for a listener that serves none."""
    return f"{ROOT}/+/+/up/+"


def parse(topic: str) -> Message:
    """The parts of a topic between an agent and the hub; BadTopic if it is not one.

    Where a site's broker is the cloud's, the job of a device named `up` matches the hub's filters;
    the reserved names tell it from an agent's topic.
    """
    match topic.split("/"):
        case ["backhaul", "v1", site, name, "up" | "down" as direction, lane] if lane:
            return Message(_agent(site, name), direction, lane)
        case ["backhaul", "v1", site, name, "presence"]:
            return Message(_agent(site, name), "presence", "")
    raise BadTopic(f"{topic!r} is not a topic between an agent and the hub")


def _agent(site: str, name: str) -> Agent:
    return Agent(check_name(site, "site"), check_agent_name(name))

"""One look at everything, as the terminal shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from demo import system
from demo.notebook import Notebook
from shared import topics

Link = Literal["up", "cut", "down"]
"""Of an agent to the cloud: `cut` is the demo's doing, `down` is not."""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent and the devices of its site."""

    place: topics.Agent
    published: int
    """By the site's cameras."""
    replied: int
    """To them."""
    link: Link
    queued: int
    items_per_s: float
    overflowed: int
    to_sync: int
    numbered: int
    """Records of the lanes up, as the agent says."""
    missing: int
    """Of these, as the hub says."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All agents; one that does not answer is left out."""

    agents: list[Agent]
    hub_there: bool
    under_way: list[str]
    """What is not at rest, in words."""


async def look(whole: system.System, notebook: Notebook) -> Scene:
    """Ask everyone."""
    told, fleet = await asyncio.gather(whole.status(), whole.fleet())
    lanes = _lanes(fleet)
    under_way = [] if fleet is not None else ["the hub does not answer"]
    agents = []
    for place, status in told.items():
        its = lanes.get(place, ())
        if status is None:
            under_way.append(f"{place} does not answer")
            continue
        under_way += _under_way(place, status, its)
        now = status["telemetry"]
        up = [lane for lane in its if lane["direction"] == "up"]
        agents.append(
            Agent(
                place=place,
                published=notebook.published[place.site],
                replied=notebook.replied[place.site],
                link=_link(whole, place, status),
                queued=now["queued"],
                items_per_s=now["items_per_s"],
                overflowed=now["overflowed_total"],
                to_sync=now["to_sync"],
                numbered=_sum(now["lanes"], "numbered"),
                missing=_sum(up, "missing"),
            )
        )
    return Scene(agents, fleet is not None, under_way)


def _under_way(
    place: topics.Agent, status: Mapping[str, Any], lanes: Iterable[Mapping[str, Any]]
) -> list[str]:
    """What an agent, and the hub on its behalf, has still to do."""
    now = status["telemetry"]
    counts = {
        "tasks wait": now["queued"],
        "tasks run": now["running"],
        "records are not synced": now["to_sync"],
        "tasks are with the hub": status["handed_over"],
    }
    counts |= {f"records wait on lane {lane['lane']} {lane['direction']}": lane["waiting"] for lane in lanes}
    return [f"{place}: {count:,} {what}" for what, count in counts.items() if count]


def _link(whole: system.System, place: topics.Agent, status: Mapping[str, Any]) -> Link:
    site = whole.sites.get(place.site)
    if site is not None and site.relay.is_cut:
        return "cut"
    return "up" if status["uplink"].get("connected") else "down"


def _lanes(fleet: Mapping[str, Any] | None) -> dict[topics.Agent, list[Mapping[str, Any]]]:
    """Each agent's lanes, as the hub knows them."""
    sites = fleet["sites"] if fleet is not None else ()
    return {
        topics.Agent(agent["site"], agent["name"]): agent["lanes"]
        for site in sites
        for agent in site["agents"]
    }


def _sum(lanes: Iterable[Mapping[str, Any]], what: str) -> int:
    return sum(int(lane[what]) for lane in lanes)

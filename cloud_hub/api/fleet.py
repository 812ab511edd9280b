"""The fleet over REST: who is there, what each can do, the ledger of every lane; who gets new work."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from cloud_hub.api import context, fleet_view, problems, snapshots
from cloud_hub.store import agents, lanes, schedule
from shared import topics

router = APIRouter(prefix="/v1", tags=["fleet"])

SiteName = Annotated[str, Path(description="The site", examples=["lyon-press"])]
AgentName = Annotated[str, Path(description="The agent's name there", examples=["press-a"])]


class Summary(BaseModel):
    """Everything in numbers."""

    at: datetime = Field(description="When this was read")
    fleet: fleet_view.Totals = Field(description="The agents")
    tasks: snapshots.Counts = Field(description="The hub's tasks")


def of(request: Request) -> snapshots.Snapshots:
    """The pictures that this app takes."""
    found = request.app.state.snapshots
    assert isinstance(found, snapshots.Snapshots)
    return found


@router.get("/fleet", summary="Sites, agents and their ledgers", responses=problems.documented())
async def fleet(hub: context.Dependency) -> fleet_view.Fleet:
    """Every agent's current epoch: whether it is online, what it says, the books of its lanes."""
    async with hub.connection() as connection:
        found = await snapshots.read_agents(hub, connection)
    return fleet_view.Fleet.model_construct(at=datetime.now(UTC), sites=fleet_view.sites(found))


@router.get("/summary", summary="Everything in numbers", responses=problems.documented())
async def summary(hub: context.Dependency, request: Request) -> Summary:
    """Agents, records and tasks in numbers. Very many tasks may have been counted seconds ago: see `at`."""
    async with hub.connection() as connection:
        found = await snapshots.read_agents(hub, connection)
        counts = await of(request).count(connection)
    return Summary.model_construct(at=datetime.now(UTC), fleet=fleet_view.totals(found), tasks=counts)


@router.get("/agents/{site}/{name}", summary="One agent", responses=problems.documented(problems.NOT_FOUND))
async def agent(hub: context.Dependency, site: SiteName, name: AgentName) -> fleet_view.Agent:
    """The current epoch of one agent."""
    return await _agent(hub, topics.Agent(site, name))


@router.post(
    "/agents/{site}/{name}/drain",
    summary="Give an agent no more of the hub's tasks",
    responses=problems.documented(problems.NOT_FOUND),
)
async def drain(hub: context.Dependency, site: SiteName, name: AgentName) -> fleet_view.Agent:
    """It finishes what it holds and goes on serving its devices. After a restart of it that is still so."""
    return await _set_draining(hub, topics.Agent(site, name), draining=True)


@router.post(
    "/agents/{site}/{name}/resume",
    summary="Give an agent the hub's tasks again",
    responses=problems.documented(problems.NOT_FOUND),
)
async def resume(hub: context.Dependency, site: SiteName, name: AgentName) -> fleet_view.Agent:
    """The end of draining."""
    return await _set_draining(hub, topics.Agent(site, name), draining=False)


async def _set_draining(hub: context.Hub, place: topics.Agent, *, draining: bool) -> fleet_view.Agent:
    async with hub.connection() as connection:
        found = await agents.set_draining(connection, place, draining)
    if not found:
        raise _unknown(place)
    hub.drained(place, draining)
    return await _agent(hub, place)


async def _agent(hub: context.Hub, place: topics.Agent) -> fleet_view.Agent:
    async with hub.connection() as connection:
        row = await agents.find(connection, place)
        if row is None:
            raise _unknown(place)
        books = await lanes.ledgers(connection, [row.agent_id])
        leases = await schedule.outstanding(connection)
    return snapshots.view(hub, row, books.get(row.agent_id), leases.get(row.agent_id, 0))


def _unknown(place: topics.Agent) -> problems.Problem:
    return problems.Problem(
        problems.NOT_FOUND,
        f"no agent {place} has ever reported to this hub; those that have are listed at /v1/fleet",
        where="name",
    )

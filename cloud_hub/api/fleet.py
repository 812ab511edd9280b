"""The fleet over REST: who is there, what each can do, the ledger of every lane; who gets new work."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field

from cloud_hub.api import context, drains, fleet_view, problems, snapshots
from cloud_hub.store import agents, lanes, schedule
from shared import topics

router = APIRouter(prefix="/v1", tags=["fleet"])

MAX_WITHIN_S: Final = 86_400.0

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


def drains_of(request: Request) -> drains.Drains:
    """The limits of drains that this app was told."""
    found = request.app.state.drains
    assert isinstance(found, drains.Drains)
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
    responses=problems.documented(problems.NOT_FOUND, problems.INVALID),
)
async def drain(
    hub: context.Dependency,
    request: Request,
    site: SiteName,
    name: AgentName,
    within_s: Annotated[
        float | None,
        Query(
            ge=0,
            le=MAX_WITHIN_S,
            allow_inf_nan=False,
            description="After so many seconds what it still runs goes back into the queue, the items that "
            "are done kept; not said: it finishes all that it holds",
        ),
    ] = None,
) -> fleet_view.Agent:
    """It gets no new tasks, finishes those that it holds, and goes on serving its devices.

    After a restart, of the agent or of the hub, it still drains; but a limit is forgotten with the hub that
    was told it. To ask again sets the limit anew.
    """
    place = topics.Agent(site, name)
    found = await _set_draining(hub, place, draining=True)
    drains_of(request).limit(place, within_s)
    return found


@router.post(
    "/agents/{site}/{name}/resume",
    summary="Give an agent the hub's tasks again",
    responses=problems.documented(problems.NOT_FOUND),
)
async def resume(
    hub: context.Dependency, request: Request, site: SiteName, name: AgentName
) -> fleet_view.Agent:
    """The end of draining, and of its limit."""
    place = topics.Agent(site, name)
    found = await _set_draining(hub, place, draining=False)
    drains_of(request).limit(place, None)
    return found


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

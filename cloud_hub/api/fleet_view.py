"""The fleet as the API and the dashboard show it: agents, what they say, and the books of their lanes."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from cloud_hub.store import agents as agent_store
from cloud_hub.store import lanes as lane_store
from shared import lanes, signals


class Status(enum.StrEnum):
    """What can be said of an agent, by its presence and by the age of its last word."""

    ONLINE = "online"
    SILENT = "silent"
    """Its presence says online, but it was not heard for too long: a broker may be late with a will."""
    OFFLINE = "offline"


class Model(BaseModel):
    """A model that an agent has ready."""

    name: str = Field(description="The model", examples=["surface-defects"])
    version: str = Field(description="Its version", examples=["3"])
    provider: str = Field(description="The execution provider that runs", examples=["CUDAExecutionProvider"])
    wanted: str = Field(
        description="The one that should run; another than `provider` if it fell back",
        examples=["CUDAExecutionProvider"],
    )
    items_per_s: float = Field(description="Measured; 0 before the first batch", examples=[128.4])


class Telemetry(BaseModel):
    """What an agent last said of itself."""

    capacity: int = Field(description="Tasks of the hub that it is ready to hold at one time", examples=[8])
    labels: dict[str, str] = Field(
        description="What selectors may ask for, beside its `site` and its name, `agent`",
        examples=[{"gpu": "h100"}],
    )
    models: list[Model] = Field(description="What it can run now")
    queued: int = Field(description="Tasks waiting there", examples=[3])
    queued_items: int = Field(description="Items waiting there", examples=[3])
    running: int = Field(description="Tasks running there", examples=[2])
    predicted_wait_s: float = Field(description="How long a task would wait there now", examples=[0.21])
    jobs_total: int = Field(description="Jobs accepted from devices", examples=[1204331])
    rejected_total: int = Field(description="Jobs refused", examples=[0])
    replies_total: int = Field(description="Replies sent to devices", examples=[1204329])
    items_total: int = Field(description="Items run", examples=[1204331])
    failed_total: int = Field(description="Items failed", examples=[4])
    overflowed_total: int = Field(description="Tasks handed over to the hub", examples=[3402])
    reclaimed_total: int = Field(description="Of these, taken back", examples=[12])
    items_per_s: float = Field(description="Items run per second, lately", examples=[128.4])
    to_sync: int = Field(description="Records that the hub has not acknowledged", examples=[0])
    journal_bytes: int = Field(description="Bytes of its journal on disk", examples=[4194304])
    link_up_s: float = Field(description="How long its link to the broker has been up", examples=[18720.0])
    down_bytes_per_s: float = Field(description="Of the link from the hub to it, measured; 0 if not yet")
    clock_offset_us: int | None = Field(description="The hub's clock minus its own", examples=[-1200])
    clock_error_us: int | None = Field(description="How far off that may be", examples=[420])


class Lane(BaseModel):
    """The books of one lane."""

    lane: str = Field(description="Name and generation", examples=["results.1"])
    direction: str = Field(description="`up` to the hub or `down` to the agent", examples=["up"])
    numbered: int = Field(description="Records that the sender has given a number", examples=[1204331])
    cursor: int = Field(description="Records that the receiver has passed", examples=[1204331])
    committed: int = Field(description="Records that the receiver has committed", examples=[1204331])
    missing: int = Field(description="Records lost for good: cursor less committed", examples=[0])
    waiting: int = Field(description="Records still to come: numbered less cursor", examples=[0])


class Agent(BaseModel):
    """An agent: its current epoch, what it says, and its books."""

    agent_id: int = Field(description="The hub's number for this epoch of it", examples=[7])
    site: str = Field(description="The site", examples=["lyon-press"])
    name: str = Field(description="Its name there", examples=["press-a"])
    epoch: int = Field(description="Its boot epoch: a new one for each fresh journal", examples=[154832719])
    status: Status = Field(description="By presence and heartbeat", examples=[Status.ONLINE])
    online: bool = Field(description="True if `status` is online", examples=[True])
    presence: bool = Field(description="What its presence on the broker says", examples=[True])
    heard_s: float = Field(description="Seconds since its last word", examples=[1.1])
    draining: bool = Field(description="It is given no more of the hub's tasks", examples=[False])
    software: str = Field(description="What it runs", examples=["backhaul 0.1.0"])
    first_seen: datetime = Field(description="When this epoch of it was first seen")
    last_seen: datetime = Field(description="When the store was last told of it")
    leases: int = Field(description="Tasks of the hub that it holds", examples=[2])
    to_sync: int = Field(description="Records on their way to the hub, by the books", examples=[0])
    attention: list[str] = Field(
        description="What somebody should look at, in words; empty: nothing",
        examples=[["surface-defects runs on CPUExecutionProvider, not CUDAExecutionProvider"]],
    )
    telemetry: Telemetry | None = Field(description="What it last said; null: nothing yet")
    lanes: list[Lane] = Field(description="The ledger, up lanes first")


class Site(BaseModel):
    """A site and its agents."""

    site: str = Field(description="The site", examples=["lyon-press"])
    agents: list[Agent] = Field(description="By name")


class Fleet(BaseModel):
    """All sites."""

    at: datetime = Field(description="When this was read")
    sites: list[Site] = Field(description="By name")


class Books(BaseModel):
    """The books of all up lanes together."""

    numbered: int = Field(description="Records that agents have given a number", examples=[1204331])
    committed: int = Field(description="Records committed in PostgreSQL", examples=[1204331])
    missing: int = Field(description="Records lost for good", examples=[0])
    waiting: int = Field(description="Records still to come", examples=[0])


class Totals(BaseModel):
    """The fleet in numbers."""

    agents: int = Field(description="Agents known", examples=[12])
    online: int = Field(description="Agents online", examples=[11])
    attention: int = Field(description="Agents that somebody should look at", examples=[1])
    jobs: int = Field(description="Jobs accepted from devices", examples=[1204331])
    rejected: int = Field(description="Jobs refused", examples=[0])
    queued: int = Field(description="Tasks waiting at the agents", examples=[14])
    running: int = Field(description="Tasks running at the agents", examples=[6])
    items_per_s: float = Field(description="Items run per second, by the agents online", examples=[812.4])
    ledger: Books = Field(description="The books of all up lanes together")


def agent(
    row: agent_store.Agent,
    books: lane_store.Ledgers | None,
    *,
    leases: int,
    heard_s: float,
    telemetry: signals.Telemetry | None,
    silent_after_s: float,
) -> Agent:
    """One agent, judged by its presence and by the age of what it last said."""
    found = status(row.online, heard_s, silent_after_s)
    up = [_lane(lane, "up", ledger) for lane, ledger in sorted((books.up if books else {}).items())]
    down = [_lane(lane, "down", ledger) for lane, ledger in sorted((books.down if books else {}).items())]
    return Agent.model_construct(
        agent_id=row.agent_id,
        site=row.place.site,
        name=row.place.name,
        epoch=row.epoch,
        status=found,
        online=found is Status.ONLINE,
        presence=row.online,
        heard_s=round(heard_s, 3),
        draining=row.draining,
        software=row.software,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        leases=leases,
        to_sync=sum(lane.waiting for lane in up),
        attention=_attention(found, heard_s, telemetry, up),
        telemetry=_telemetry(telemetry) if telemetry else None,
        lanes=[*up, *down],
    )


def sites(agents: Sequence[Agent]) -> list[Site]:
    """The agents by site, both in order of name."""
    by_site: dict[str, list[Agent]] = {}
    for one in sorted(agents, key=lambda one: (one.site, one.name)):
        by_site.setdefault(one.site, []).append(one)
    return [Site.model_construct(site=site, agents=found) for site, found in by_site.items()]


def totals(agents: Sequence[Agent]) -> Totals:
    said = [one.telemetry for one in agents if one.telemetry]
    online = [one for one in agents if one.online]
    return Totals.model_construct(
        agents=len(agents),
        online=len(online),
        attention=sum(bool(one.attention) for one in agents),
        jobs=sum(one.jobs_total for one in said),
        rejected=sum(one.rejected_total for one in said),
        queued=sum(one.queued for one in said),
        running=sum(one.running for one in said),
        items_per_s=sum(one.telemetry.items_per_s for one in online if one.telemetry),
        ledger=_together([lane for one in agents for lane in one.lanes if lane.direction == "up"]),
    )


def _together(up: Sequence[Lane]) -> Books:
    return Books.model_construct(
        numbered=sum(lane.numbered for lane in up),
        committed=sum(lane.committed for lane in up),
        missing=sum(lane.missing for lane in up),
        waiting=sum(lane.waiting for lane in up),
    )


def status(presence: bool, heard_s: float, silent_after_s: float) -> Status:
    """What an agent counts as, by what its presence says and how long ago it was heard."""
    if not presence:
        return Status.OFFLINE
    return Status.ONLINE if heard_s < silent_after_s else Status.SILENT


def _attention(
    status: Status, heard_s: float, telemetry: signals.Telemetry | None, up: Sequence[Lane]
) -> list[str]:
    found = []
    if status is Status.OFFLINE:
        found.append(f"offline, last heard {_duration(heard_s)} ago")
    elif status is Status.SILENT:
        found.append(f"its presence says online, but it was not heard for {_duration(heard_s)}")
    found += [
        f"{model.name} {model.version} runs on {model.provider}, not {model.wanted}"
        for model in (telemetry.models if telemetry else ())
        if model.wanted and model.wanted != model.provider
    ]
    found += [f"{lane.missing:,} records of lane {lane.lane} are missing" for lane in up if lane.missing]
    return found


def _duration(seconds: float) -> str:
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def _lane(lane: lanes.Lane, direction: str, ledger: lanes.Ledger) -> Lane:
    return Lane.model_construct(
        lane=str(lane),
        direction=direction,
        numbered=ledger.numbered,
        cursor=ledger.cursor,
        committed=ledger.committed,
        missing=ledger.missing,
        waiting=ledger.waiting,
    )


def _telemetry(said: signals.Telemetry) -> Telemetry:
    own: dict[str, Any] = {name: getattr(said, name) for name in Telemetry.model_fields if name != "models"}
    models = [
        Model.model_construct(
            name=model.name,
            version=model.version,
            provider=model.provider,
            wanted=model.wanted or model.provider,
            items_per_s=model.items_per_s,
        )
        for model in said.models
    ]
    return Telemetry.model_construct(models=models, **own)

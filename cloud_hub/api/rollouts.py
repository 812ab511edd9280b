"""Rollouts over REST: begun, looked at, and taken on or back by people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response

from cloud_hub.api import context, models, problems, rollout_view
from cloud_hub.rollouts import standing
from cloud_hub.store import pool, rollouts, tallies, targets
from shared import selectors, tasks
from shared.rollouts import gates, stages

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

Id = Annotated[str, Path(description="The rollout", examples=[rollout_view.ID])]

MANY: Final = 100
"""Rollouts that are listed."""

_STEPS: Final = problems.documented(problems.NOT_FOUND, problems.INVALID, problems.ROLLOUT_OVER)


@router.get("", summary="List rollouts", responses=problems.documented())
async def list_rollouts(
    hub: context.Dependency,
    model: Annotated[str | None, Query(description="Of this model", examples=["surface-defects"])] = None,
    state: Annotated[rollouts.State | None, Query(description="In this state")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most")] = MANY,
) -> rollout_view.Rollouts:
    """The active ones first, then those that ended last."""
    async with hub.connection() as connection:
        found = await rollouts.every(connection, model, state, limit)
        standings = await look(hub, connection, found)
    return rollout_view.Rollouts.model_construct(rollouts=[rollout_view.rollout(one) for one in standings])


@router.post(
    "",
    status_code=201,
    summary="Roll a version out",
    responses=problems.documented(problems.NOT_FOUND, problems.ROLLOUT_UNDERWAY, problems.INVALID),
)
async def start(
    hub: context.Dependency, plan: rollout_view.Plan, response: Response
) -> rollout_view.WholeRollout:
    """Take a model to another version, stage by stage, at the agents whose version the target of this
    selector would change.

    Each stage lasts until its agents are ready, there are results enough and every gate passed; then the
    next one begins. A gate that fails takes all agents back. After the last stage the target is written.
    """
    wanted = _plan(plan)
    try:
        async with hub.connection() as connection:
            aims = await targets.every(connection, wanted.model)
            if any((aim.selector, aim.version) == (wanted.selector, wanted.version) for aim in aims):
                raise problems.Problem(
                    problems.INVALID,
                    f"{wanted.selector or 'all agents'} are to serve {wanted.model}@{wanted.version} already",
                    where="version",
                )
            rollout_id = await rollouts.start(connection, wanted)
            found = await rollouts.find(connection, rollout_id)
            assert found is not None
            await tallies.baseline(connection, found)
            (begun,) = await look(hub, connection, [found])
    except targets.UnknownVersion:
        raise models.unknown(wanted.model, wanted.version) from None
    except rollouts.Underway:
        raise problems.Problem(
            problems.ROLLOUT_UNDERWAY,
            f"{wanted.model} is being rolled out already; /v1/rollouts?model={wanted.model} shows it. Wait "
            "for its end, or roll it back",
            where="model",
        ) from None
    await hub.rollouts.refresh()
    response.headers["location"] = f"/v1/rollouts/{found.name}"
    return rollout_view.whole_rollout(begun)


@router.get(
    "/{rollout_id}",
    summary="One rollout",
    responses=problems.documented(problems.NOT_FOUND, problems.INVALID),
)
async def get(hub: context.Dependency, rollout_id: Id) -> rollout_view.WholeRollout:
    """How far its stages and its agents are, and every step so far with the evidence for it."""
    async with hub.connection() as connection:
        found = await _find(hub, connection, rollout_id)
    return rollout_view.whole_rollout(found)


@router.post("/{rollout_id}/promote", summary="Go on to the next stage", responses=_STEPS)
async def promote(
    hub: context.Dependency, rollout_id: Id, change: rollout_view.Change
) -> rollout_view.WholeRollout:
    """Whatever its gates say; after the last stage it is complete. One that was paused runs again."""
    return await _take(hub, rollout_id, rollouts.Kind.PROMOTED, change)


@router.post("/{rollout_id}/pause", summary="Pause a rollout", responses=_STEPS)
async def pause(
    hub: context.Dependency, rollout_id: Id, change: rollout_view.Change
) -> rollout_view.WholeRollout:
    """Agents go on as they are, and nothing is judged until it is resumed. To do so again changes nothing."""
    return await _take(hub, rollout_id, rollouts.Kind.PAUSED, change)


@router.post("/{rollout_id}/resume", summary="Go on with a paused rollout", responses=_STEPS)
async def resume(
    hub: context.Dependency, rollout_id: Id, change: rollout_view.Change
) -> rollout_view.WholeRollout:
    """Its stage's time begins anew; its results count on. To do so again changes nothing."""
    return await _take(hub, rollout_id, rollouts.Kind.RESUMED, change)


@router.post("/{rollout_id}/rollback", summary="Roll a rollout back", responses=_STEPS)
async def rollback(
    hub: context.Dependency, rollout_id: Id, change: rollout_view.Change
) -> rollout_view.WholeRollout:
    """All its agents go back to what their targets say, which is still on their disks."""
    return await _take(hub, rollout_id, rollouts.Kind.ROLLED_BACK, change)


async def look(
    hub: context.Hub, connection: pool.Connection, found: Sequence[rollouts.Rollout]
) -> list[standing.Standing]:
    """How rollouts stand, as this hub knows the fleet."""
    return await standing.read(
        connection, found, lambda row: hub.heard_s(row.place, row.epoch), hub.settings.silent_after_s
    )


async def _find(hub: context.Hub, connection: pool.Connection, rollout_id: str) -> standing.Standing:
    try:
        raw = tasks.parse_id(rollout_id)
    except ValueError:
        raise problems.Problem(
            problems.INVALID,
            f"{rollout_id!r} is no id of a rollout: a UUID has 32 hexadecimal digits",
            where="rollout_id",
        ) from None
    found = await rollouts.find(connection, raw)
    if found is None:
        raise problems.Problem(
            problems.NOT_FOUND,
            f"there is no rollout {rollout_id}; /v1/rollouts lists those that there are",
            where="rollout_id",
        )
    (stands,) = await look(hub, connection, [found])
    return stands


async def _take(
    hub: context.Hub, rollout_id: str, kind: rollouts.Kind, change: rollout_view.Change
) -> rollout_view.WholeRollout:
    """Have an operator's step taken, unless it is taken already."""
    while True:
        try:
            async with hub.connection() as connection:
                found = await _find(hub, connection, rollout_id)
                if (step := _step(found.rollout, kind, change)) is not None:
                    await standing.take(connection, found, step, rollouts.By.OPERATOR, change.reason)
            break
        except rollouts.Moved:
            continue  # the policy was quicker: look at what it did
    await hub.rollouts.refresh()
    return await get(hub, rollout_id)


def _step(found: rollouts.Rollout, kind: rollouts.Kind, change: rollout_view.Change) -> rollouts.Kind | None:
    """The step that takes a rollout where it is to go; None if it is there. Raises Problem."""
    if found.ended_at is not None:
        raise problems.Problem(
            problems.ROLLOUT_OVER,
            f"the rollout of {found.plan.model}@{found.plan.version} is {_WORDS[found.state]}"
            + (f": {found.reason}" if found.reason else ""),
            where="rollout_id",
        )
    if change.stage is not None and change.stage != found.stage:
        raise problems.Problem(
            problems.ROLLOUT_OVER,
            f"the rollout is in stage {found.stage}, no longer in {change.stage}; nothing was done",
            where="stage",
        )
    if kind is rollouts.Kind.PROMOTED and found.is_last:
        return rollouts.Kind.COMPLETED
    already = {rollouts.Kind.PAUSED: rollouts.State.PAUSED, rollouts.Kind.RESUMED: rollouts.State.RUNNING}
    return None if found.state is already.get(kind) else kind


_WORDS: Final = {rollouts.State.COMPLETED: "completed", rollouts.State.ROLLED_BACK: "rolled back"}


def _plan(said: rollout_view.Plan) -> rollouts.Plan:
    """What was asked for, understood. Raises Problem that names what cannot be."""
    faults: list[tuple[str, str]] = []
    selector = ""
    try:
        selector = selectors.normal(said.selector)
    except selectors.BadSelector as wrong:
        faults.append(("selector", str(wrong)))
    found_stages, found_gates = [], []
    for place, text in enumerate(said.stages):
        try:
            found_stages.append(stages.parse(text))
        except stages.BadStage as wrong:
            faults.append((f"stages/{place}", str(wrong)))
    for place, text in enumerate(said.gates):
        try:
            found_gates.append(gates.parse(text))
        except gates.BadGate as wrong:
            faults.append((f"gates/{place}", str(wrong)))
    if faults:
        detail = "; ".join(f"{where}: {what}" for where, what in faults)
        raise problems.Problem(problems.INVALID, detail, faults=faults)
    return rollouts.Plan(
        model=said.model,
        version=said.version,
        selector=selector,
        stages=tuple(found_stages),
        gates=tuple(found_gates),
        min_results=said.min_results,
        soak_s=said.soak_s,
        patience_s=said.patience_s,
        on_fail=said.on_fail,
    )

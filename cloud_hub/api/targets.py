"""Targets over REST: which agents are to serve which version, and so what one agent is to serve."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Response

from cloud_hub import desired
from cloud_hub.api import context, fleet, model_view, models, problems, ranges
from cloud_hub.store import agents, pool, rollouts, targets
from cloud_hub.store import models as model_store
from shared import jobs, selectors, topics
from shared.rollouts import stages

HEARTBEAT_S: Final = 5.0

router = APIRouter(prefix="/v1", tags=["models"])

Selector = Annotated[
    str,
    Query(description="`key=value`, several with commas between; empty: all agents", examples=["site=lyon"]),
]


_UNCHANGED: Final[problems.Responses] = {
    304: {"description": "`If-None-Match` names it: nothing has changed"}
}


@router.get("/targets", summary="List targets", responses=problems.documented())
async def list_targets(
    hub: context.Dependency,
    model: Annotated[str | None, Query(description="Of this model", examples=["surface-defects"])] = None,
) -> model_view.Targets:
    """Which agents are to serve which version, by model and selector."""
    async with pool.statement(hub.database) as connection:
        found = await targets.every(connection, model)
    return model_view.Targets.model_construct(targets=[model_view.target(one) for one in found])


@router.put(
    "/targets/{name}",
    summary="Have agents serve a version",
    responses=problems.documented(problems.NOT_FOUND, problems.ROLLOUT_UNDERWAY, problems.INVALID),
)
async def put(hub: context.Dependency, name: models.Name, aim: model_view.Aim) -> model_view.Target:
    """The agents that a selector fits are to serve this version, instead of the one that it named before.

    Where several selectors fit an agent, the one that asks for most labels counts; among equals the newest.
    """
    selector = _normal(aim.selector)
    try:
        async with hub.connection() as connection:
            await _check_free(connection, name, selector)
            await targets.put(connection, name, selector, aim.version)
            found = await targets.every(connection, name)
    except targets.UnknownVersion:
        raise models.unknown(name, aim.version) from None
    return model_view.target(next(one for one in found if one.selector == selector))


@router.delete(
    "/targets/{name}",
    summary="Withdraw a target",
    responses=problems.documented(problems.NOT_FOUND, problems.ROLLOUT_UNDERWAY, problems.INVALID),
)
async def delete(hub: context.Dependency, name: models.Name, selector: Selector = "") -> model_view.Targets:
    """The selector counts no more; answered with the targets that the model still has.

    Agents that no other target of the model fits are to serve it no longer.
    """
    wanted = _normal(selector)
    async with hub.connection() as connection:
        await _check_free(connection, name, wanted)
        gone = await targets.remove(connection, name, wanted)
        left = await targets.every(connection, name)
    if not gone:
        raise problems.Problem(
            problems.NOT_FOUND,
            f"{name} has no target for {wanted or 'all agents'}; /v1/targets lists those that there are",
            where="selector",
        )
    return model_view.Targets.model_construct(targets=[model_view.target(one) for one in left])


@router.get(
    "/agents/{site}/{name}/models",
    summary="What an agent is to serve",
    response_model=model_view.Desired,
    responses=_UNCHANGED | problems.documented(problems.NOT_FOUND),
)
async def wanted(
    hub: context.Dependency,
    site: fleet.SiteName,
    name: fleet.AgentName,
    if_none_match: Annotated[str | None, Header(description="The `ETag` of the answer before")] = None,
) -> Response:
    """The versions that an agent is to serve, by the targets, the rollouts and the labels in its latest
    heartbeat.

    Ask again now and then with `If-None-Match`. An agent whose labels the hub does not know yet is answered
    404 with `Retry-After`: it would be told what is not for it.
    """
    place = topics.Agent(site, name)
    async with pool.statement(hub.database) as connection:
        agent = await agents.find(connection, place)
        # First: one that ends meanwhile has written its target.
        active = await rollouts.active(connection, whole=False)
        found = await targets.every(connection)
    told = _telemetry(hub, agent) if agent else None
    if told is None:
        raise problems.Problem(
            problems.NOT_FOUND,
            f"no agent {place} has told this hub its labels yet, as its heartbeat does; ask again after that",
            where="name",
            retry_after_s=HEARTBEAT_S,
        )
    labels = told | {"site": site, "agent": name}
    chosen = desired.models(found, labels)
    exposed = desired.trials(chosen, active, place, labels)
    answer = await _with_trials(hub, [model_view.wanted(one) for one in chosen], exposed)
    body = answer.model_dump_json().encode()
    headers = {
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "no-cache",
    }
    if ranges.is_known(if_none_match, headers["etag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=jobs.JSON)


async def _with_trials(
    hub: context.Hub, served: Sequence[model_view.Wanted], exposed: Sequence[desired.Trial]
) -> model_view.Desired:
    """What an agent is to serve with the rollouts that expose it: where they say so, the new version."""
    by_model = {one.model: one for one in served}
    trials = []
    for one in exposed:
        async with pool.statement(hub.database) as connection:
            new = await model_store.find(connection, one.rollout.plan.model, one.rollout.plan.version)
        if new is None:  # the rollout has ended since, and the version was removed
            continue
        trials.append(model_view.trial(one, new))
        if one.exposure.mode is stages.Mode.SERVE:
            by_model[new.name] = model_view.wanted_new(one, new)
    return model_view.Desired.model_construct(
        models=[by_model[model] for model in sorted(by_model)], trials=trials
    )


async def _check_free(connection: pool.Connection, model: str, selector: str) -> None:
    """Raise Problem if a rollout is to write this target; none begins before the commit."""
    await rollouts.hold(connection, model)
    if await rollouts.moves(connection, model, selector):
        raise problems.Problem(
            problems.ROLLOUT_UNDERWAY,
            f"a rollout of {model} is to write the target of {selector or 'all agents'}: wait for its end, "
            f"or roll it back; /v1/rollouts?model={model} shows it",
            where="selector",
        )


def _telemetry(hub: context.Hub, agent: agents.Agent) -> dict[str, str] | None:
    """The labels that an agent told last, here or to another hub; None if it did not yet."""
    fresher = hub.heard_s(agent.place, agent.epoch)
    telemetry = (fresher and fresher[1]) or agent.telemetry
    return None if telemetry is None else telemetry.labels


def _normal(selector: str) -> str:
    try:
        return selectors.normal(selector)
    except selectors.BadSelector as wrong:
        raise problems.Problem(problems.INVALID, str(wrong), where="selector") from None

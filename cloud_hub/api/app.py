"""Builds the hub's HTTP side from its collaborators: REST, events, metrics, health and the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any, Final

import prometheus_client
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cloud_hub import events
from cloud_hub import queues as hub_queues
from cloud_hub.api import (
    blobs,
    context,
    drains,
    explain,
    fleet,
    health,
    metrics,
    models,
    problems,
    queues,
    results,
    rollouts,
    shortcut,
    snapshots,
    submissions,
    submit,
    targets,
    tasks,
)
from cloud_hub.dashboard import pages, sse
from cloud_hub.rollouts import active
from cloud_hub.scheduler import snapshot
from cloud_hub.store import ends, pool
from shared import topics

DESCRIPTION: Final = """\
A federated inference queue, from the factory floor to the cloud.

A task that was answered 202 is stored in PostgreSQL and is not lost. Submit with an `Idempotency-Key` and
repeat whatever got no answer: the same key is the same task. Every error is `application/problem+json`
(RFC 9457) and says what is wrong, where, and what to do.
"""


def create(
    connections: pool.Pool,
    submitter: submissions.Submitter,
    here: events.Events,
    live: context.Live | None = None,
    settings: context.Settings | None = None,
    *,
    limits: hub_queues.Queues | None = None,
    rolling: active.Active | None = None,
    rules: snapshot.Rules | None = None,
    tell: Callable[[ends.Outcome], None] = lambda outcome: None,
    drained: Callable[[topics.Agent, bool], None] = lambda agent, draining: None,
    broker: Callable[[], bool | None] = lambda: None,
    redis: Callable[[], bool | None] = lambda: None,
    registry: prometheus_client.CollectorRegistry | None = None,
) -> FastAPI:
    """The app. It starts and stops nothing: pool and submitter are run by whoever builds it.

    `live`: the fleet as the hub hears it. `limits`: the queues as the submitter knows them; run by whoever
    builds it. `rolling`: the rollouts for which the gateway counts results, likewise. `rules`: by which the
    scheduler decides. `tell` is given what a request changed, after its commit; `drained` is told of agents
    that are to get no more work, or are again. `broker` and `redis` say whether they are there (None: not
    used). `registry`: the metrics that /metrics shows beside the app's own.

    While `app.state.snapshots.run()` runs there is a history of throughput for dashboards that open later;
    while `app.state.drains.run()` does, drains with a limit come to their end.
    """
    hub = context.Hub(
        database=connections,
        submitter=submitter,
        events=here,
        live=live or context.Deaf(),
        settings=settings or context.Settings(),
        tell=tell,
        queues=limits or hub_queues.Queues(connections),
        rollouts=rolling or active.Active(connections),
        rules=rules or snapshot.Rules(),
        drained=drained,
        broker=broker,
        redis=redis,
        registry=registry or prometheus_client.CollectorRegistry(),
    )
    app = FastAPI(
        title="Backhaul",
        version=metadata.version("backhaul"),
        summary="The hub's REST API",
        description=DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere; /openapi.json is all there is
        redoc_url=None,
    )
    app.state.hub = hub
    app.state.snapshots = snapshots.Snapshots(hub)
    app.state.drains = drains.Drains(hub)
    app.state.fleet_metrics = metrics.FleetMetrics(hub, app.state.snapshots)
    hub.registry.register(app.state.fleet_metrics)
    problems.install(app)
    for router in (
        submit.router,
        tasks.router,
        explain.router,
        queues.router,
        results.router,
        fleet.router,
        models.router,
        blobs.router,
        targets.router,
        rollouts.router,
        sse.router,
        health.router,
        metrics.router,
        problems.router,
        pages.pages(),
    ):
        app.include_router(router)
    app.add_middleware(shortcut.Shortcut, routes=submit.routes())
    app.add_middleware(metrics.RequestMetrics, collect=hub.registry)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of the API, in which every error is a problem, validation errors too."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        components = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        problem = problems.ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= problem.pop("$defs")
        components["ProblemDetails"] = problem
        for path in schema["paths"].values():
            for operation in path.values():
                refused = operation["responses"].get("422", {}).get("content", {})
                if "application/json" in refused:
                    operation["responses"].update(problems.documented(problems.INVALID))
        app.openapi_schema = _by_text(schema)
    return app.openapi_schema


def _by_text(schema: dict[str, Any]) -> dict[str, Any]:
    """With statuses as text throughout, as JSON has them."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"] = {str(status): said for status, said in operation["responses"].items()}
    return schema

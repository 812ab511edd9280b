"""What the hub tells Prometheus: its own requests, and the fleet as the last picture shows it."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Final

import prometheus_client
from fastapi import APIRouter, Request, Response
from prometheus_client import core, registry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_hub.api import context, fleet, fleet_view, queue_view, snapshots
from cloud_hub.store import pool, rollouts

UNKNOWN_ROUTE: Final = "none"
"""The label of requests to addresses that are not there: they must not make labels."""

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(hub: context.Dependency, request: Request) -> Response:
    """In the text format. While `backhaul_up{part="postgresql"}` is 0 there are no figures of the fleet."""
    try:
        await fleet.of(request).get()
    except pool.UNAVAILABLE:
        request.app.state.fleet_metrics.reachable = False
    else:
        request.app.state.fleet_metrics.reachable = True
    return Response(
        prometheus_client.generate_latest(hub.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
    )


class RequestMetrics:
    """Counts and times requests by the route that took them, never by the address that was asked."""

    def __init__(self, app: ASGIApp, collect: registry.CollectorRegistry) -> None:
        self._app = app
        self._children = functools.cache(
            self._of
        )  # as many as routes and statuses: finding them anew is slow
        self._requests = prometheus_client.Counter(
            "backhaul_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=collect,
        )
        self._seconds = prometheus_client.Histogram(
            "backhaul_http_response_seconds",
            "Time until an answer began.",
            ("route",),
            registry=collect,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
                counter, histogram = self._children(scope["method"], route, message["status"])
                counter.inc()
                histogram.observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)

    def _of(
        self, method: str, route: str, status: int
    ) -> tuple[prometheus_client.Counter, prometheus_client.Histogram]:
        return self._requests.labels(method, route, str(status)), self._seconds.labels(route)


class FleetMetrics(registry.Collector):
    """The figures of the last picture of the fleet; by site, agent, lane and state, never by task."""

    def __init__(self, hub: context.Hub, taken: snapshots.Snapshots) -> None:
        self._hub = hub
        self._taken = taken
        self.reachable = False

    def collect(self) -> Iterable[core.Metric]:
        up = core.GaugeMetricFamily("backhaul_up", "What the hub stands on is there.", labels=["part"])
        up.add_metric(["postgresql"], self.reachable)
        for part, there in (("broker", self._hub.broker()), ("redis", self._hub.redis())):
            if there is not None:
                up.add_metric([part], there)
        yield up
        latest = self._taken.latest
        if latest is None or not self.reachable:
            return
        picture = latest.picture
        states = core.GaugeMetricFamily("backhaul_tasks", "Tasks of the hub.", labels=["state"])
        for state, count in picture.tasks.states.items():
            states.add_metric([state], count)
        yield states
        rolled = core.GaugeMetricFamily("backhaul_rollouts", "Rollouts of models.", labels=["state"])
        for standing in rollouts.State:
            rolled.add_metric([standing], latest.rollouts.get(standing, 0))
        yield rolled
        yield from _of_queues(picture.queues)
        found = [one for site in picture.sites for one in site.agents]
        yield from _of_agents(found)
        yield from _of_lanes(found)


_GAUGES: Final = {
    "queued": ("queued_tasks", "Tasks waiting at the agent."),
    "running": ("running_tasks", "Tasks running at the agent."),
    "items_per_s": ("items_per_second", "Items run per second, lately."),
    "predicted_wait_s": ("predicted_wait_seconds", "How long a task would wait there now."),
    "journal_bytes": ("journal_bytes", "Bytes of its journal."),
}
_COUNTERS: Final = {
    "jobs_total": ("jobs", "Jobs accepted from devices."),
    "rejected_total": ("rejected_jobs", "Jobs refused."),
    "items_total": ("items", "Items run."),
    "failed_total": ("failed_items", "Items failed."),
    "overflowed_total": ("overflowed_tasks", "Tasks handed over to the hub."),
    "reclaimed_total": ("reclaimed_tasks", "Tasks taken back from the hub."),
}


def _of_queues(found: list[queue_view.Queue]) -> Iterable[core.Metric]:
    """Of the busiest queues, so that names which clients think up are not labels without end."""
    for field, name, help_text in (
        ("queued", "waiting_tasks", "Tasks waiting in the queue."),
        ("running", "running_tasks", "Tasks of the queue that run."),
        ("oldest_s", "oldest_seconds", "How long the first of them has waited."),
    ):
        metric = core.GaugeMetricFamily(f"backhaul_queue_{name}", help_text, labels=["queue"])
        for one in found:
            metric.add_metric([one.name], getattr(one, field))
        yield metric


def _of_agents(found: list[fleet_view.Agent]) -> Iterable[core.Metric]:
    place = ["site", "agent"]
    online = core.GaugeMetricFamily(
        "backhaul_agent_online", "Present by its word and heard of lately.", labels=place
    )
    heard = core.GaugeMetricFamily("backhaul_agent_heard_seconds", "Since its last word.", labels=place)
    leases = core.GaugeMetricFamily("backhaul_agent_leases", "Tasks of the hub that it holds.", labels=place)
    for one in found:
        online.add_metric([one.site, one.name], one.online)
        heard.add_metric([one.site, one.name], one.heard_s)
        leases.add_metric([one.site, one.name], one.leases)
    yield from (online, heard, leases)
    families = ((_GAUGES, core.GaugeMetricFamily), (_COUNTERS, core.CounterMetricFamily))
    for fields, family in families:
        for field, (name, help_text) in fields.items():
            metric = family(f"backhaul_agent_{name}", help_text, labels=place)
            for one in found:
                if one.telemetry:
                    metric.add_metric([one.site, one.name], getattr(one.telemetry, field))
            yield metric


def _of_lanes(found: list[fleet_view.Agent]) -> Iterable[core.Metric]:
    for field, help_text in (
        ("numbered", "Records that the sender has given a number."),
        ("committed", "Records that the receiver has committed."),
        ("missing", "Records lost for good."),
        ("waiting", "Records still to come."),
    ):
        metric = core.GaugeMetricFamily(
            f"backhaul_lane_{field}_records", help_text, labels=["site", "agent", "direction", "lane"]
        )
        for one in found:
            for lane in one.lanes:
                metric.add_metric([one.site, one.name, lane.direction, lane.lane], getattr(lane, field))
        yield metric

"""What the agent says of itself: the heartbeat to the hub, `/status`, and the metrics.

All three are read from the same counters at the moment they are asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import prometheus_client
from prometheus_client import core
from prometheus_client import registry as collectors

from edge_agent import (
    clock,
    engine,
    hub,
    intake,
    overflow,
    replies,
    runner,
    settings,
    streams,
    uplink,
    window,
)
from edge_agent.builds import builder, builds
from edge_agent.journal import journal
from edge_agent.oip import service
from shared import link, signals, tasks

if TYPE_CHECKING:
    from edge_agent.registry import registry
    from edge_agent.trials import trials

MIDDLE_PRIORITY: Final = 5
RATE_OVER_S: Final = 5.0


@dataclass(slots=True)
class Rate:
    """A count's change per second, smoothed over some seconds."""

    _count: int = 0
    _at: float = 0.0
    per_s: float = 0.0

    def update(self, count: int, now: float) -> float:
        if self._at and now > self._at:
            share = min(1.0, (now - self._at) / RATE_OVER_S)
            self.per_s += share * ((count - self._count) / (now - self._at) - self.per_s)
        self._count, self._at = count, now
        return self.per_s


class Status:
    """Reads the parts of a running agent; owns none of them."""

    def __init__(
        self,
        policy: settings.Settings,
        book: journal.Journal,
        machine: engine.Engine,
        waiting: window.Window,
        executor: runner.Runner,
        offset: clock.Offset,
        beyond: hub.Hub,
    ) -> None:
        self._policy = policy
        self._journal = book
        self._engine = machine
        self._window = waiting
        self._runner = executor
        self._offset = offset
        self._hub = beyond
        self._sequence = 0
        self._rate = Rate()
        self._started = time.monotonic()
        self.intake: intake.Intake | None = None
        self.replies: replies.Replies | None = None
        self.oip: service.Service | None = None
        self.uplink: uplink.Uplink | None = None
        self.site_link: link.Link | None = None
        self.cloud_link: link.Link | None = None
        self.registry: registry.Registry | None = None
        self.trials: trials.Trials | None = None
        self.engines: builds.Builds | None = None
        self.working = False
        """True from the moment at which everything runs to the one at which it is told to stop."""

    @property
    def ready(self) -> bool:
        """Devices may publish: at the site's broker there is a subscription, which it keeps from now on."""
        return self.working and (self.site_link is None or self.site_link.counters.connects > 0)

    @property
    def machine(self) -> engine.Engine:
        """What runs the models."""
        return self._engine

    @property
    def done(self) -> Counter[str]:
        """What the executor counts."""
        return self._runner.counts

    def telemetry(self) -> signals.Telemetry:
        """The heartbeat."""
        self._sequence += 1
        taken = self.intake.counts if self.intake is not None else {}
        done = self._runner.counts
        up = self.uplink
        return signals.Telemetry(
            epoch=self._journal.epoch,
            sequence=self._sequence,
            capacity=self.capacity(),
            labels=self._policy.labels,
            models=[
                signals.ModelReport(
                    name=model.name,
                    version=model.version,
                    provider=model.provider,
                    wanted=model.wanted,
                    items_per_s=round(model.items_per_second * self._policy.engine.threads, 3),
                    loaded=model.loaded,
                )
                for model in self._engine.loaded()
            ],
            leases=[
                signals.LeaseReport(
                    task_id=tasks.format_id(lease.task_id),
                    attempt=lease.attempt,
                    progress=lease.progress,
                    done=lease.done,
                    running_s=round(lease.running_s, 3),
                )
                for lease in self._runner.leases()
            ],
            lanes=up.outlet.reports() if up is not None else [],
            trials=self.trials.reports() if self.trials is not None else [],
            queued=self._window.tasks_total,
            queued_items=sum(self._window.items.values()),
            running=self._runner.running,
            predicted_wait_s=round(self.predicted_wait_s(), 3),
            jobs_total=taken.get("jobs", 0),
            rejected_total=taken.get("rejected", 0),
            replies_total=self.replies.total if self.replies is not None else 0,
            items_total=done["items"],
            failed_total=done["failed"],
            overflowed_total=taken.get("overflowed", 0),
            reclaimed_total=up.counts["reclaimed"] if up is not None else 0,
            items_per_s=round(self._rate.update(done["items"], time.monotonic()), 2),
            to_sync=up.outlet.unacknowledged if up is not None else 0,
            journal_bytes=self._journal.size_bytes,
            link_up_s=round(self._hub.link_up_s, 3),
            down_bytes_per_s=round(up.speed.bytes_per_s) if up is not None else 0,
            clock_offset_us=self._offset.offset_us,
            clock_error_us=self._offset.error_us,
        )

    def items_per_s(self) -> float:
        """Of the slowest model, all threads together: what an item of unknown model is taken to cost."""
        speeds = [model.items_per_second for model in self._engine.loaded() if model.items_per_second]
        return min(speeds, default=0.0) * self._policy.engine.threads

    def predicted_wait_s(self) -> float:
        """What a task of middle priority would wait here now."""
        ahead = self._window.items_ahead(MIDDLE_PRIORITY)
        return overflow.predicted_wait_s(ahead, self.items_per_s())

    def capacity(self) -> int:
        """Tasks of the hub that this agent is ready to hold; none while it starts or stops."""
        if not self.working:
            return 0
        return overflow.capacity(
            queued_items=self._window.device_items,
            items_per_s=self.items_per_s(),
            policy=self._policy.leases,
        )

    def as_dict(self) -> dict[str, Any]:
        """What `/status` answers and `edge-agent status` prints."""
        told = self.telemetry()
        return {
            "site": self._policy.site,
            "name": self._policy.name,
            "epoch": self._journal.epoch,
            "ready": self.ready,
            "up_s": round(time.monotonic() - self._started, 1),
            "broker": _link(self.site_link),
            "uplink": _link(self.cloud_link) | {"hub_reachable": self._hub.reachable},
            "models": [_model(model) for model in self._engine.loaded()],
            "streams": {
                "kept": len(self._engine.streams),
                "begun": self._engine.streams.begun,
                "dropped": dict(self._engine.streams.dropped),
            },
            "engines": self.engines.as_dicts() if self.engines is not None else [],
            "registry": self.registry.as_dict() if self.registry is not None else None,
            "handed_over": len(self._hub.handed_over),
            "telemetry": told,
            "decisions": [
                {
                    "task_id": task_id,
                    "hand_over": decision.hand_over,
                    "why": decision.why,
                    "predicted_wait_s": round(decision.predicted_wait_s, 3),
                    "limit_s": decision.limit_s,
                    "items_ahead": decision.situation.items_ahead,
                    "items_per_s": round(decision.situation.items_per_s, 2),
                }
                for task_id, decision in (list(self.intake.decisions)[-20:] if self.intake else [])
            ],
        }


def _link(one: link.Link | None) -> dict[str, Any]:
    if one is None:
        return {"configured": False}
    return {
        "configured": True,
        "address": str(one.address),
        "connected": one.connected,
        "error": str(one.error) if one.error is not None else None,
    }


def _model(model: engine.Status) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "provider": model.provider,
        "wanted": model.wanted,
        "reason": model.reason,
        "loaded": model.loaded,
        "bytes": model.bytes,
        "items_per_s": round(model.items_per_second, 2),
        "batching": {
            "size": model.batch_size,
            "decode_ms_per_item": _ms(model.read_s),
            "run_ms_by_size": {str(size): _ms(run_s) for size, run_s in model.run_s.items()},
        },
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 4)


class Metrics(collectors.Collector):
    """The agent's metrics, in Prometheus' conventions; never a task id in a label."""

    def __init__(self, status: Status, book: journal.Journal) -> None:
        self._status = status
        self._journal = book

    def collect(self) -> Iterator[core.Metric]:
        told = self._status.telemetry()
        journaled = self._journal.counters
        done = self._status.done
        up = self._status.uplink
        ignored = up.counts["commands_ignored"] if up is not None else 0
        oip = self._status.oip
        asked, refused = (oip.total, oip.refused) if oip is not None else (0, 0)
        for name, text, total in (
            ("jobs", "Jobs that devices published.", told.jobs_total),
            ("jobs_rejected", "Jobs that were refused, with a reply that says why.", told.rejected_total),
            ("replies", "Replies that the site's broker has acknowledged.", told.replies_total),
            ("oip_requests", "Requests by the Open Inference Protocol that were accepted.", asked),
            ("oip_refused", "Those that were told to come again, for there was no room.", refused),
            ("items", "Items that went through a model.", told.items_total),
            ("tasks_failed", "Tasks with an item that failed.", told.failed_total),
            ("tasks_overflowed", "Tasks handed over to the hub.", told.overflowed_total),
            ("tasks_reclaimed", "Handed-over tasks taken back.", told.reclaimed_total),
            ("tasks_put_back", "Tasks given back to the hub before their end.", done["put_back"]),
            ("commands_ignored", "Words of the hub about attempts that are not here.", ignored),
            ("journal_commits", "Transactions of the journal.", journaled.commits),
            ("journal_written_bytes", "Bytes that the journal wrote to flash.", journaled.bytes_written),
            ("journal_refused", "Jobs refused because the journal was full.", journaled.refused),
        ):
            yield core.CounterMetricFamily(f"backhaul_agent_{name}", text, value=total)
        for name, text, value in (
            ("tasks_queued", "Tasks that wait here.", told.queued),
            ("tasks_running", "Tasks that run.", told.running),
            ("predicted_wait_seconds", "What a task of middle priority would wait.", told.predicted_wait_s),
            ("capacity", "Tasks of the hub that this agent is ready to hold.", told.capacity),
            ("records_to_sync", "Records that the hub has not acknowledged.", told.to_sync),
            ("journal_bytes", "Size of the journal on disk.", told.journal_bytes),
        ):
            yield core.GaugeMetricFamily(f"backhaul_agent_{name}", text, value=value)
        links = core.GaugeMetricFamily(
            "backhaul_agent_link_up", "Whether a link is connected.", labels=["to"]
        )
        for to, one in (("site", self._status.site_link), ("cloud", self._status.cloud_link)):
            if one is not None:
                links.add_metric([to], float(one.connected))
        yield links
        lanes = core.GaugeMetricFamily(
            "backhaul_agent_lane_unacknowledged_records", "Records by lane.", labels=["lane"]
        )
        for lane in told.lanes:
            lanes.add_metric([lane.lane], lane.numbered - lane.acknowledged)
        yield lanes
        yield from of_models(self._status.machine)
        if self._status.engines is not None:
            yield from of_engines(self._status.engines)


def of_models(machine: engine.Engine) -> Iterator[core.Metric]:
    """The metrics of models in memory, and of the states that they carry."""
    served, carried = machine.loaded(), machine.streams
    for name, text, value in (
        ("models_served", "Models that are served.", len(served)),
        ("models_loaded", "Those of them that are in memory.", sum(one.loaded for one in served)),
        ("streams", "Streams whose state is kept.", len(carried)),
    ):
        yield core.GaugeMetricFamily(f"backhaul_agent_{name}", text, value=value)
    for name, text, total in (
        ("model_unloads", "Times that a model left memory to make room.", machine.models.unloads),
        ("model_reloads", "Times that one of these came back.", machine.models.reloads),
        ("streams_begun", "Streams that began with the initial state, anew or not.", carried.begun),
    ):
        yield core.CounterMetricFamily(f"backhaul_agent_{name}", text, value=total)
    dropped = core.CounterMetricFamily(
        "backhaul_agent_streams_dropped", "Streams whose state was let go, by the reason.", labels=["reason"]
    )
    for reason in streams.REASONS:
        dropped.add_metric([reason], carried.dropped[reason])
    yield dropped


def of_engines(engines: builds.Builds) -> Iterator[core.Metric]:
    """The metrics of the engines that TensorRT builds."""
    ends = core.CounterMetricFamily(
        "backhaul_agent_tensorrt_builds", "Builds that ended, by how they did.", labels=["outcome"]
    )
    for outcome in builder.Outcome:
        ends.add_metric([outcome], engines.outcomes[outcome])
    yield ends
    yield core.CounterMetricFamily(
        "backhaul_agent_tensorrt_discarded",
        "Engines thrown away, for they were broken or of other versions.",
        value=engines.discarded,
    )
    yield core.GaugeMetricFamily(
        "backhaul_agent_tensorrt_cache_bytes", "Engines on disk.", value=engines.bytes()
    )
    going_on = core.GaugeMetricFamily(
        "backhaul_agent_tensorrt_building_seconds",
        "How long the engine of a model is being built.",
        labels=["model"],
    )
    if (building := engines.building()) is not None:
        model, seconds = building
        going_on.add_metric([str(model)], round(seconds, 1))
    yield going_on


def exposition(metrics: Metrics) -> bytes:
    """The metrics in Prometheus' text format."""
    collected = collectors.CollectorRegistry()
    collected.register(metrics)
    return prometheus_client.generate_latest(collected)

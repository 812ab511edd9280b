"""The hub's own metrics, in Prometheus' conventions; never a task id in a label."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import core, registry

from cloud_hub import gateway, hot, leader, leases
from cloud_hub.rollouts import conductor
from cloud_hub.scheduler import scheduler


class HubMetrics(registry.Collector):
    """Reads the counters of a running hub's parts when asked."""

    def __init__(
        self,
        ways: gateway.Gateway,
        placing: scheduler.Scheduler,
        keeper: leases.Keeper,
        everywhere: hot.Hot,
        lead: leader.Leader,
        conducting: conductor.Conductor,
    ) -> None:
        self._gateway = ways
        self._scheduler = placing
        self._keeper = keeper
        self._hot = everywhere
        self._leader = lead
        self._conductor = conducting

    def collect(self) -> Iterator[core.Metric]:
        lanes = self._gateway.counts
        for name, text, total in (
            ("lane_records", "Records of up lanes committed.", lanes["records"]),
            ("results", "Result rows recorded.", lanes["results"]),
            ("shadow_results", "Result rows that came after the first of their item.", lanes["shadows"]),
            ("lane_batches_applied", "Batches of up lanes applied.", lanes["apply"]),
            ("lane_batches_repeated", "Batches seen before.", lanes["repeat"]),
            ("lane_gaps", "Batches that came before an earlier one.", lanes["gap"]),
            ("lane_batches_dropped", "Batches that found no room, and come again.", lanes["dropped"]),
            ("lane_batches_quarantined", "Batches set aside.", lanes["quarantined"]),
            ("messages_unreadable", "Messages that could not be read.", lanes["unreadable"]),
            ("leases_granted", "Attempts leased to agents.", self._scheduler.counts["granted"]),
            ("leases_lost", "Leases that ran out.", self._keeper.counts["lost"]),
            ("tasks_expired", "Tasks whose deadline passed in the queue.", self._keeper.counts["expired"]),
            ("tasks_preempted", "Running tasks asked to make room.", self._scheduler.counts["preempted"]),
            ("leads_taken", "Times this hub took the lead.", self._leader.counts["taken"]),
            ("scheduler_passes", "Passes of the scheduler.", self._scheduler.counts["passes"]),
            ("redis_failures", "Times Redis did not answer.", self._hot.failures),
        ):
            yield core.CounterMetricFamily(f"backhaul_hub_{name}", text, value=total)
        steps = core.CounterMetricFamily(
            "backhaul_rollout_steps", "Steps that this hub's policy took with rollouts.", labels=["step"]
        )
        for kind in conductor.KINDS.values():
            steps.add_metric([kind], self._conductor.counts[kind])
        yield steps
        for name, text, value in (
            ("leading", "1 if this hub decides where tasks go.", self._leader.leading),
            ("agents_served", "Agents whose lanes this hub serves.", self._gateway.owned),
        ):
            yield core.GaugeMetricFamily(f"backhaul_hub_{name}", text, value=value)

"""The outcome of a demo in numbers, and whether its books balance."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
import numpy as np

from demo import books
from demo.notebook import Job, Notebook
from demo.system import POOL
from shared import tasks


class Quantiles(msgspec.Struct, frozen=True):
    """Of some durations, in milliseconds; null where there were none."""

    p50: float | None
    p99: float | None


class Lane(msgspec.Struct, frozen=True):
    """The books of one lane at the end."""

    agent: str
    epoch: int
    direction: str
    lane: str
    numbered: int
    committed: int
    missing: int
    waiting: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo came to. All of it is counted by the cameras, or in PostgreSQL row by row."""

    duration_s: float
    published: int
    """Jobs that the cameras published."""
    accepted: int
    """Of these, acknowledged by their site's broker."""
    replied: int
    """With a reply; repeated ones count once."""
    rejected: int
    """With a reply that refuses the job."""
    completed_at_edge: int
    """With a good row that the site's own agent made."""
    overflowed: int
    """Handed over to the hub."""
    completed_in_pool: int
    completed_at_other_site: int
    failed: int
    """With a row that is not good."""
    replied_while_offline: int
    """Published and replied to while the site was cut off."""
    synced_results: int
    """Jobs that have their row in PostgreSQL."""
    results_in_store: int
    """Rows in PostgreSQL from the cameras' devices."""
    lost: int
    duplicates_in_store: int
    shadows: int
    """Results that came a second time and were set aside."""
    repeated_replies: int
    replies_to_other_tasks: int
    """Repeated replies that name another task than the first."""
    replies_unlike_store: int
    """Replies that do not say what the row says."""
    reply_latency_ms: Quantiles
    """From publishing to the reply, of jobs that their own site completed; measured by the cameras."""
    overflow_latency_ms: Quantiles
    """The same, of jobs that were completed elsewhere."""
    sync_lag_ms: Quantiles
    """From a job's acceptance at its site to the commit of its row in PostgreSQL, cut links included."""
    bytes_on_wire_per_result: float | None
    """MQTT payload bytes of the batches of results over the rows in them, counted by a subscriber at the
    cloud's broker."""
    accuracy: float | None
    """Share of labels that are true."""
    lanes: list[Lane]
    problems: list[str] = []
    """Why the books do not balance; empty: they do."""


def make(
    notebook: Notebook, stored: books.Stored, *, duration_s: float, bytes_per_result: float | None
) -> Report:
    """The report of a demo that has come to an end."""
    balance = books.balance(notebook, stored.rows)
    jobs = notebook.jobs.values()
    good = [
        (job, row) for job in jobs if (row := balance.row_of.get(job.key)) and row.outcome == tasks.Outcome.OK
    ]
    home = [job for job, row in good if row.site == job.site]
    away = [job for job, row in good if row.site != job.site]
    in_pool = sum(row.site == POOL.site for _, row in good)
    judged = [job.said == job.label for job in jobs if job.said is not None]
    report = Report(
        duration_s=round(duration_s, 3),
        published=len(notebook.jobs),
        accepted=sum(job.accepted for job in jobs),
        replied=sum(job.replied_at is not None for job in jobs),
        rejected=sum(job.state == tasks.State.REJECTED for job in jobs),
        completed_at_edge=len(home),
        overflowed=stored.overflowed,
        completed_in_pool=in_pool,
        completed_at_other_site=len(away) - in_pool,
        failed=len(balance.row_of) - len(good),
        replied_while_offline=sum(job.offline for job in jobs),
        synced_results=len(balance.row_of),
        results_in_store=len(stored.rows),
        lost=balance.lost,
        duplicates_in_store=balance.duplicates,
        shadows=stored.shadows,
        repeated_replies=notebook.repeated,
        replies_to_other_tasks=len(notebook.other_ids),
        replies_unlike_store=balance.unlike,
        reply_latency_ms=_quantiles(_latencies(home)),
        overflow_latency_ms=_quantiles(_latencies(away)),
        sync_lag_ms=_quantiles([row.lag_s for row in stored.rows]),
        bytes_on_wire_per_result=None if bytes_per_result is None else round(bytes_per_result, 1),
        accuracy=round(sum(judged) / len(judged), 4) if judged else None,
        lanes=[_lane(lane) for lane in stored.lanes],
    )
    return msgspec.structs.replace(report, problems=problems(report))


def problems(report: Report) -> list[str]:
    """Why the books do not balance, in words; nothing if they do."""
    found = [
        f"{count:,} {what}"
        for count, what in (
            (report.published - report.replied, "jobs got no reply"),
            (report.lost, "jobs have no result in PostgreSQL"),
            (report.duplicates_in_store, "rows in PostgreSQL are no job's one result"),
            (report.replies_to_other_tasks, "jobs were replied to as two tasks"),
            (report.replies_unlike_store, "replies say something else than PostgreSQL"),
        )
        if count
    ]
    for lane in report.lanes:
        name = f"lane {lane.lane} {lane.direction} of {lane.agent}"
        if lane.missing:
            found.append(f"{lane.missing:,} of {lane.numbered:,} records are missing: {name}")
        if lane.waiting:
            found.append(f"{lane.waiting:,} of {lane.numbered:,} records still wait: {name}")
    return found


def _latencies(jobs: Iterable[Job]) -> list[float]:
    return [job.replied_at - job.published_at for job in jobs if job.replied_at is not None]


def _quantiles(seconds: Collection[float]) -> Quantiles:
    if not seconds:
        return Quantiles(None, None)
    p50, p99 = np.percentile(list(seconds), [50, 99]) * 1000
    return Quantiles(round(float(p50), 2), round(float(p99), 2))


def _lane(lane: books.Lane) -> Lane:
    return Lane(
        agent=f"{lane.site}/{lane.name}",
        epoch=lane.epoch,
        direction=lane.direction,
        lane=lane.lane,
        numbered=lane.numbered,
        committed=lane.committed,
        missing=lane.missing,
        waiting=lane.waiting,
    )


def read(text: bytes) -> Report:
    """The report in a file that `--report` wrote."""
    return msgspec.json.decode(text, type=Report)


def dumps(report: Report) -> bytes:
    """The report as JSON, for people and machines."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"

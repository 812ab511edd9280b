"""What the two versions of a rollout do, counted in the transactions that record their results.

So each result counts exactly once, whatever is sent again and whichever hub takes it. A result that came
after the first of its item does not count; nor does one that expired or was cancelled before it ran.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from cloud_hub.store import arrays, arrow, copy, ids, pool, rollouts, sql, targets
from shared import tasks, topics
from shared.rollouts import measures

_SQL: Final = sql.load("tallies")

BASELINE: Final = -1
"""The stage before the first: what the old version did before the rollout began."""
BEFORE: Final = timedelta(days=1)
"""So far back the baseline looks…"""
BASELINE_ROWS: Final = 10_000
"""…for so many results of the old versions…"""
LOOKED_THROUGH: Final = 100_000
"""…among so many of the newest of all models: a rollout of a rare one does not read a day of the others."""
LABEL_CHARACTERS: Final = 200
"""What of a label tells it apart."""

_BASELINE: Final = pa.schema(
    [
        ("agent_id", pa.int32()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("outcome", pa.string()),
        ("label", pa.string()),
        ("run_us", pa.int64()),
    ]
)
_RAN: Final = (tasks.Outcome.OK.value, tasks.Outcome.FAILED.value)


@dataclass(frozen=True, slots=True)
class Watch:
    """Whose results count for a rollout, and where."""

    rollout_id: bytes
    stage: int
    versions: frozenset[str]
    """The new one, and all that targets of the model name."""


class Key(NamedTuple):
    """What is counted apart."""

    rollout_id: bytes
    stage: int
    agent_id: int
    version: str


Counted: TypeAlias = Mapping[Key, measures.Measures]


@dataclass(frozen=True, slots=True)
class Sides:
    """What the versions of a rollout did."""

    new: measures.Measures
    """Of the new one in the stage that the rollout is in."""
    old: measures.Measures
    """Of the others, in all stages and before, at the agents that have results of the new one in this."""
    results: Mapping[str, int]
    """Of the new one in all stages, by agent (`site/name`), whichever that is."""


async def watched(connection: pool.Connection) -> dict[str, Watch]:
    """What is to be counted now, by model."""
    active = await rollouts.active(connection, whole=False)
    return {rollout.plan.model: await _watch(connection, rollout) for rollout in active}


async def _watch(connection: pool.Connection, rollout: rollouts.Rollout) -> Watch:
    aims = await targets.every(connection, rollout.plan.model)
    versions = frozenset({rollout.plan.version, *(aim.version for aim in aims)})
    return Watch(rollout.rollout_id, rollout.stage, versions)


async def count(
    connection: pool.Connection, agent_id: int, rows: pa.RecordBatch, watched: Mapping[str, Watch]
) -> None:
    """Count result rows (wire.RESULTS) that an agent sent and that were recorded; `watched`: by model."""
    if found := tally(agent_id, rows, watched):
        await _add(connection, found)


def tally(agent_id: int, rows: pa.RecordBatch, watched: Mapping[str, Watch]) -> Counted:
    """What is in result rows of an agent, of the models and versions that are watched."""
    found: dict[Key, measures.Measures] = {}
    for model in pc.unique(rows["model"]).to_pylist():
        if (wanted := watched.get(model)) is None:
            continue
        its = rows.filter(pc.equal(rows["model"], model))
        for version in wanted.versions.intersection(pc.unique(its["version"]).to_pylist()):
            measured = measure(its.filter(pc.equal(its["version"], version)))
            if measured.items:
                found[Key(wanted.rollout_id, wanted.stage, agent_id, version)] = measured
    return found


def measure(rows: pa.RecordBatch) -> measures.Measures:
    """What result rows of one version say, column by column."""
    ran = rows.filter(pc.is_in(rows["outcome"], pa.array(_RAN)))
    well = ran.filter(pc.equal(ran["outcome"], tasks.Outcome.OK.value))
    (labels,) = copy.mend(well.select(["label"])).columns
    said = pc.fill_null(pc.utf8_slice_codeunits(labels, 0, LABEL_CHARACTERS), measures.UNLABELLED)
    found = measures.Measures(items=ran.num_rows, failed=ran.num_rows - well.num_rows, labels=_counts(said))
    for number, count in _counts(_buckets(well["run_us"].drop_null())).items():
        found.run_us[number] = count
    return found


def _buckets(run_us: pa.Array) -> pa.Array:
    """`measures.bucket` of each."""
    octaves = pc.log2(pc.max_element_wise(run_us.cast(pa.float64()), 1.0))
    numbers = pc.floor(pc.multiply(octaves, float(measures.PER_OCTAVE))).cast(pa.int32())
    return pc.min_element_wise(numbers, pa.scalar(measures.BUCKETS - 1, pa.int32()))


def _counts(values: pa.Array) -> dict[Any, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(values).to_pylist()}


async def baseline(connection: pool.Connection, rollout: rollouts.Rollout) -> None:
    """Count what the versions that agents are to serve did lately, as the stage before the first."""
    versions = (await _watch(connection, rollout)).versions - {rollout.plan.version}
    if not versions:
        return
    cursor = await connection.execute(
        _SQL["before"],
        {
            "since": ids.lowest(datetime.now(UTC) - BEFORE),
            "model": rollout.plan.model,
            "versions": arrays.texts(versions),
            "looked_through": LOOKED_THROUGH,
            "rows": BASELINE_ROWS,
        },
    )
    found: dict[Key, measures.Measures] = {}
    rows = arrow.batch(_BASELINE, await cursor.fetchall())
    watched = Watch(rollout.rollout_id, BASELINE, versions)
    for agent_id in pc.unique(rows["agent_id"]).to_pylist():
        its = rows.filter(pc.equal(rows["agent_id"], agent_id))
        found |= tally(agent_id, its, {rollout.plan.model: watched})
    if found:
        await _add(connection, found)


async def _add(connection: pool.Connection, counted: Counted) -> None:
    """Add counts to what is there, in one order of rows for everybody."""
    keys = sorted(counted)
    where = {
        "rollout_ids": arrays.ids(key.rollout_id for key in keys),
        "stages": arrays.numbers(key.stage for key in keys),
        "agent_ids": arrays.numbers(key.agent_id for key in keys),
        "versions": arrays.texts(key.version for key in keys),
    }
    async with connection.pipeline():
        await connection.execute(_SQL["open"], where)
        cursor = await connection.execute(_SQL["lock"], where)
        rows = await cursor.fetchall()
    changes = []
    for *key, items, failed, run_us, labels in rows:
        present = _measures(items, failed, run_us, labels)
        present.merge(counted[Key(*key)])
        changes.append(
            {
                **Key(*key)._asdict(),
                "rollout_id": ids.Id(key[0]),
                "items": present.items,
                "failed": present.failed,
                "run_us": arrays.numbers(present.run_us),
                "labels": msgspec.json.encode(present.labels).decode(),
            }
        )
    async with connection.cursor() as cursor:
        await cursor.executemany(_SQL["put"], changes)


async def sides(
    connection: pool.Connection, rollout: rollouts.Rollout, exposed: Sequence[topics.Agent]
) -> Sides:
    """What the versions of a rollout did at the agents that are `exposed`, as its stage is judged by it.

    Others may have results of the new version too, by a target of their own or by jobs that name it.
    """
    asked = {
        "rollout_id": ids.Id(rollout.rollout_id),
        "stage": rollout.stage,
        "version": rollout.plan.version,
        "sites": arrays.texts(place.site for place in exposed),
        "names": arrays.texts(place.name for place in exposed),
    }
    found = {True: measures.Measures(), False: measures.Measures()}
    cursor = await connection.execute(_SQL["sides"], asked)
    for is_new, items, failed, run_us, labels in await cursor.fetchall():
        found[is_new].merge(_measures(items, failed, run_us, labels or {}))  # which keeps its labels few
    cursor = await connection.execute(_SQL["results"], asked)
    results = {str(topics.Agent(site, name)): items for site, name, items in await cursor.fetchall()}
    return Sides(found[True], found[False], results)


async def clear(connection: pool.Connection) -> int:
    """Forget what was counted for rollouts that have ended, which is in the evidence of their steps; how many
    rows that were."""
    return (await connection.execute(_SQL["clear"])).rowcount


def _measures(items: int, failed: int, run_us: list[int] | None, labels: dict[str, int]) -> measures.Measures:
    return measures.Measures(
        items=items, failed=failed, run_us=run_us or [0] * measures.BUCKETS, labels=labels
    )

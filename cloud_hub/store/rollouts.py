"""Rollouts: the staged changes of a model's version, each step of theirs a row of its history.

A step is written only from the state and stage that whoever decided on it has seen: of a policy and an
operator who decide at one moment one is too late, and learns it.
"""

from __future__ import annotations

import enum
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
import psycopg

from cloud_hub.rollouts import policy
from cloud_hub.store import arrays, ids, pool, sql, targets
from shared import tasks
from shared.rollouts import gates, stages

log: Final = logging.getLogger(__name__)

CHANGES: Final = 3
"""The class of advisory locks by which those who change a model's targets wait for each other
(queues.ADMISSION)."""

_SQL: Final = sql.load("rollouts")
_MANY: Final = 10_000


class State(enum.StrEnum):
    """Where a rollout is in its life."""

    RUNNING = "running"
    PAUSED = "paused"
    """What agents were told stays; nothing is judged."""
    COMPLETED = "completed"
    """The target says the new version."""
    ROLLED_BACK = "rolled_back"
    """The target says what it said before."""


class Kind(enum.StrEnum):
    """What can happen to a rollout."""

    STARTED = "started"
    PROMOTED = "promoted"
    """To the next stage."""
    PAUSED = "paused"
    RESUMED = "resumed"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"


class By(enum.StrEnum):
    """Who decided on a step."""

    POLICY = "policy"
    OPERATOR = "operator"


class Underway(Exception):
    """The model has a rollout that has not ended."""


class Moved(Exception):
    """The rollout is no longer in the state and stage that the step was decided on for."""


class Said(NamedTuple):
    """What an agent itself counts of a rollout; as in `signals.TrialReport`."""

    compared: int = 0
    agreed: int = 0
    life: int = 0
    unrecorded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a rollout is to do."""

    model: str
    version: str
    """The one that the agents are to serve in the end."""
    selector: str
    """As `selectors.normal` writes it; empty: all agents."""
    stages: tuple[stages.Stage, ...]
    gates: tuple[gates.Gate, ...]
    min_results: int
    """Of the new version in a stage, before the stage is judged."""
    soak_s: float
    """How long a stage lasts at least."""
    patience_s: float | None
    """After which a stage that has not passed is paused; None: never."""
    on_fail: policy.OnFail


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout, as it stands."""

    rollout_id: bytes
    plan: Plan
    state: State
    stage: int
    """The one that it is in, or ended in; from 0."""
    stage_since: datetime
    started_at: datetime
    ended_at: datetime | None
    reason: str
    """Of the latest step, in words."""
    compared: Mapping[str, Said]
    """By agent, when the stage began."""

    @property
    def name(self) -> str:
        """The id as people write it."""
        return tasks.format_id(self.rollout_id)

    @property
    def is_last(self) -> bool:
        """Whether no stage comes after the one that it is in."""
        return self.stage == len(self.plan.stages) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A step that was taken."""

    number: int
    """From 1."""
    at: datetime
    stage: int
    """The one that the rollout was in before."""
    kind: Kind
    by: By
    reason: str
    evidence: bytes | None
    """JSON: what was seen of the stage then."""


async def hold(connection: pool.Connection, model: str) -> None:
    """Wait until nobody else starts a rollout of `model` or changes its targets, until the commit."""
    await connection.execute(_SQL["hold"], {"class": CHANGES, "model": model})


async def start(connection: pool.Connection, plan: Plan, reason: str = "") -> bytes:
    """Begin a rollout; its id. Raises targets.UnknownVersion, or Underway."""
    await hold(connection, plan.model)
    rollout_id = tasks.new_id()
    try:
        await connection.execute(
            _SQL["start"],
            {
                "rollout_id": ids.Id(rollout_id),
                "model": plan.model,
                "version": plan.version,
                "selector": plan.selector,
                "stages": _json([str(stage) for stage in plan.stages]),
                "gates": _json([str(gate) for gate in plan.gates]),
                "min_results": plan.min_results,
                "soak_s": plan.soak_s,
                "patience_s": plan.patience_s,
                "on_fail": plan.on_fail.value,
            },
        )
    except psycopg.errors.ForeignKeyViolation:
        raise targets.UnknownVersion(f"{plan.model}@{plan.version}") from None
    except psycopg.errors.UniqueViolation:
        raise Underway(plan.model) from None
    await connection.execute(_SQL["begin_history"], {"rollout_id": ids.Id(rollout_id), "reason": reason})
    return rollout_id


async def find(connection: pool.Connection, rollout_id: bytes) -> Rollout | None:
    asked = {"rollout_id": ids.Id(rollout_id), "model": None, "state": None, "limit": 1}
    row = await (await connection.execute(_SQL["list"], asked)).fetchone()
    return None if row is None else _rollout(row)


async def every(
    connection: pool.Connection, model: str | None = None, state: State | None = None, limit: int = _MANY
) -> list[Rollout]:
    """Rollouts of all models or of one, the active ones first, then those that ended last."""
    asked = {"rollout_id": None, "model": model, "state": state and state.value, "limit": limit}
    return _readable(await (await connection.execute(_SQL["list"], asked)).fetchall())


async def active(connection: pool.Connection, *, whole: bool = True) -> list[Rollout]:
    """Those that have not ended, by model: one of each at most.

    Not `whole`: without what was `compared`, which in a large fleet is much for who has no use for it.
    """
    return _readable(await (await connection.execute(_SQL["active"], {"whole": whole})).fetchall())


async def moves(connection: pool.Connection, model: str, selector: str) -> bool:
    """Whether a rollout is under way that will write the target of this selector. Ask it under `hold`."""
    row = await (await connection.execute(_SQL["moves"], {"model": model, "selector": selector})).fetchone()
    return row == (True,)


async def now(connection: pool.Connection) -> datetime:
    """By the clock that says since when a stage lasts."""
    row = await (await connection.execute(_SQL["now"])).fetchone()
    assert row is not None
    (at,) = row
    assert isinstance(at, datetime)
    return at


async def counts(connection: pool.Connection) -> dict[State, int]:
    """How many rollouts there are in each state."""
    found = await (await connection.execute(_SQL["counts"])).fetchall()
    return {State(state): count for state, count in found}


async def events(connection: pool.Connection, rollout_ids: Collection[bytes]) -> dict[bytes, list[Event]]:
    """The steps of each rollout, the first one first."""
    cursor = await connection.execute(_SQL["events"], {"rollout_ids": arrays.ids(rollout_ids)})
    found: defaultdict[bytes, list[Event]] = defaultdict(list)
    for rollout_id, number, at, stage, kind, by, reason, evidence in await cursor.fetchall():
        found[rollout_id].append(
            Event(
                number=number,
                at=at,
                stage=stage,
                kind=Kind(kind),
                by=By(by),
                reason=reason,
                evidence=None if evidence is None else evidence.encode(),
            )
        )
    return found


async def take(
    connection: pool.Connection,
    rollout: Rollout,
    kind: Kind,
    by: By,
    reason: str,
    *,
    evidence: bytes | None = None,
    compared: Mapping[str, Said] | None = None,
) -> None:
    """Take a step from where `rollout` stands; completing it writes the target too. Raises Moved.

    `evidence`: JSON, what was seen of the stage. `compared`: as of the rollout, where a stage begins.
    """
    after = _AFTER[kind]
    changed = await connection.execute(
        _SQL["change"],
        {
            "rollout_id": ids.Id(rollout.rollout_id),
            "from_state": rollout.state.value,
            "from_stage": rollout.stage,
            "state": after.value,
            "stage": rollout.stage + (kind is Kind.PROMOTED),
            "anew": kind in (Kind.PROMOTED, Kind.RESUMED),
            "ends": after in ENDED,
            "kind": kind.value,
            "by": by.value,
            "reason": reason.replace("\0", ""),  # an agent's word may be in it
            "evidence": None if evidence is None else evidence.decode(),
            "compared": None if compared is None else _json(compared),
        },
    )
    if not changed.rowcount:
        raise Moved(f"the rollout {rollout.name} has moved on")
    if kind is Kind.COMPLETED:
        await targets.put(connection, rollout.plan.model, rollout.plan.selector, rollout.plan.version)


ENDED: Final = frozenset({State.COMPLETED, State.ROLLED_BACK})

_AFTER: Final = {
    Kind.STARTED: State.RUNNING,
    Kind.PROMOTED: State.RUNNING,
    Kind.PAUSED: State.PAUSED,
    Kind.RESUMED: State.RUNNING,
    Kind.COMPLETED: State.COMPLETED,
    Kind.ROLLED_BACK: State.ROLLED_BACK,
}
"""The state that a step leads to."""


def _readable(rows: Iterable[tuple[Any, ...]]) -> list[Rollout]:
    """The rollouts in these rows; one that only a newer hub can read is left to that."""
    found = []
    for row in rows:
        try:
            found.append(_rollout(row))
        except (stages.BadStage, gates.BadGate) as error:
            log.warning("rollout %s is not understood here: %s", tasks.format_id(row[0]), error)
    return found


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _rollout(row: tuple[Any, ...]) -> Rollout:
    (
        rollout_id,
        model,
        version,
        selector,
        said_stages,
        said_gates,
        min_results,
        soak_s,
        patience_s,
        on_fail,
        state,
        stage,
        stage_since,
        started_at,
        ended_at,
        reason,
        compared,
    ) = row
    plan = Plan(
        model=model,
        version=version,
        selector=selector,
        stages=tuple(stages.parse(text) for text in said_stages),
        gates=tuple(gates.parse(text) for text in said_gates),
        min_results=min_results,
        soak_s=soak_s,
        patience_s=patience_s,
        on_fail=policy.OnFail(on_fail),
    )
    return Rollout(
        rollout_id=rollout_id,
        plan=plan,
        state=State(state),
        stage=stage,
        stage_since=stage_since,
        started_at=started_at,
        ended_at=ended_at,
        reason=reason,
        compared={agent: Said(*found) for agent, found in compared.items()},
    )

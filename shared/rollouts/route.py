"""Which version a job goes to while its model is being rolled out: a pure decision."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from shared.rollouts import shares, stages


class Route(enum.StrEnum):
    """Where a job goes."""

    OLD = "old"
    NEW = "new"
    OLD_SHADOWED = "old_shadowed"
    """The old version answers it; the new one runs it too, to be compared."""


def route(
    exposure: stages.Exposure | None, rollout_id: str, task_id: bytes, tags: Mapping[str, str]
) -> Route:
    """Where a job goes on an agent with this exposure; `tags` are the job's user properties.

    The same job always goes the same way under one exposure, and one that went to the new version
    still does when the share grows.
    """
    if exposure is None:
        return Route.OLD
    if exposure.mode is stages.Mode.SERVE:
        return Route.NEW
    if any(tags.get(key) == value for key, value in exposure.tags):
        return Route.NEW
    if shares.of_job(rollout_id, task_id) >= exposure.traffic:
        return Route.OLD
    return Route.NEW if exposure.mode is stages.Mode.SPLIT else Route.OLD_SHADOWED

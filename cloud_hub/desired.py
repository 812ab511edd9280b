"""What an agent is to serve, by its labels, the targets and the rollouts: a pure decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud_hub.store import rollouts, targets
from shared import selectors, topics
from shared.rollouts import stages


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollout that exposes an agent."""

    rollout: rollouts.Rollout
    exposure: stages.Exposure
    old: targets.Target | None
    """What it would serve without the rollout; None: no version of the model."""


def models(found: Iterable[targets.Target], labels: Mapping[str, str]) -> list[targets.Target]:
    """Of each model the one target that counts for an agent with `labels`; by model.

    Of the targets whose selector fits, that which asks for most labels; among equals the newest.
    """
    chosen: dict[str, tuple[tuple[int, float, str], targets.Target]] = {}
    for target in found:
        wanted = selectors.parse(target.selector)
        if selectors.matches(wanted, labels):
            # The selector decides between two of one instant, so that the choice is always the same.
            rank = (len(wanted), target.changed_at.timestamp(), target.selector)
            if target.model not in chosen or rank > chosen[target.model][0]:
                chosen[target.model] = (rank, target)
    return [target for _, (_, target) in sorted(chosen.items())]


def trials(
    chosen: Iterable[targets.Target],
    active: Iterable[rollouts.Rollout],
    place: topics.Agent,
    labels: Mapping[str, str],
) -> list[Trial]:
    """The rollouts that expose an agent by now, `chosen` being the targets that count for it."""
    by_model = {target.model: target for target in chosen}
    found = []
    for rollout in active:
        old = by_model.get(rollout.plan.model)
        if not concerns(rollout.plan, old, labels):
            continue
        reached = rollout.plan.stages[: rollout.stage + 1]
        exposure = stages.exposure(reached, rollout.name, str(place), labels)
        if exposure is not None:
            found.append(Trial(rollout, exposure, old))
    return found


def concerns(plan: rollouts.Plan, old: targets.Target | None, labels: Mapping[str, str]) -> bool:
    """Whether the target that a rollout will write changes what an agent with `labels` serves.

    `old`: the target that counts for it now. A newer one counts before it unless it asks for fewer labels.
    """
    wanted = selectors.parse(plan.selector)
    if not selectors.matches(wanted, labels):
        return False
    return old is None or (old.version != plan.version and len(selectors.parse(old.selector)) <= len(wanted))

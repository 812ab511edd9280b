"""What is to be loaded of each model, and which of it serves who names no version: a pure decision.

Without a trial that is the version which the hub wants. In a trial both versions are loaded, so that either
can take over at once: the new one serves where the trial says so, and the old one where it does not, or where
this agent has gone back from the new one by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from edge_agent import models
from edge_agent.registry import wanted
from shared.rollouts import stages, trials


class Aims(NamedTuple):
    """What an agent works towards."""

    first: tuple[wanted.Wanted, ...] = ()
    """Of each model the package that is needed most."""
    beside: tuple[wanted.Wanted, ...] = ()
    """What is loaded beside them."""
    preferred: Mapping[str, tuple[str, ...]] = {}
    """By model, the versions that serve who names none: the first of them that is loaded does."""

    @property
    def all(self) -> tuple[wanted.Wanted, ...]:
        return self.first + self.beside


def aims(desired: wanted.Desired, own: Collection[models.Key], gone_back: Collection[str]) -> Aims:
    """The aims of an agent with models of its `own`, which has gone back from the rollouts `gone_back`."""
    first = {one.model: one for one in desired.models}
    preferred: dict[str, tuple[str, ...]] = {one.model: (one.version,) for one in desired.models}
    beside: list[wanted.Wanted] = []
    for trial in desired.trials:
        new, old = wanted.of(trial.new), old_key(trial, own)
        packages = [new] if trial.old is None else [wanted.of(trial.old), new]
        versions = [new.version] if old is None else [old.version, new.version]
        if trial.rollout in gone_back and old is not None:
            packages.remove(new)
            versions.remove(new.version)
        elif trial.mode is stages.Mode.SERVE:
            packages.reverse()
            versions.reverse()
        first.pop(trial.model, None)
        first |= {one.model: one for one in packages[:1]}
        beside += packages[1:]
        preferred[trial.model] = tuple(versions)
    return Aims(tuple(first.values()), tuple(beside), preferred)


def old_key(trial: trials.Trial, own: Collection[models.Key]) -> models.Key | None:
    """The version that a trial's new one is tried against: the hub's, else the newest of the agent's own."""
    if trial.old is not None:
        return models.Key(trial.model, trial.old.version)
    others = [key for key in own if key.name == trial.model and key.version != trial.new.version]
    return max(others, key=lambda key: models.version_order(key.version), default=None)

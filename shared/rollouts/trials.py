"""Trials: what an agent is told of a rollout that it takes part in, and the words in which it answers.

A trial stands beside the models that the agent is to serve, so all of it is kept and works at a start without
the hub. The answer is `shared.signals.TrialReport`, in telemetry.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from shared.rollouts import stages

LOCAL_MIN_RESULTS: Final = 50
"""An agent alone judges from so many results on, or from the trial's own number if that is less."""


class State(enum.StrEnum):
    """How far an agent is with the new version of a trial."""

    WAITING = "waiting"
    """Nothing was done for it yet."""
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    """Both versions are loaded, and jobs go where the exposure says."""
    REFUSED = "refused"
    """Its package cannot be used; the reason says why."""
    ROLLED_BACK = "rolled_back"
    """A gate failed here, and the agent alone went back to the old version; the reason says which."""


BACK: Final = frozenset({State.REFUSED, State.ROLLED_BACK})
"""States in which an agent will not run the new version by itself any more."""


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model, and all that is needed to fetch and verify it."""

    model: str
    version: str
    sha256: str
    """Of the package's archive."""
    size: int
    """Bytes of the archive."""
    key: str | None = None
    """The public key that it is said to be signed with; None: it is not signed."""
    signature: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout, for one agent that is exposed to it. JSON."""

    rollout: str
    """Its id, as a UUID is written: what the shares of agents and jobs are dealt by."""
    model: str
    mode: stages.Mode
    traffic: float = 100.0
    """Percent of the jobs; 0 where tags alone say which."""
    tags: stages.Tags = ()
    new: Package
    old: Package | None = None
    """None: the agent had no version of this model from the hub."""
    gates: list[str] = []
    """As `gates.known` reads them: one that a newer hub has invented is left to that hub."""
    min_results: int = 100

    @property
    def exposure(self) -> stages.Exposure:
        """How the agent is exposed, for `route.route`."""
        return stages.Exposure(self.mode, self.traffic, self.tags)

    @property
    def local_min_results(self) -> int:
        """From how many results on the agent judges by itself."""
        return min(self.min_results, LOCAL_MIN_RESULTS)

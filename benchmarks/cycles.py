"""An engine that loads models, runs them once and unloads them, again and again; in a process of its own.

It tells its memory after the cycles that it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import meters, worker
from edge_agent import engine, models, outcomes


class Look(NamedTuple):
    """This process after a cycle; MB."""

    cycle: int
    loaded_mb: float
    """Of its own, at most, while a model was loaded."""
    own_mb: float
    """When none was loaded any more."""
    resident_mb: float
    """The same, with what it shares."""


class Package(NamedTuple):
    """A model, and a file with an item for it."""

    folder: str
    content_type: str
    payload: str


def turn(machine: engine.Engine, packages: Sequence[Package], looks: Collection[int]) -> Iterator[Look]:
    """Cycle until the last look is due."""
    for cycle in range(1, max(looks) + 1):
        loaded_mb = 0.0
        for one in packages:
            model = models.load(Path(one.folder))
            machine.load(model, ["cpu"])
            work = engine.Work(one.content_type, Path(one.payload).read_bytes())
            ((made,),) = machine.run(model, [work])
            assert isinstance(made, outcomes.Prediction), made
            loaded_mb = max(loaded_mb, meters.own_mb(os.getpid()))
            machine.unload(model.key)
        if cycle in looks:
            yield Look(cycle, loaded_mb, meters.own_mb(os.getpid()), meters.resident_mb(os.getpid()))


def main() -> None:
    given: dict[str, Any] = worker.arguments()
    packages = [Package(*one) for one in given["packages"]]
    for look in turn(engine.Engine(models.Catalogue()), packages, given["looks"]):
        worker.tell(look._asdict())
    worker.hear()


if __name__ == "__main__":
    main()

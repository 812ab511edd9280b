"""Models come and go: what memory they leave behind, and whether a job is lost when versions change.

Each model is loaded, run once and unloaded in a fresh process, fifty times, and then all of them in turn in
one. Memory must be flat: what is the process's own after the last cycle is no more than `BOUND_MB` above that
after the first. Then versions are swapped under a stream of jobs, see `benchmarks.swaps`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import cycles, figures, subjects, swaps, texts, worker

BOUND_MB: Final = 4.0
"""More of it after the last cycle than after the first is a leak."""
MADE: Final = frozenset({"dense", "tabular"})
"""Subjects that are not real models."""
ALL: Final = "all in turn"


@dataclass(frozen=True)
class Sizes:
    """After which cycles to look, and swaps under load."""

    looks: tuple[int, ...] = (1, 10, 50)
    models: frozenset[str] | None = None
    """Only these; None for all."""
    swaps: swaps.Sizes = swaps.USUAL


QUICK: Final = Sizes(looks=(1, 3, 6), models=frozenset({"surface-defects"}), swaps=swaps.QUICK)


async def cycle(chosen: Sequence[subjects.Subject], looks: Sequence[int]) -> list[cycles.Look]:
    """Load and unload these in one process, and look at its memory."""
    with tempfile.TemporaryDirectory() as folder:
        packages = [_package(one, Path(folder)) for one in chosen]
        given = {"packages": packages, "looks": list(looks)}
        async with worker.Worker("benchmarks.cycles", given) as child:
            return [cycles.Look(**await child.hear()) for _ in looks]


def _package(subject: subjects.Subject, directory: Path) -> cycles.Package:
    work = subject.work[0]
    payload = directory / subject.name
    payload.write_bytes(work.payload)
    return cycles.Package(str(subject.folder), work.content_type, str(payload))


def grown_mb(looks: Sequence[cycles.Look]) -> float:
    """By how much the process's own memory has grown from the first look to the last."""
    return looks[-1].own_mb - looks[0].own_mb


def real(directory: Path) -> Iterator[subjects.Subject]:
    """The real models that are here, in folders of `directory`."""
    yield from (one for one in subjects.lay_out(directory) if one.name not in MADE)
    yield from texts.lay_out(directory)


async def measure(options: figures.Options) -> dict[str, Any]:
    """Measure, print the tables, return the figures. AssertionError where memory grew or a job was lost."""
    sizes = QUICK if options.quick else Sizes()
    with tempfile.TemporaryDirectory(prefix="backhaul-loading-") as folder:
        chosen = [one for one in real(Path(folder)) if sizes.models is None or one.name in sizes.models]
        found = {one.name: await cycle([one], sizes.looks) for one in chosen}
        if len(chosen) > 1:
            found[ALL] = await cycle(chosen, sizes.looks)
    _report(found, sizes.looks)
    leaking = [name for name, looks in found.items() if grown_mb(looks) > BOUND_MB]
    assert not leaking, f"memory grew by more than {BOUND_MB:g} MB with {', '.join(leaking)}"
    swapped = await swaps.measure(sizes.swaps)
    swaps.report(swapped)
    return {"memory": _figures(found), "swaps": swapped.figures()}


def _report(found: Mapping[str, Sequence[cycles.Look]], looked: Sequence[int]) -> None:
    figures.show(
        f"Memory of a process that loads and unloads models {looked[-1]} times, MB",
        ("model", *(f"after {number}" for number in looked), "grown", "while loaded", "resident at last"),
        (
            (
                name,
                *(f"{look.own_mb:.1f}" for look in looks),
                f"{grown_mb(looks):+.1f}",
                f"{max(look.loaded_mb for look in looks):.1f}",
                f"{looks[-1].resident_mb:.1f}",
            )
            for name, looks in found.items()
        ),
        (
            "Of the process's own (anonymous); the last column has what it shares as well.",
            f"Flat: grown by no more than {BOUND_MB:g} MB.",
        ),
    )


def _figures(found: Mapping[str, Sequence[cycles.Look]]) -> dict[str, Any]:
    return {
        name: {
            **{f"after_{look.cycle}_mb": round(look.own_mb, 1) for look in looks},
            "grown_mb": round(grown_mb(looks), 1),
            "resident_mb": round(looks[-1].resident_mb, 1),
        }
        for name, looks in found.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options(
        "loading", "memory that models leave behind, and jobs while versions change", argv
    )
    figures.save(options.json, "loading", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the benchmarks have in common: the command line, medians, the printed table, the file of figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS = 3
"""The ways are measured in turn, so often, and medians are taken: a machine's pace drifts."""

Figures = Mapping[str, Any]
"""Numbers by name, or such mappings again."""


@dataclass(frozen=True)
class Options:
    """What the caller of a benchmark may choose."""

    quick: bool
    """Sizes that end in seconds: to see that it works, not what it measures."""
    json: Path | None
    """Where the figures go."""

    @property
    def rounds(self) -> int:
        return 1 if self.quick else ROUNDS


def options(name: str, what: str, argv: Sequence[str] | None = None) -> Options:
    """The command line of the benchmark `name`, which measures `what`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=what)
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write the figures there, under {name!r}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: a look whether it works")
    given = parser.parse_args(argv)
    try:
        _known(given.json)
    except (OSError, ValueError) as wrong:  # now, rather than when all is measured
        parser.error(f"--json {given.json} is there and holds no figures: {wrong}")
    return Options(given.quick, given.json)


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the `ordered` ones lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def significant(value: float, digits: int = 3) -> float:
    """`value` with so many significant digits: what a measurement is worth, and no more."""
    return float(f"{value:.{digits}g}")


def save(path: Path | None, name: str, figures: Figures) -> None:
    """Put the figures into the JSON file at `path` under `name`, beside what other benchmarks put there."""
    if path is None:
        return
    path.write_text(json.dumps({**_known(path), name: dict(figures)}, indent=2) + "\n", encoding="utf-8")


def _known(path: Path | None) -> dict[str, Any]:
    """What other benchmarks put there; nothing where there is no file."""
    known: dict[str, Any] = {}
    if path is not None and path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    return known


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], remarks: Iterable[str]) -> None:
    """Print a table; the first column is of words, the others are of numbers."""
    from rich import box, console, table  # not there where only the agent is installed

    printed = table.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        printed.add_column(column, justify="right" if place else "left")
    for row in rows:
        printed.add_row(*row)
    output = console.Console(width=120, highlight=False)
    output.print(printed)
    for remark in remarks:
        output.print(f"  {remark}")
    output.print(f"  {machine()}\n")


def machine() -> str:
    """Where this was measured."""
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {system}"

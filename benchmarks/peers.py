"""Other task queues beside Backhaul: no-op tasks of 2 KB through one worker, everybody durable.

For each way tasks are queued first, in the fastest way that it has for many; then one worker starts, and the
clock runs from its first completion to its last. PostgreSQL writes through at each commit, Valkey once a
second. After each run the store is asked whether every task is done.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich import markup

from benchmarks import figures, through
from benchmarks.queues import peer, way
from demo import servers

OURS: Final = "backhaul"
"""The name of the way that the others are compared with."""
QUICK: Final = 300
"""Tasks of each way, for a look whether it works."""
INSTALL: Final = ".venv/bin/pip install -c constraints.txt -e '.[bench]'"


def ways(place: way.Place) -> list[way.Way]:
    """All ways that can be measured here, in the order of the table."""
    return [
        through.Through(place),
        *(peer.Peer(kind, place) for kind in peer.KINDS if kind.installed),
    ]


async def measure(options: figures.Options) -> dict[str, float | int]:
    """Run all ways in turn, print the table, return tasks a second by way."""
    with tempfile.TemporaryDirectory(prefix="backhaul-peers-") as folder:
        directory = Path(folder)
        async with (
            servers.Postgres(directory / "postgres") as postgres,
            servers.Valkey(directory / "valkey") as valkey,
        ):
            compared = ways(way.Place(directory, postgres, valkey))
            runs: dict[str, list[way.Run]] = {one.name: [] for one in compared}
            for _ in range(options.rounds):
                for one in compared:
                    runs[one.name].append(await one.measure(QUICK if options.quick else one.count))
    return _report({one.name: one.title for one in compared}, runs)


def _report(titles: Mapping[str, str], runs: Mapping[str, Sequence[way.Run]]) -> dict[str, float | int]:
    rates = {name: figures.median(run.tasks_per_s for run in its) for name, its in runs.items()}

    def row(name: str) -> tuple[str, ...]:
        submitted = figures.median(run.submitted_per_s for run in runs[name])
        costs = [run.cpu_s for run in runs[name] if run.cpu_s is not None]
        return (
            titles[name],
            f"{submitted:,.0f}",
            f"{rates[name]:,.0f}",
            f"{rates[OURS] / rates[name]:.2f} x" if OURS in rates and name != OURS else "-",
            f"{figures.median(costs):.2f}" if costs else "-",
        )

    figures.show(
        "No-op tasks of 2 KB through one worker",
        ("way", "submitted/s", "tasks/s", "Backhaul is", "CPU s per 1,000"),
        [row(name) for name in titles],
        _remarks(),
    )
    return {name: round(rate) for name, rate in rates.items()}


def _remarks() -> list[str]:
    remarks = [
        "Medians. Tasks are queued first; tasks/s is from the first completion to the last. CPU is of the",
        "worker and the store meanwhile. PostgreSQL has fsync on and is analyzed once the tasks are queued;",
        "Valkey's append-only file is written through once a second. taskiq and Celery keep no results.",
    ]
    missing = [kind.name for kind in peer.KINDS if not kind.installed]
    if missing:
        remarks.append(markup.escape(f"Not installed: {', '.join(missing)}: {INSTALL}"))
    return remarks


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options("peers", "other task queues beside Backhaul", argv)
    figures.save(options.json, "peers", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

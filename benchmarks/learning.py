"""What learning the size of batches brings an agent: `[batching] learn` on and off, by turns.

The same agent, broker and driver as in `benchmarks.edge`, with its model, of which batches are worth while,
and with the demo's, of which they are not. Without learning the manifest's bounds are the rule: whole
batches, and always the whole delay. Each pair is compared by itself, and who is first changes from pair to
pair; CPU time stands beside the rate, because neighbours disturb it less than the clock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import edge, figures, pictures
from demo import servers

PAIRS: Final = 6
IN_FLIGHT: Final = (64, 8)
FAST: Final = edge.Sizes(jobs=4_000, warm=4_000)
SLOW: Final = edge.Sizes(jobs=400, warm=200)
"""For the demo's model, which takes milliseconds."""
QUICK: Final = edge.Sizes(jobs=100, warm=50)


class Pair(NamedTuple):
    """Two runs, one after the other."""

    learnt: edge.Run
    fixed: edge.Run

    @property
    def rate(self) -> float:
        """How much faster learning is: jobs a second by jobs a second."""
        return self.learnt.jobs_per_s / self.fixed.jobs_per_s

    @property
    def cpu(self) -> float:
        """What it costs: the agent's CPU time for a job by the same."""
        return self.learnt.cpu_ms["service"] / self.fixed.cpu_ms["service"]

    @property
    def p50(self) -> float:
        return self.learnt.p50_ms / self.fixed.p50_ms

    @property
    def p99(self) -> float:
        return self.learnt.p99_ms / self.fixed.p99_ms


def without_learning(models: Path, copy: Path) -> Path:
    """A copy of a folder of models, whose manifests all have a table `batching`, with it turned off."""
    shutil.copytree(models, copy)
    for manifest in copy.glob("*/model.toml"):
        text = manifest.read_text(encoding="utf-8")
        off = text.replace("[batching]\n", "[batching]\nlearn = false\n")
        assert off != text, f"{manifest} has no table [batching]"
        manifest.write_text(off, encoding="utf-8")
    return copy


async def pairs(directory: Path, sizes: edge.Sizes, count: int, *, demo: bool) -> tuple[str, list[Pair]]:
    """The model's name, and so many pairs of runs, with a broker of their own."""
    found: list[Pair] = []
    async with servers.Mosquitto(directory / "broker") as broker:
        bench = edge.Bench(directory, sizes, broker, demo=demo)
        fixed = without_learning(bench.material.models, directory / "fixed")
        for number in range(count):
            if number % 2:
                second = await bench.agent(fixed)
                found.append(Pair(await bench.agent(), second))
            else:
                found.append(Pair(await bench.agent(), await bench.agent(fixed)))
    return bench.material.model, found


async def measure(options: figures.Options) -> dict[str, Any]:
    """Measure the pairs of each model and number in flight, print the tables, return the figures."""
    told: dict[str, Any] = {}
    both = ((False, FAST), (True, SLOW)) if pictures.TILES.is_dir() else ((True, SLOW),)
    for demo, usual in both:
        for in_flight in IN_FLIGHT:
            sizes = dataclasses.replace(QUICK if options.quick else usual, in_flight=in_flight)
            with tempfile.TemporaryDirectory(prefix="backhaul-learning-") as folder:
                model, found = await pairs(Path(folder), sizes, 1 if options.quick else PAIRS, demo=demo)
            told[f"{model}_{in_flight}"] = _report(f"{model}, {in_flight} jobs in flight", found)
    return told


def _report(title: str, found: Sequence[Pair]) -> dict[str, Any]:
    ratios = {
        name: [getattr(pair, name) for pair in found]
        for name in ("rate", "cpu", "p50", "p99")  # of Pair
    }
    middle = {name: figures.median(values) for name, values in ratios.items()}
    figures.show(
        f"An edge agent that learns its batches' size, and one that does not: {title}",
        ("pair", "jobs/s", "not learnt", "ratio", "CPU", "p50 ms", "not learnt", "p99 ms", "not learnt"),
        [
            *(
                (
                    str(number),
                    *(f"{pair.learnt.jobs_per_s:,.0f}", f"{pair.fixed.jobs_per_s:,.0f}"),
                    *(f"{pair.rate:.2f}", f"{pair.cpu:.2f}"),
                    *(f"{pair.learnt.p50_ms:.1f}", f"{pair.fixed.p50_ms:.1f}"),
                    *(f"{pair.learnt.p99_ms:.1f}", f"{pair.fixed.p99_ms:.1f}"),
                )
                for number, pair in enumerate(found, 1)
            ),
            (
                *("median", "", ""),
                *(f"{middle['rate']:.2f}", f"{middle['cpu']:.2f}"),
                *(f"x {middle['p50']:.2f}", "", f"x {middle['p99']:.2f}", ""),
            ),
        ],
        ("Ratios are of learning to not learning; CPU is the agent's, for a job.",),
    )
    return {
        "ratio": figures.significant(middle["rate"]),
        "cpu_ratio": figures.significant(middle["cpu"]),
        "p50_ratio": figures.significant(middle["p50"]),
        "p99_ratio": figures.significant(middle["p99"]),
        "pairs": [figures.significant(value) for value in ratios["rate"]],
    }


def main(argv: Sequence[str] | None = None) -> int:
    options = figures.options(
        "learning", "an agent that learns its batches' size, and one that does not", argv
    )
    figures.save(options.json, "learning", asyncio.run(measure(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

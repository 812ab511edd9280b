"""Items through an agent's engine, decoding and answers included, beside a bare loop of `session.run`.

One thread on the CPU. The engine gets encoded payloads, its batches have the size that an agent would choose
by what it measures, and predictions come out; the bare loop has its arrays already, and the size at which
it is fastest. They take turns. Then the whole agent, asked over HTTP, beside libraries made for serving: see
`benchmarks.served`.

    python -m benchmarks.engine --gpu --graph resnet50.onnx     on a machine with a GPU, see `benchmarks.gpu`
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures, gpu, loops
from edge_agent import engine, models


@dataclass(frozen=True)
class Times:
    """Seconds."""

    learn: float = 4.0
    """For the engine to find its size, before the clock runs."""
    look: float = 0.3
    """For each size of the bare loop."""
    turn: float = 1.0
    """For each of the two, each time it is its turn."""
    turns: int = 5


QUICK = Times(learn=0.1, look=0.02, turn=0.1, turns=1)


@dataclass(frozen=True)
class Compared:
    """Medians of the turns."""

    items_per_s: float
    p50_ms: float
    """Of a batch, from its payloads to its predictions."""
    p99_ms: float
    size: int
    """Of the batches, as the engine chose at last."""
    bare_per_s: float
    bare_size: int

    @property
    def ratio_to_bare(self) -> float:
        return self.items_per_s / self.bare_per_s


def compare(folder: Path, work: Sequence[engine.Work], times: Times) -> Compared:
    """Both ways in turn, with the package in `folder` and payloads for at least one batch."""
    model = models.load(folder)
    machine = engine.Engine(models.Catalogue())
    try:
        machine.load(model, ["cpu"])

        def served() -> int:
            size = machine.sizing(model).take(len(work), None)
            machine.run(model, work[:size])
            return size

        sizes = [1 << power for power in range(model.max_batch.bit_length())]
        bare = {size: bare_loop(model, size) for size in sizes}
        loops.pace(served, times.learn)
        best = max(sizes, key=lambda size: loops.pace(bare[size], times.look).items_per_s)
        turns = [
            (loops.pace(served, times.turn), loops.pace(bare[best], times.turn)) for _ in range(times.turns)
        ]
        return Compared(
            items_per_s=figures.median(one.items_per_s for one, _ in turns),
            p50_ms=figures.median(one.ms(0.5) for one, _ in turns),
            p99_ms=figures.median(one.ms(0.99) for one, _ in turns),
            size=machine.sizing(model).size,
            bare_per_s=figures.median(other.items_per_s for _, other in turns),
            bare_size=best,
        )
    finally:
        machine.close()


def bare_loop(model: models.Model, size: int) -> Callable[[], int]:
    """Runs the same batch again and again, on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(1)
    feeds = {one.name: chance.random((size, *one.shape)).astype(one.dtype) for one in model.manifest.inputs}

    def run() -> int:
        session.run(None, feeds)
        return size

    return run


def measure(options: figures.Options) -> dict[str, Any]:
    """Compare for every subject, then over HTTP with others; print the tables, return the figures."""
    from benchmarks import served, subjects  # not there where only the agent is installed

    with tempfile.TemporaryDirectory(prefix="backhaul-engine-") as directory:
        told = {
            subject.name: compare(subject.folder, subject.work, QUICK if options.quick else Times())
            for subject in subjects.lay_out(Path(directory))
        }
    figures.show(
        "Items through an engine on one thread, decoding included, and a bare loop of the run alone",
        ("model", "items/s", "of the bare loop", "size", "p50 ms", "p99 ms", "bare items/s", "size"),
        (
            (
                name,
                *(f"{one.items_per_s:,.0f}", f"{one.ratio_to_bare:.2f}", f"{one.size}"),
                *(f"{one.p50_ms:.2f}", f"{one.p99_ms:.2f}", f"{one.bare_per_s:,.0f}", f"{one.bare_size}"),
            )
            for name, one in told.items()
        ),
        ("Medians. Milliseconds are of a batch, from its payloads to its predictions.",),
    )
    own = {
        name: {
            "items_per_s": round(one.items_per_s),
            "ratio_to_bare": figures.significant(one.ratio_to_bare),
            "p50_ms": figures.significant(one.p50_ms),
            "p99_ms": figures.significant(one.p99_ms),
        }
        for name, one in told.items()
    }
    return {**own, "peers": asyncio.run(served.measure(options))}


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if "--gpu" in given:
        given.remove("--gpu")
        return gpu.main(given)
    options = figures.options("engine", "items through an engine; with --gpu on a GPU", given)
    figures.save(options.json, "engine", measure(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

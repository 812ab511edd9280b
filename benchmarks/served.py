"""One model over HTTP: the agent's port for the Open Inference Protocol, and libraries made for serving.

All are the real programs with one inference thread, asked in turn, by the same client, with the same bytes.
The agent commits each request to its journal before it runs and each answer before it is given; the others
keep nothing.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from rich import markup

from benchmarks import figures, meters, peers, subjects, worker
from benchmarks.serving import way
from edge_agent import engine, models
from shared import jobs

CONNECTIONS: Final = 64
OURS: Final = way.Agent()


@dataclass(frozen=True)
class Sizes:
    """Requests of each way in each round, and those before the clock runs."""

    warm: int = 1_000
    count: int = 4_000
    models: tuple[str, ...] = ("surface-defects", "bsd-pitting", "dense")
    """Of those that an engine is measured with: pictures, and rows of which a batch is worth while."""


QUICK: Final = Sizes(warm=64, count=100, models=("surface-defects",))


@dataclass(frozen=True)
class Run:
    """One measurement of one way."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU milliseconds for a request: of the server, with all its processes."""


def ways() -> list[way.Way]:
    """Ours, then those that are installed."""
    return [OURS, *(kind for kind in way.KINDS if kind.installed)]


async def measure(options: figures.Options) -> dict[str, Any]:
    """Run all ways in turn for each model, print the tables, return the figures by model and way."""
    sizes = QUICK if options.quick else Sizes()
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="backhaul-served-") as folder:
        for question in _questions(Path(folder), sizes.models):
            runs: dict[str, list[Run]] = {one.name: [] for one in ways()}
            said: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for one in ways():
                    with tempfile.TemporaryDirectory(dir=folder) as home:
                        async with one.serving(question, Path(home)) as served:
                            said[one.name] = await way.answer(served, question)
                            runs[one.name].append(await _ask(served, question, sizes))
            for name, numbers in said.items():
                np.testing.assert_allclose(numbers, said[OURS.name], rtol=1e-4, atol=1e-5, err_msg=name)
            told[question.model.name] = _report(question.model.name, runs)
    return told


def _questions(directory: Path, names: Collection[str]) -> Iterator[way.Question]:
    """The models of these names that are here, each alone in a folder of models, with what they are asked."""
    packages = directory / "models"
    packages.mkdir()
    for subject in subjects.lay_out(packages):
        if subject.name in names:
            alone = directory / subject.name
            alone.mkdir()
            model = models.load(subject.folder.rename(alone / subject.name))
            bodies = directory / f"{subject.name}.jsonl"
            bodies.write_bytes(b"\n".join(_body(model, one) for one in subject.work))
            yield way.Question(model, bodies)


def _body(model: models.Model, work: engine.Work) -> bytes:
    """The request in JSON, on one line; a picture goes in base64."""
    if work.content_type == jobs.JSON:
        return work.payload
    (given,) = model.manifest.inputs
    picture = base64.b64encode(work.payload).decode()
    tensor = {"name": given.name, "shape": [1], "datatype": "BYTES", "data": [picture]}
    return msgspec.json.encode({"inputs": [tensor]})


async def _ask(served: way.Serving, question: way.Question, sizes: Sizes) -> Run:
    given = {"port": served.port, "path": served.path, "bodies": str(question.bodies)}
    given |= {"connections": CONNECTIONS, "warm": sizes.warm, "count": sizes.count}
    async with worker.Worker("benchmarks.serving.client", given) as client:
        await client.hear()
        client.say({"go": True})
        await client.hear()  # warm
        meter = meters.Cpu(served.pid)
        told = await client.hear()
        cpu_s = meter.seconds()
    return Run(told["per_s"], told["p50_ms"], told["p99_ms"], 1000 * cpu_s / sizes.count)


def _report(model: str, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    titles = {one.name: one.title for one in ways()}
    middle = {
        name: Run(
            per_s=figures.median(run.per_s for run in its),
            p50_ms=figures.median(run.p50_ms for run in its),
            p99_ms=figures.median(run.p99_ms for run in its),
            cpu_ms=figures.median(run.cpu_ms for run in its),
        )
        for name, its in runs.items()
    }
    ours = middle[OURS.name].per_s
    missing = [kind.name for kind in way.KINDS if not kind.installed]
    figures.show(
        f"{model} over HTTP, one inference thread, {CONNECTIONS} requests at any time",
        ("server", "items/s", "the agent is", "p50 ms", "p99 ms", "CPU ms an item"),
        (
            (
                titles[name],
                f"{run.per_s:,.0f}",
                "-" if name == OURS.name else f"{ours / run.per_s:.2f} x",
                *(f"{run.p50_ms:.1f}", f"{run.p99_ms:.1f}", f"{run.cpu_ms:.2f}"),
            )
            for name, run in middle.items()
        ),
        [
            "Medians. The agent commits requests and answers to its journal; the others keep nothing.",
            *([markup.escape(f"Not installed: {', '.join(missing)}: {peers.INSTALL}")] if missing else []),
        ],
    )
    return {
        name: {
            "items_per_s": round(run.per_s),
            "p50_ms": figures.significant(run.p50_ms),
            "p99_ms": figures.significant(run.p99_ms),
            "cpu_ms_per_item": figures.significant(run.cpu_ms),
            "ratio": figures.significant(ours / run.per_s),
        }
        for name, run in middle.items()
    }

"""Tries a model package as an agent would run it, and says what came of it: `backhaul models check`.

A process of its own, so that what it weighs is the model's own weight:

    python -m edge_agent.trial PACKAGE [--sample FILE] [--provider NAME] [--threads N] [--python] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec

from shared import jobs, manifests, packages

if TYPE_CHECKING:
    from edge_agent import engine, models, runtime

RUNS: Final = 200
"""Of each batch size, at most, and for so long:"""
SECONDS: Final = 1.0
FEWEST: Final = 5

SAMPLES: Final = {
    ".png": jobs.PNG,
    ".jpg": jobs.JPEG,
    ".jpeg": jobs.JPEG,
    ".json": jobs.JSON,
    ".arrow": jobs.ARROW,
    ".arrows": jobs.ARROW,
}


class Failed(Exception):
    """The package cannot be used; the message says why."""


class Tensor(msgspec.Struct, frozen=True):
    """An input or an output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of one item."""


class Speed(msgspec.Struct, frozen=True):
    """How long batches of one size take."""

    batch: int
    p50_ms: float
    p99_ms: float
    items_per_s: float
    runs: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial."""

    model: str
    version: str
    sha256: str
    """Of the package's archive, as it would be pushed."""
    bytes: int
    files: int
    runtime: str
    provider: str
    """That really ran it."""
    wanted: str
    reason: str | None
    """Why it was not the one that was wanted."""
    inputs: list[Tensor]
    outputs: list[Tensor]
    load_s: float
    """To open it and to warm it up."""
    memory_mb: float
    """That the process grew by."""
    speeds: list[Speed]
    sample: list[dict[str, Any]]
    """What became of the sample's items; nothing without a sample."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 1 for a package that cannot be used."""
    given = _parser().parse_args(argv)
    try:
        with _folder(given.package) as folder:
            report = run(
                folder,
                sample=given.sample,
                provider=given.provider,
                threads=given.threads,
                python=given.python,
            )
    except packages.BadArchive as error:
        print(f"backhaul: {given.package}: {error}", file=sys.stderr)
        return 1
    except (Failed, manifests.BadPackage) as error:
        print(f"backhaul: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"backhaul: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(msgspec.json.encode(report).decode() if given.json else readable(report))
    return int(any("error" in item for item in report.sample))


def run(
    folder: Path,
    *,
    sample: Path | None = None,
    provider: str | None = None,
    threads: int = 1,
    python: bool = False,
) -> Report:
    """Load the package in `folder`, run it at every batch size, and its sample. Raises Failed, BadPackage.

    A sample is `sample`, or a file of that name in the package: sample.png, sample.json and the like.
    """
    try:
        import numpy as np

        from edge_agent import decode, engine, loading, models, runtime
    except ImportError as error:
        raise Failed(f"{error.name} is not installed here; install backhaul[edge]") from None

    with Path(os.devnull).open("wb") as nowhere:
        packed = packages.pack(folder, nowhere)
    model = models.load(folder)
    order = loading.order(model, provider or "auto")
    opener = runtime.opener(threads=threads, python=python)
    opened: list[runtime.Runtime] = []

    def open_(model: models.Model, order: Sequence[str]) -> runtime.Runtime:
        opened.append(opener(model, order))
        return opened[0]

    _preload(model.manifest)
    before, began = _resident_mb(), time.perf_counter()
    machine = engine.Engine(models.Catalogue(), opener=open_)
    try:
        status = machine.load(model, order)
    except (runtime.BadGraph, runtime.RunFailed, engine.WarmUpFailed) as error:
        raise Failed(str(error)) from None
    load_s = time.perf_counter() - began
    speeds, outputs = [], []
    for count in _sizes(model.max_batch):
        batch = {name: np.zeros_like(array) for name, array in decode.allocate(model, count).arrays.items()}
        speeds.append(_speed(opened[0], batch, count))
        outputs = [
            Tensor(name, str(array.dtype), tuple(array.shape[1:]))
            for name, array in zip(model.manifest.tensors, opened[0].run(batch), strict=True)
        ]
    memory_mb = _peak_mb() - before
    return Report(
        model=model.name,
        version=model.version,
        sha256=packed.sha256,
        bytes=packed.size,
        files=packed.files,
        runtime=status.runtime,
        provider=status.provider,
        wanted=status.wanted,
        reason=status.reason,
        inputs=[Tensor(one.name, one.dtype, tuple(one.shape)) for one in model.manifest.inputs],
        outputs=outputs,
        load_s=round(load_s, 3),
        memory_mb=round(max(0.0, memory_mb), 1),
        speeds=speeds,
        sample=_run_sample(machine, model, sample or _own_sample(folder)),
    )


def readable(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.model}@{report.version}: {report.files} files, {report.bytes:,} bytes, "
        f"SHA-256 {report.sha256}",
        f"  runs on    {report.provider} of {report.runtime}"
        + ("" if report.provider == report.wanted else f" (wanted {report.wanted}: {report.reason})"),
        f"  loaded in  {report.load_s:.2f} s, and takes {report.memory_mb:,.0f} MB",
        *(f"  input      {_tensor(one)}" for one in report.inputs),
        *(f"  output     {_tensor(one)}" for one in report.outputs),
        *(
            f"  batch {speed.batch:<4} p50 {speed.p50_ms:,.2f} ms, p99 {speed.p99_ms:,.2f} ms, "
            f"{speed.items_per_s:,.0f} items/s"
            for speed in report.speeds
        ),
        *(f"  sample     {_verdict(item)}" for item in report.sample),
    ]
    return "\n".join(lines)


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype} {['batch', *tensor.shape]}".replace("'", "")


def _verdict(item: dict[str, Any]) -> str:
    if "error" in item:
        return f"failed: {item['error']}"
    said = [str(item[name]) for name in ("label", "score") if item[name] is not None]
    return " ".join(said) or json.dumps(item["output"])[:200]


def _sizes(largest: int) -> list[int]:
    """1, 2, 4 and so on, and the largest batch itself."""
    powers = [1 << power for power in range(largest.bit_length())]
    return sorted({*powers, largest})


def _speed(opened: runtime.Runtime, batch: runtime.Batch, count: int) -> Speed:
    opened.run(batch)
    took: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(took) < RUNS and (len(took) < FEWEST or time.perf_counter() < until):
        began = time.perf_counter()
        opened.run(batch)
        took.append(time.perf_counter() - began)
    took.sort()
    p50, p99 = (took[min(len(took) - 1, int(len(took) * share))] for share in (0.5, 0.99))
    return Speed(
        count, round(p50 * 1e3, 3), round(p99 * 1e3, 3), round(count * len(took) / sum(took), 1), len(took)
    )


def _run_sample(machine: engine.Engine, model: models.Model, sample: Path | None) -> list[dict[str, Any]]:
    """What becomes of each of its items, as results have it."""
    if sample is None:
        return []
    from edge_agent import engine, outcomes

    try:
        job = jobs.parse(str(model), sample.read_bytes(), SAMPLES.get(sample.suffix.lower()))
    except jobs.Rejected as error:
        raise Failed(f"{sample}: {error}") from None
    (made,) = machine.run(model, [engine.Work(job.content_type, job.payload, job.items)])
    return [
        {"error": one.reason}
        if isinstance(one, outcomes.ItemFailed)
        else {
            "label": one.label,
            "score": one.score,
            "output": None if one.output is None else msgspec.json.decode(one.output),
        }
        for one in made
    ]


def _own_sample(folder: Path) -> Path | None:
    return next((path for suffix in SAMPLES if (path := folder / f"sample{suffix}").is_file()), None)


@contextlib.contextmanager
def _folder(package: Path) -> Iterator[Path]:
    """The folder of a package, unpacked for as long as the block lasts if it is an archive."""
    if package.is_dir():
        yield package
        return
    with tempfile.TemporaryDirectory(prefix="backhaul-") as name, package.open("rb") as source:
        folder = Path(name) / "package"
        packages.unpack(source, folder)
        yield folder


def _preload(manifest: manifests.Manifest) -> None:
    """Load what any model of this kind needs, so that it is not taken for this one's weight."""
    if isinstance(manifest.runtime, manifests.Onnx):
        try:
            import onnxruntime
        except ImportError as error:
            raise Failed(f"{error.name} is not installed here; install backhaul[edge]") from None
        onnxruntime.get_available_providers()


def _resident_mb() -> float:
    """What the process holds of memory now; 0 where the system does not say."""
    return _status_mb("VmRSS")


def _peak_mb() -> float:
    """What it held at most."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.trial", description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--sample", type=Path)
    parser.add_argument("--provider", choices=get_args(manifests.Provider))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())

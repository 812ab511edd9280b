"""Model packages to measure an engine with, and payloads that they take.

The demo's classifier; where `../shared/data` is beside the repository, its classifier and its autoencoder;
and two that are made here: `dense`, a millisecond of multiplying with weights that a batch reads but once,
and `tabular`, some microseconds for a row of sixteen numbers.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks import pictures
from edge_agent import engine
from shared import jobs

MAX_BATCH: Final = 32
MACHINE: Final = pictures.REPOSITORY.parent / "shared" / "data" / "machine-temperature"

_MANIFEST: Final = """\
name = "{name}"
version = "1"
file = "{file}"
[[inputs]]
name = "{input}"
kind = "tensor"
shape = [{width}]
[[outputs]]
name = "{output}"
kind = "raw"
[batching]
max_batch = {most}
[providers]
order = ["cpu"]
"""


@dataclass(frozen=True)
class Subject:
    """A model package, and payloads of one item each."""

    folder: Path
    work: list[engine.Work]

    @property
    def name(self) -> str:
        return self.folder.name


def lay_out(directory: Path) -> Iterator[Subject]:
    """Put the packages into folders of `directory`."""
    drawn = pictures.draw(pixels=128, count=MAX_BATCH)
    yield Subject(Path(shutil.copytree(pictures.DEMO, directory / "surface-defects")), _pictures(drawn))
    if pictures.TILES.is_dir():
        folder = directory / "bsd-pitting"
        folder.mkdir()
        (folder / "model.toml").write_text(pictures.MANIFEST, encoding="utf-8")
        shutil.copy(pictures.TILES / "bsd_pitting_64.onnx", folder)
        yield Subject(folder, _pictures(pictures.load(pictures.TILES)[:MAX_BATCH]))
    if MACHINE.is_dir():
        folder = directory / "machine-temperature"
        _manifest(folder, "machine_temp_ae.onnx", "window", 48, "score")
        shutil.copy(MACHINE / "machine_temp_ae.onnx", folder)
        yield Subject(folder, _rows("window", 48))
    for name, widths in (("dense", (64, 1024, 1024, 1024, 1024, 8)), ("tabular", (16, 32, 1))):
        folder = directory / name
        _manifest(folder, "model.onnx", "x", widths[0], "y")
        _layers(folder / "model.onnx", widths)
        yield Subject(folder, _rows("x", widths[0]))


def _pictures(encoded: list[bytes]) -> list[engine.Work]:
    return [engine.Work(jobs.PNG, one) for one in encoded]


def _rows(name: str, width: int) -> list[engine.Work]:
    rows = np.random.default_rng(1).random((MAX_BATCH, width), np.float32)
    tensor: dict[str, Any] = {"name": name, "shape": [1, width], "datatype": "FP32"}
    return [
        engine.Work(jobs.JSON, msgspec.json.encode({"inputs": [{**tensor, "data": row.tolist()}]}))
        for row in rows
    ]


def _manifest(folder: Path, file: str, given: str, width: int, gives: str) -> None:
    folder.mkdir()
    text = _MANIFEST.format(
        name=folder.name, file=file, input=given, width=width, output=gives, most=MAX_BATCH
    )
    (folder / "model.toml").write_text(text, encoding="utf-8")


def _layers(path: Path, widths: tuple[int, ...]) -> None:
    """A graph of matrices one after the other, each followed by a ReLU."""
    import onnx  # not there where the agent is installed

    chance = np.random.default_rng(1)
    nodes, weights = [], []
    last = "x"
    for number, (rows, columns) in enumerate(itertools.pairwise(widths)):
        matrix = (chance.random((rows, columns), np.float32) - 0.5) * np.float32(2 / rows**0.5)
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{number}"))
        nodes.append(onnx.helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]))
        last = "y" if number == len(widths) - 2 else f"x{number}"
        nodes.append(onnx.helper.make_node("Relu", [f"m{number}"], [last]))
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", widths[0]), ("y", widths[-1]))
    ]
    graph = onnx.helper.make_graph(nodes, path.parent.name, ends[:1], ends[1:], weights)
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)

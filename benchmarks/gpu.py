"""Items through an agent's engine on a GPU, by provider and batch size, beside its bare runs.

    python -m benchmarks.engine --gpu --graph resnet50-fp32.onnx --graph resnet50-fp16.onnx

Needs what the engine itself imports, and no more: numpy, onnxruntime (its GPU build), msgspec, pillow. The
graphs are given: one input, its first dimension the batch, all else fixed, and no weights in other files.
Whether one runs in fp32 or fp16 is its own affair; its type is printed. A graph that takes pictures gets
JPEGs of their size, another one its numbers as bytes.

Threads decode and run beside each other, as an agent's do; the bare loop has its arrays already. The bound
loop has places on the device for input and outputs (IOBinding), made once, and copies into them and out of
them.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks import loops
from edge_agent import engine, models, runtime, sessions
from edge_agent.oip import messages, tensors
from shared import jobs

SIZES: Final = (8, 16, 32, 64, 128)
PROVIDERS: Final = ("cuda", "tensorrt")

_MANIFEST: Final = """\
name = "{name}"
version = "1"
[[inputs]]
name = "{input}"
{kind}
dtype = "{dtype}"
[[outputs]]
name = "{output}"
kind = "raw"
[batching]
max_batch = {most}
"""


class Row(NamedTuple):
    """A line of the table."""

    graph: str
    dtype: str
    provider: str
    size: int
    items_per_s: float
    p50_ms: float
    p99_ms: float
    bare_per_s: float
    bound_per_s: float


def rows(graph: Path, provider: str, sizes: Sequence[int], *, threads: int, seconds: float) -> Iterator[Row]:
    """Measure a graph on a provider. Raises BadGraph where that does not run it."""
    opened: list[runtime.OnnxRuntime] = []

    def open_(model: models.Model, order: Sequence[str]) -> runtime.Runtime:
        opened.append(runtime.OnnxRuntime(model, order))
        return opened[0]

    with tempfile.TemporaryDirectory(prefix="backhaul-gpu-") as directory:
        model = models.load(_package(graph, Path(directory) / "model", max(sizes)))
        machine = engine.Engine(models.Catalogue(), opener=open_)
        try:
            machine.load(model, [provider])
            (given,) = model.manifest.inputs
            work = list(_work(given.name, given.shape, given.dtype, max(sizes)))
            for size in sizes:
                batch = {given.name: np.zeros((size, *given.shape), given.dtype)}

                def served(size: int = size) -> int:
                    machine.run(model, work[:size])
                    return size

                def bare(size: int = size, batch: runtime.Batch = batch) -> int:
                    opened[0].run(batch)
                    return size

                bound = _bound(opened[0].session, provider, given.name, batch[given.name])
                for call in (served, bare, bound):
                    call()  # what a size allocates, it allocates once
                done = loops.pace(served, seconds, threads)
                alone = loops.pace(bare, seconds)
                placed = loops.pace(bound, seconds)
                yield Row(
                    *(graph.stem, given.dtype, provider, size, done.items_per_s),
                    *(done.ms(0.5), done.ms(0.99), alone.items_per_s, placed.items_per_s),
                )
        finally:
            machine.close()


def _bound(session: Any, provider: str, name: str, array: np.ndarray[Any, Any]) -> Callable[[], int]:
    """Runs the same batch again and again, by way of places on the device that are made once."""
    import onnxruntime as ort

    device = "cpu" if provider == sessions.CPU else "cuda"
    place = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, place)
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> int:
        place.update_inplace(array)
        session.run_with_iobinding(binding)
        binding.copy_outputs_to_cpu()
        return len(array)

    return run


def _package(graph: Path, folder: Path, most: int) -> Path:
    """A model package around a graph."""
    import onnxruntime as ort

    session = ort.InferenceSession(os.fspath(graph), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = given.shape[1:]
    dtype = next(name for name in ("float16", "float32", "uint8") if runtime.type_of(name) == given.type)
    kind = f'kind = "tensor"\nshape = {shape}'
    if _is_picture(shape):
        colour = "rgb" if shape[0] == 3 else "grey"
        kind = f'kind = "image"\nheight = {shape[1]}\nwidth = {shape[2]}\ncolour = "{colour}"'
    folder.mkdir()
    shutil.copy(graph, folder / "model.onnx")
    text = _MANIFEST.format(
        name="graph",
        input=given.name,
        kind=kind,
        dtype=dtype,
        output=session.get_outputs()[0].name,
        most=most,
    )
    (folder / "model.toml").write_text(text, encoding="utf-8")
    return folder


def _is_picture(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3)


def _work(name: str, shape: tuple[int, ...], dtype: str, count: int) -> Iterator[engine.Work]:
    chance = np.random.default_rng(1)
    for _ in range(count):
        if _is_picture(shape):
            yield engine.Work(jobs.JPEG, _jpeg(chance, *shape))
        else:
            array: Any = chance.random((1, *shape)).astype(dtype)
            tensor = tensors.Tensor(name, array)
            body = messages.write({}, {"inputs": [tensor]}, binary=True)
            yield engine.Work(messages.CONTENT_TYPE, messages.pack(body))


def _jpeg(chance: np.random.Generator, channels: int, height: int, width: int) -> bytes:
    """A gradient with some noise: as hard to decode as a photograph."""
    from PIL import Image

    slope = np.linspace(40, 200, width)[None, :, None]
    pixels = (slope + chance.normal(0, 10, (height, width, channels))).clip(0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def main(argv: Sequence[str]) -> int:
    """Print the table; 1 where a provider does not run a graph."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine --gpu", description=__doc__)
    parser.add_argument("--graph", type=Path, action="append", required=True, metavar="FILE")
    parser.add_argument("--providers", nargs="+", default=PROVIDERS, choices=sessions.EXECUTION_PROVIDERS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="two small batches: a look whether it works")
    given = parser.parse_args(argv)
    sizes, seconds = ((2, 4), 0.05) if given.quick else (SIZES, 3.0)
    print(f"{given.threads} threads decode and run; the bare loop is one thread")
    print(
        "graph                type     provider  batch   items/s  p50 ms  p99 ms    bare/s   bound/s  ratio"
    )
    missing = 0
    for graph in given.graph:
        for provider in given.providers:
            try:
                for row in rows(graph, provider, sizes, threads=given.threads, seconds=seconds):
                    print(
                        f"{row.graph[:20]:<20} {row.dtype:<8} {row.provider:<9} {row.size:>5} "
                        f"{row.items_per_s:>9,.0f} {row.p50_ms:>7.2f} {row.p99_ms:>7.2f} "
                        f"{row.bare_per_s:>9,.0f} {row.bound_per_s:>9,.0f} "
                        f"{row.items_per_s / row.bare_per_s:>6.2f}",
                        flush=True,
                    )
            except runtime.BadGraph as error:
                print(error, file=sys.stderr)
                missing = 1
    return missing

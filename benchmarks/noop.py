"""A task that costs nothing to run, so that what is left is the queue: 2 KB, one item, its answer is it."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Final

import msgspec
import onnx
import pyarrow as pa

MODEL: Final = "no-op"
BYTES: Final = 2048
"""Of a task's payload."""

_MANIFEST: Final = f"""
name = "{MODEL}"
version = "1"
[[inputs]]
name = "x"
kind = "tensor"
shape = [1]
[[outputs]]
name = "y"
kind = "raw"
[batching]
max_batch = 128
"""


def write_model(models: Path) -> None:
    """Put the model package into the folder `models`: a graph that hands on what it gets."""
    folder = models / MODEL
    folder.mkdir(parents=True)
    numbers = {name: _tensor(name) for name in "xy"}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], MODEL, [numbers["x"]], [numbers["y"]]
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "model.onnx")
    (folder / "model.toml").write_text(_MANIFEST, encoding="utf-8")


def _tensor(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1])


def payload() -> bytes:
    """An Open Inference Protocol v2 request of one item, filled up to `BYTES` with what does not compress."""
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.5]}
    empty = msgspec.json.encode({"inputs": [tensor], "parameters": {"filling": ""}})
    filling = base64.b64encode(random.Random(1).randbytes(BYTES)).decode()[: BYTES - len(empty)]
    return msgspec.json.encode({"inputs": [tensor], "parameters": {"filling": filling}})


def batch(count: int) -> bytes:
    """So many tasks as the Arrow stream that `POST /v1/tasks/batch` takes."""
    rows = pa.record_batch({"payload": pa.array([payload()] * count), "model": pa.array([MODEL] * count)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_batch(rows)
    return bytes(sink.getvalue())

"""Models that exist three times: as a graph, as a function's source, and as what a stranger serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.conformance import stranger

Array = npt.NDArray[Any]

DTYPES: dict[str, tuple[str, int]] = {
    "bool": ("BOOL", TensorProto.BOOL),
    "float16": ("FP16", TensorProto.FLOAT16),
    "float32": ("FP32", TensorProto.FLOAT),
    "float64": ("FP64", TensorProto.DOUBLE),
    "int8": ("INT8", TensorProto.INT8),
    "int16": ("INT16", TensorProto.INT16),
    "int32": ("INT32", TensorProto.INT32),
    "int64": ("INT64", TensorProto.INT64),
    "uint8": ("UINT8", TensorProto.UINT8),
    "uint16": ("UINT16", TensorProto.UINT16),
    "uint32": ("UINT32", TensorProto.UINT32),
    "uint64": ("UINT64", TensorProto.UINT64),
}
"""The protocol's word for each dtype, and ONNX's."""

FIXED = 4
MAX_BATCH = 8


@dataclass(frozen=True)
class Package:
    """One model. `source` is the body of a function of `batch`; all outputs are raw."""

    name: str
    dtype: str
    inputs: Mapping[str, Sequence[int]]
    outputs: Mapping[str, Sequence[int]]
    nodes: Sequence[onnx.NodeProto]
    source: str
    constants: Mapping[str, Array]
    batch: int | None = None
    """What the graph is fixed to."""

    def manifest(self, runtime: str = "") -> str:
        inputs = "".join(
            f'[[inputs]]\nname = "{name}"\nkind = "tensor"\nshape = {list(shape)}\ndtype = "{self.dtype}"\n'
            for name, shape in self.inputs.items()
        )
        outputs = "".join(f'[[outputs]]\nname = "{name}"\nkind = "raw"\n' for name in self.outputs)
        return (
            f'name = "{self.name}"\nversion = "1.0.0"\n{inputs}{outputs}'
            f'[batching]\nmax_batch = {MAX_BATCH}\n[providers]\norder = ["cpu"]\n{runtime}'
        )

    def write(self, folder: Path, runtime: str = "") -> Path:
        """The package with its graph, run as `runtime` says, a table of the manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.toml").write_text(self.manifest(runtime))
        (folder / "predict.py").write_text(f"import numpy as np\n\ndef run(batch):\n    {self.source}\n")
        if not runtime:
            onnx.save(self._graph(), folder / "model.onnx")
        return folder

    def strange(self) -> stranger.Model:
        """The same for the stranger's server, which is as strict as the graph about the batch."""
        datatype, _ = DTYPES[self.dtype]
        size = -1 if self.batch is None else self.batch
        made: dict[str, Any] = {}
        exec(f"import numpy as np\n\ndef run(batch):\n    {self.source}\n", made)
        return stranger.Model(
            {name: (datatype, [size, *shape]) for name, shape in self.inputs.items()},
            {name: (datatype, [size, *shape]) for name, shape in self.outputs.items()},
            made["run"],
        )

    def _graph(self) -> onnx.ModelProto:
        _, kind = DTYPES[self.dtype]
        size = self.batch or "batch"

        def values(named: Mapping[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(one, kind, [size, *shape]) for one, shape in named.items()]

        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "tiny", values(self.inputs), values(self.outputs), constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def same(dtype: str) -> Package:
    """Gives back what it is given."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return Package(f"same-{dtype}", dtype, {"x": (2, 3)}, {"y": (2, 3)}, [node], "return [batch['x']]", {})


TWO = Package(
    "two",
    "float32",
    {"a": (3,), "b": (3,)},
    {"sum": (3,), "product": (3,)},
    [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])],
    "return [batch['a'] + batch['b'], batch['a'] * batch['b']]",
    {},
)
"""Two inputs and two outputs."""

FOUR = Package(
    "four",
    "float32",
    {"x": (2,)},
    {"y": (2,)},
    [helper.make_node("Add", ["x", "x"], ["y"])],
    "return [batch['x'] + batch['x']]",
    {},
    batch=FIXED,
)
"""Takes four items at a time, and no other number."""

PICK = Package(
    "pick",
    "int64",
    {"place": ()},
    {"number": ()},
    [helper.make_node("Gather", ["table", "place"], ["number"], axis=0)],
    "return [np.array([10, 20, 30, 40])[batch['place']]]",
    {"table": np.array([10, 20, 30, 40], np.int64)},
)
"""Fails on a place beyond the fourth."""

ALL = [*(same(dtype) for dtype in DTYPES), TWO, FOUR, PICK]

"""What one writes to serve a graph with a library, whichever it is: one thread of ONNX Runtime.

Requests and answers have the form of the Open Inference Protocol in JSON, read already: so all servers are
given the same bytes, and their answers can be compared.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from PIL import Image

Array = npt.NDArray[np.float32]

MAX_BATCH: Final = 32
WAIT_S: Final = 0.001
"""How long a batch waits for company, at most: as in the manifests that the agent has."""


class Graph(NamedTuple):
    """A graph of one input."""

    path: str
    shape: list[int]
    """Of an item."""
    scale: float
    """A pixel times this is what the graph takes; without meaning where the input is no picture."""


class Predictor:
    """Decodes items and runs batches."""

    def __init__(self, graph: Graph) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])
        (self._input,) = (one.name for one in self._session.get_inputs())
        (self._output,) = (one.name for one in self._session.get_outputs())
        self._graph = graph

    def decode(self, request: dict[str, Any]) -> Array:
        """The item in a request."""
        (tensor,) = request["inputs"]
        if tensor["datatype"] == "BYTES":
            picture = Image.open(io.BytesIO(base64.b64decode(tensor["data"][0])))
            pixels = np.asarray(picture, np.float32).reshape(self._graph.shape)
            return pixels if self._graph.scale == 1.0 else pixels * np.float32(self._graph.scale)
        return np.array(tensor["data"], np.float32).reshape(self._graph.shape)

    def run(self, items: Sequence[Array]) -> Array:
        """A row for each item."""
        rows: Array = self._session.run([self._output], {self._input: np.stack(items)})[0]
        return rows

    def encode(self, row: Array) -> dict[str, Any]:
        """The answer of an item."""
        tensor = {"name": self._output, "datatype": "FP32", "shape": [1, *row.shape], "data": row.tolist()}
        return {"outputs": [tensor]}

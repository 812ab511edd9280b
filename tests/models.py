"""Tiny model packages with graphs whose answers can be worked out by hand."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real models and pictures; may be missing, and then the tests that use them are skipped."""

_OPSET = 13
_IR_VERSION = 8  # what ONNX Runtime 1.15 reads

Dimension = int | str


def write_classifier(
    folder: Path,
    *,
    name: str = "brightness",
    version: str = "1.0.0",
    size: int = 8,
    batch: Dimension = "batch",
    extra: str = "",
) -> Path:
    """A package for grey pictures: `bright` with the mean of the pixels, 0 to 1, and `dark` with the rest.

    `batch` as a number fixes the graph to batches of so many; `extra` is more TOML for the manifest.
    """
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, size, size])
    prob = helper.make_tensor_value_info("prob", TensorProto.FLOAT, [batch, 2])
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["prob"], axis=1),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "column": np.array([-1, 1], np.int64),
        "one": np.array(1, np.float32),
    }
    _write(folder, nodes, [image], [prob], constants)
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "{version}"
        [[inputs]]
        name = "image"
        kind = "image"
        width = {size}
        height = {size}
        colour = "grey"
        scale = {1 / 255!r}
        [[outputs]]
        name = "prob"
        kind = "classification"
        labels = ["dark", "bright"]
        top_k = 2
        {extra}
        """,
    )


def write_brittle_classifier(folder: Path, *, name: str = "brightness", version: str = "1.0.0") -> Path:
    """As `write_classifier`, but a run with a picture that is brighter than half fails."""
    write_classifier(folder, name=name, version=version)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    prob = helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Add", ["mean", "mean"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),  # has one place
        helper.make_node("Add", ["mean", "nothing"], ["same"]),
        helper.make_node("Reshape", ["same", "column"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["prob"], axis=1),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "table": np.zeros(1, np.float32),
        "column": np.array([-1, 1], np.int64),
        "one": np.array(1, np.float32),
    }
    _write(folder, nodes, [image], [prob], constants)
    return folder


def write_scorer(
    folder: Path,
    *,
    name: str = "mean",
    version: str = "1.0.0",
    width: int = 4,
    batch: Dimension = "batch",
    extra: str = "",
) -> Path:
    """A package for windows of `width` numbers: the score is their mean, `high` from 10 on, else `normal`."""
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, [batch, width])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch, 1])
    nodes = [helper.make_node("ReduceMean", ["window"], ["score"], axes=[1], keepdims=1)]
    _write(folder, nodes, [window], [score], {})
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "{version}"
        [[inputs]]
        name = "window"
        kind = "tensor"
        shape = [{width}]
        [[outputs]]
        name = "score"
        kind = "scores"
        threshold = 10.0
        labels = ["normal", "high"]
        {extra}
        """,
    )


def write_counter(
    folder: Path,
    *,
    name: str = "counter",
    version: str = "1.0.0",
    batch: Dimension = "batch",
    axis: int = 0,
    extra: str = "",
) -> Path:
    """A package that carries a state: the score of an item is the sum of all numbers of its stream so far.

    An item is the index of one of four numbers, 1, 10, 100 and 1000; any other index makes the graph fail.
    The state is [batch, 2]: the sum, and how many there were; `axis` says where the graph has the batch.
    """
    held: list[Dimension] = [batch, 2] if axis == 0 else [2, batch]
    index = helper.make_tensor_value_info("index", TensorProto.INT64, [batch])
    before = helper.make_tensor_value_info("before", TensorProto.FLOAT, held)
    after = helper.make_tensor_value_info("after", TensorProto.FLOAT, held)
    total = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [batch])
    turn = [1, 0] if axis else [0, 1]
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["new"], axis=0),
        helper.make_node("Unsqueeze", ["new", "last"], ["column"]),
        helper.make_node("Mul", ["column", "zero"], ["nought"]),
        helper.make_node("Add", ["nought", "one"], ["more"]),
        helper.make_node("Concat", ["column", "more"], ["both"], axis=1),
        helper.make_node("Transpose", ["before"], ["rows"], perm=turn),
        helper.make_node("Add", ["rows", "both"], ["sums"]),
        helper.make_node("Transpose", ["sums"], ["after"], perm=turn),
        helper.make_node("Gather", ["sums", "first"], ["sum"], axis=1),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "table": np.array([1, 10, 100, 1000], np.float32),
        "last": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "first": np.array(0, np.int64),
    }
    _write(folder, nodes, [index, before], [total, after], constants)
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "{version}"
        [[inputs]]
        name = "index"
        kind = "tensor"
        shape = []
        dtype = "int64"
        [[outputs]]
        name = "sum"
        kind = "scores"
        [[states]]
        input = "before"
        output = "after"
        axis = {axis}
        {extra}
        """,
    )


def write_slow_scorer(folder: Path, *, name: str = "slow", effort: int = 200, extra: str = "") -> Path:
    """As `write_scorer`, but each run takes the time of multiplying matrices of `effort` x `effort`."""
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 4])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])
    nodes = [
        helper.make_node("ReduceMean", ["window"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("ReduceMean", ["window"], ["all"], axes=[0, 1], keepdims=0),
        helper.make_node("Mul", ["matrix", "all"], ["scaled"]),  # of the input, so that it is not done ahead
        helper.make_node("MatMul", ["scaled", "matrix"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["spent"], axes=[0, 1], keepdims=0),
        helper.make_node("Mul", ["spent", "zero"], ["nothing"]),
        helper.make_node("Add", ["mean", "nothing"], ["score"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "matrix": np.full((effort, effort), 1e-3, np.float32),
        "zero": np.array(0, np.float32),
    }
    _write(folder, nodes, [window], [score], constants)
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "1.0.0"
        [[inputs]]
        name = "window"
        kind = "tensor"
        shape = [4]
        [[outputs]]
        name = "score"
        kind = "scores"
        {extra}
        """,
    )


def write_summary(folder: Path, *, name: str = "summary", version: str = "1.0.0") -> Path:
    """A package whose graph gives one number for the whole batch, which no batch can be made of."""
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 4])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["some", 1])
    nodes = [helper.make_node("ReduceMean", ["window"], ["score"], axes=[0, 1], keepdims=1)]
    _write(folder, nodes, [window], [score], {})
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "{version}"
        [[inputs]]
        name = "window"
        kind = "tensor"
        shape = [4]
        [[outputs]]
        name = "score"
        kind = "scores"
        """,
    )


def write_picker(folder: Path, *, name: str = "picker", version: str = "1.0.0", extra: str = "") -> Path:
    """A package whose graph fails on some items: it picks the `index`-th of four numbers, 10 to 40."""
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"])
    picked = helper.make_tensor_value_info("picked", TensorProto.FLOAT, ["batch"])
    nodes = [helper.make_node("Gather", ["table", "index"], ["picked"], axis=0)]
    _write(folder, nodes, [index], [picked], {"table": np.array([10, 20, 30, 40], np.float32)})
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "{version}"
        [[inputs]]
        name = "index"
        kind = "tensor"
        shape = []
        dtype = "int64"
        [[outputs]]
        name = "picked"
        kind = "scores"
        {extra}
        """,
    )


def write_finder(folder: Path, image: str, *, name: str = "finder", extra: str = "") -> Path:
    """A package that finds the bright spot of a grey picture: one box around all pixels above 128.

    `image` is TOML for its input, which may be of any size.
    """
    size: list[Dimension] = ["batch", 1, "height", "width"]
    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, size)
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 1, 6])
    nodes = [
        helper.make_node("Greater", ["image", "half"], ["over"]),
        helper.make_node("Cast", ["over"], ["bright"], to=TensorProto.FLOAT),
    ]
    for axis, first, last in ((3, "left", "right"), (2, "top", "bottom")):
        # Of each column (or line) whether something in it is bright, and where that begins and ends.
        across = f"across{axis}"
        nodes += [
            helper.make_node("ReduceMax", ["bright"], [across], axes=[1, 5 - axis], keepdims=0),
            helper.make_node("ArgMax", [across], [f"{first}_at"], axis=1, keepdims=1),
            helper.make_node("ArgMax", [across], [f"{last}_at"], axis=1, keepdims=1, select_last_index=1),
            helper.make_node("Cast", [f"{first}_at"], [first], to=TensorProto.FLOAT),
            helper.make_node("Cast", [f"{last}_at"], [f"{last}_before"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{last}_before", "one"], [last]),
        ]
    nodes += [
        helper.make_node("ReduceMax", ["bright"], ["score_row"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMax", ["score_row"], ["score"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["score", "zero"], ["class"]),
        helper.make_node("Concat", ["left", "top", "right", "bottom", "score", "class"], ["row"], axis=1),
        helper.make_node("Unsqueeze", ["row", "second"], ["boxes"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "half": np.array(128, np.float32),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
        "second": np.array([1], np.int64),
    }
    _write(folder, nodes, [picture], [boxes], constants)
    return _manifest(
        folder,
        f"""
        name = "{name}"
        version = "1.0.0"
        [[inputs]]
        name = "image"
        kind = "image"
        colour = "grey"
        {image}
        [[outputs]]
        name = "boxes"
        kind = "detection"
        labels = ["spot"]
        row = "box score class"
        box = "xyxy"
        {extra}
        """,
    )


def png(grey: int, size: int = 8) -> bytes:
    """A picture of one grey, 0 to 255."""
    return encoded(Image.new("L", (size, size), grey))


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    picture.save(sink, form)
    return sink.getvalue()


def _write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: Mapping[str, npt.NDArray[Any]],
) -> None:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")


def _manifest(folder: Path, text: str) -> Path:
    """The manifest, for the CPU alone unless it says otherwise."""
    providers = "" if "[providers]" in text else '[providers]\norder = ["cpu"]\n'
    lines = "\n".join(line.strip() for line in text.strip().splitlines())
    (folder / "model.toml").write_text(f"{lines}\n{providers}", encoding="utf-8")
    return folder

"""How TensorRT builds the engine of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from shared.manifests import fields

Precision = Literal["fp32", "fp16", "int8"]
WORKSPACE_BYTES: Final = 1 << 30


class TensorRT(fields.Table, frozen=True, kw_only=True):
    """How TensorRT builds the engine of the graph."""

    precision: Precision = "fp32"
    """What layers may compute in where that is faster; with `int8` that is `fp16` as well. TensorRT does not
    look whether the results are as good: try it on your own pictures."""

    calibration: fields.Name | None = None
    """With `int8`: a file of the package with the range of each tensor, as TensorRT writes it, or as ONNX
    Runtime's calibration does. A graph that is quantised itself (Q/DQ nodes) has them, and needs none."""

    workspace_bytes: fields.Positive = WORKSPACE_BYTES
    """Memory of the GPU that a layer may take while the engine is built, and when it runs."""

    def __post_init__(self) -> None:
        if self.calibration is not None and self.precision != "int8":
            raise ValueError('`calibration` goes with precision = "int8": remove it, or change `precision`')

    def check(self, folder: Path) -> None:
        """Whether the package in `folder` has the table of ranges; ValueError says what is wrong."""
        if self.calibration is None:
            return
        path = folder / self.calibration
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{self.calibration!r} lies outside the package; put it into {folder}")
        if not path.is_file():
            raise ValueError(f"{self.calibration!r} is not there; put the table of ranges into {folder}")

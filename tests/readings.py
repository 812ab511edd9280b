"""The outputs of a model, read from numbers that a test makes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_agent import frames, models, outcomes, postprocess
from shared import manifests


def model(text: str, folder: Path = Path("m")) -> models.Model:
    """A model with that manifest; there is no graph, for nothing runs here."""
    manifest = manifests.parse(f'name = "m"\nversion = "1"\n{text}', folder / "model.toml")
    return models.Model(manifest, folder, folder / "model.onnx", "0" * 64)


def image(width: int = 100, height: int = 100, more: str = "") -> str:
    """The manifest's table of a grey picture."""
    size = f"width = {width}\nheight = {height}"
    return f'[[inputs]]\nname = "x"\nkind = "image"\ncolour = "grey"\n{size}\n{more}\n'


def framed(some: models.Model, *sizes: tuple[int, int]) -> frames.Frames:
    """Where pictures of those sizes (width, height) lie in the model's input, run together."""
    spec = some.manifest.picture
    assert spec is not None
    placed = [frames.place(spec, *size) for size in sizes]
    height, width = map(max, zip(*(frames.extent(spec, frame) for frame in placed), strict=True))
    made = frames.empty(spec, spec.shaped(height, width), len(sizes))
    made.rows[:] = placed
    return made


def read(
    some: models.Model, tensors: list[Any], where: frames.Frames | None = None
) -> list[outcomes.Outcome]:
    """What the model says if its graph gives those numbers, one row an item."""
    arrays = [one if isinstance(one, np.ndarray) else np.array(one, np.float32) for one in tensors]
    return postprocess.Outputs(some).read(arrays, len(where.rows) if where else len(arrays[0]), where)


def said(made: outcomes.Outcome) -> tuple[str | None, Any, Any]:
    """Label, score and JSON of a prediction."""
    assert isinstance(made, outcomes.Prediction), made
    assert made.output is not None
    return made.label, made.score, msgspec.json.decode(made.output)

"""The model and the pictures that the edge is measured with.

Best those of `../shared/data/bsdata` beside the repository (64 x 64 tiles of ball-screw spindles and their
classifier); without them the demo's own classifier, with pictures of its generator.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

REPOSITORY: Final = Path(__file__).resolve().parents[1]
TILES: Final = REPOSITORY.parent / "shared" / "data" / "bsdata"
DEMO: Final = REPOSITORY / "demo" / "models" / "surface-defects"

MANIFEST: Final = """\
name = "bsd-pitting"
version = "1.0.0"
file = "bsd_pitting_64.onnx"
[[inputs]]
name = "image"
kind = "image"
width = 64
height = 64
colour = "grey"
[[outputs]]
name = "prob"
kind = "classification"
labels = ["clean", "pitting"]
[batching]
max_batch = 32
max_delay_ms = 1.0
[providers]
order = ["cpu"]
"""


@dataclass(frozen=True)
class Material:
    """A model package in a folder of models, and encoded pictures that it takes."""

    model: str
    models: Path
    graph: Path
    size: int
    """Pixels of a picture, each way."""
    scale: float
    """A pixel times this is what the graph takes."""
    pictures: Path
    """A folder of PNG files."""


def lay_out(directory: Path, *, demo: bool = False) -> Material:
    """Make the folder of models, and of pictures if there is none; `demo`: the demo's in any case."""
    models = directory / "models"
    if TILES.is_dir() and not demo:
        package = models / "bsd-pitting"
        package.mkdir(parents=True)
        (package / "model.toml").write_text(MANIFEST, encoding="utf-8")
        graph = Path(shutil.copy(TILES / "bsd_pitting_64.onnx", package))
        return Material("bsd-pitting", models, graph, 64, 1.0, TILES)
    package = Path(shutil.copytree(DEMO, models / "surface-defects"))
    pictures = directory / "pictures"
    pictures.mkdir()
    for number, encoded in enumerate(draw(pixels=128, count=40)):
        (pictures / f"{number:03}.png").write_bytes(encoded)
    return Material("surface-defects", models, package / "model.onnx", 128, 1 / 255, pictures)


def load(folder: Path) -> list[bytes]:
    """The encoded pictures in a folder."""
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def draw(*, pixels: int, count: int, payload_bytes: int = 0) -> list[bytes]:
    """PNG files of grey noise over a gradient: as hard to decode as machined metal.

    Each has at least `payload_bytes`, padded behind the picture, where decoders do not look.
    """
    chance = np.random.default_rng(1)
    slope = np.linspace(60, 190, pixels)[None, :]
    encoded = []
    for _ in range(count):
        grey = (slope + chance.normal(0, 6, (pixels, pixels))).clip(0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(grey).save(sink, "PNG")
        encoded.append(sink.getvalue().ljust(payload_bytes, b"\0"))
    return encoded

"""What an engine of TensorRT was built of, and where; with another graph or GPU it is another engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edge_agent import models
from shared import manifests

DIGITS: Final = 32
"""Of the digest: enough to never meet twice, and short enough for a folder's name."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine depends on of the machine. An engine of another one may not load, or run slowly."""

    onnxruntime: str
    tensorrt: str
    cuda: str
    """The highest version that the driver takes."""
    driver: str
    """Empty where the system does not say."""
    gpu: str
    compute: str
    """Its compute capability."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """All that tells one engine from another."""

    host: Host
    graph: str
    """SHA-256 of the graph's file."""
    files: str
    """SHA-256 of the package's other files: a graph's weights may lie beside it."""
    options: dict[str, str]
    """What TensorRT is told: precision, shapes."""

    @property
    def digest(self) -> str:
        """The name under which the engine is kept."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:DIGITS]


def of(model: models.Model, host: Host, options: Mapping[str, str]) -> Identity:
    """The identity of a model's engine on that machine. Raises OSError."""
    return Identity(host=host, graph=model.sha256, files=files_digest(model), options=dict(options))


def files_digest(model: models.Model) -> str:
    """SHA-256 of the files of a package, but for the manifest, the graph, and what begins with a dot.

    The manifest may say other thresholds tomorrow: what of it counts for the engine is in the options.
    """
    told = hashlib.sha256()
    aside = {model.folder / manifests.MANIFEST, model.path}
    for path in sorted(_files(model.folder)):
        if path in aside:
            continue
        with path.open("rb") as held:
            inside = hashlib.file_digest(held, "sha256").hexdigest()
        told.update(f"{path.relative_to(model.folder).as_posix()}\0{inside}\n".encode())
    return told.hexdigest()


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        found += [Path(where, name) for name in names if not name.startswith(".")]
    return found

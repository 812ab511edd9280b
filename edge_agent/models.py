"""Model packages: a folder with an ONNX graph and a `model.toml` that says how to use it.

    models/surface-defects/model.toml            one folder a model, or
    models/surface-defects/1.2.0/model.toml      one folder a version

`shared.manifests` has what stands in `model.toml`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from shared import manifests
from shared.manifests import alphabet


class UnknownModel(LookupError):
    """A job names a model, or a version of one, that is not served here."""


class Key(NamedTuple):
    """One version of one model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Model(msgspec.Struct, frozen=True):
    """A package that was read and found whole: the manifest, and the file that holds the model (the graph,
    for one) with its SHA-256."""

    manifest: manifests.Manifest
    folder: Path
    path: Path
    sha256: str

    @property
    def key(self) -> Key:
        return Key(self.manifest.name, self.manifest.version)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    def alphabet(self, output: manifests.Ctc) -> tuple[str, ...]:
        """What each class of an output that is text stands for; BadPackage if that can't be read."""
        try:
            return alphabet.read(self.folder, output)
        except ValueError as error:
            place = self.manifest.outputs.index(output)
            raise manifests.BadPackage(
                f"{self.folder / manifests.MANIFEST}: outputs[{place}].dictionary: {error}"
            ) from None

    @property
    def max_batch(self) -> int:
        return self.manifest.batching.max_batch

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Found(NamedTuple):
    """What a scan met: the whole packages, and why each of the others is not one."""

    models: dict[Key, Model]
    broken: dict[Path, str]


def load(folder: Path) -> Model:
    """Read the package in `folder`; manifests.BadPackage if it is not whole."""
    where = folder / manifests.MANIFEST
    try:
        manifest = manifests.parse(where.read_text(encoding="utf-8"), where)
    except FileNotFoundError:
        raise manifests.BadPackage(
            f"{where}: missing; a model package is a folder with this file in it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise manifests.BadPackage(f"{where}: cannot be read: {error}") from None
    path = folder / manifest.source
    if not path.resolve().is_relative_to(folder.resolve()):
        raise manifests.BadPackage(
            f"{where}: file: {manifest.source!r} lies outside the package; put it into {folder}"
        )
    try:
        with path.open("rb") as held:
            digest = hashlib.file_digest(held, "sha256")
    except OSError as error:
        raise manifests.BadPackage(
            f"{where}: file: {manifest.source!r} cannot be read ({error.strerror}); "
            f"put the graph into {folder}, or name the file that is there"
        ) from None
    model = Model(manifest, folder, path, digest.hexdigest())
    for output in manifest.outputs:
        if isinstance(output, manifests.Ctc):
            model.alphabet(output)
    try:
        manifest.providers.tensorrt.check(folder)
    except ValueError as error:
        raise manifests.BadPackage(f"{where}: providers.tensorrt.calibration: {error}") from None
    return model


def scan(directory: Path) -> Found:
    """Read every package in `directory`, one or two levels down; a broken one hides no other.

    Names that begin with a dot are passed over, so that a package can be brought in under such a
    name and renamed when it is whole.
    """
    found = Found({}, {})
    for folder in _packages(directory):
        try:
            model = load(folder)
        except manifests.BadPackage as error:
            found.broken[folder] = str(error)
            continue
        first = found.models.setdefault(model.key, model)
        if first is not model:
            where = folder / manifests.MANIFEST
            found.broken[folder] = (
                f"{where}: version: {model} is in {first.folder} too; change one of the versions"
            )
    return found


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts versions as people number them: 1.9 before 1.10, 2.0-rc1 before 2.0."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    ranks = [(2, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
    return (*ranks, (1, 0, ""))  # the end: after a word (a pre-release), before a further number


class Catalogue:
    """The models that this agent serves, found by name and version. Safe to use from any thread."""

    def __init__(self) -> None:
        self._models: dict[Key, Model] = {}
        self._default: dict[str, Model] = {}
        """What serves who names no version."""
        self._preferred: dict[str, tuple[str, ...]] = {}
        self.carrying: frozenset[str] = frozenset()
        """The names of models that carry a state from item to item."""
        self._leaving: dict[Key, Model] = {}
        """Found only for tasks that came before."""
        self._changing = threading.Lock()

    def add(self, model: Model) -> None:
        """Serve `model`, in place of any earlier package of the same name and version."""
        with self._changing:
            self._replace({**self._models, model.key: model})
            self._leaving = _without(self._leaving, model.key)

    def remove(self, key: Key) -> None:
        """Serve it no longer; nothing happens where it was not served."""
        with self._changing:
            self._replace(_without(self._models, key))
            self._leaving = _without(self._leaving, key)

    def retire(self, key: Key) -> None:
        """Serve it to nobody who comes now: until it is removed it is there for tasks that came before."""
        with self._changing:
            model = self._models.get(key)
            if model is not None:
                self._leaving = {**self._leaving, key: model}
                self._replace(_without(self._models, key))

    def prefer(self, versions: Mapping[str, Sequence[str]]) -> None:
        """Which version of a model serves who names none: the first of these that is served. Of a model that
        is not here, or of which none of them is served, it is the newest."""
        with self._changing:
            self._preferred = {name: tuple(order) for name, order in versions.items()}
            self._replace(self._models)

    def serves(self, key: Key) -> bool:
        """Whether that version is served to who comes now."""
        return key in self._models

    def resolve(self, name: str, version: str | None = None, *, came_before: bool = False) -> Model:
        """The model of that name: the version that is named, else the preferred one, else the newest.

        UnknownModel says what there is.

        For a task that `came_before`, a version that has retired serves where no other can.
        """
        model = self._default.get(name) if version is None else self._models.get(Key(name, version))
        if model is None and came_before:
            fitting = (one for one in self._leaving.values() if one.name == name)
            model = next((one for one in fitting if version in (None, one.version)), None)
        if model is None:
            wanted = name if version is None else f"{name}@{version}"
            served = ", ".join(str(key) for key in sorted(self._models)) or "none"
            raise UnknownModel(f"model {wanted} is not served here; served are: {served}")
        return model

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def _replace(self, models: dict[Key, Model]) -> None:
        # Whole dictionaries are swapped, never changed, so that readers need no lock.
        ordered = sorted(models.values(), key=lambda model: version_order(model.version))
        default = {model.name: model for model in ordered}
        for name, order in self._preferred.items():
            served = (models[key] for version in order if (key := Key(name, version)) in models)
            if (first := next(served, None)) is not None:
                default[name] = first
        self.carrying = frozenset(model.name for model in ordered if model.manifest.states)
        self._default = default
        self._models = models


def _without(models: dict[Key, Model], key: Key) -> dict[Key, Model]:
    return {other: model for other, model in models.items() if other != key}


def _packages(directory: Path) -> Iterator[Path]:
    """Folders that hold a manifest, or ought to: one level down, or two where the first has none."""
    for folder in _folders(directory):
        if (folder / manifests.MANIFEST).exists():
            yield folder
            continue
        versions = [inner for inner in _folders(folder) if (inner / manifests.MANIFEST).exists()]
        yield from versions or [folder]


def _folders(directory: Path) -> list[Path]:
    return sorted(one for one in directory.iterdir() if one.is_dir() and not one.name.startswith("."))

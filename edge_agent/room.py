"""Which models give way when another one needs their memory: a pure decision.

The one that was used longest ago goes first; never one that runs, nor one that is to stay. One that was
needed stays for a while: at least `STAY` times as long as it took to load, so that models that take turns do
not spend their time on being loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from edge_agent import models, runtime
from shared import manifests

STAY: Final = 4.0
MIB: Final = 1 << 20


class TooLarge(ValueError):
    """A model that does not fit, however many others make room."""


class NoRoom(runtime.Unavailable):
    """Those that are loaded cannot make room now; a while later they may."""


class Limits(NamedTuple):
    """For all models that are loaded; None for as much as they like."""

    max_bytes: int | None = None
    max_models: int | None = None

    def __bool__(self) -> bool:
        return self.max_bytes is not None or self.max_models is not None


class Tenant(NamedTuple):
    """A model that is loaded, or is about to be."""

    key: models.Key
    bytes: int
    used_at: float
    """When it was used last, monotonic seconds."""
    stays_until: float
    """It does not give way before."""
    fixed: bool
    """It does not give way at all: it runs, is being loaded, or is to stay."""


def weigh(model: models.Model) -> int:
    """What a model is taken to need when it is loaded, in bytes: what its manifest says, or else as much as
    the files of its package. Nothing where another server, or a function, runs it: unloading would give
    nothing back."""
    if not isinstance(model.manifest.runtime, manifests.Onnx):
        return 0
    if model.manifest.memory_mb is not None:
        return model.manifest.memory_mb * MIB
    return sum(one.stat().st_size for one in model.folder.rglob("*") if one.is_file())


def gives_way(model: models.Model) -> bool:
    """Whether unloading the model would give memory back."""
    return isinstance(model.manifest.runtime, manifests.Onnx)


def make(
    tenants: Collection[Tenant], model: models.Model, needed: int, limits: Limits, now: float
) -> list[models.Key]:
    """Who gives way, so that `model` can be loaded, which takes `needed` bytes. Raises TooLarge or NoRoom."""
    if limits.max_bytes is not None and needed > limits.max_bytes:
        raise TooLarge(
            f"{model} takes {needed:,} bytes when it is loaded, and engine.max_loaded_bytes is "
            f"{limits.max_bytes:,}"
        )
    over_bytes = 0
    if limits.max_bytes is not None:
        over_bytes = sum(one.bytes for one in tenants) + needed - limits.max_bytes
    over_models = 0
    if limits.max_models is not None:
        over_models = len(tenants) + 1 - limits.max_models
    going: list[models.Key] = []
    for one in sorted(tenants, key=lambda one: (one.used_at, one.key)):
        if over_bytes <= 0 and over_models <= 0:
            break
        if not one.fixed and one.stays_until <= now and (over_models > 0 or one.bytes > 0):
            going.append(one.key)
            over_bytes -= one.bytes
            over_models -= 1
    if over_bytes > 0 or over_models > 0:
        raise NoRoom(
            f"{model} cannot be loaded now: the models that are loaded leave no room for it, and those that "
            "could give way are in use (engine.max_loaded_bytes, engine.max_loaded)"
        )
    return going

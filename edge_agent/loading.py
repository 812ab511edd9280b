"""The models of the agent's folder, loaded when it starts, or when the server is there that has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edge_agent import engine, models, room, runtime, sessions, settings, streams
from edge_agent.builds import builder, builds, cache
from shared import manifests

log: Final = logging.getLogger(__name__)

AGAIN_S: Final = 5.0
"""Between two tries to load models whose servers were not there."""


class Loaded(NamedTuple):
    """What became of the packages."""

    engine: engine.Engine
    builds: builds.Builds
    """The engines of TensorRT; none is ever wanted where no GPU is."""
    away: list[models.Model]
    """Those whose servers were not ready."""


def load(policy: settings.Settings, catalogue: models.Catalogue) -> Loaded:
    """An engine with every whole package of the folder; a broken one is said and hides no other."""
    engines = builds.Builds(
        cache.Cache(Path(policy.state) / "engines", policy.tensorrt.max_bytes),
        builder.Builder(policy.tensorrt.build_s),
    )
    opener = runtime.opener(
        threads=policy.engine.intra_op_threads,
        streams=min(policy.engine.streams, policy.engine.threads),
        engines=engines,
        memory=policy.engine.memory_limit_bytes,
        python=policy.engine.python,
    )
    machine = engine.Engine(
        catalogue,
        opener=opener,
        limits=room.Limits(policy.engine.max_loaded_bytes, policy.engine.max_loaded),
        carried=streams.Streams(policy.streams.max, policy.streams.idle_s),
    )
    engines.is_served = lambda model: is_served(machine, model)
    away: list[models.Model] = []
    folder = Path(policy.models)
    if not folder.is_dir():
        log.warning("%s: no such folder, so no model is here", folder)
        return Loaded(machine, engines, away)
    found = models.scan(folder)
    for where, why in found.broken.items():
        log.error("%s is left out: %s", where, why)
    for model in found.models.values():
        try:
            load_one(machine, model, policy.engine.provider)
        except runtime.Unavailable as error:
            log.warning("%s is not served yet: %s", model, error)
            away.append(model)
        except Exception as error:  # noqa: BLE001 - whatever a graph does, the other models must serve
            log.error("%s is left out: %s", model, error)
    return Loaded(machine, engines, away)


async def load_later(
    machine: engine.Engine,
    away: Sequence[models.Model],
    provider: str,
    on_loaded: Callable[[], None],
    *,
    again_s: float = AGAIN_S,
) -> None:
    """Load models as soon as their servers are ready; `on_loaded` is told of each. Ends when all are here."""
    left = list(away)
    while left:
        await asyncio.sleep(again_s)
        still: list[models.Model] = []
        for model in left:
            try:
                await asyncio.to_thread(load_one, machine, model, provider)
            except runtime.Unavailable:
                still.append(model)
            except Exception as error:  # noqa: BLE001 - as above
                log.error("%s is left out: %s", model, error)
            else:
                on_loaded()
        left = still


def order(model: models.Model, provider: str) -> tuple[str, ...]:
    """The providers to try for a model, the one that should run first; none where no graph runs here."""
    if not isinstance(model.manifest.runtime, manifests.Onnx):
        return ()
    own = model.manifest.providers.order
    if provider == "auto":
        return sessions.offered(own)
    return (provider, *(one for one in own if one != provider))


def is_served(machine: engine.Engine, model: models.Model) -> bool:
    """Whether this very package is served under its name."""
    try:
        return machine.find(*model.key).sha256 == model.sha256
    except models.UnknownModel:
        return False


async def build(
    engines: builds.Builds, machine: engine.Engine, provider: str, on_loaded: Callable[[], None]
) -> None:
    """Have engines of TensorRT built, until cancelled; `on_loaded` is told when a model runs on one.

    What runs meanwhile runs to its end on what served before.
    """

    async def on_built(model: models.Model) -> None:
        if not is_served(machine, model) or machine.models.is_away(model.key):
            return  # where it made room for others, it takes the engine when it is loaded again
        try:
            await asyncio.to_thread(load_one, machine, model, provider)
        except Exception as error:  # noqa: BLE001 - as above; what served goes on serving
            log.error("%s goes on as before, for it does not run on what was built: %s", model, error)
        else:
            on_loaded()

    await engines.run(on_built)


def load_one(machine: engine.Engine, model: models.Model, provider: str) -> None:
    """Have the engine serve a model, and say what it runs on; blocks, and raises as `Engine.load` does."""
    loaded = machine.load(model, order(model, provider))
    log.info("%s runs on %s, %.0f items/s", model, loaded.provider, loaded.items_per_second)
    if loaded.provider != loaded.wanted:
        log.warning("%s should run on %s: %s", model, loaded.wanted, loaded.reason)

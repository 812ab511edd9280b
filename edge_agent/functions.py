"""A function of a package's own in place of a graph. Its code is trusted: it runs in this process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import models, runtime, states
from shared import manifests


def load(model: models.Model) -> runtime.CallableRuntime:
    """The runtime of a model whose manifest names a function. Raises BadGraph if it is not there."""
    assert isinstance(model.manifest.runtime, manifests.Python)
    module, _, name = model.manifest.runtime.function.partition(":")
    function = getattr(_module(model, model.path), name, None)
    if not callable(function):
        raise runtime.BadGraph(f"{model.path}: there is no function {name!r} in it, which the manifest names")
    names = model.manifest.fetched
    try:
        carried = states.given(model.manifest)
    except states.BadState as wrong:
        raise runtime.BadGraph(f"{model.folder / manifests.MANIFEST}: {wrong}") from None

    def once(batch: runtime.Batch) -> Sequence[runtime.Array]:
        outputs = [np.asarray(one) for one in function(states.there(carried, batch))]
        return states.back(carried, names, outputs) if len(outputs) == len(names) else outputs

    def run(batch: runtime.Batch) -> Sequence[runtime.Array]:
        return runtime.in_batches(once, batch, None, names)

    return runtime.CallableRuntime(run, f"python {module}:{name}", carried)


def _module(model: models.Model, path: Path) -> Any:
    """The module at `path`, under a name of its own: versions of a model do not share theirs."""
    name = f"backhaul_model_{model.sha256[:16]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise runtime.BadGraph(f"{path}: no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as for any import: dataclasses and the like look there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise runtime.BadGraph(
                f"{path}: it cannot be imported: {type(error).__name__}: {error}"
            ) from error
        raise
    return module

"""What a graph carries from item to item, as graph and manifest say together.

Everywhere in the agent the first dimension of a tensor counts the items. A graph may have it elsewhere in its
states: `there` and `back` turn them at its door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shared import manifests

Array = npt.NDArray[Any]
State = tuple[Array, ...]
"""One item's: an array for each of the model's states, without the dimension that counts the items."""


class BadState(ValueError):
    """The graph does not have a state as the manifest says it has."""


class Spec(NamedTuple):
    """One state of a model."""

    input: str
    output: str
    shape: tuple[int, ...]
    """Of one item."""
    dtype: str
    axis: int
    """Which dimension of the graph's own tensor counts the items."""


def given(manifest: manifests.Manifest) -> tuple[Spec, ...]:
    """The states, where no graph says more of them. Raises BadState."""
    return tuple(_spec(one, one.shape, one.dtype or "float32") for one in manifest.states)


def of_graph(
    manifest: manifests.Manifest,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    dtypes: Mapping[str, str],
) -> tuple[Spec, ...]:
    """The states, as the graph has them; for its nodes see `runtime.check`, `dtypes` are ours by ONNX
    Runtime's words. Raises BadState."""
    return tuple(_of_graph(one, inputs, outputs, dtypes) for one in manifest.states)


def batches(specs: Sequence[Spec], inputs: Mapping[str, Any]) -> set[int]:
    """The sizes of a batch that the graph's states are fixed to."""
    sizes = {inputs[one.input].shape[one.axis] for one in specs}
    return {size for size in sizes if isinstance(size, int)}


def zeros(specs: Sequence[Spec]) -> State:
    """With what a stream begins."""
    return tuple(np.zeros(one.shape, one.dtype) for one in specs)


def stacked(specs: Sequence[Spec], some: Sequence[State]) -> dict[str, Array]:
    """The states of a batch, by the names of the inputs that take them."""
    return {one.input: np.stack([state[place] for state in some]) for place, one in enumerate(specs)}


def there(specs: Sequence[Spec], batch: Mapping[str, Array]) -> Mapping[str, Array]:
    """A batch as the graph takes it."""
    moved = {one.input: np.moveaxis(batch[one.input], 0, one.axis) for one in specs if one.axis}
    return {**batch, **moved} if moved else batch


def back(specs: Sequence[Spec], names: Sequence[str], outputs: Sequence[Array]) -> Sequence[Array]:
    """The outputs of these names as the agent takes them. Raises BadState."""
    axes = {one.output: one.axis for one in specs if one.axis}
    if not axes:
        return outputs
    return [_first(name, array, axes.get(name, 0)) for name, array in zip(names, outputs, strict=True)]


def _first(name: str, array: Array, axis: int) -> Array:
    if axis >= array.ndim and axis:
        raise BadState(f"output {name!r} has shape {list(array.shape)}, and no dimension {axis}")
    return np.moveaxis(array, axis, 0)


def _of_graph(
    one: manifests.State, inputs: Mapping[str, Any], outputs: Mapping[str, Any], dtypes: Mapping[str, str]
) -> Spec:
    for what, name, nodes in (("input", one.input, inputs), ("output", one.output, outputs)):
        if name not in nodes:
            there_ = ", ".join(map(repr, nodes)) or "none"
            raise BadState(f"states: the graph has no {what} {name!r}; it has {there_}")
    takes, gives = inputs[one.input], outputs[one.output]
    dtype = dtypes.get(takes.type, takes.type)
    if one.dtype not in (None, dtype):
        raise BadState(f"states: input {one.input!r}: the graph takes {dtype}, the manifest says {one.dtype}")
    if gives.type != takes.type:
        raise BadState(
            f"states: the graph gives {gives.type} as {one.output!r} and takes {takes.type} as {one.input!r}"
        )
    item = _item(one, list(takes.shape), one.input)
    shape = one.shape if one.shape is not None else tuple(item)
    spec = _spec(one, shape if all(isinstance(size, int) for size in shape) else None, dtype)
    for name, has in (
        (one.input, item),
        (one.output, _item(one, list(gives.shape or takes.shape), one.output)),
    ):
        if len(has) != len(spec.shape) or any(
            isinstance(size, int) and size != wanted for size, wanted in zip(has, spec.shape, strict=True)
        ):
            raise BadState(f"states: {name!r} has the shape {has} an item, and {list(spec.shape)} is needed")
    return spec


def _item(one: manifests.State, shape: list[Any], name: str) -> list[Any]:
    """A shape without the dimension that counts the items."""
    if one.axis >= len(shape):
        raise BadState(
            f"states: {name!r} has the shape {shape}, and no dimension {one.axis} that counts the items: "
            "correct `axis`, or export the graph with a batch dimension"
        )
    return shape[: one.axis] + shape[one.axis + 1 :]


def _spec(one: manifests.State, shape: Sequence[int] | None, dtype: str) -> Spec:
    if shape is None:
        raise BadState(f"states: input {one.input!r}: its size is not fixed by the graph; add its `shape`")
    return Spec(one.input, one.output, tuple(shape), dtype, one.axis)

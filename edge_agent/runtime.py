"""What runs a graph: a small port, and ONNX Runtime behind it.

A runtime says which provider was wanted, which one really runs, and why they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edge_agent import memory, models, sessions, states
from shared import manifests

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
"""An array for each input of the graph; the first dimension, alike in all, counts the items."""

_TYPES: Final[Mapping[str, str]] = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    **{name: f"tensor({name})" for name in ("uint8", "uint16", "uint32", "uint64", "bool")},
    **{name: f"tensor({name})" for name in ("int8", "int16", "int32", "int64")},
}


class BadGraph(ValueError):
    """The graph cannot be opened, or is not what the manifest says of it."""


class RunFailed(RuntimeError):
    """A run gave something other than one result for each item."""


class Unavailable(RunFailed):
    """Nothing can run now, for what runs it is away. Another attempt may find it there."""


class Output(NamedTuple):
    """An output of a graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of one item; -1 for a size that varies."""


class Runtime(Protocol):
    """Runs one graph. `run` is called from several threads at once."""

    @property
    def name(self) -> str:
        """The program that runs it, with its version."""
        ...

    @property
    def wanted(self) -> str:
        """The provider that should run it."""
        ...

    @property
    def provider(self) -> str:
        """The provider that really runs it."""
        ...

    @property
    def reason(self) -> str | None:
        """Why `provider` is not `wanted`; None where it is."""
        ...

    @property
    def outputs(self) -> Sequence[Output]:
        """What the manifest has `fetched`, in that order; nothing if only a run can tell."""
        ...

    @property
    def states(self) -> Sequence[states.Spec]:
        """What is carried from item to item."""
        ...

    def run(self, batch: Batch) -> Sequence[Array]:
        """What the manifest has `fetched`, in that order, one row for each item. Raises what the runtime
        raises."""
        ...

    def trim(self, batch: Batch) -> None:
        """Run this small batch, and give back what larger ones took; nobody else runs it now."""
        ...

    def close(self) -> None:
        """Let go of what it holds; nobody runs it any more."""
        ...


Opener = Callable[[models.Model, Sequence[str]], Runtime]
"""Opens the runtime of a model, with the providers to try in order."""


class OnnxRuntime:
    """A graph in an ONNX Runtime session on the best provider of the ladder that opens it.

    `order` are the providers to try, the manifest's unless given; for `threads`, `streams`, `engines` and
    `memory` see `sessions.open_`. Raises BadGraph, with every provider's own reason; or Unavailable where
    TensorRT alone would run it, and has yet to build.
    """

    def __init__(
        self,
        model: models.Model,
        order: Sequence[str] = (),
        *,
        threads: int = 1,
        streams: int = 1,
        engines: sessions.Engines | None = None,
        memory: int | None = None,
    ) -> None:
        self._model = model
        order = tuple(order) or model.manifest.providers.order
        import onnxruntime as ort  # 45 MB: loaded with the first model, not with the agent

        self._ort = ort
        ort.disable_telemetry_events()  # a plant's network is nobody else's business
        self.name = f"onnxruntime {ort.__version__}"
        self.wanted = order[0]
        opened = sessions.open_(
            ort, model, order, threads=threads, streams=streams, engines=engines, memory=memory
        )
        if opened.sessions is None:
            failure = Unavailable if opened.is_coming else BadGraph
            raise failure(
                f"{model.path}: {model} opens on none of the providers {', '.join(order)}: "
                f"{'; '.join(opened.refused)}"
            )
        self._sessions: sessions.Sessions | None = opened.sessions
        self.provider = opened.provider
        self.reason = "; ".join(opened.refused) or None
        nodes = opened.sessions.first.get_outputs()
        self.fixed_batch = check(model, opened.sessions.first.get_inputs(), nodes)
        """The batch size that the graph is fixed to; None where it takes any."""
        self.states = states_of(model, opened.sessions.first.get_inputs(), nodes)
        self.outputs = outputs_of(model, nodes)
        self._outputs = [one.name for one in self.outputs]

    @property
    def session(self) -> Any:
        """ONNX Runtime's own session, to measure it by itself; the first, where there are several."""
        assert self._sessions is not None, f"{self._model} is asked for its session after it was closed"
        return self._sessions.first

    def run(self, batch: Batch) -> Sequence[Array]:
        return in_batches(self._run, batch, self.fixed_batch, self._outputs)

    def _run(self, batch: Batch) -> Sequence[Array]:
        assert self._sessions is not None, f"{self._model} is run after it was closed"
        if not self.states:
            return self._sessions.run(self._outputs, batch)
        given = self._sessions.run(self._outputs, states.there(self.states, batch))
        return states.back(self.states, self._outputs, given)

    def trim(self, batch: Batch) -> None:
        if self.provider == sessions.CPU and self.fixed_batch is None and self._sessions is not None:
            options = self._ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            self._sessions.first.run(self._outputs, states.there(self.states, batch), options)
        memory.give_back()  # of reading the graph, too, and of ordering its weights

    def close(self) -> None:
        self._sessions = None
        memory.give_back()


class CallableRuntime:
    """A Python function in place of a graph. Its code is trusted: it runs in this process."""

    def __init__(
        self,
        function: Callable[[Batch], Sequence[Array]],
        name: str = "callable",
        carried: Sequence[states.Spec] = (),
    ) -> None:
        self._function = function
        self.states = carried
        self.name = name
        self.wanted = self.provider = "python"
        self.reason: str | None = None
        self.outputs: Sequence[Output] = ()

    def run(self, batch: Batch) -> Sequence[Array]:
        return self._function(batch)

    def trim(self, batch: Batch) -> None:
        pass

    def close(self) -> None:
        pass


def opener(
    *,
    threads: int = 1,
    streams: int = 1,
    engines: sessions.Engines | None = None,
    memory: int | None = None,
    python: bool = False,
) -> Opener:
    """Opens each model with the runtime that its manifest names.

    `threads`, `streams`, `engines` and `memory`, for one model at most, are for ONNX Runtime. Without
    `python`, packages that bring functions are refused.
    """

    def open_(model: models.Model, order: Sequence[str]) -> Runtime:
        match model.manifest.runtime:
            case manifests.Remote():
                from edge_agent import remote  # with an HTTP client, for agents that have such a model

                return remote.RemoteRuntime(model)
            case manifests.Python():
                if not python:
                    raise BadGraph(
                        f"{model.folder / manifests.MANIFEST}: runtime: the package brings Python code, and "
                        "this agent does not take any; set engine.python = true if you trust its maker"
                    )
                from edge_agent import functions

                return functions.load(model)
            case _:
                return OnnxRuntime(
                    model, order, threads=threads, streams=streams, engines=engines, memory=memory
                )

    return open_


def check(model: models.Model, inputs: Sequence[Any], outputs: Sequence[Any]) -> int | None:
    """Compare the graph's inputs and outputs with the manifest: BadGraph names what differs.

    Returns the batch size that the graph is fixed to, None where it takes any. `inputs` and
    `outputs` are ONNX Runtime's: each has `name`, `type` and `shape`, a dimension being a number,
    or a name or None where it is dynamic.
    """
    where = model.folder / manifests.MANIFEST
    graph = {node.name: node for node in inputs}
    known = {spec.name for spec in model.manifest.inputs} | {one.input for one in model.manifest.states}
    missing = sorted(graph.keys() - known)
    if missing:
        raise BadGraph(f"{where}: inputs: the graph also takes {', '.join(map(repr, missing))}; add it")
    fixed: set[int] = set()
    for spec in model.manifest.inputs:
        node = _node(graph, spec.name, "input", where)
        if node.type != _TYPES[spec.dtype]:
            raise BadGraph(
                f"{where}: input {spec.name!r}: the graph takes {node.type}, the manifest says {spec.dtype}"
            )
        batch, *item = node.shape or [1]
        if not (_fits(spec.least, item) and _fits(spec.most, item)) or not node.shape:
            makes = " to ".join(str(["batch", *shape]) for shape in dict.fromkeys((spec.least, spec.most)))
            raise BadGraph(
                f"{where}: input {spec.name!r}: the graph takes {node.shape}, and the manifest's items make "
                f"{makes}; correct the manifest, or export the graph with a batch dimension"
            )
        if isinstance(batch, int):
            fixed.add(batch)
    fixed |= states.batches(states_of(model, inputs, outputs), graph)
    if len(fixed) > 1:
        raise BadGraph(
            f"{where}: the graph's inputs are fixed to different batches, {sorted(fixed)}; export it anew"
        )
    found = {node.name: node for node in outputs}
    for output in model.manifest.outputs:
        for tensor in output.tensors:
            _check_output(model, output, _node(found, tensor, "output", where))
    return fixed.pop() if fixed else None


def type_of(dtype: str) -> str:
    """ONNX Runtime's word for a tensor of that dtype."""
    return _TYPES[dtype]


def states_of(model: models.Model, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[states.Spec, ...]:
    """What a graph carries from item to item, its nodes described as in `check`. Raises BadGraph."""
    takes, gives = ({node.name: node for node in nodes} for nodes in (inputs, outputs))
    try:
        return states.of_graph(model.manifest, takes, gives, {kind: dtype for dtype, kind in _TYPES.items()})
    except states.BadState as wrong:
        raise BadGraph(f"{model.folder / manifests.MANIFEST}: {wrong}") from None


def outputs_of(model: models.Model, nodes: Sequence[Any]) -> list[Output]:
    """What the manifest has `fetched` among the outputs of a graph that was checked, as in `check`."""
    named = {node.name: node for node in nodes}
    dtypes = {kind: dtype for dtype, kind in _TYPES.items()}
    return [
        Output(
            name,
            dtypes.get(named[name].type, named[name].type),
            tuple(size if isinstance(size, int) else -1 for size in named[name].shape[1:]),
        )
        for name in model.manifest.fetched
    ]


def in_batches(
    run: Callable[[Batch], Sequence[Array]], batch: Batch, size: int | None, names: Sequence[str]
) -> Sequence[Array]:
    """Run a batch, in parts of `size` items if it is not None, and see to it that each item has its row in
    every output. Raises RunFailed, and what `run` raises."""
    count = len(next(iter(batch.values())))
    if size is None or size == count:
        outputs = run(batch)
    else:
        parts = [run(part) for part in _padded(batch, count, size)]
        outputs = [np.concatenate(columns)[:count] for columns in zip(*parts, strict=True)]
    if len(outputs) != len(names):
        raise RunFailed(f"{len(outputs)} outputs came, and {len(names)} are needed: {', '.join(names)}")
    for name, output in zip(names, outputs, strict=True):
        if output.shape[:1] != (count,):
            raise RunFailed(
                f"output {name!r} has shape {list(output.shape)} for {count} items: "
                "export the graph with the batch as the first dimension of its outputs"
            )
    return outputs


def _padded(batch: Batch, count: int, fixed: int) -> Iterator[Batch]:
    """The batch in parts of exactly `fixed` items, the last one filled up with zeros."""
    for start in range(0, count, fixed):
        part = {name: array[start : start + fixed] for name, array in batch.items()}
        short = fixed - min(fixed, count - start)
        if short:
            part = {
                name: np.concatenate([array, np.zeros((short, *array.shape[1:]), array.dtype)])
                for name, array in part.items()
            }
        yield part


def _check_output(model: models.Model, output: manifests.Output, node: Any) -> None:
    where = model.folder / manifests.MANIFEST
    if not node.type.startswith("tensor("):
        raise BadGraph(
            f"{where}: output {node.name!r} is no tensor but {node.type}; export the graph without it "
            "(for scikit-learn models: zipmap=False)"
        )
    gives = list(node.shape[1:]) if node.shape else []
    match output:
        case manifests.Classification() | manifests.Scores() if all(isinstance(size, int) for size in gives):
            needed = len(output.labels) if isinstance(output, manifests.Classification) else 1
            if manifests.item_size(tuple(gives)) != needed:
                raise BadGraph(
                    f"{where}: output {node.name!r}: the graph gives {gives} numbers an item, the manifest "
                    "needs " + (f"one for each of its {needed} labels" if needed > 1 else "one")
                )
        case manifests.Detection() if node.name == output.name and gives:
            boxes = ("boxes", output.width)
            other = str(not output.transposed).lower()
            _check_item(
                f"{where}: output {node.name!r}",
                gives,
                boxes[::-1] if output.transposed else boxes,
                f"correct `row` or `labels`, or set transposed = {other}",
            )
        case manifests.Ctc() if gives:
            _check_item(
                f"{where}: output {node.name!r}",
                gives,
                ("steps", len(model.alphabet(output))),
                "take the dictionary that the graph was trained with, and see to `space`",
            )


def _check_item(
    what: str, gives: Sequence[int | str | None], needed: Sequence[int | str], remedy: str
) -> None:
    """BadGraph unless the shape that a graph gives for an item may be the one that the manifest needs."""
    if len(gives) != len(needed) or any(
        isinstance(size, int) and isinstance(wanted, int) and size != wanted
        for size, wanted in zip(gives, needed, strict=True)
    ):
        raise BadGraph(
            f"{what}: the graph gives {list(gives)} an item, and the manifest needs "
            f"[{', '.join(map(str, needed))}]: {remedy}"
        )


def _node(nodes: Mapping[str, Any], name: str, what: str, where: Path) -> Any:
    node = nodes.get(name)
    if node is None:
        there = ", ".join(map(repr, nodes)) or "none"
        raise BadGraph(f"{where}: the graph has no {what} {name!r}; it has {there}")
    return node


def _fits(shape: tuple[int, ...], graph: Sequence[int | str | None]) -> bool:
    return len(shape) == len(graph) and all(
        not isinstance(needed, int) or size == needed for size, needed in zip(shape, graph, strict=True)
    )

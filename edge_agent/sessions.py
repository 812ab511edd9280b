"""ONNX Runtime's sessions of a graph, on the best provider of a ladder that opens it.

ONNX Runtime falls back to the CPU without an error when a GPU's libraries are missing, or an option is not
known to it; on a line that needs the GPU's speed that is a fault nobody sees. So the provider that really
runs is read back from the session, and whoever was passed over is told with the reason.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from edge_agent import models
from shared import manifests

CPU: Final = "cpu"
TENSORRT: Final = "tensorrt"
CUDA: Final = "cuda"

EXECUTION_PROVIDERS: Final[Mapping[str, str]] = {
    TENSORRT: "TensorrtExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    CPU: "CPUExecutionProvider",
}
"""The manifest's word for each of ONNX Runtime's execution providers."""

CALIBRATION: Final = "calibration.table"
"""How a table of ranges is called beside the engine: TensorRT looks for it there."""
_NATIVE: Final = b"TRT-"
"""How a table begins that TensorRT wrote."""


class NotBuilt(Exception):
    """TensorRT's engine of a model is not there; the message says what becomes of it."""

    def __init__(self, why: str, *, is_coming: bool) -> None:
        super().__init__(why)
        self.is_coming = is_coming
        """Whether it is being built, or will be."""


class Engines(Protocol):
    """Where the engines of TensorRT are."""

    def opening(self, model: models.Model) -> contextlib.AbstractContextManager[Path]:
        """The folder with the engine of a model, for as long as it takes to open it and to see that it runs.

        What fails in the block is taken for the engine's fault. Raises NotBuilt where there is none.
        """
        ...


class Opened(NamedTuple):
    """What came of opening a graph."""

    sessions: Sessions | None
    """None where no provider opens it."""
    provider: str
    refused: list[str]
    """Why those before it did not."""
    is_coming: bool
    """Whether one of them will, later."""


class Sessions:
    """The sessions of one graph on one provider. Safe to use from several threads: where there are several
    sessions each run has one for itself, and may wait for it."""

    def __init__(self, made: Sequence[Any]) -> None:
        self.first: Final = made[0]
        self._free: queue.LifoQueue[Any] | None = None
        if len(made) > 1:
            self._free = queue.LifoQueue()
            for session in made:
                self._free.put(session)

    def run(self, outputs: Sequence[str], batch: Mapping[str, Any]) -> Sequence[Any]:
        """The outputs named, of a batch. Raises what ONNX Runtime raises."""
        if self._free is None:
            made: Sequence[Any] = self.first.run(outputs, batch)
            return made
        session = self._free.get()
        try:
            made = session.run(outputs, batch)
        finally:
            self._free.put(session)
        return made


def open_(
    ort: Any,
    model: models.Model,
    order: Sequence[str],
    *,
    threads: int = 1,
    streams: int = 1,
    engines: Engines | None = None,
    memory: int | None = None,
) -> Opened:
    """Open a graph on the first provider of `order` that runs it.

    `threads` work inside one run; on NVIDIA's GPUs `streams` runs can go on at one time. `memory` are the
    bytes of the GPU that all of them may take, where the provider can be told; less if the manifest says so.
    Without `engines` TensorRT builds its engine here and now, for minutes, and keeps it nowhere.
    """
    if {CUDA, TENSORRT} & set(order) and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's libraries may have come as Python packages, where no loader looks
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is told below, once, and not on stderr
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores have other work
    available = set(ort.get_available_providers())
    refused: list[str] = []
    is_coming = False
    for rung, provider in enumerate(order):
        if EXECUTION_PROVIDERS[provider] not in available:
            refused.append(f"{provider}: this ONNX Runtime was built without it")
            continue
        if provider == TENSORRT and model.manifest.states:
            # The shapes of states are the graph's to say, and TensorRT wants to hear all beforehand.
            refused.append(f"{provider}: no engine is built of a graph that carries states")
            continue
        # Nodes that the provider can't take go to those after it on the ladder, and last to the CPU; to
        # TensorRT only from its own rung, for it would build an engine of them.
        below = [one for one in (*order[rung + 1 :], CPU) if one not in (provider, TENSORRT)]
        ladder = [one for one in dict.fromkeys(below) if EXECUTION_PROVIDERS[one] in available]
        try:
            with contextlib.ExitStack() as stack:
                folder = None
                if provider == TENSORRT and engines is not None:
                    folder = stack.enter_context(engines.opening(model))
                count = streams if provider in (CUDA, TENSORRT) else 1
                providers = [
                    (
                        EXECUTION_PROVIDERS[one],
                        provider_options(one, model, folder) | bound(one, model, memory, count),
                    )
                    for one in (provider, *ladder)
                ]
                made = [
                    ort.InferenceSession(
                        os.fspath(model.path), options, providers=providers, enable_fallback=0
                    )
                    for _ in range(count)
                ]
                running = made[0].get_providers()[0]
                if provider == TENSORRT and running == EXECUTION_PROVIDERS[provider]:
                    probe(made[0], model)
        except NotBuilt as why:
            refused.append(f"{provider}: {why}")
            is_coming |= why.is_coming
            continue
        except Exception as error:  # noqa: BLE001 - each provider has its own kinds of errors, and the next is tried
            refused.append(f"{provider}: {line(error)}")
            continue
        for session in made:
            session.disable_fallback()  # nor may a run that fails go over to the CPU in silence
        if running == EXECUTION_PROVIDERS[provider]:
            return Opened(Sessions(made), provider, refused, is_coming)
        refused.append(f"{provider}: its driver or libraries did not load, ONNX Runtime chose {running}")
    return Opened(None, "", refused, is_coming)


def probe(session: Any, model: models.Model) -> None:
    """Run zeros: the smallest batch, and the largest. Raises what ONNX Runtime raises."""
    fixed = [node.shape[0] for node in session.get_inputs() if node.shape and isinstance(node.shape[0], int)]
    for count, shape in ((1, _least), (model.max_batch, _most)):
        size = fixed[0] if fixed else count
        session.run(
            None, {spec.name: np.zeros((size, *shape(spec)), spec.dtype) for spec in model.manifest.inputs}
        )


def offered(order: Sequence[str]) -> tuple[str, ...]:
    """Those of the providers in `order` that the installed ONNX Runtime was built with; all, if none."""
    import onnxruntime as ort

    available = set(ort.get_available_providers())
    return tuple(one for one in order if EXECUTION_PROVIDERS[one] in available) or tuple(order)


def provider_options(provider: str, model: models.Model, folder: Path | None) -> dict[str, str]:
    """What ONNX Runtime is told beside a provider's name; `folder` is where TensorRT's engine is, or goes."""
    if provider != TENSORRT:
        return {}
    options = engine_options(model)
    if folder is not None:
        options["trt_engine_cache_enable"] = "True"
        options["trt_engine_cache_path"] = os.fspath(folder)
    if calibration := model.manifest.providers.tensorrt.calibration:
        table = CALIBRATION if folder is not None else os.fspath(model.folder / calibration)
        options["trt_int8_calibration_table_name"] = table
    return options


def bound(provider: str, model: models.Model, memory: int | None, sessions: int) -> dict[str, str]:
    """How a provider is told what one of so many sessions of a model may take; nothing where it cannot be, or
    where neither the settings nor the manifest bind it."""
    wish = model.manifest.memory_mb
    limits = [one for one in (memory, None if wish is None else wish << 20) if one is not None]
    options: dict[str, tuple[str, dict[str, str]]] = {
        CUDA: ("gpu_mem_limit", {"arena_extend_strategy": "kSameAsRequested"}),
        "rocm": ("gpu_mem_limit", {"arena_extend_strategy": "kSameAsRequested"}),
        "migraphx": ("migraphx_mem_limit", {}),
    }
    if not limits or provider not in options:
        return {}
    name, others = options[provider]
    return {name: str(min(limits) // sessions), **others}


def engine_options(model: models.Model) -> dict[str, str]:
    """What makes TensorRT's engine of a model what it is.

    It is built for a range of shapes; told the whole range beforehand, TensorRT builds once, and not again,
    for minutes, when the first larger batch comes. Flags are words: ONNX Runtime's older versions refuse
    "1". Raises OSError if the table of ranges cannot be read.
    """
    asked = model.manifest.providers.tensorrt

    def shapes(count: int, shape: Callable[[manifests.Input], tuple[int, ...]]) -> str:
        return ",".join(
            f"{spec.name}:{'x'.join(map(str, (count, *shape(spec))))}" for spec in model.manifest.inputs
        )

    options = {
        "trt_profile_min_shapes": shapes(1, _least),
        "trt_profile_opt_shapes": shapes(model.max_batch, lambda spec: spec.shape),
        "trt_profile_max_shapes": shapes(model.max_batch, _most),
        "trt_max_workspace_size": str(asked.workspace_bytes),
        "trt_fp16_enable": str(asked.precision != "fp32"),
        "trt_int8_enable": str(asked.precision == "int8"),
    }
    if asked.calibration is not None:
        with (model.folder / asked.calibration).open("rb") as table:
            native = table.read(len(_NATIVE)) == _NATIVE
        options["trt_int8_use_native_calibration_table"] = str(native)
    return options


def line(error: BaseException) -> str:
    """An error on one line, without the trace that ONNX Runtime puts into its messages."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def _least(spec: manifests.Input) -> tuple[int, ...]:
    return spec.least


def _most(spec: manifests.Input) -> tuple[int, ...]:
    return spec.most

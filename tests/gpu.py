"""A GPU for machines that have none: ONNX Runtime's module, in which TensorRT and CUDA run on the CPU.

Its TensorRT takes an engine that is there and whole, and fails at any other, as the real one does. `site`
makes a folder that gives such a GPU to every Python that finds it on its PYTHONPATH.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import onnxruntime as ort

from edge_agent.builds import identity
from tests import gpu_builder

HOST: Final = identity.Host(
    onnxruntime="1.22.0", tensorrt="100900", cuda="12.8", driver="570.86", gpu="NVIDIA L4", compute="8.9"
)
ENGINE: Final = gpu_builder.ENGINE
ROOT: Final = Path(__file__).resolve().parents[1]
BUILDER: Final = (sys.executable, "-S", str(ROOT / "tests" / "gpu_builder.py"))
"""The program that builds engines, but for the word how."""
TENSORRT: Final = "TensorrtExecutionProvider"


class Session:
    """A graph on one of the providers."""

    def __init__(self, path: str, providers: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        self.providers = [name for name, _ in providers]
        for name, told in providers:
            if name == TENSORRT and told:
                engine = Path(told["trt_engine_cache_path"]) / "x.engine"
                if engine.read_bytes() != ENGINE:
                    raise RuntimeError("TensorRT EP could not deserialize engine from cache")
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.get_inputs = self._session.get_inputs
        self.get_outputs = self._session.get_outputs
        self.run = self._session.run

    def get_providers(self) -> list[str]:
        return self.providers

    def disable_fallback(self) -> None:
        pass


class Module:
    """In place of the module `onnxruntime`."""

    SessionOptions = ort.SessionOptions
    RunOptions = ort.RunOptions
    __version__ = HOST.onnxruntime

    def __init__(self) -> None:
        self.opened: list[Session] = []

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, "CUDAExecutionProvider", "CPUExecutionProvider"]

    def disable_telemetry_events(self) -> None:
        pass

    def InferenceSession(  # noqa: N802 - as ONNX Runtime has it
        self,
        path: str,
        options: Any = None,
        providers: Sequence[str | tuple[str, Mapping[str, str]]] = (),
        enable_fallback: int = 1,
    ) -> Session:
        self.opened.append(Session(path, [(one, {}) if isinstance(one, str) else one for one in providers]))
        return self.opened[-1]


def site(folder: Path, how: str) -> Path:
    """A folder for PYTHONPATH; engines are built as `tests.gpu_builder` says."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\nfrom tests import gpu\ngpu.install({how!r})\n",
        encoding="utf-8",
    )
    return folder


def install(how: str) -> None:
    """Give this process a GPU."""
    from edge_agent.builds import builder, host

    sys.modules["onnxruntime"] = cast(ModuleType, Module())
    host.look = lambda: HOST
    builder.Builder.__init__.__defaults__ = ((*BUILDER, how),)

"""What TensorRT finds on this machine, by the libraries themselves: no program of NVIDIA's need be installed.

cuInit, cuDriverGetVersion, cuDeviceGetName, cuDeviceGetAttribute: CUDA Driver API, sections 6.2 to 6.5.
getInferLibVersion: TensorRT's NvInferRuntime.h.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path
from typing import Any, Final

from edge_agent.builds import identity

DRIVER: Final = Path("/sys/module/nvidia/version")
_PROVIDER: Final = "libonnxruntime_providers_tensorrt.so"
_LIBRARY: Final = re.compile(rb"libnvinfer\.so\.\d+")
_COMPUTE: Final = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class Missing(RuntimeError):
    """TensorRT cannot run here; the message says what is not there."""


def look() -> identity.Host:
    """What is there. Raises Missing."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        library = ctypes.CDLL(_library_of(Path(ort.__file__).parent / "capi" / _PROVIDER))
    except OSError as error:
        raise Missing(f"a library does not load: {error}") from None
    name = ctypes.create_string_buffer(256)
    _ask(cuda.cuInit, 0)
    _ask(cuda.cuDeviceGetName, name, len(name), 0)
    version = _number(cuda.cuDriverGetVersion)
    return identity.Host(
        onnxruntime=ort.__version__,
        tensorrt=str(library.getInferLibVersion()),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        driver=DRIVER.read_text(encoding="ascii").strip() if DRIVER.is_file() else "",
        gpu=name.value.decode(errors="replace"),
        compute=".".join(str(_number(cuda.cuDeviceGetAttribute, one, 0)) for one in _COMPUTE),
    )


def _library_of(provider: Path) -> str:
    """The name of the library of TensorRT that ONNX Runtime was linked with."""
    try:
        with provider.open("rb") as held, mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ) as inside:
            found = _LIBRARY.search(inside)
            name = found[0].decode() if found is not None else None
    except FileNotFoundError:
        raise Missing(f"this ONNX Runtime has no {provider.name}") from None
    except (OSError, ValueError) as error:
        raise Missing(f"{provider} cannot be read: {error}") from None
    if name is None:
        raise Missing(f"{provider} does not say which TensorRT it needs")
    return name


def _number(function: Any, *arguments: int) -> int:
    value = ctypes.c_int()
    _ask(function, ctypes.byref(value), *arguments)
    return value.value


def _ask(function: Any, *arguments: Any) -> None:
    code = function(*arguments)
    if code:
        raise Missing(f"{function.__name__} of the CUDA driver fails with {code}")

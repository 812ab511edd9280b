"""What is found of a GPU and of TensorRT, by libraries that answer as NVIDIA's do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_agent.builds import identity
from tests import gpu

LIBRARIES = {
    "libcuda.so.1": """
        #include <string.h>
        int cuInit(unsigned flags) { return flags; }
        int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
        int cuDeviceGetName(char *name, int length, int device) {
            strncpy(name, "NVIDIA L4", length);
            return device;
        }
        int cuDeviceGetAttribute(int *value, int attribute, int device) {
            *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1;
            return device;
        }
    """,
    "libnvinfer.so.10": "int getInferLibVersion(void) { return 100900; }",
    "libcuda-none.so": "int cuInit(unsigned flags) { return 100; }",
}
LOOK = """
import sys, pathlib, msgspec
from edge_agent.builds import host
host.DRIVER = pathlib.Path(sys.argv[1])
try:
    print(msgspec.json.encode(host.look()).decode())
except host.Missing as missing:
    print(missing)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with libraries, a driver's version, and a module `onnxruntime` that was built for TensorRT."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    for name, source in LIBRARIES.items():
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / name)]
        subprocess.run(command, input=source.encode(), check=True, timeout=60)
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").write_text(f"__version__ = {gpu.HOST.onnxruntime!r}\n")
    (capi / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x7fELF\0libnvinfer.so.10\0libcudart\0")
    (tmp_path / "version").write_text(f"{gpu.HOST.driver}\n")
    return tmp_path


def look(machine: Path) -> str:
    path = os.pathsep.join((str(machine), str(gpu.ROOT)))
    ended = subprocess.run(
        [sys.executable, "-c", LOOK, str(machine / "version")],
        env={**os.environ, "LD_LIBRARY_PATH": str(machine), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout.strip()


def test_a_machine_is_known_by_what_its_libraries_say(machine: Path) -> None:
    """The GPU, its compute capability, the versions of driver, CUDA, TensorRT and ONNX Runtime."""
    assert msgspec.json.decode(look(machine), type=identity.Host) == gpu.HOST


def test_a_driver_without_a_gpu_is_told(machine: Path) -> None:
    """What the driver answers is passed on."""
    (machine / "libcuda-none.so").rename(machine / "libcuda.so.1")
    assert look(machine) == "cuInit of the CUDA driver fails with 100"


def test_a_missing_tensorrt_is_told(machine: Path) -> None:
    """By the name of the library that ONNX Runtime was linked with."""
    (machine / "libnvinfer.so.10").unlink()
    assert "libnvinfer.so.10" in look(machine)


def test_an_onnxruntime_that_was_not_built_for_tensorrt_is_told(machine: Path) -> None:
    """By the file that it lacks."""
    (machine / "onnxruntime" / "capi" / "libonnxruntime_providers_tensorrt.so").unlink()
    assert look(machine) == "this ONNX Runtime has no libonnxruntime_providers_tensorrt.so"

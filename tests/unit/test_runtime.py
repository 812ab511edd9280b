"""ONNX Runtime behind its port: the provider that really runs, and graphs that don't fit their manifest."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edge_agent import models, runtime, sessions
from tests import models as packages


def opened(folder: Path, *order: str) -> runtime.OnnxRuntime:
    return runtime.OnnxRuntime(models.load(folder), order)


def test_the_provider_that_runs_is_told(tmp_path: Path) -> None:
    """With the wanted provider there is nothing to explain."""
    made = opened(packages.write_scorer(tmp_path / "m"), "cpu")
    assert (made.wanted, made.provider, made.reason) == ("cpu", "cpu", None)
    assert made.name == f"onnxruntime {ort.__version__}"


def test_a_fall_to_another_provider_is_never_silent(tmp_path: Path) -> None:
    """Where a GPU is wanted and the CPU runs, the runtime says so, and why."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime was built for a GPU")
    made = opened(packages.write_scorer(tmp_path / "m"), "cuda", "cpu")
    assert (made.wanted, made.provider) == ("cuda", "cpu")
    assert made.reason is not None
    assert made.reason.startswith("cuda: ")


def test_without_the_cpu_in_its_order_a_model_never_runs_on_it(tmp_path: Path) -> None:
    """An order without `cpu` means it: the model does not open, and each provider's reason is told."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime was built for a GPU")
    with pytest.raises(runtime.BadGraph, match=r"none of the providers tensorrt, cuda: tensorrt: .*; cuda: "):
        opened(packages.write_scorer(tmp_path / "m"), "tensorrt", "cuda")


def test_a_file_that_is_no_graph_is_told(tmp_path: Path) -> None:
    """The error names the file, and what ONNX Runtime says of it."""
    folder = packages.write_scorer(tmp_path / "m")
    (folder / "model.onnx").write_bytes(b"this is not a graph")
    with pytest.raises(runtime.BadGraph, match=r"model\.onnx: mean@1\.0\.0 opens on none.*cpu: "):
        opened(folder)


@pytest.mark.parametrize("fixed", [1, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_graph_of_a_fixed_batch_runs_any_number(tmp_path: Path, fixed: int, count: int) -> None:
    """Batches are cut and filled up to what the graph takes, and each item gets its own answer."""
    made = opened(packages.write_scorer(tmp_path / "m", batch=fixed))
    windows = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    (scores,) = made.run({"window": windows})
    np.testing.assert_allclose(scores[:, 0], windows.mean(axis=1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "window"', 'name = "image"', "the graph also takes 'window'"),
        (
            'name = "window"',
            'name = "w"\nkind = "tensor"\nshape = [4]\n[[inputs]]\nname = "window"',
            "no input 'w'",
        ),
        ("shape = [4]", "shape = [5]", r"input 'window': the graph takes \['batch', 4\].*\['batch', 5\]"),
        ("shape = [4]", "shape = [2, 2]", r"\['batch', 2, 2\]"),
        ("shape = [4]", 'shape = [4]\ndtype = "int64"', r"takes tensor\(float\), the manifest says int64"),
        ('name = "score"', 'name = "result"', "no output 'result'; it has 'score'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_told_at_load(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Names, shapes and types are compared before anything runs; the error names the file and the field."""
    folder = packages.write_scorer(tmp_path / "m")
    manifest = folder / "model.toml"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new, 1))
    with pytest.raises(runtime.BadGraph, match=words) as caught:
        opened(folder)
    assert str(manifest) in str(caught.value)


def test_labels_must_be_as_many_as_the_graphs_classes(tmp_path: Path) -> None:
    """Three labels for two numbers would name the wrong defect: refused at load."""
    folder = packages.write_classifier(tmp_path / "m")
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace('"dark",', '"dark", "dim",'))
    with pytest.raises(
        runtime.BadGraph, match=r"'prob': the graph gives \[2\] numbers.*each of its 3 labels"
    ):
        opened(folder)


def test_an_output_without_the_batch_is_told(tmp_path: Path) -> None:
    """A graph whose output does not grow with its input can't be batched, and says so instead of guessing."""
    made = opened(packages.write_summary(tmp_path / "m"))
    with pytest.raises(runtime.RunFailed, match=r"'score' has shape \[1, 1\] for 3 items"):
        made.run({"window": np.zeros((3, 4), np.float32)})


def test_tensorrt_is_told_the_whole_range_of_shapes(tmp_path: Path) -> None:
    """One engine for every batch up to the largest, kept in its folder; others need no options."""
    model = models.load(packages.write_classifier(tmp_path / "m", extra="[batching]\nmax_batch = 16"))
    options = sessions.provider_options("tensorrt", model, tmp_path / "engine")
    assert options["trt_profile_min_shapes"] == "image:1x1x8x8"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "image:16x1x8x8"
    assert options["trt_engine_cache_path"] == str(tmp_path / "engine")
    assert options["trt_engine_cache_enable"] == "True"  # older versions of ONNX Runtime refuse "1"
    assert sessions.provider_options("cuda", model, tmp_path) == {}


def test_tensorrt_is_told_between_which_sizes_an_input_varies(tmp_path: Path) -> None:
    """From the smallest picture of one item to the largest of a whole batch, built for the usual one."""
    folder = packages.write_classifier(tmp_path / "m", extra="[batching]\nmax_batch = 4")
    manifest = folder / "model.toml"
    more = 'width = 8\nresize = "height"\nmax_width = 64'
    manifest.write_text(manifest.read_text().replace("width = 8", more))
    options = sessions.provider_options("tensorrt", models.load(folder), None)
    assert options["trt_profile_min_shapes"] == "image:1x1x8x8"
    assert options["trt_profile_opt_shapes"] == "image:4x1x8x8"
    assert options["trt_profile_max_shapes"] == "image:4x1x8x64"


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"),
    [("fp32", "False", "False"), ("fp16", "True", "False"), ("int8", "True", "True")],
)
def test_tensorrt_computes_in_what_the_manifest_says(
    tmp_path: Path, precision: str, fp16: str, int8: str
) -> None:
    """Flags are words, as every version of ONNX Runtime takes them; in INT8 other layers may take FP16."""
    extra = f'[providers.tensorrt]\nprecision = "{precision}"'
    options = sessions.engine_options(models.load(packages.write_scorer(tmp_path / "m", extra=extra)))
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (fp16, int8)


@pytest.mark.parametrize(("table", "native"), [(b"TRT-8503-Entropy\n", "True"), (b"\x14\0\0\0", "False")])
def test_tensorrt_is_told_whose_table_of_ranges_it_is(tmp_path: Path, table: bytes, native: str) -> None:
    """A table that TensorRT wrote is told from ONNX Runtime's, and is looked for beside the engine."""
    folder = packages.write_scorer(
        tmp_path / "m", extra='[providers.tensorrt]\nprecision = "int8"\ncalibration = "ranges"'
    )
    (folder / "ranges").write_bytes(table)
    options = sessions.provider_options("tensorrt", models.load(folder), tmp_path)
    assert options["trt_int8_use_native_calibration_table"] == native
    assert options["trt_int8_calibration_table_name"] == sessions.CALIBRATION
    alone = sessions.provider_options("tensorrt", models.load(folder), None)
    assert alone["trt_int8_calibration_table_name"] == str(folder / "ranges")


class Session:
    """Takes its time, and sees whether it is alone."""

    def __init__(self) -> None:
        self.busy = threading.Lock()

    def run(self, outputs: Sequence[str], batch: Mapping[str, Any]) -> Sequence[Any]:
        assert self.busy.acquire(blocking=False), "two runs share a session"
        try:
            batch["gate"].wait()
        finally:
            self.busy.release()
        return [id(self)]


def test_runs_that_go_on_at_one_time_have_a_session_each() -> None:
    """With two sessions two runs are in the GPU together, and never two in one session."""
    gate = threading.Barrier(2, timeout=10)
    held = sessions.Sessions([Session(), Session()])
    with futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: held.run([], {"gate": gate}), range(8)))
    assert len({one[0] for one in made}) == 2


def test_a_graph_of_one_size_takes_no_input_that_varies(tmp_path: Path) -> None:
    """It would fail at the first picture of another size: refused at load, with both shapes."""
    folder = packages.write_classifier(tmp_path / "m")
    manifest = folder / "model.toml"
    manifest.write_text(
        manifest.read_text().replace("width = 8", 'width = 8\nresize = "fit"\nmultiple_of = 4')
    )
    words = r"takes \['batch', 1, 8, 8\].*\['batch', 1, 4, 4\] to \['batch', 1, 8, 8\]"
    with pytest.raises(runtime.BadGraph, match=words):
        opened(folder)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            'kind = "detection"\nlabels = ["a"]\nrow = "box classes"\nbox = "xyxy"',
            r"\[2\] an item.*\[boxes, 5\]",
        ),
        ('kind = "ctc"\ndictionary = "model.toml"', r"\[2\] an item.*\[steps, \d+\]: take the dictionary"),
    ],
)
def test_boxes_and_text_must_be_of_the_graphs_shape(tmp_path: Path, output: str, words: str) -> None:
    """A graph for another number of classes, or another alphabet, is refused at load."""
    folder = packages.write_classifier(tmp_path / "m")
    manifest = folder / "model.toml"
    head, _, rest = manifest.read_text().partition('kind = "classification"')
    manifest.write_text(head + output + "\n" + rest[rest.index("[providers]") :])
    with pytest.raises(runtime.BadGraph, match=words) as caught:
        opened(folder)
    assert str(manifest) in str(caught.value)


def test_onnx_runtime_is_loaded_with_the_first_model() -> None:
    """An agent without models, or a tool that reads manifests, does not pay 45 MB for it."""
    script = "import sys; from edge_agent import engine; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

"""Packages around the PP-OCRv4 models that come in the wheel `rapidocr-onnxruntime`.

The graphs and their dictionary are taken out of it; `.ci/setup` gets it, and none of it is installed or run.
A test that needs them is skipped where it is missing, and fails in CI.
"""

from __future__ import annotations

import os
import textwrap
import zipfile
from pathlib import Path
from typing import Final

import onnxruntime as ort
import pytest

WHEELS: Final = Path(__file__).resolve().parents[1] / ".servers" / "wheels"

DETECTOR: Final = "ch_PP-OCRv4_det_infer.onnx"
DIRECTION: Final = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
READER: Final = "ch_PP-OCRv4_rec_infer.onnx"

_IMAGE: Final = """
[[inputs]]
name = "x"
kind = "image"
colour = "bgr"
scale = 0.00392156862745098
"""


def graph(name: str) -> bytes:
    """One of the graphs."""
    found = sorted(WHEELS.glob("rapidocr_onnxruntime-*.whl"))
    if not found:
        missing = "the text models are missing: run .ci/setup"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    with zipfile.ZipFile(found[-1]) as wheel:
        return wheel.read(f"rapidocr_onnxruntime/models/{name}")


def write_detector(folder: Path, *, extra: str = "") -> Path:
    """`part-labels`: where text is, in pictures of any size, looked at with at most 736 x 736 pixels."""
    return _write(
        folder,
        DETECTOR,
        f"""
        name = "part-labels"
        version = "4.0"
        {_IMAGE}
        width = 736
        height = 736
        resize = "fit"
        multiple_of = 32
        mean = [0.485, 0.456, 0.406]
        std = [0.229, 0.224, 0.225]
        [[outputs]]
        name = "sigmoid_0.tmp_0"
        kind = "heatmap"
        label = "text"
        threshold = 0.3
        score_threshold = 0.5
        unclip = 1.6
        {extra}
        """,
    )


def write_direction(folder: Path, *, extra: str = "") -> Path:
    """`direction`: whether a line of text stands on its head."""
    return _write(
        folder,
        DIRECTION,
        f"""
        name = "direction"
        version = "2.0"
        {_IMAGE}
        width = 192
        max_width = 192
        height = 48
        resize = "height"
        pad = [127.5]
        mean = [0.5]
        std = [0.5]
        [[outputs]]
        name = "save_infer_model/scale_0.tmp_1"
        kind = "classification"
        labels = ["0", "180"]
        {extra}
        """,
    )


def write_reader(folder: Path, *, extra: str = "") -> Path:
    """`text`: what a line of text says."""
    made = _write(
        folder,
        READER,
        f"""
        name = "text"
        version = "4.0"
        {_IMAGE}
        width = 320
        max_width = 1600
        height = 48
        resize = "height"
        multiple_of = 8
        pad = [127.5]
        mean = [0.5]
        std = [0.5]
        [[outputs]]
        name = "softmax_11.tmp_0"
        kind = "ctc"
        dictionary = "characters.txt"
        space = true
        {extra}
        """,
    )
    (made / "characters.txt").write_text("\n".join(characters()) + "\n", encoding="utf-8")
    return made


def session(name: str) -> ort.InferenceSession:
    """A plain ONNX Runtime session, without anything of ours."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph(name), options, providers=["CPUExecutionProvider"])


def characters() -> list[str]:
    """The reader's dictionary, which stands in the graph's metadata."""
    found: str = session(READER).get_modelmeta().custom_metadata_map["character"]
    return found.split("\n")


def _write(folder: Path, name: str, manifest: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(graph(name))
    (folder / "model.toml").write_text(textwrap.dedent(manifest), encoding="utf-8")
    return folder

"""Packages around the PP-OCRv4 graphs in the wheel `rapidocr-onnxruntime`, where `.ci/setup` has got it.

Real models of 0.6 to 11 MB, of which two take pictures of any size. Nothing of the wheel is installed or run.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnxruntime as ort
from PIL import Image, ImageDraw, ImageFont

from benchmarks import pictures, subjects
from edge_agent import engine
from shared import jobs

WHEELS: Final = pictures.REPOSITORY / ".servers" / "wheels"

_DETECTOR: Final = """\
name = "part-labels"
version = "4.0"
[[inputs]]
name = "x"
kind = "image"
width = 736
height = 736
resize = "fit"
multiple_of = 32
colour = "bgr"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[[outputs]]
name = "sigmoid_0.tmp_0"
kind = "heatmap"
label = "text"
threshold = 0.3
score_threshold = 0.5
unclip = 1.6
[batching]
max_batch = 1
"""
_LINES: Final = """\
name = "{name}"
version = "4.0"
[[inputs]]
name = "x"
kind = "image"
width = {width}
max_width = {most}
height = 48
resize = "height"
{multiple}
colour = "bgr"
pad = [127.5]
scale = 0.00392156862745098
mean = [0.5]
std = [0.5]
[[outputs]]
{output}
[batching]
max_batch = 4
"""
_DIRECTION: Final = _LINES.format(
    name="direction",
    width=192,
    most=192,
    multiple="",
    output="""\
name = "save_infer_model/scale_0.tmp_1"
kind = "classification"
labels = ["0", "180"]""",
)
_READER: Final = _LINES.format(
    name="text",
    width=320,
    most=1600,
    multiple="multiple_of = 8",
    output="""\
name = "softmax_11.tmp_0"
kind = "ctc"
dictionary = "characters.txt"
space = true""",
)
_GRAPHS: Final = {
    "part-labels": ("ch_PP-OCRv4_det_infer.onnx", _DETECTOR),
    "direction": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", _DIRECTION),
    "text": ("ch_PP-OCRv4_rec_infer.onnx", _READER),
}


def lay_out(directory: Path) -> Iterator[subjects.Subject]:
    """Put the packages into folders of `directory`; none where the wheel is missing."""
    found = sorted(WHEELS.glob("rapidocr_onnxruntime-*.whl"))
    if not found:
        return
    work = [engine.Work(jobs.PNG, _line("LOT 4711-A"))]
    with zipfile.ZipFile(found[-1]) as wheel:
        for name, (graph, manifest) in _GRAPHS.items():
            folder = directory / name
            folder.mkdir()
            encoded = wheel.read(f"rapidocr_onnxruntime/models/{graph}")
            (folder / "model.onnx").write_bytes(encoded)
            (folder / "model.toml").write_text(manifest, encoding="utf-8")
            if "characters.txt" in manifest:
                (folder / "characters.txt").write_text(_characters(encoded), encoding="utf-8")
            yield subjects.Subject(folder, work)


def _characters(graph: bytes) -> str:
    """The reader's dictionary, which stands in the graph's metadata."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found: str = session.get_modelmeta().custom_metadata_map["character"]
    return found + "\n"


def _line(text: str) -> bytes:
    """A line of text in a picture."""
    picture = Image.new("RGB", (320, 48), (205, 208, 212))
    ImageDraw.Draw(picture).text((10, 3), text, fill=(24, 26, 30), font=ImageFont.load_default(36))
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()

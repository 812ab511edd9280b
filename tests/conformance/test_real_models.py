"""Real models, by their manifests alone, give what a plain run of ONNX Runtime gives.

What the graph gets and gives is watched at the runtime, and compared with a run whose inputs each test makes
by itself, with Pillow and numpy, in the words of the models' authors.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from PIL import Image, ImageDraw, ImageFont

from edge_agent import engine, models, outcomes, runtime
from shared import jobs
from tests import models as packages
from tests import text_models

LINES: Final = ("LOT 4711-A", "SN 0093/2025")
PAPER, INK = (205, 208, 212), (24, 26, 30)


class Watched(runtime.OnnxRuntime):
    """ONNX Runtime, which keeps what it was given and what it gave last."""

    batch: runtime.Batch
    tensors: Sequence[runtime.Array]

    def run(self, batch: runtime.Batch) -> Sequence[runtime.Array]:
        self.batch, self.tensors = batch, super().run(batch)
        return self.tensors


class Bench:
    """An engine with one model, and a look at its runtime."""

    def __init__(self, folder: Path) -> None:
        self.runtime: Watched
        self.engine = engine.Engine(models.Catalogue(), opener=self._open)
        self.model = models.load(folder)
        self.engine.load(self.model)

    def _open(self, model: models.Model, order: Sequence[str]) -> runtime.Runtime:
        self.runtime = Watched(model, order)
        return self.runtime

    def run(self, *payloads: bytes) -> list[outcomes.Prediction]:
        """What is said of each of some pictures, which run together."""
        made = [
            one for (one,) in self.engine.run(self.model, [engine.Work(jobs.PNG, one) for one in payloads])
        ]
        assert all(isinstance(one, outcomes.Prediction) for one in made), made
        return [one for one in made if isinstance(one, outcomes.Prediction)]

    def is_plain(self, session: ort.InferenceSession, **inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The only output of a plain run, after comparing it with ours; so too the inputs."""
        for name, expected in inputs.items():
            np.testing.assert_allclose(self.runtime.batch[name], expected, rtol=0, atol=2e-6)
        (expected,) = session.run(None, inputs)
        (given,) = self.runtime.tensors
        np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
        made: npt.NDArray[Any] = expected
        return made


def bench(folder: Path) -> Iterator[Bench]:
    made = Bench(folder)
    yield made
    made.engine.close()


CPU: Final = '[providers]\norder = ["cpu"]\n[batching]\nmax_batch = 2\n'


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from bench(text_models.write_detector(tmp_path_factory.mktemp("detector"), extra=CPU))


@pytest.fixture(scope="module")
def direction(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from bench(text_models.write_direction(tmp_path_factory.mktemp("direction"), extra=CPU))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from bench(text_models.write_reader(tmp_path_factory.mktemp("reader"), extra=CPU))


def label(size: tuple[int, int] = (460, 180)) -> tuple[Image.Image, list[tuple[float, float, float, float]]]:
    """A part label, and where its lines are: left, top, right, bottom."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(36)
    places = [(40, 30), (70, 110)]
    for place, line in zip(places, LINES, strict=True):
        draw.text(place, line, fill=INK, font=font)
    return picture, [draw.textbbox(place, line, font=font) for place, line in zip(places, LINES, strict=True)]


def line(text: str) -> Image.Image:
    """One line of text, cut out."""
    font = ImageFont.load_default(36)
    picture = Image.new("RGB", (round(font.getlength(text)) + 20, 50), PAPER)
    ImageDraw.Draw(picture).text((10, 3), text, fill=INK, font=font)
    return picture


def boxes(made: outcomes.Prediction) -> list[Any]:
    """The boxes in reading order."""
    assert made.output is not None
    return sorted((one["box"] for one in json.loads(made.output)), key=lambda box: box[1])


def crops(picture: Image.Image, made: outcomes.Prediction) -> list[Image.Image]:
    """What is in the boxes, in reading order."""
    return [picture.crop(tuple(map(round, box))) for box in boxes(made)]


def bgr(picture: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Resized pixels as OpenCV would have them, 0 to 1, as [channel, row, column]."""
    resized = picture.resize(size, Image.Resampling.BILINEAR) if picture.size != size else picture
    return np.asarray(resized, np.float64)[:, :, ::-1].transpose(2, 0, 1) / 255


def test_text_is_found(detector: Bench) -> None:
    """PP-OCR's detection, in pictures of any size: its map is that of a plain run, and the boxes are around
    the lines, in the picture's own pixels."""
    picture, lines = label()
    (made,) = detector.run(packages.encoded(picture))
    wide, high = 736, round(180 * 736 / 460)
    pixels = np.zeros((1, 3, -(-high // 32) * 32, wide))
    pixels[0, :, :high] = bgr(picture, (wide, high))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (pixels - mean[:, None, None]) / deviation[:, None, None]
    seen = detector.is_plain(text_models.session(text_models.DETECTOR), x=normalised.astype(np.float32))
    assert made.label == "text"
    scores = [seen[seen > 0.3].mean(), made.score]
    assert scores == pytest.approx([0.99, 0.99], abs=0.02)
    assert len(boxes(made)) == len(lines)
    for box, (left, top, right, bottom) in zip(boxes(made), lines, strict=True):
        assert box == pytest.approx([left, top, right, bottom], abs=20)
        assert box[0] < left + 5
        assert right - 5 < box[2]


def test_the_direction_of_a_line_is_told(direction: Bench) -> None:
    """PP-OCR's classifier, with lines padded to its width: its numbers are those of a plain run."""
    upright = line("LOT 47")
    made = direction.run(packages.encoded(upright), packages.encoded(upright.rotate(180)))
    pixels = np.full((2, 3, 48, 192), 0.5)
    wide = -(-upright.width * 48 // upright.height)
    assert wide < 192
    for row, picture in enumerate((upright, upright.rotate(180))):
        pixels[row, :, :, :wide] = bgr(picture, (wide, 48))
    session = text_models.session(text_models.DIRECTION)
    seen = direction.is_plain(session, x=((pixels - 0.5) / 0.5).astype(np.float32))
    assert [one.label for one in made] == ["0", "180"]
    assert [one.score for one in made] == pytest.approx([seen[0, 0], seen[1, 1]], abs=1e-4)


def test_lines_of_any_length_are_read_together(reader: Bench) -> None:
    """PP-OCR's recognition: the items of a batch are padded to the widest, and the texts and scores are what
    a plain run gives."""
    texts = ("LOT 4711-A", "SERIAL NUMBER 0093/2025 REV B")
    pictures = list(map(line, texts))
    made = reader.run(*map(packages.encoded, pictures))
    widths = [-(-one.width * 48 // one.height) for one in pictures]
    pixels = np.full((2, 3, 48, -(-max(widths) // 8) * 8), 0.5)
    for row, (picture, wide) in enumerate(zip(pictures, widths, strict=True)):
        pixels[row, :, :, :wide] = bgr(picture, (wide, 48))
    session = text_models.session(text_models.READER)
    seen = reader.is_plain(session, x=((pixels - 0.5) / 0.5).astype(np.float32))
    alphabet = ["", *text_models.characters(), " "]
    for row, text, one in zip(seen, texts, made, strict=True):
        best = row.argmax(axis=1)
        kept = [step for step, kind in enumerate(best) if kind and (not step or kind != best[step - 1])]
        assert "".join(alphabet[best[step]] for step in kept) == one.label
        assert (one.label or "").replace(" ", "") == text.replace(" ", "")
        assert one.score == pytest.approx(row.max(axis=1)[kept].mean(), abs=1e-3)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_part_label_is_read(detector: Bench, direction: Bench, reader: Bench, orientation: int) -> None:
    """From a camera's picture to its lines, as a client does it: find, cut out, read; however the camera
    was held, if it says so."""
    upright, _ = label()
    held = {
        1: upright,
        3: upright.transpose(Image.Transpose.ROTATE_180),
        6: upright.transpose(Image.Transpose.ROTATE_90),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    held[orientation].save(sink, "JPEG", quality=95, exif=exif)
    (found,) = detector.run(sink.getvalue())
    cut = [packages.encoded(one) for one in crops(upright, found)]
    assert [one.label for one in direction.run(*cut)] == ["0", "0"]
    texts = [
        (one.label or "").replace(" ", "") for one in reader.run(*cut)
    ]  # narrow spaces are easily missed
    assert texts == [line.replace(" ", "") for line in LINES]


def test_a_picture_without_text_has_no_boxes(detector: Bench) -> None:
    """Nothing is found, and nothing is said."""
    (made,) = detector.run(packages.encoded(Image.new("RGB", (300, 200), PAPER)))
    assert (made.label, made.score, made.output) == (None, None, b"[]")


def data(name: str) -> Path:
    folder = packages.DATA / name
    if not folder.is_dir():
        pytest.skip("the data folder is not here")
    return folder


def package(folder: Path, graph: Path, manifest: str) -> Path:
    shutil.copy(graph, folder / "model.onnx")
    (folder / "model.toml").write_text(
        manifest + '[providers]\norder = ["cpu"]\n[batching]\nmax_batch = 50\n'
    )
    return folder


def test_pitting_is_judged_as_in_a_plain_run(tmp_path: Path) -> None:
    """A hundred real pictures of parts, in batches of fifty: every label and score is the plain run's."""
    folder = data("bsdata")
    graph = folder / "bsd_pitting_64.onnx"
    ours = Bench(
        package(
            tmp_path,
            graph,
            'name = "pitting"\nversion = "1"\n'
            '[[inputs]]\nname = "image"\nkind = "image"\nwidth = 64\nheight = 64\ncolour = "grey"\n'
            '[[outputs]]\nname = "prob"\nkind = "classification"\nlabels = ["clean", "pitting"]\n',
        )
    )
    files = sorted(folder.glob("*.png"))
    made = ours.run(*(one.read_bytes() for one in files))
    pixels = np.stack([np.asarray(Image.open(one).convert("L"), np.float32)[None] for one in files])
    ours.is_plain(ort.InferenceSession(graph), image=pixels[50:])
    (seen,) = ort.InferenceSession(graph).run(None, {"image": pixels})
    assert [one.label for one in made] == [("clean", "pitting")[place] for place in seen.argmax(axis=1)]
    assert [one.score for one in made] == pytest.approx(seen.max(axis=1).tolist(), abs=1e-5)


def test_a_machines_readings_are_scored_as_in_a_plain_run(tmp_path: Path) -> None:
    """Windows of a real machine's temperature over three months: every score is the plain run's."""
    folder = data("machine-temperature")
    graph = folder / "machine_temp_ae.onnx"
    ours = Bench(
        package(
            tmp_path,
            graph,
            'name = "temperature"\nversion = "1"\n'
            '[[inputs]]\nname = "window"\nkind = "tensor"\nshape = [48]\n'
            '[[outputs]]\nname = "score"\nkind = "scores"\n',
        )
    )
    with (folder / "machine_temperature.csv").open(newline="") as table:
        values = np.array([float(row["value"]) for row in csv.DictReader(table)])
    windows = ((values - values.mean()) / values.std())[: len(values) // 48 * 48].reshape(-1, 48)
    request = {"name": "window", "shape": list(windows.shape), "datatype": "FP32", "data": windows.tolist()}
    payload = msgspec.json.encode({"inputs": [request]})
    (made,) = ours.engine.run(ours.model, [engine.Work(jobs.JSON, payload, len(windows))])
    (seen,) = ort.InferenceSession(graph).run(None, {"window": windows.astype(np.float32)})
    scores = [one.score for one in made if isinstance(one, outcomes.Prediction)]
    assert len(scores) == len(windows) > 400
    np.testing.assert_allclose(np.array(scores), seen[:, 0], rtol=1e-4)

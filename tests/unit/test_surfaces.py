"""The demo's pictures and the model that judges them."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import demo
from demo import surfaces

MODEL = Path(demo.__file__).parent / "models" / "surface-defects"
UNSEEN = 7_001  # training draws from sequences of two and more numbers, never from this one

labels = st.sampled_from(surfaces.LABELS)
seeds = st.integers(0, 2**63)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, label=labels | st.none(), kind=st.sampled_from(["png", "jpeg"]))
def test_equal_seeds_make_equal_surfaces(seed: int, label: str | None, kind: surfaces.Kind) -> None:
    """A seed fixes the label, every pixel and every encoded byte, so a run of the demo can be repeated."""
    first, second = (surfaces.generate(np.random.default_rng(seed), label, kind) for _ in range(2))
    assert first.label == second.label
    assert first.image == second.image
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_a_sequence_never_repeats_a_picture() -> None:
    """Pictures that follow each other from one generator differ, even of one label."""
    rng = np.random.default_rng(1)
    assert len({surfaces.generate(rng, "ok").image for _ in range(20)}) == 20


@settings(max_examples=60, deadline=None)
@given(seed=seeds, label=labels)
def test_every_label_makes_a_usable_picture(seed: int, label: str) -> None:
    """Whatever the seed, a picture has its shape, its label, and is neither black nor burnt out."""
    surface = surfaces.generate(np.random.default_rng(seed), label)
    assert surface.label == label
    assert surface.pixels.shape == (surfaces.SIZE, surfaces.SIZE)
    assert surface.pixels.dtype == np.uint8
    assert 15 < surface.pixels.mean() < 225
    assert surface.pixels.std() > 1


@settings(max_examples=20, deadline=None)
@given(seed=seeds, label=labels)
def test_png_is_lossless_and_jpeg_nearly(seed: int, label: str) -> None:
    """A PNG decodes to the sensor's own pixels; a JPEG stays within a few grey levels of them on average."""
    pixels = surfaces.render(np.random.default_rng(seed), label)
    np.testing.assert_array_equal(surfaces.decode(surfaces.encode(pixels, "png")), pixels)
    lossy = surfaces.decode(surfaces.encode(pixels, "jpeg")).astype(int)
    assert np.abs(lossy - pixels).mean() < 4


def test_an_unnamed_label_is_mostly_ok() -> None:
    """Left to itself the line makes mostly good parts, and some of every defect."""
    rng = np.random.default_rng(3)
    seen = Counter(surfaces.generate(rng, kind="jpeg").label for _ in range(400))
    assert 240 < seen["ok"] < 360
    assert set(seen) == set(surfaces.LABELS)


def test_an_unknown_label_is_refused() -> None:
    """Asking for a label that does not exist names those that do."""
    with pytest.raises(ValueError, match="scratch"):
        surfaces.generate(np.random.default_rng(0), "rust")


def test_the_manifest_and_the_generator_agree() -> None:
    """model.toml promises the labels and the picture size that the generator draws."""
    manifest = tomllib.loads((MODEL / "model.toml").read_text())
    (image,), (prob,) = manifest["inputs"], manifest["outputs"]
    assert tuple(prob["labels"]) == surfaces.LABELS
    assert (image["width"], image["height"]) == (surfaces.SIZE, surfaces.SIZE)
    assert image["scale"] == pytest.approx(1 / 255)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(MODEL / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def test_the_graph_is_what_the_manifest_says(session: onnxruntime.InferenceSession) -> None:
    """One input and one output, by the manifest's names, with the batch size free."""
    (image,), (prob,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 1, 128, 128])
    assert (prob.name, prob.type, prob.shape) == ("prob", "tensor(float)", ["batch", len(surfaces.LABELS)])


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_model_judges_unseen_parts(session: onnxruntime.InferenceSession, kind: surfaces.Kind) -> None:
    """On 120 parts that training never saw, in either encoding, at least 95 % of the verdicts are right."""
    rng = np.random.default_rng(UNSEEN)
    truth = np.arange(120) % len(surfaces.LABELS)
    images = [surfaces.decode(surfaces.generate(rng, surfaces.LABELS[n], kind).image) for n in truth]
    batch = np.stack(images)[:, np.newaxis].astype(np.float32) / 255
    (prob,) = session.run(["prob"], {"image": batch})
    np.testing.assert_allclose(prob.sum(axis=1), 1, atol=1e-5)
    assert (prob.argmax(axis=1) == truth).mean() >= 0.95


def test_a_batch_is_judged_as_its_pictures_alone(session: onnxruntime.InferenceSession) -> None:
    """Batching changes the speed and nothing else."""
    rng = np.random.default_rng(UNSEEN)
    pixels = [surfaces.render(rng, label) for label in surfaces.LABELS]
    batch = np.stack(pixels)[:, np.newaxis].astype(np.float32) / 255
    (together,) = session.run(["prob"], {"image": batch})
    alone = np.concatenate([session.run(["prob"], {"image": batch[i : i + 1]})[0] for i in range(len(batch))])
    np.testing.assert_allclose(together, alone, atol=1e-4)

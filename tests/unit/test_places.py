"""Boxes through the whole engine: what is found is where the sender drew it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent import engine, frames, models, outcomes
from shared import jobs
from tests import models as packages

SIZES = {
    "stretch": "width = 64\nheight = 48",
    "fit": 'width = 64\nheight = 48\nresize = "fit"',
    "corner": 'width = 64\nheight = 48\nresize = "fit"\nplace = "top-left"\npad = [100]',
    "multiple": 'width = 64\nheight = 64\nresize = "fit"\nmultiple_of = 16',
    "height": 'width = 64\nheight = 48\nresize = "height"\nmax_width = 256\nmultiple_of = 8',
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[engine.Engine]:
    made = engine.Engine(models.Catalogue())
    for name, size in SIZES.items():
        folder = tmp_path_factory.mktemp(name)
        made.load(models.load(packages.write_finder(folder, size, name=name)))
    yield made
    made.close()


def spot(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A dark picture with one bright spot."""
    picture = Image.new("L", (width, height), 20)
    picture.paste(250, box)
    return picture


def found(made: outcomes.Outcome) -> Any:
    assert isinstance(made, outcomes.Prediction), made
    assert made.output is not None
    return [one["box"] for one in json.loads(made.output)]


@st.composite
def spots(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int]]:
    """A picture's width and height, and a spot in it that resizing does not lose."""
    width, height = draw(st.integers(30, 200)), draw(st.integers(30, 200))
    left, top = draw(st.integers(0, width // 2)), draw(st.integers(0, height // 2))
    right = draw(st.integers(left + width // 3, width))
    bottom = draw(st.integers(top + height // 3, height))
    return width, height, (left, top, right, bottom)


@settings(max_examples=60)
@given(drawn=st.lists(spots(), min_size=1, max_size=5), name=st.sampled_from(list(SIZES)))
def test_a_spot_is_found_where_it_was_drawn(
    drawn: list[tuple[int, int, tuple[int, int, int, int]]], name: str, machine: engine.Engine
) -> None:
    """Whatever the sizes of the pictures, however they are brought to the graph's, and whatever runs beside
    them: each box is in its own picture's pixels, as exact as a pixel of the graph's input is."""
    work = [engine.Work(jobs.PNG, packages.encoded(spot(*one))) for one in drawn]
    model = machine.find(name)
    made = machine.run(model, work)
    assert model.manifest.picture is not None
    for (width, height, box), (one,) in zip(drawn, made, strict=True):
        frame = frames.place(model.manifest.picture, width, height)
        pixel = max(width / frame.inner_width, height / frame.inner_height)
        (given_back,) = found(one)
        np.testing.assert_allclose(given_back, box, atol=max(1, pixel))


def test_neighbours_of_a_broken_picture_keep_their_own_places(machine: engine.Engine) -> None:
    """Where an item cannot be read, the boxes of the others are not mixed up."""
    sizes = [(200, 100), (64, 48), (50, 150)]
    good = [packages.encoded(spot(*size, (0, 0, size[0] // 2, size[1]))) for size in sizes]
    column = pa.array([good[0], b"broken", good[1], good[2]], pa.binary())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("image", pa.binary())])) as writer:
        writer.write_table(pa.table({"image": column}))
    for name in SIZES:
        first, broken, *others = machine.run(
            machine.find(name), [engine.Work(jobs.ARROW, sink.getvalue(), 4)]
        )[0]
        assert isinstance(broken, outcomes.ItemFailed)
        for (width, height), one in zip(sizes, (first, *others), strict=True):
            np.testing.assert_allclose(found(one)[0], [0, 0, width / 2, height], atol=4)


def test_a_dark_picture_has_no_box(machine: engine.Engine) -> None:
    """Neither label nor score, and no box; also in the same batch with others."""
    pictures = [spot(64, 48, (0, 0, 1, 0)), spot(64, 48, (10, 10, 30, 30))]
    work = [engine.Work(jobs.PNG, packages.encoded(one)) for one in pictures]
    (dark,), (bright,) = machine.run(machine.find("stretch"), work)
    assert dark == outcomes.Prediction(None, None, b"[]")
    assert isinstance(bright, outcomes.Prediction)
    assert (bright.label, bright.score, found(bright)) == ("spot", 1.0, [[10, 10, 30, 30]])


def test_of_numbers_boxes_are_in_the_inputs_pixels(machine: engine.Engine) -> None:
    """Whoever sends an input as numbers has prepared it, and gets its places back as they are there."""
    numbers = np.full((1, 1, 48, 64), 20.0)
    numbers[0, 0, 5:9, 10:30] = 250
    request = {"name": "image", "shape": [1, 1, 48, 64], "datatype": "FP32", "data": numbers.ravel().tolist()}
    payload = msgspec.json.encode({"inputs": [request]})
    ((made,),) = machine.run(machine.find("fit"), [engine.Work(jobs.JSON, payload)])
    assert found(made) == [[10, 5, 30, 9]]

"""Pictures in inputs of another size: letterboxes, inputs as large as the picture, and the way back."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edge_agent import decode, frames, images, models
from shared import jobs, manifests
from tests import models as packages

BOXES = '[[outputs]]\nname = "y"\nkind = "heatmap"\nlabel = "spot"\nthreshold = 0.5\n'


def model(width: int, height: int, more: str, colour: str = "grey") -> models.Model:
    """A model of one picture, with an output that has boxes; there is no graph, for nothing runs here."""
    text = (
        'name = "m"\nversion = "1"\n[[inputs]]\nname = "x"\nkind = "image"\n'
        f'width = {width}\nheight = {height}\ncolour = "{colour}"\n{more}\n{BOXES}'
    )
    return models.Model(manifests.parse(text, Path("model.toml")), Path("m"), Path("m/model.onnx"), "0" * 64)


def spec(some: models.Model) -> manifests.ImageInput:
    found = some.manifest.picture
    assert found is not None
    return found


def stacked(some: models.Model, *payloads: bytes) -> decode.Stack:
    """Pictures, each of its own task, in one batch."""
    spans = [decode.Span(decode.unpack(some, jobs.PNG, payload), 0, 1) for payload in payloads]
    batch = decode.allocate(some, len(spans), spans)
    for row, span in enumerate(spans):
        assert span.items.read(0, 1, batch, row) == {}
    return batch


def pixels(some: models.Model, picture: Image.Image) -> npt.NDArray[Any]:
    made: npt.NDArray[Any] = stacked(some, packages.encoded(picture)).arrays["x"][0]
    return made


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width), np.uint8))


def test_a_fitted_picture_keeps_its_proportions_in_the_centre() -> None:
    """Padding is shared above and below, or left and right; an odd line of it goes last."""
    wide = pixels(model(8, 8, 'resize = "fit"\npad = [7]'), Image.new("L", (80, 30), 200))[0]
    assert wide[:2].tolist() == [[7] * 8] * 2
    assert wide[2:5].tolist() == [[200] * 8] * 3
    assert wide[5:].tolist() == [[7] * 8] * 3
    tall = pixels(model(8, 8, 'resize = "fit"\npad = [7]'), Image.new("L", (20, 40), 200))[0]
    assert tall.T.tolist() == [[7] * 8] * 2 + [[200] * 8] * 4 + [[7] * 8] * 2


def test_a_fitted_picture_may_lie_in_the_corner() -> None:
    """With `top-left` all padding is right or below."""
    made = pixels(model(8, 8, 'resize = "fit"\nplace = "top-left"'), Image.new("L", (8, 4), 200))[0]
    assert made.tolist() == [[200] * 8] * 4 + [[0] * 8] * 4


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_padding_is_a_pixel_like_the_others(layout: str, colour: str) -> None:
    """It is scaled and normalised by channel, in the order of the colours, as the picture is."""
    more = f'resize = "fit"\nlayout = "{layout}"\npad = [10, 20, 30]\n'
    more += "scale = 0.5\nmean = [1, 2, 3]\nstd = [2, 4, 8]"
    colours = (10, 20, 30) if colour == "rgb" else (30, 20, 10)
    made = pixels(model(6, 6, more, colour), Image.new("RGB", (6, 2), colours))
    channels = made if layout == "nchw" else made.transpose(2, 0, 1)
    for channel, expected in zip(channels, (2.0, 2.0, 1.5), strict=True):
        assert channel.tolist() == [[expected] * 6] * 6  # padding and picture alike


def test_pixels_of_whole_numbers_are_padded_with_them() -> None:
    """An input of integers takes the padding as it is."""
    made = pixels(model(4, 4, 'resize = "fit"\ndtype = "uint8"\npad = [114]'), Image.new("L", (4, 2), 9))[0]
    assert made.dtype == np.uint8
    assert made.tolist() == [[114] * 4, [9] * 4, [9] * 4, [114] * 4]


def test_an_input_may_be_as_large_as_its_picture() -> None:
    """With `multiple_of` sides are filled up to the next multiple, and no further."""
    some = model(64, 64, 'resize = "fit"\nmultiple_of = 16')
    assert pixels(some, noise(64, 20)).shape == (1, 32, 64)
    assert pixels(some, noise(640, 640)).shape == (1, 64, 64)
    assert pixels(some, noise(10, 640)).shape == (1, 64, 16)
    made = pixels(some, noise(64, 20))
    np.testing.assert_array_equal(made[0, :20], np.asarray(noise(64, 20)))
    assert not made[0, 20:].any()


def test_of_a_given_height_the_width_follows() -> None:
    """As wide as the proportions make it, between `width` and `max_width`; wider ones are squeezed."""
    some = model(32, 10, 'resize = "height"\nmax_width = 64\nmultiple_of = 8')
    for size, width, inner in (
        ((10, 10), 32, 10),
        ((41, 10), 48, 41),
        ((99, 20), 56, 50),
        ((900, 10), 64, 64),
    ):
        batch = stacked(some, packages.encoded(noise(*size)))
        assert batch.arrays["x"].shape == (1, 1, 10, width)
        assert batch.frames is not None
        assert batch.frames.of(0) == frames.Frame(*size, 0, 0, inner, 10)
    made = pixels(some, noise(41, 10))
    np.testing.assert_array_equal(made[0, :, :41], np.asarray(noise(41, 10)))
    assert not made[0, :, 41:].any()


def test_items_that_run_together_are_filled_up_to_the_largest() -> None:
    """In one batch all have the size of the largest; each one's own pixels are where they would be alone."""
    some = model(64, 64, 'resize = "fit"\nmultiple_of = 8\npad = [5]')
    pictures = [noise(64, 9), noise(9, 64), noise(64, 30)]
    batch = stacked(some, *map(packages.encoded, pictures))
    assert batch.arrays["x"].shape == (3, 1, 64, 64)
    for made, picture in zip(batch.arrays["x"][:, 0], pictures, strict=True):
        whole = np.full((64, 64), 5, np.float32)
        whole[: picture.height, : picture.width] = np.asarray(picture)
        np.testing.assert_array_equal(made, whole)


def test_a_broken_picture_does_not_make_room_for_itself() -> None:
    """An item that cannot be read fails alone, also where the size of the batch depends on its items."""
    some = model(64, 64, 'resize = "fit"\nmultiple_of = 8')
    column = pa.array([packages.encoded(noise(64, 10)), b"broken", None], pa.binary())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("x", pa.binary())])) as writer:
        writer.write_table(pa.table({"x": column}))
    good, broken, null = decode.decode(some, jobs.ARROW, sink.getvalue())
    assert isinstance(good, dict)
    assert good["x"].shape == (1, 16, 64)
    assert "not a PNG or JPEG" in str(broken)
    assert "null" in str(null)


def test_an_input_as_large_as_its_picture_takes_pictures_alone() -> None:
    """Of numbers nobody could say how large they are; the reason says what to send."""
    some = model(64, 64, 'resize = "fit"\nmultiple_of = 8')
    request = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
    (made,) = decode.decode(some, jobs.JSON, msgspec.json.encode({"inputs": [request]}))
    assert "send pictures in base64 (BYTES)" in str(made)
    sink = io.BytesIO()
    table = pa.table({"x": pa.array([[0.0] * 64])})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (made,) = decode.decode(some, jobs.ARROW, sink.getvalue())
    assert "pictures (binary) are needed" in str(made)
    text = base64.b64encode(packages.encoded(noise(64, 8))).decode()
    request = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [text]}
    (made,) = decode.decode(some, jobs.JSON, msgspec.json.encode({"inputs": [request]}))
    assert isinstance(made, dict)
    assert made["x"].shape == (1, 8, 64)


RESIZES = st.sampled_from(
    [
        "",
        'resize = "fit"',
        'resize = "fit"\nplace = "top-left"',
        'resize = "fit"\nmultiple_of = 16',
        'resize = "height"\nmax_width = 256',
        'resize = "height"\nmax_width = 256\nmultiple_of = 32',
    ]
)


@given(more=RESIZES, width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_every_picture_has_a_place_in_its_input(more: str, width: int, height: int) -> None:
    """Whatever its proportions, a picture lies wholly in its input, which is of a size that the graph takes;
    and the corners of where it lies are its own corners."""
    wanted = spec(model(64, 48, more))
    frame = frames.place(wanted, width, height)
    rows, columns = frames.extent(wanted, frame)
    shape = wanted.shaped(rows, columns)
    assert all(low <= size <= high for low, size, high in zip(wanted.least, shape, wanted.most, strict=True))
    if wanted.multiple_of:
        assert columns % wanted.multiple_of == 0
    right, bottom = frame.left + frame.inner_width, frame.top + frame.inner_height
    assert 0 <= frame.left < right <= columns
    assert 0 <= frame.top < bottom <= rows
    inner = np.array([[frame.left, frame.top, right, bottom], [-9, -9, 9999, 9999]], np.float32)
    np.testing.assert_allclose(frame.from_input(inner), [[0, 0, width, height]] * 2, rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_picture_is_turned_as_its_camera_was_held(orientation: int, form: str) -> None:
    """Each of EXIF's eight orientations; sizes and boxes are then those of the picture as it is seen."""
    picture = Image.linear_gradient("L").resize((64, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    picture.save(sink, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(sink.getvalue())))
    batch = stacked(model(32, 32, 'resize = "fit"\nplace = "top-left"'), sink.getvalue())
    assert batch.frames is not None
    frame = batch.frames.of(0)
    assert (frame.width, frame.height) == upright.size == ((64, 24) if orientation < 5 else (24, 64))
    size = (frame.inner_width, frame.inner_height)
    expected = np.asarray(upright.resize(size, Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_array_equal(batch.arrays["x"][0, 0, : size[1], : size[0]], expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_turns_nothing() -> None:
    """Metadata that cannot be understood are no reason to refuse a picture whose pixels are whole."""
    for exif in (b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b""):
        sink = io.BytesIO()
        noise(16, 8).save(sink, "JPEG", exif=exif)
        assert stacked(model(16, 8, ""), sink.getvalue()).arrays["x"].shape == (1, 1, 8, 16)


def test_numbers_in_place_of_a_picture_lie_where_they_are() -> None:
    """Boxes in an input that was sent as numbers are in that input's pixels."""
    request = {"name": "x", "shape": [2, 1, 6, 8], "datatype": "FP32", "data": [0.0] * 96}
    some = model(8, 6, "")
    items = decode.unpack(some, jobs.JSON, msgspec.json.encode({"inputs": [request]}))
    batch = decode.allocate(some, 2)
    assert items.read(0, 2, batch) == {}
    assert batch.frames is not None
    assert batch.frames.of(1) == frames.Frame(8, 6, 0, 0, 8, 6)


def test_a_picture_of_its_own_size_is_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the size of the input is fixed, no header is read before the picture is."""
    monkeypatch.setattr(images.Reader, "frame", lambda *_: pytest.fail("read twice"))
    assert pixels(model(8, 8, 'resize = "fit"'), noise(8, 8)).shape == (1, 8, 8)

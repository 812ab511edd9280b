"""Payloads to arrays: every form, and what becomes of one that is wrong."""

from __future__ import annotations

import base64
import functools
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent import decode, models, outcomes
from shared import jobs, manifests
from tests import models as packages

RAW = '[[outputs]]\nname = "y"\nkind = "raw"\n'


def model(inputs: str, limits: str = "") -> models.Model:
    """A model with these inputs; there is no graph, for nothing runs here."""
    manifest = manifests.parse(f'name = "m"\nversion = "1"\n{inputs}{RAW}{limits}', Path("model.toml"))
    return models.Model(manifest, Path("m"), Path("m/model.onnx"), "0" * 64)


def image(
    colour: str = "grey", size: tuple[int, int] = (4, 3), more: str = "", limits: str = ""
) -> models.Model:
    shape = f"width = {size[0]}\nheight = {size[1]}"
    return model(
        f'[[inputs]]\nname = "image"\nkind = "image"\n{shape}\ncolour = "{colour}"\n{more}\n', limits
    )


def tensor(shape: list[int], dtype: str = "float32", limits: str = "") -> models.Model:
    return model(f'[[inputs]]\nname = "x"\nkind = "tensor"\nshape = {shape}\ndtype = "{dtype}"\n', limits)


def request(data: Any, shape: list[int], name: str = "x", datatype: str = "FP32") -> bytes:
    return msgspec.json.encode(
        {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}
    )


def stream(compression: str | None = None, **columns: Any) -> bytes:
    """An Arrow stream of one batch for each chunk of its columns."""
    table = pa.table(columns)
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def floats(values: list[Any], width: int | None = None) -> pa.Array:
    return pa.array(values, pa.list_(pa.float32(), width) if width else pa.list_(pa.float32()))


def arrays(made: list[decode.Inputs | outcomes.ItemFailed], name: str = "x") -> list[npt.NDArray[Any]]:
    assert all(isinstance(one, dict) for one in made), made
    return [one[name] for one in made if isinstance(one, dict)]


def reason(made: decode.Inputs | outcomes.ItemFailed) -> str:
    assert isinstance(made, outcomes.ItemFailed)
    assert made.kind is outcomes.Failure.INVALID_INPUT
    return made.reason


# --- pictures -----------------------------------------------------------------------------------


def pixels(colour: str, picture: Image.Image, more: str = "", form: str = "PNG") -> npt.NDArray[Any]:
    """What the graph gets of a picture of its own size."""
    (made,) = decode.decode(
        image(colour, picture.size, more),
        jobs.PNG if form == "PNG" else jobs.JPEG,
        packages.encoded(picture, form),
    )
    assert isinstance(made, dict), made
    return made["image"]


def noise(mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(7).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    return Image.fromarray(values)


def test_grey_pixels_arrive_as_they_are() -> None:
    """Without a scale the graph gets 0 to 255 in its own dtype and layout."""
    picture = noise("L")
    made = pixels("grey", picture)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, np.asarray(picture)[None].astype(np.float32))
    np.testing.assert_array_equal(
        pixels("grey", picture, 'layout = "nhwc"\ndtype = "uint8"'), np.asarray(picture)[..., None]
    )


def test_colours_come_in_the_order_that_the_graph_wants() -> None:
    """rgb and bgr, channels first or last."""
    picture = noise("RGB")
    expected = np.asarray(picture).astype(np.float32)
    np.testing.assert_array_equal(pixels("rgb", picture, 'layout = "nhwc"'), expected)
    np.testing.assert_array_equal(pixels("bgr", picture), expected[..., ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_are_scaled_then_normalised_by_channel(layout: str, dtype: str) -> None:
    """Each value is (pixel * scale - mean) / std, with the mean and deviation of its channel."""
    picture = noise("RGB")
    scale, mean, std = 1 / 255, np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    more = f"scale = {scale!r}\nmean = {mean.tolist()}\nstd = {std.tolist()}\n"
    more += f'layout = "{layout}"\ndtype = "{dtype}"'
    expected = (np.asarray(picture) * scale - mean) / std
    if layout == "nchw":
        expected = expected.transpose(2, 0, 1)
    made = pixels("rgb", picture, more)
    assert made.dtype == np.dtype(dtype)
    np.testing.assert_allclose(made, expected, rtol=2e-3 if dtype == "float16" else 1e-5, atol=2e-3)


def test_pictures_of_any_mode_become_the_wanted_colours() -> None:
    """Grey where colour is wanted and the other way, palettes, transparency: as Pillow converts them."""
    for picture in (noise("L"), noise("RGB"), noise("RGBA"), noise("RGB").convert("P")):
        for colour, mode in (("grey", "L"), ("rgb", "RGB")):
            expected = np.asarray(picture.convert(mode), np.float32)
            made = pixels(colour, picture)
            np.testing.assert_array_equal(made[0] if colour == "grey" else made.transpose(1, 2, 0), expected)


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    """Industrial cameras write 16-bit PNG: 8 bits of it are kept, not all above 255 made white."""
    values = np.array([[0, 255, 256, 30_000], [40_000, 65_535, 511, 512]], np.uint16)
    made = pixels("grey", Image.fromarray(values))
    np.testing.assert_array_equal(made[0], values >> 8)
    np.testing.assert_array_equal(pixels("rgb", Image.fromarray(values))[1], values >> 8)


def test_a_picture_of_another_size_is_resized() -> None:
    """Width and height are the manifest's, whatever was sent."""
    (made,) = decode.decode(image(size=(8, 6)), jobs.PNG, packages.encoded(Image.new("L", (31, 47), 100)))
    assert isinstance(made, dict)
    np.testing.assert_array_equal(made["image"], np.full((1, 6, 8), 100, np.float32))


def test_a_large_jpeg_gives_nearly_what_full_decoding_gives() -> None:
    """Decoding a JPEG at a fraction of its size saves most of the time and hardly changes the pixels."""
    gradient = Image.linear_gradient("L").resize((1024, 1024))
    payload = packages.encoded(gradient, "JPEG")
    (made,) = decode.decode(image(size=(64, 64)), jobs.JPEG, payload)
    assert isinstance(made, dict)
    whole = Image.open(io.BytesIO(payload)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(made["image"][0] - np.asarray(whole, np.float32)).max() <= 3


def test_a_picture_too_large_is_refused_by_its_header() -> None:
    """A file of a few kilobytes that claims 100 million pixels is refused, and no memory is spent on them."""
    payload = packages.encoded(Image.new("1", (10_000, 10_000)))
    assert len(payload) < 20_000
    (made,) = decode.decode(image(limits="[limits]\nmax_pixels = 1000000\n"), jobs.PNG, payload)
    assert "10000 x 10000 pixels" in reason(made)
    assert "limits.max_pixels" in reason(made)


def test_other_and_cut_off_files_fail_with_a_reason() -> None:
    """Whatever is not a whole PNG or JPEG fails as invalid input, in words for its sender."""
    whole = packages.encoded(noise("L", (64, 64)))
    for payload, words in (
        (b"hello", "not a PNG or JPEG"),
        (packages.encoded(noise("L"), "GIF"), "not a PNG or JPEG"),
        (whole[: len(whole) // 2], "cannot be decoded"),
        (b"", "not a PNG or JPEG"),
    ):
        (made,) = decode.decode(image(), jobs.PNG, payload)
        assert words in reason(made)


@settings(max_examples=200)
@given(data=st.data(), form=st.sampled_from(["PNG", "JPEG"]))
def test_damaged_pictures_decode_or_fail_alone(data: st.DataObject, form: str) -> None:
    """Whatever bytes of a file are changed, the item is an array or a failure, never an exception."""
    payload = bytearray(packages.encoded(noise("RGB", (16, 16)), form))
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    (made,) = decode.decode(image("rgb", (16, 16)), jobs.PNG, bytes(payload))
    assert isinstance(made, dict | outcomes.ItemFailed)


def test_a_bare_picture_needs_a_model_that_takes_one() -> None:
    """A model of other inputs says what it takes."""
    (made,) = decode.decode(tensor([4]), jobs.PNG, packages.png(1))
    assert "does not take a bare image" in reason(made)
    assert "'x'" in reason(made)


def test_an_unknown_content_type_is_told_with_the_known_ones() -> None:
    """The reason lists what could be sent instead; parameters of a known type don't matter."""
    (made,) = decode.decode(tensor([1]), "text/csv", b"1,2")
    assert "text/csv" in reason(made)
    assert jobs.ARROW in reason(made)
    known = decode.decode(tensor([1]), "Application/JSON; charset=utf-8", request([1.0], [1, 1]))
    assert arrays(known)[0] == 1.0


# --- JSON ---------------------------------------------------------------------------------------


def test_numbers_may_be_flat_or_nested() -> None:
    """The protocol allows both, in row-major order; the first dimension counts the items."""
    rows = [[1.5, 2, 3], [4, 5, 6]]
    for data in (rows, [1.5, 2, 3, 4, 5, 6]):
        made = arrays(decode.decode(tensor([3]), jobs.JSON, request(data, [2, 3])))
        assert [one.tolist() for one in made] == rows
        assert made[0].dtype == np.float32


def test_a_single_number_needs_no_dimension_of_its_own() -> None:
    """Shape [N] does for items of one number, whether the graph has that dimension or not."""
    for shape in ([1], []):
        made = arrays(
            decode.decode(tensor(shape, "int64"), jobs.JSON, request([7, 8], [2], datatype="INT64"))
        )
        assert [one.tolist() for one in made] == ([[7], [8]] if shape else [7, 8])


def test_pictures_may_come_in_base64() -> None:
    """BYTES for an image's input are encoded pictures; one that is broken fails alone."""
    texts = [base64.b64encode(packages.png(grey)).decode() for grey in (10, 20)]
    data = [texts[0], "not base64!", texts[1], 5]
    made = decode.decode(image(size=(8, 8)), jobs.JSON, request(data, [4], "image", "BYTES"))
    assert [isinstance(one, dict) for one in made] == [True, False, True, False]
    assert arrays([made[0], made[2]], "image")[1][0, 0, 0] == 20
    assert "base64" in reason(made[1])
    assert "input 'image'" in reason(made[3])


def test_an_image_input_also_takes_the_graphs_own_numbers() -> None:
    """What is sent as numbers is passed on as it is: the sender has prepared it."""
    made = decode.decode(image(size=(2, 1)), jobs.JSON, request([0.25, 0.75], [1, 1, 1, 2], "image"))
    assert arrays(made, "image")[0].tolist() == [[[0.25, 0.75]]]


@pytest.mark.parametrize("nested", [True, False])
def test_a_bad_item_among_numbers_fails_alone(nested: bool) -> None:
    """A null, a text or a row too short is that item's failure; its neighbours are read."""
    rows: list[Any] = [[1, 2], [None, 4], [5, 6], ["7", 8]]
    data = rows if nested else [number for row in rows for number in row]
    made = decode.decode(tensor([2]), jobs.JSON, request(data, [4, 2]))
    assert [isinstance(one, dict) for one in made] == [True, False, True, False]
    assert "something other than numbers" in reason(made[1])


def test_a_row_of_another_length_fails_alone() -> None:
    """In nested data each row is held to the item's shape."""
    made = decode.decode(tensor([2]), jobs.JSON, request([[1, 2], [3]], [2, 2]))
    assert isinstance(made[0], dict)
    assert "it has 1 numbers, and 2 are needed" in reason(made[1])


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"{", "not an Open Inference Protocol request"),
        (b'{"inputs": 3}', "not an Open Inference Protocol request"),
        (b'{"inputs": []}', "input 'x' of m@1 is missing; sent: none"),
        (b"[" * 100_000, "not an Open Inference Protocol request"),
        (request([1, 2], [1, 3]), "shape [1, 3], and [1, 2] is needed"),
        (request([1, 2, 3], [2, 2]), "3 numbers in data for shape [2, 2]"),
        (request([], [0, 2]), "has no items"),
        (request([1, 2], [-1, 2]), "has no items"),
    ],
)
def test_a_request_that_fits_nowhere_is_told(payload: bytes, words: str) -> None:
    """Where no item can be read, there is one failure that says why."""
    (made,) = decode.decode(tensor([2]), jobs.JSON, payload)
    assert words in reason(made)


def test_inputs_must_agree_on_the_number_of_items() -> None:
    """A request with two items of one input and three of the other is refused."""
    both = model("".join(f'[[inputs]]\nname = "{name}"\nkind = "tensor"\nshape = [1]\n' for name in "ab"))
    tensors = [
        {"name": name, "shape": [len(data)], "datatype": "FP32", "data": data}
        for name, data in (("a", [1, 2]), ("b", [1, 2, 3]))
    ]
    (made,) = decode.decode(both, jobs.JSON, msgspec.json.encode({"inputs": tensors}))
    assert "disagree on the number of items: 'a' 2, 'b' 3" in reason(made)


def test_integers_are_never_bent() -> None:
    """A fraction, or a number out of range, is no value for an integer's input."""
    made = decode.decode(tensor([1], "uint8"), jobs.JSON, request([[255], [256], [1.5], [-1]], [4, 1]))
    assert isinstance(made[0], dict)
    assert "out of the range of uint8" in reason(made[1])
    assert "takes uint8" in reason(made[2])
    assert "out of the range of uint8" in reason(made[3])


# --- Arrow --------------------------------------------------------------------------------------

ROWS = [[float(row), row + 0.5] for row in range(5)]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize(
    "column",
    [
        floats(ROWS),
        floats(ROWS, 2),
        pa.array(ROWS, pa.large_list(pa.float64())),
        pa.chunked_array([floats(ROWS[:2]), floats(ROWS[2:])]),
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), floats(ROWS, 2)),
    ],
    ids=["list", "fixed", "large", "chunked", "tensor"],
)
def test_rows_become_items(column: Any, compression: str | None) -> None:
    """Every kind of list of numbers, in one batch or several, compressed or not, in any range of rows."""
    items = decode.unpack(tensor([2]), jobs.ARROW, stream(compression, x=column, other=pa.nulls(5)))
    assert len(items) == 5
    for start, stop in ((0, 5), (1, 3), (4, 5)):
        into = decode.allocate(tensor([2]), stop - start + 1)
        assert items.read(start, stop, into, 1) == {}
        assert into.arrays["x"][1:].tolist() == ROWS[start:stop]


def test_plain_numbers_are_items_of_one() -> None:
    """A column of numbers does for inputs of one number; integers become floats where those are taken."""
    made = arrays(decode.decode(tensor([1]), jobs.ARROW, stream(x=pa.array([1, 2, 3], pa.int32()))))
    assert [one.tolist() for one in made] == [[1.0], [2.0], [3.0]]


def test_binary_rows_are_pictures() -> None:
    """Encoded pictures, one a row; a null or a broken one fails alone."""
    column = pa.array([packages.png(10), None, b"broken", packages.png(20)], pa.binary())
    made = decode.decode(image(size=(8, 8)), jobs.ARROW, stream(image=column))
    assert [isinstance(one, dict) for one in made] == [True, False, False, True]
    assert "null" in reason(made[1])
    assert "not a PNG or JPEG" in reason(made[2])


def test_a_bad_row_fails_alone() -> None:
    """A null row, a null number, or a row of another length: its neighbours are read."""
    made = decode.decode(tensor([2]), jobs.ARROW, stream(x=floats([[1, 2], None, [3, None], [4], [5, 6]])))
    assert [isinstance(one, dict) for one in made] == [True, False, False, False, True]
    assert "it is null" in reason(made[1])
    assert "a number in it is null" in reason(made[2])
    assert "it has 1 numbers, and 2 are needed" in reason(made[3])
    assert arrays([made[4]])[0].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"not arrow", "cannot be read"),
        (stream(y=floats([[1, 2]])), "needs one column 'x', and this has 0; its columns: 'y'"),
        (stream(x=pa.array(["a"])), "of type string: lists of 2 numbers are needed"),
        (stream(x=floats([[1, 2, 3]], 3)), "has 3 numbers a row, and 2 are needed"),
        (stream(x=floats([])), "no rows"),
    ],
)
def test_a_stream_that_fits_nowhere_is_told(payload: bytes, words: str) -> None:
    """Where no row can be read, there is one failure that says why."""
    (made,) = decode.decode(tensor([2]), jobs.ARROW, payload)
    assert words in reason(made)


def test_a_compressed_bomb_is_refused_before_it_is_unpacked() -> None:
    """A small payload that would unpack to more than the limit is refused by its headers."""
    payload = stream("zstd", x=pa.array(np.zeros(1_000_000)))
    (made,) = decode.decode(
        tensor([1], limits="[limits]\nmax_unpacked_bytes = 1000000\n"), jobs.ARROW, payload
    )
    assert "unpacks to 8,000,0" in reason(made)
    assert "limits.max_unpacked_bytes" in reason(made)


@functools.cache
def _arrow_samples() -> list[bytes]:
    return [
        stream(None, x=floats([[1, 2], None, [3, 4]])),
        stream("lz4", x=floats([[1, 2], [3, 4]], 2)),
        stream(None, x=pa.chunked_array([floats([[1, 2]]), floats([[3, 4], [5, 6]])])),
    ]


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_streams_decode_or_fail(data: st.DataObject) -> None:
    """Whatever bytes of a stream are changed, no row is read from outside its buffers."""
    payload = bytearray(data.draw(st.sampled_from(_arrow_samples())))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    for made in decode.decode(tensor([2]), jobs.ARROW, bytes(payload)):
        assert isinstance(made, dict | outcomes.ItemFailed)


def test_pictures_and_json_need_no_pyarrow() -> None:
    """An agent that is never sent Arrow never pays for it: 40 MB on a small machine."""
    script = "import sys; from edge_agent import decode; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

"""The protocol's messages: numbers exactly as they were, and nothing taken for what it is not."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.oip import messages, tensors

kinds = st.sampled_from(sorted(tensors.DTYPES.values()))
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
numbers = kinds.flatmap(lambda dtype: shapes.flatmap(lambda shape: arrays.arrays(dtype, shape)))
blobs = shapes.flatmap(
    lambda shape: st.lists(st.binary(max_size=9), min_size=math.prod(shape), max_size=math.prod(shape)).map(
        lambda values: tensors.of_bytes(values, shape)
    )
)


def same(one: tensors.Array, other: tensors.Array) -> bool:
    if one.dtype == object:
        return one.shape == other.shape and one.ravel().tolist() == other.ravel().tolist()
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def told(shape: list[int], datatype: str, data: Any) -> tensors.Array:
    """The tensor of a request in JSON."""
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    (found,) = messages.request(json.dumps({"inputs": [tensor]}).encode(), None).inputs
    return found.array


@given(st.lists(numbers | blobs, max_size=4))
def test_bytes_bring_every_bit(given_: list[tensors.Array]) -> None:
    """Tensors that travel as bytes arrive as they were, NaN, shape and all, also by way of the journal."""
    named = [tensors.Tensor(f"t{place}", array) for place, array in enumerate(given_)]
    body = messages.write({"id": "7"}, {"inputs": named}, binary=True)
    found = messages.request(body.bytes, body.header)
    assert found.id == "7"
    kept = messages.unpack(messages.pack(body))
    for read in (found.inputs, messages.request(kept.bytes, kept.header).inputs):
        assert [one.name for one in read] == [one.name for one in named]
        assert all(same(one.array, other.array) for one, other in zip(read, named, strict=True))


@given(numbers)
def test_json_brings_every_number(array: tensors.Array) -> None:
    """Numbers in JSON are the same afterwards; those that JSON has not are told instead of changed."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        with pytest.raises(tensors.NotInJson, match="not finite"):
            messages.write({}, {"outputs": [tensors.Tensor("x", array)]}, binary=False)
        return
    body = messages.write({}, {"outputs": [tensors.Tensor("x", array)]}, binary=False)
    assert body.header is None
    (found,) = messages.response(body.bytes, None)
    assert found.array.dtype == array.dtype
    np.testing.assert_array_equal(found.array, array)


def test_what_the_protocol_shows() -> None:
    """The examples of its text: nested or flat data, BOOL and BYTES."""
    assert told([2, 2], "UINT32", [1, 2, 3, 4]).tolist() == [[1, 2], [3, 4]]
    assert told([3, 1], "BOOL", [True, False, True]).tolist() == [[True], [False], [True]]
    assert told([2, 2], "FP32", [[1.5, 2], [3, 4]]).tolist() == [[1.5, 2], [3, 4]]
    assert told([2], "BYTES", ["ä", ""]).tolist() == ["ä".encode(), b""]
    assert told([1, 2], "BYTES", [["a", "b"]]).tolist() == [[b"a", b"b"]]
    assert told([2], "UINT64", [0, 2**64 - 1]).tolist() == [0, 2**64 - 1]
    assert told([], "FP64", [0.1]).tolist() == 0.1
    assert told([0, 3], "INT8", []).shape == (0, 3)
    assert told([2, 0], "UINT64", [[], []]).shape == (2, 0)


@pytest.mark.parametrize(
    ("shape", "datatype", "data", "says"),
    [
        ([2], "FP32", [1], "shape"),
        ([2, 2], "FP32", [[1, 2, 3, 4]], "shape"),
        ([2, 2], "FP32", [[1, 2], [3]], "differ in length"),
        ([-1], "FP32", [1], "negative"),
        ([0, 2**70], "FP32", [], "too large"),
        ([1] * 99, "FP32", [1], "too large"),
        ([1], "FP32", ["1"], "not of FP32"),
        ([1], "FP32", [True], "not of FP32"),
        ([1], "FP32", [1e39], "range"),
        ([1], "FP16", [70000], "range"),
        ([1], "INT8", [128], "-128 to 127"),
        ([2], "INT8", [1, 2.5], "not of INT8"),
        ([1], "UINT8", [-1], "range"),
        ([2], "UINT64", [2**64, 1], "range"),
        ([2], "INT64", [2**63, -1], "range"),
        ([1], "BOOL", [1], "not of BOOL"),
        ([1], "BYTES", [1], "texts"),
        ([1], "FP31", [1], "datatype 'FP31'"),
        ([1], "FP32", {"a": 1}, "no list"),
        ([1], "FP32", None, "no list"),
    ],
)
def test_what_does_not_fit_is_told(shape: list[int], datatype: str, data: Any, says: str) -> None:
    """With the name of the tensor; no number is rounded, wrapped or guessed."""
    with pytest.raises(messages.BadMessage, match=f"'x'.*{says}"):
        told(shape, datatype, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "body", "says"),
    [
        ("FP32", [2], b"1234567", "7 bytes"),
        ("BOOL", [2], b"\x00\x02", "neither 0 nor 1"),
        ("BYTES", [1], b"\x02\0\0\0a", "cut off"),
        ("BYTES", [1], b"\x02\0", "cut off"),
        ("BYTES", [2], b"\x01\0\0\0a", "1 elements"),
        ("FP32", [1], b"1234more", "8 bytes"),
    ],
)
def test_bytes_that_do_not_fit_are_told(datatype: str, shape: list[int], body: bytes, says: str) -> None:
    """Too many, too few, or none of the datatype."""
    tensor = {
        "name": "x",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(body)},
    }
    text = msgspec.json.encode({"inputs": [tensor]})
    with pytest.raises(messages.BadMessage, match=says):
        messages.request(text + body, len(text))


@pytest.mark.parametrize("header", [0, -1, 10**6, 3])
def test_a_header_of_a_wrong_length(header: int) -> None:
    """Longer than the body, or short of the JSON: told, whatever it is."""
    body = messages.write({}, {"inputs": [tensors.Tensor("x", np.zeros(3))]}, binary=True)
    with pytest.raises(messages.BadMessage):
        messages.request(body.bytes, header)
    with pytest.raises(messages.BadMessage, match="follow the last"):
        messages.request(body.bytes + b"more", body.header)


@given(st.binary(max_size=80), st.none() | st.integers(-5, 90))
def test_no_bytes_break_the_reader(body: bytes, header: int | None) -> None:
    """Whatever comes, it is a message or BadMessage."""
    with contextlib.suppress(messages.BadMessage):
        messages.request(body, header)
    with contextlib.suppress(messages.BadMessage):
        messages.response(body, header)


@given(st.data())
def test_no_header_breaks_the_reader(data: st.DataObject) -> None:
    """Nor does JSON of the right form with values that are not."""
    odd = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=3)
    )
    tensor = {
        "name": "x",
        "shape": data.draw(st.lists(st.integers(-(2**70), 2**70), max_size=3)),
        "datatype": data.draw(st.sampled_from([*tensors.DTYPES, "BYTES"])),
        "parameters": {"binary_data_size": data.draw(odd)},
        "data": data.draw(st.lists(odd, max_size=4)),
    }
    text = json.dumps({"inputs": [tensor]})
    with contextlib.suppress(messages.BadMessage):
        messages.request(text.encode() + b"12345678", len(text.encode()))

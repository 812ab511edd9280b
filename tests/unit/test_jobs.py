"""Work is taken in every form that is offered, and refused with words that help."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared import jobs

PNG: Final = b"\x89PNG\r\n\x1a\n" + b"rest of a picture"
JPEG: Final = b"\xff\xd8\xff\xe0" + b"rest of a picture"
TENSOR: Final = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}


def rows(count: int, compression: str | None = None) -> bytes:
    """An Arrow stream of so many rows, in batches of two."""
    table = pa.table({"x": pa.array(range(count), pa.float32())})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def oip(*tensors: dict[str, Any], **more: Any) -> bytes:
    """An Open Inference Protocol v2 request."""
    return json.dumps({"inputs": list(tensors or [TENSOR]), **more}).encode()


def image(picture: bytes = PNG, **more: Any) -> bytes:
    """A picture in JSON."""
    return json.dumps({"image": base64.b64encode(picture).decode(), **more}).encode()


def refused(*arguments: Any, **options: Any) -> jobs.Rejected:
    """How a job is refused."""
    with pytest.raises(jobs.Rejected) as caught:
        jobs.parse(*arguments, **options)
    return caught.value


# The forms


@pytest.mark.parametrize(("picture", "kind"), [(PNG, jobs.PNG), (JPEG, jobs.JPEG)])
@pytest.mark.parametrize("told", [True, False])
def test_a_raw_picture(picture: bytes, kind: str, told: bool) -> None:
    """A picture is one item; its metadata stands beside it; its first bytes tell what nobody said."""
    job = jobs.parse(
        "surface-defects", picture, kind if told else None, {"priority": "7", "correlation": "part-9"}
    )
    assert (job.model, job.content_type, job.payload, job.items) == ("surface-defects", kind, picture, 1)
    assert (job.priority, job.metadata.correlation) == (7, "part-9")
    assert job.client_id is None


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_a_picture_in_json(prefix: str) -> None:
    """Base64 becomes the picture itself, and the fields beside it are its metadata."""
    text = prefix + base64.b64encode(PNG).decode()
    body = json.dumps({"image": text, "id": "a", "priority": 3, "response_topic": "line/1", "unknown": [1]})
    job = jobs.parse("m", body.encode())
    assert (job.content_type, job.payload, job.items, job.client_id) == (jobs.PNG, PNG, 1, "a")
    assert (job.priority, job.metadata.response_topic) == (3, "line/1")


def test_an_open_inference_request() -> None:
    """An OIP v2 request travels as it is: its first dimension counts items, its parameters are metadata."""
    body = oip(TENSOR, TENSOR | {"name": "y", "shape": [2]}, id="r-1", parameters={"queue": "night", "z": {}})
    job = jobs.parse("m", body, "application/json; charset=utf-8")
    assert (job.content_type, job.payload, job.items, job.client_id) == (jobs.JSON, body, 2, "r-1")
    assert job.metadata.queue == "night"


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_rows_of_arrow(compression: str | None) -> None:
    """A row of an Arrow stream is an item, in however many batches they come."""
    payload = rows(5, compression)
    job = jobs.parse("m", payload, properties={"deadline_ms": "250"})
    assert (job.content_type, job.payload, job.items) == (jobs.ARROW, payload, 5)
    assert job.metadata.deadline_ms == 250


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (PNG, jobs.PNG),
        (JPEG, jobs.JPEG),
        (rows(1), jobs.ARROW),
        (b" \r\n\t{}", jobs.JSON),
        (b"", ""),
        (b"[]", ""),
        (b"GIF89a", ""),
        (b"\x89PNG", ""),
    ],
)
def test_the_first_bytes_tell_the_form(payload: bytes, kind: str) -> None:
    """A form is known by its signature, and what has none is not guessed."""
    assert jobs.sniff(payload) == kind


# The metadata


FULL: Final = jobs.Metadata(
    version="3.1",
    priority=9,
    queue="night",
    timeout_ms=1500,
    deadline_ms=60_000,
    max_attempts=5,
    idempotency_key="order 17",
    response_topic="line/1/verdicts",
    correlation="part-9",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    stream="line 3",
    selector="gpu=h100,site=lyon",
)


@pytest.mark.parametrize(
    "form",
    [
        lambda said: (PNG, {key: str(value) for key, value in said.items()}),
        lambda said: (image(**said), {}),
        lambda said: (image(parameters=said), {}),
        lambda said: (oip(parameters=said), {}),
        lambda said: (oip(parameters={key: str(value) for key, value in said.items()}), {}),
    ],
    ids=[
        "text beside a picture",
        "fields in JSON",
        "parameters beside an image",
        "parameters",
        "parameters as text",
    ],
)
def test_metadata_means_the_same_wherever_it_stands(form: Any) -> None:
    """User properties, fields and parameters say the same things, as numbers or as text."""
    payload, properties = form(msgspec.to_builtins(FULL))
    assert jobs.parse("m", payload, properties=properties).metadata == FULL


def test_without_metadata_there_are_defaults() -> None:
    """A device need not say anything: middle priority, the default queue, three attempts."""
    job = jobs.parse("m", PNG)
    assert job.metadata == jobs.Metadata()
    assert (job.priority, job.metadata.queue, job.metadata.max_attempts) == (5, "default", 3)
    assert jobs.parse("m", PNG, properties={"priority": "0"}).priority == 0


def test_what_stands_beside_the_body_wins() -> None:
    """A gateway that adds user properties to a device's JSON has the last word."""
    assert jobs.parse("m", image(priority=1, queue="a"), properties={"priority": 8}).priority == 8


def test_words_that_nobody_knows_are_ignored() -> None:
    """Other people's user properties and parameters do no harm."""
    assert jobs.parse("m", PNG, properties={"firmware": "7", "Priority": "x"}).metadata == jobs.Metadata()


def test_a_version_in_the_address() -> None:
    """`model@version` asks for that version; the metadata may say the same, and nothing else."""
    assert jobs.parse("m@2", PNG).metadata.version == "2"
    assert jobs.parse("m@2", PNG, properties={"version": "2"}).model == "m"
    error = refused("m@2", PNG, properties={"version": "3"})
    assert (error.field, str(error)) == ("version", "the address names version 2, the job 3")


# Refusals


@pytest.mark.parametrize(
    ("payload", "kind", "words"),
    [
        (b"", None, "has no body"),
        (b"x" * 101, None, "has 101 bytes; at most 100"),
        (b"GIF89a", None, "content type 'unknown' is not taken: use one of image/png"),
        (PNG, "image/gif", "content type 'image/gif' is not taken"),
        (PNG, "image/jpeg", "is no JPEG image"),
        (b"{}", "image/png", "is no PNG image"),
        (b"{}", None, "neither 'image' nor 'inputs'"),
        (b'{"inputs": []}', None, "neither 'image' nor 'inputs'"),
        (b'{"image": "YWJj"}', None, "neither a PNG nor a JPEG"),
        (b'{"image": "a b"}', None, "is not base64"),
        (b'{"image": "\xc3\xa4"}', None, "is not base64"),
        (b'{"image": 5}', None, "cannot be read.*image"),
        (b'{"image": ', None, "cannot be read"),
        (b'{"image": "\xff"}', None, "cannot be read.*utf-8"),
        (b"[1]", "application/json", "cannot be read"),
        (PNG, "application/json", "cannot be read"),
        (b'{"inputs":' + b"[" * 90, None, "cannot be read"),
        (b"\xff\xff\xff\xff", None, "not an Arrow IPC stream"),
        (PNG, jobs.ARROW, "not an Arrow IPC stream"),
    ],
)
def test_a_body_that_cannot_be_taken(payload: bytes, kind: str | None, words: str) -> None:
    """A refusal says what is wrong with the body."""
    with pytest.raises(jobs.Rejected, match=words):
        jobs.parse("m", payload, kind, max_payload=100)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": []}, r"'x': shape \[\] has no first dimension"),
        ({"shape": [-1, 3]}, "'x': shape .* has no first dimension"),
        ({"shape": [0, 3]}, "has 0 items; between 1 and"),
        ({"shape": [100_001]}, "has 100001 items; between 1 and 100,000"),
        ({"shape": [10**30]}, "items; between 1 and 100,000"),
        ({"shape": ["two"]}, "Expected `int`"),
        ({"datatype": "FLOAT"}, "'x': datatype 'FLOAT' is none of the protocol's"),
        ({"shape": [3, 3]}, r"disagree on the number of items: first dimensions \[2, 3\]"),
    ],
)
def test_tensors_that_cannot_be_taken(change: dict[str, Any], words: str) -> None:
    """A refusal names the tensor and what is wrong with it."""
    with pytest.raises(jobs.Rejected, match=words):
        jobs.parse("m", oip(TENSOR | change, *([TENSOR] if change == {"shape": [3, 3]} else [])))


@pytest.mark.parametrize("missing", sorted(TENSOR))
def test_a_tensor_without_one_of_its_parts(missing: str) -> None:
    """A refusal names what is missing, and where."""
    error = refused("m", oip({key: value for key, value in TENSOR.items() if key != missing}))
    assert f"`{missing}`" in str(error)
    assert error.field == "inputs"


def test_a_stream_without_rows() -> None:
    """No rows, no job."""
    assert "has 0 items" in str(refused("m", rows(0)))


def test_a_stream_that_would_burst() -> None:
    """A small stream that claims to unpack to gigabytes is refused by its claim."""
    zeros = pa.py_buffer(bytes(jobs.MAX_UNPACKED + 1))
    table = pa.table({"x": pa.Array.from_buffers(pa.binary(len(zeros)), 1, [None, zeros])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write(table)
    payload = sink.getvalue().to_pybytes()
    assert len(payload) < jobs.MAX_PAYLOAD
    assert "unpacks to" in str(refused("m", payload))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("priority", [10, -1, "high", 1.5, True, [5], 10**30]),
        ("queue", ["", "a/b", "#", "x" * 65, "-a", None, 5]),
        ("version", ["", "a b", "+", 3]),
        ("timeout_ms", [0, -5, 10**11, "soon"]),
        ("deadline_ms", [0, "tomorrow", 1e30]),
        ("max_attempts", [0, 101, None]),
        ("idempotency_key", ["", "k" * 201, "a\0b", 7]),
        ("response_topic", ["", "a/#", "a/+/b", "a\0", "t" * 65_536, {}]),
        ("correlation", ["a\0b", "é" * 32_768, "\ud800", ["x"]]),
        ("traceparent", ["\0", "\udfff", "0" * 65_536]),
    ],
)
def test_metadata_that_cannot_be_taken(field: str, values: list[Any]) -> None:
    """A refusal names the field of the metadata, in its words and beside them."""
    for value in values:
        error = refused("m", PNG, properties={field: value})
        assert error.field == field, (value, str(error))
        assert field in str(error), value


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"image": 5}', "image"),
        (b'{"inputs": 5}', "inputs"),
        (image(id=5), "id"),
        (oip(parameters=[1]), "parameters"),
        (image(b"GIF89a"), "image"),
        (oip(TENSOR | {"datatype": "x"}), "inputs"),
        (oip(parameters={"priority": "x"}), "priority"),
    ],
)
def test_the_field_is_named(payload: bytes, field: str) -> None:
    """Whatever can be blamed on one field is."""
    assert refused("m", payload).field == field


@pytest.mark.parametrize("model", ["", "@1", "m@", "m@1@2", "a b", "a/b", "+", "ä", "m" * 65])
def test_a_model_that_cannot_be(model: str) -> None:
    """A model's name and version are checked like every level of a topic."""
    assert refused(model, PNG).field == "model"


DEEP: Final = 100_000


@pytest.mark.parametrize(
    "payload",
    [
        b'{"parameters": {"a": ' + b"[" * DEEP,
        b'{"a": ' + b"[" * DEEP,
        b'{"a": ' * DEEP,
        b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ' + b"[" * DEEP,
        b'{"image": "", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    ],
    ids=["parameters", "unknown field", "objects", "data", "beside an image"],
)
def test_a_bottomless_body(payload: bytes) -> None:
    """Nesting without end is refused like any other bad JSON."""
    assert "cannot be read" in str(refused("m", payload))


# Whatever comes


def survives(*arguments: Any, **options: Any) -> None:
    """A job comes out, or Rejected."""
    try:
        job = jobs.parse(*arguments, **options)
    except jobs.Rejected:
        return
    assert job.content_type in jobs.CONTENT_TYPES
    assert job.payload
    assert 1 <= job.items <= jobs.MAX_ITEMS
    assert 0 <= job.priority <= 9


texts = st.text(max_size=8) | st.sampled_from(["1", "0", "-3", "true", "null", "9" * 40])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
metadata = st.dictionaries(st.sampled_from(sorted(msgspec.to_builtins(FULL))) | texts, anything, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(["m", "m@1"]) | st.text(max_size=5),
    payload=st.binary(max_size=60) | st.sampled_from([PNG, JPEG, image(), oip(), rows(2)]),
    kind=st.none() | st.sampled_from([*jobs.CONTENT_TYPES, "", "text/plain"]) | st.text(max_size=9),
    properties=metadata,
)
@example("m", b'{"image": "\xff"}', None, {})
def test_no_job_breaks_the_door(
    model: str, payload: bytes, kind: str | None, properties: dict[str, Any]
) -> None:
    """Whatever bytes under whatever names: a job comes out or a refusal, never another error."""
    survives(model, payload, kind, properties)


@settings(max_examples=200, deadline=None)
@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "image": texts | st.just(base64.b64encode(PNG).decode()) | anything,
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {
                        "name": texts | anything,
                        "shape": st.lists(st.integers(-1, 5), max_size=3) | anything,
                        "datatype": st.sampled_from(["FP32", "BYTES"]) | anything,
                        "data": anything,
                    }
                ),
                max_size=3,
            )
            | anything,
            "parameters": metadata | anything,
            "id": texts | anything,
            "priority": anything,
        },
    )
)
def test_no_json_breaks_the_door(body: dict[str, Any]) -> None:
    """Whatever stands in the fields of a JSON body: a job comes out or a refusal."""
    survives("m", json.dumps(body).encode(errors="surrogatepass"))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), payload=st.sampled_from([image(), oip(), rows(4), rows(4, "zstd")]))
def test_no_damage_breaks_the_door(data: st.DataObject, payload: bytes) -> None:
    """A good job of which bytes were changed or cut off: a job comes out or a refusal."""
    broken = bytearray(payload[: data.draw(st.integers(1, len(payload)))])
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    survives("m", bytes(broken))
    survives("m", bytes(broken), jobs.ARROW)


def test_tags_are_what_is_said_beside_a_job_and_is_no_metadata() -> None:
    """From user properties and from a JSON body alike; numbers as text, and nothing that can be no label."""
    job = jobs.parse("m", PNG, jobs.PNG, {"group": "beta", "queue": "q", "long": "x" * 300})
    assert job.tags(["group", "queue", "long", "other"]) == {"group": "beta"}
    body = json.dumps({"image": base64.b64encode(PNG).decode(), "group": "beta", "line": 4, "list": [1]})
    assert jobs.parse("m", body.encode()).tags(["group", "line", "list"]) == {"group": "beta", "line": "4"}

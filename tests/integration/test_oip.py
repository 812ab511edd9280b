"""The agent as an inference server, asked by NVIDIA's own client of the protocol, `tritonclient[http]`."""

from __future__ import annotations

import asyncio
import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

import demo
from demo import program, servers, surfaces
from tests import models
from tests.conformance import packages
from tests.integration import agents

DEMO = Path(demo.__file__).parent / "models" / "surface-defects"
MANY = 40
MAX_BODY = 4 << 20

REAL = {
    "pitting": (
        'name = "image"\nkind = "image"\nwidth = 64\nheight = 64\ncolour = "grey"',
        'name = "prob"\nkind = "classification"\nlabels = ["clean", "pitting"]',
        "bsdata/bsd_pitting_64.onnx",
    ),
    "temperature": (
        'name = "window"\nkind = "tensor"\nshape = [48]',
        'name = "score"\nkind = "scores"',
        "machine-temperature/machine_temp_ae.onnx",
    ),
}
"""Input, output and graph of models that were trained on real data."""


def write_models(home: Path) -> None:
    models.write_scorer(home / "models" / "mean", extra="[batching]\nmax_batch = 8")
    models.write_scorer(home / "models" / "mean-2", version="2.0.0", extra="[batching]\nmax_batch = 8")
    models.write_classifier(home / "models" / "brightness")
    models.write_picker(home / "models" / "picker")
    packages.same("float16").write(home / "models" / "same-float16")
    packages.same("int64").write(home / "models" / "same-int64")
    packages.same("bool").write(home / "models" / "same-bool")
    packages.same("float64").write(home / "models" / "same-float64")
    packages.TWO.write(home / "models" / "two")
    (home / "models" / "surface-defects").symlink_to(DEMO)
    for name, (inputs, outputs, graph) in REAL.items() if models.DATA.is_dir() else ():
        folder = home / "models" / name
        folder.mkdir()
        shutil.copy(models.DATA / graph, folder / "model.onnx")
        (folder / "model.toml").write_text(
            f'name = "{name}"\nversion = "1"\n[[inputs]]\n{inputs}\n[[outputs]]\n{outputs}\n'
            '[batching]\nmax_batch = 50\n[providers]\norder = ["cpu"]\n'
        )


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[program.Program]:
    """A site that stands alone, for tests that leave nothing behind."""
    home = tmp_path_factory.mktemp("oip")
    write_models(home)
    with servers.Mosquitto(home / "mosquitto") as broker, asyncio.Runner() as loop:
        one = agents.agent(home, broker, oip={"max_body": MAX_BODY})
        try:
            loop.run(one.start())
            yield one
        finally:
            loop.run(one.close())


@pytest.fixture
def client(agent: program.Program) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{agent.port}", concurrency=8) as one:
        yield one


def tensor(name: str, array: Any, datatype: str, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def window(*rows: list[float], binary: bool = True) -> triton.InferInput:
    return tensor("window", np.array(rows, np.float32), "FP32", binary=binary)


def as_json(name: str) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, binary_data=False)


def test_what_the_server_says_of_itself(client: triton.InferenceServerClient) -> None:
    """It is live and ready, so are its models by each of their versions, and no other is."""
    assert client.is_server_live()
    assert client.is_server_ready()
    told = client.get_server_metadata()
    assert told["name"] == "backhaul"
    assert told["extensions"] == ["binary_tensor_data", "classification"]
    assert client.is_model_ready("mean")
    assert client.is_model_ready("mean", "1.0.0")
    assert not client.is_model_ready("mean", "9")
    assert not client.is_model_ready("other")


def test_what_it_says_of_a_model(client: triton.InferenceServerClient) -> None:
    """Names, datatypes and shapes are the graph's, the first dimension free; versions are those served."""
    told = client.get_model_metadata("mean")
    assert told == {
        "name": "mean",
        "versions": ["1.0.0", "2.0.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
    }
    told = client.get_model_metadata("brightness", "1.0.0")
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert told["outputs"] == [{"name": "prob", "datatype": "FP32", "shape": [-1, 2]}]
    with pytest.raises(InferenceServerException, match="other is not served here") as caught:
        client.get_model_metadata("other")
    assert caught.value.status() == "404"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_request_is_answered(client: triton.InferenceServerClient, binary: bool, binary_out: bool) -> None:
    """With the graph's own numbers, in bytes or JSON each way; id and version come back."""
    rows = [[0.1, 0.2, 0.3, 0.4], [1e-30, 3e8, -7, 1 / 3]]
    outputs = [triton.InferRequestedOutput("score", binary_data=binary_out)]
    answer = client.infer("mean", [window(*rows, binary=binary)], "1.0.0", outputs, request_id="shift-7")
    scores = answer.as_numpy("score")
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array(rows, np.float32).mean(axis=1, keepdims=True))
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("shift-7", "mean", "1.0.0")
    assert ("data" in told["outputs"][0]) != binary_out
    assert client.infer("mean", [window(*rows)]).get_response()["model_version"] == "2.0.0"


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool"])
@pytest.mark.parametrize("binary", [True, False])
def test_other_datatypes(client: triton.InferenceServerClient, dtype: str, binary: bool) -> None:
    """Each arrives and returns exactly."""
    datatype, _ = packages.DTYPES[dtype]
    given: dict[str, Any] = {
        "float16": np.array([65504, 1 / 3, -0.0, 6e-8, 1, 2], np.float16),
        "float64": np.array([0.1, 1e308, 5e-324, -0.0, np.pi, 1], np.float64),
        "int64": np.array([-(2**63), 2**63 - 1, 0, 1, 2**53 + 1, -1], np.int64),
        "bool": np.array([True, False, True, True, False, False]),
    }
    sent = given[dtype].reshape(1, 2, 3)
    name = f"same-{dtype}"
    answer = client.infer(
        name, [tensor("x", sent, datatype, binary=binary)], outputs=None if binary else [as_json("y")]
    )
    made = answer.as_numpy("y")
    assert (made.dtype, made.tobytes()) == (sent.dtype, sent.tobytes())


def test_numbers_that_json_has_not(client: triton.InferenceServerClient) -> None:
    """NaN and infinity come in bytes; asked for in JSON they are refused, not changed."""
    given = np.array([np.nan, np.inf, -np.inf, 0, 1, 2]).reshape(1, 2, 3)
    asked = [tensor("x", given, "FP64")]
    assert client.infer("same-float64", asked).as_numpy("y").tobytes() == given.tobytes()
    with pytest.raises(InferenceServerException, match="binary_data") as caught:
        client.infer("same-float64", asked, outputs=[as_json("y")])
    assert caught.value.status() == "406"


def test_outputs_as_they_are_asked_for(client: triton.InferenceServerClient) -> None:
    """In the order asked, some in bytes and some in JSON, and none that was not asked for."""
    a, b = np.array([[1, 2, 3]], np.float32), np.array([[4, 5, 6]], np.float32)
    asked = [tensor("b", b, "FP32"), tensor("a", a, "FP32", binary=False)]
    answer = client.infer("two", asked, outputs=[triton.InferRequestedOutput("product"), as_json("sum")])
    assert [one["name"] for one in answer.get_response()["outputs"]] == ["product", "sum"]
    np.testing.assert_array_equal(answer.as_numpy("product"), a * b)
    np.testing.assert_array_equal(answer.as_numpy("sum"), a + b)
    only = client.infer("two", asked, outputs=[as_json("sum")])
    assert only.as_numpy("product") is None


@pytest.mark.parametrize("binary", [True, False])
def test_classes_by_their_names(client: triton.InferenceServerClient, binary: bool) -> None:
    """`class_count` brings the best classes with score, place and label, as Triton gives them."""
    pictures = np.array([models.png(250), models.png(3)], object)
    outputs = [triton.InferRequestedOutput("prob", binary_data=binary, class_count=2)]
    answer = client.infer("brightness", [tensor("image", pictures, "BYTES")], outputs=outputs)
    rows = answer.as_numpy("prob").tolist()
    named = [[(text.decode() if binary else text).split(":") for text in row] for row in rows]
    assert [[(place, label) for _, place, label in row] for row in named] == [
        [("1", "bright"), ("0", "dark")],
        [("0", "dark"), ("1", "bright")],
    ]
    assert float(named[0][0][0]) == pytest.approx(250 / 255)


def test_more_items_than_one_batch(client: triton.InferenceServerClient) -> None:
    """A request may have more items than the model's batches; its outputs are one tensor."""
    rows = np.arange(100 * 4, dtype=np.float32).reshape(100, 4)
    scores = client.infer("mean", [tensor("window", rows, "FP32")]).as_numpy("score")
    np.testing.assert_array_equal(scores, rows.mean(axis=1, keepdims=True))


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_a_packed_request(client: triton.InferenceServerClient, packed: str) -> None:
    """gzip and deflate are unpacked; what is too large then is refused."""
    answer = client.infer("mean", [window([1, 2, 3, 4])], request_compression_algorithm=packed)
    assert answer.as_numpy("score").tolist() == [[2.5]]
    bomb = np.zeros((MAX_BODY // 16 + 1, 4), np.float32)
    with pytest.raises(InferenceServerException, match="unpacks to more than") as caught:
        client.infer("mean", [tensor("window", bomb, "FP32")], request_compression_algorithm=packed)
    assert caught.value.status() == "413"


def test_many_at_once(client: triton.InferenceServerClient) -> None:
    """`async_infer` sends several together; each gets its own answer."""
    asked = [
        client.async_infer("mean", [window([number] * 4)], priority=number % 9 + 1) for number in range(MANY)
    ]
    assert [one.get_result(timeout=20).as_numpy("score").tolist() for one in asked] == [
        [[number]] for number in range(MANY)
    ]


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        (lambda one: one.infer("other", [window([1, 2, 3, 4])]), "404", "not served here"),
        (lambda one: one.infer("mean", [window([1, 2, 3, 4])], "7"), "404", "mean@7 is not served"),
        (
            lambda one: one.infer("mean", [window([1, 2, 3])]),
            "400",
            r"shape \[1, 3\]; FP32 of shape \[-1, 4\]",
        ),
        (
            lambda one: one.infer("mean", [tensor("window", np.zeros((1, 4)), "FP64")]),
            "400",
            "is FP64 .* FP32 of shape",
        ),
        (lambda one: one.infer("two", [window([1, 2, 3, 4])]), "400", "takes the inputs a, b"),
        (lambda one: one.infer("mean", [window(*[])]), "400", "shape"),
        (
            lambda one: one.infer("mean", [window([1, 2, 3, 4])], outputs=[as_json("label")]),
            "400",
            "has the outputs score",
        ),
        (lambda one: one.infer("mean", [window([1, 2, 3, 4])], priority=12), "400", "priority 12"),
        (lambda one: one.infer("mean", [window([1, 2, 3, 4])], sequence_id=3), "400", "sequences"),
        (
            lambda one: one.infer("mean", [window([1, 2, 3, 4])], parameters={"selector": "gpu=1"}),
            "400",
            "submit a task to the hub",
        ),
        (
            lambda one: one.infer("brightness", [tensor("image", np.array([b"GIF"], object), "BYTES")]),
            "400",
            "no PNG or JPEG",
        ),
        (
            lambda one: one.infer(
                "brightness", [tensor("image", np.array([models.png(1)[:40]], object), "BYTES")]
            ),
            "400",
            "cannot be decoded",
        ),
        (
            lambda one: one.infer("picker", [tensor("index", np.array([1, 99], np.int64), "INT64")]),
            "500",
            "item 1: the model failed on it",
        ),
    ],
)
def test_errors(
    client: triton.InferenceServerClient,
    ask: Callable[[triton.InferenceServerClient], Any],
    status: str,
    says: str,
) -> None:
    """What is wrong with a request, with the status that says whose fault it is; the next one is served."""
    with pytest.raises(InferenceServerException, match=says) as caught:
        ask(client)
    assert caught.value.status() == status
    assert client.infer("mean", [window([1, 2, 3, 4])]).as_numpy("score").tolist() == [[2.5]]


async def test_what_no_client_sends(agent: program.Program) -> None:
    """Other addresses, methods and bodies are refused as the protocol tells errors."""
    async with httpx.AsyncClient(base_url=f"{agent.url}/v2") as client:
        for method, path, status in (
            ("GET", "/models/mean/infer", 405),
            ("POST", "/models/mean", 405),
            ("POST", "/health/live", 405),
            ("GET", "/models/mean/statistics", 404),
            ("GET", "/models//ready", 404),
            ("GET", "/nothing", 404),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
        for body, header, says in (
            (b"{", None, "JSON"),
            (b"{}", None, "inputs"),
            (b'{"inputs": []}', None, "takes the inputs window"),
            (b'{"inputs": []}', "999", "999"),
            (b'{"inputs": []}', "x", "no number"),
            (b'{"inputs": [{"name": "window", "shape": [1, 4], "datatype": "FP32"}]}', None, "no data"),
        ):
            headers = {} if header is None else {"Inference-Header-Content-Length": header}
            answer = await client.post("/models/mean/infer", content=body, headers=headers)
            assert answer.status_code == 400
            assert says in answer.json()["error"]
        large = await client.post("/models/mean/infer", content=b" " * MAX_BODY + b"{}")
        assert large.status_code == 413


def test_the_demos_model_says_what_a_plain_session_says(client: triton.InferenceServerClient) -> None:
    """Bit by bit what ONNX Runtime gives for the same numbers; for pictures, but for their rounding."""
    session = onnxruntime.InferenceSession(str(DEMO / "model.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(5)
    parts = [surfaces.generate(rng, label, "png") for label in surfaces.LABELS[:4]]
    pixels = np.stack([part.pixels for part in parts])[:, np.newaxis].astype(np.float32) / 255
    for count in (1, 4):
        (plain,) = session.run(["prob"], {"image": pixels[:count]})
        answer = client.infer("surface-defects", [tensor("image", pixels[:count], "FP32")])
        np.testing.assert_array_equal(answer.as_numpy("prob"), plain)
    pictures = np.array([part.image for part in parts], object)
    answer = client.infer("surface-defects", [tensor("image", pictures, "BYTES")])
    np.testing.assert_allclose(answer.as_numpy("prob"), plain, atol=1e-5)


@pytest.mark.skipif(not models.DATA.is_dir(), reason="the data folder is not here")
def test_real_models_say_what_a_plain_session_says(client: triton.InferenceServerClient) -> None:
    """Pictures of a machine tool's parts and the temperature of a machine: bit by bit, item by item."""
    pixels = np.stack(
        [
            np.asarray(Image.open(one).convert("L"), np.float32)[None]
            for one in sorted((models.DATA / "bsdata").glob("*.png"))
        ]
    )
    with (models.DATA / "machine-temperature" / "machine_temperature.csv").open(newline="") as table:
        values = np.array([float(row["value"]) for row in csv.DictReader(table)], np.float32)
    windows = ((values - values.mean()) / values.std())[: len(values) // 48 * 48].reshape(-1, 48)
    for name, given, wanted in (("pitting", pixels, "prob"), ("temperature", windows, "score")):
        _, _, graph = REAL[name]
        session = onnxruntime.InferenceSession(models.DATA / graph, providers=["CPUExecutionProvider"])
        (node,) = session.get_inputs()
        batches = [given[start : start + 50] for start in range(0, len(given), 50)]
        plain = np.concatenate([session.run([wanted], {node.name: batch})[0] for batch in batches])
        made = client.infer(name, [tensor(node.name, given, "FP32")]).as_numpy(wanted)
        assert len(made) >= 100
        np.testing.assert_allclose(made, plain, rtol=1e-6)  # the items of other requests may share a batch

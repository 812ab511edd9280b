"""The agent as an inference server, asked by NVIDIA's own client of the protocol, `tritonclient[http]`."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
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
from shared import topics
from tests import models
from tests.conformance import packages
from tests.integration import agents, hubs

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


# Durability, and what becomes of requests when there is no room


@pytest.fixture
async def slow(broker: servers.Mosquitto, tmp_path: Path) -> AsyncIterator[program.Program]:
    """An agent whose model takes its time, with room for a few requests."""
    models.write_slow_scorer(tmp_path / "models" / "slow", effort=1000, extra="[batching]\nmax_batch = 1")
    async with agents.running(agents.agent(tmp_path, broker, oip={"waiting": 20})) as one:
        yield one


def body(number: float, **parameters: Any) -> bytes:
    return json.dumps(
        {
            "inputs": [{"name": "window", "shape": [1, 4], "datatype": "FP32", "data": [number] * 4}],
            "parameters": parameters,
        }
    ).encode()


async def queued(one: program.Program, at_least: int = 0, at_most: int = 1000) -> None:
    """Wait until so many tasks wait or run."""
    async with asyncio.timeout(20):
        while not at_least <= (await one.ask("/status"))["telemetry"]["queued"] <= at_most:
            pass


async def test_what_was_accepted_survives_kill_nine(slow: program.Program) -> None:
    """Requests that were accepted when the agent is killed run after its restart, once; repeated with their
    keys they are answered."""
    path = "/v2/models/slow/infer"

    async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
        return await client.post(path, content=body(number, idempotency_key=f"part-{number}"))

    async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
        asked = [asyncio.create_task(ask(client, number)) for number in range(12)]
        await queued(slow, at_least=8)
        await slow.kill()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert len([one for one in answers if isinstance(one, Exception)]) >= 6
    await slow.start()
    async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
        again = await asyncio.gather(*(ask(client, number) for number in range(12)))
        scores = [one.json()["outputs"][0]["data"][0] for one in again]
        assert scores == pytest.approx(list(range(12)))
        told = (await slow.ask("/status"))["telemetry"]
        assert (told["queued"], told["items_total"] <= 12) == (0, True)
        once_more = await asyncio.gather(*(ask(client, number) for number in range(12)))
        assert [one.content for one in once_more] == [one.content for one in again]
        assert (await slow.ask("/status"))["telemetry"]["items_total"] == told["items_total"]


async def test_who_leaves_loses_nothing_but_the_answer(slow: program.Program) -> None:
    """A client that goes away in the middle has its request run; who repeats it gets the answer."""
    path = "/v2/models/slow/infer"
    async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(9):
                group.create_task(client.post(path, content=body(1)))
            left = group.create_task(client.post(path, content=body(3, idempotency_key="left", priority=0)))
            await queued(slow, at_least=7)
            left.cancel()
        answer = await client.post(path, content=body(3, idempotency_key="left"))
        assert answer.json()["outputs"][0]["data"] == [3]
        assert (await slow.ask("/status"))["telemetry"]["items_total"] == 10


async def test_a_key_is_one_job_however_it_comes(slow: program.Program, broker: servers.Mosquitto) -> None:
    """A key that a device has used is refused to a client, and the other way round: neither could be told the
    other's answer."""
    job = body(1, idempotency_key="device's")
    topic = f"backhaul/v1/{agents.SITE}/jobs/gauge-1/slow"
    async with (
        httpx.AsyncClient(base_url=slow.url, timeout=60) as client,
        agents.Replies(broker, f"backhaul/v1/{agents.SITE}/results/+") as replies,
    ):
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", job.decode())
        assert (await replies.next())["state"] == "COMPLETED"
        refused = await client.post("/v2/models/slow/infer", content=job)
        assert (refused.status_code, "another way" in refused.json()["error"]) == (409, True)
        job = body(1, idempotency_key="client's")
        assert (await client.post("/v2/models/slow/infer", content=job)).status_code == 200
        await agents.run("mosquitto_pub", broker, "-q", "1", "-t", topic, "-m", job.decode())
        rejected = await replies.next()
        assert (rejected["state"], "local port" in rejected["error"]) == ("REJECTED", True)


async def test_without_room_a_client_is_told_when_to_come_again(slow: program.Program) -> None:
    """Beyond `oip.waiting` a request is refused at once, with 503 and Retry-After; the others are answered,
    and the health of the agent is told all the time."""
    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/v2/models/slow/infer", content=body(number)) for number in range(60)),
            client.get("/healthz/live"),
            client.get("/v2/health/ready"),
        )
    taken = [one for one in answers[:60] if one.status_code == 200]
    refused = [one for one in answers[:60] if one.status_code == 503]
    assert len(taken) >= 20
    assert len(taken) + len(refused) == 60
    assert refused
    assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in refused)
    assert [one.status_code for one in answers[60:]] == [200, 200]


async def test_the_hub_hears_of_it(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """Each item of a request is a result row at the hub, with label and score, as a device's would be."""
    one = agents.agent(tmp_path, broker, broker, uplink={"telemetry_s": 0.05, "linger_s": 0.0})
    pictures = ",".join(f'"{base64.b64encode(models.png(grey)).decode()}"' for grey in (3, 250, 9))
    asked = f'{{"inputs": [{{"name": "image", "shape": [3], "datatype": "BYTES", "data": [{pictures}]}}]}}'
    async with hubs.playing(broker, topics.Agent(agents.SITE, "edge-1")) as hub, agents.running(one):
        await hub.online()
        async with httpx.AsyncClient(base_url=one.url) as client:
            answer = await client.post("/v2/models/brightness/infer", content=asked)
        assert answer.status_code == 200
        await hub.until(lambda: len(hub.rows) == 3)
    assert [(row["item"], row["label"], row["outcome"]) for row in hub.rows] == [
        (0, "dark", "ok"),
        (1, "bright", "ok"),
        (2, "dark", "ok"),
    ]
    probabilities = np.array(answer.json()["outputs"][0]["data"]).reshape(3, 2)
    assert [row["score"] for row in hub.rows] == pytest.approx(probabilities.max(axis=1).tolist())


async def test_a_full_journal_is_told(broker: servers.Mosquitto, tmp_path: Path) -> None:
    """What the journal has no room for is refused with 503 and Retry-After, and nothing of it runs."""
    models.write_scorer(tmp_path / "models" / "wide", width=100_000)
    rows = np.zeros((8, 100_000), np.float32).tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "window",
                    "shape": [8, 100_000],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(rows)},
                }
            ]
        }
    ).encode()
    one = agents.agent(tmp_path, broker, journal={"max_bytes": 2_000_000})
    async with agents.running(one), httpx.AsyncClient(base_url=one.url) as client:
        answer = await client.post(
            "/v2/models/mean/infer",
            content=head + rows,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        assert (answer.status_code, "journal is full" in answer.json()["error"]) == (503, True)
        assert int(answer.headers["retry-after"]) >= 1
        told = (await one.ask("/status"))["telemetry"]
        assert (told["queued"], told["items_total"]) == (0, 0)


async def test_more_urgent_requests_go_first(slow: program.Program) -> None:
    """`priority` is that of jobs: 0 to 9, the higher the sooner."""
    ended: list[int] = []

    async def ask(client: httpx.AsyncClient, priority: int) -> None:
        answer = await client.post("/v2/models/slow/infer", content=body(1, priority=priority))
        assert answer.status_code == 200
        ended.append(priority)

    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client, asyncio.TaskGroup() as group:
        for priority in [1] * 12 + [9]:
            group.create_task(ask(client, priority))
    assert ended.index(9) < 6


async def test_an_answer_that_comes_too_late_is_not_computed(slow: program.Program) -> None:
    """`timeout`, in µs as Triton has it, is the deadline of the task: 504, and the model does not run."""
    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client, asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(client.post("/v2/models/slow/infer", content=body(1, priority=9)))
        late = await client.post("/v2/models/slow/infer", content=body(1, priority=0, timeout=1000))
    assert late.status_code == 504
    assert "deadline" in late.json()["error"]
    assert (await slow.ask("/status"))["telemetry"]["items_total"] == 10


async def test_a_stop_tells_who_waits(slow: program.Program) -> None:
    """SIGTERM: what runs is answered, who waits is told that the request is kept, and so it is."""
    async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client:
        asked = [
            asyncio.create_task(client.post("/v2/models/slow/infer", content=body(number)))
            for number in range(15)
        ]

        await queued(slow, at_least=10)
        await slow.stop()
        answers = await asyncio.gather(*asked)
    assert {one.status_code for one in answers} <= {200, 503}
    kept = [one for one in answers if one.status_code == 503]
    assert all("kept" in one.json()["error"] for one in kept)
    await slow.start()
    await queued(slow, at_most=0)
    assert (await slow.ask("/status"))["telemetry"]["items_total"] == len(kept)

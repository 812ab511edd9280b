"""From the start of an agent's process to its first answer to a device.

The job waits at the site's broker, in the agent's session there, before the process is started; the clock
stops when the reply reaches the device. In between are Python's imports, the journal, the models, their
warm-up, and the connection. Beside it a bare Python that imports ONNX Runtime, opens the same graph and runs
it once. Files are in the system's cache, as they are after an update or a crash; after a power cut they are
not.

    python -m benchmarks.first_answer --gpu    with TensorRT, with the engine that it built before and without

On a GPU a start without an engine is answered by what serves meanwhile, and the time until TensorRT serves is
measured as well.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from paho.mqtt import client as mqtt
from paho.mqtt import enums, packettypes, properties

from benchmarks import figures, pictures
from demo import program, servers
from demo.servers import ports
from shared import jobs, topics

AGENT: Final = topics.Agent("plant-a", "edge-1")
PATIENCE_S: Final = 120.0
BUILD_PATIENCE_S: Final = 3600.0
LOOK_S: Final = 0.2
ROUNDS: Final = 5

_BARE: Final = """
import json, sys, time
import numpy as np
import onnxruntime as ort
path, providers, shape = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
if hasattr(ort, "preload_dlls") and len(providers) > 1:
    ort.preload_dlls()
session = ort.InferenceSession(path, options, providers=providers)
session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})
"""

_DEEP: Final = """\
name = "deep"
version = "1"
[[inputs]]
name = "x"
kind = "image"
width = 64
height = 64
colour = "rgb"
[[outputs]]
name = "y"
kind = "raw"
[batching]
max_batch = 4
"""


@dataclass(frozen=True)
class Sizes:
    """Starts that are measured, and what the larger of the two models is made of."""

    rounds: int = ROUNDS
    layers: int = 50
    channels: int = 128


QUICK: Final = Sizes(rounds=1, layers=4, channels=16)


@dataclass(frozen=True)
class Subject:
    """A model package, and a payload that it takes."""

    folder: Path
    shape: tuple[int, ...]
    """Of a batch of one."""
    payload: bytes

    @property
    def graph(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Told:
    """Seconds, medians of the starts."""

    first_s: float
    bare_s: float
    graph_mb: float
    without_engine_s: float | None = None
    """The first answer of an agent whose engines are gone."""
    built_s: float | None = None
    """Until TensorRT served, from the start of that agent."""


class Device:
    """Publishes a job and sees when its reply comes."""

    def __init__(self, broker: servers.Mosquitto, model: str) -> None:
        self._topic = topics.job(AGENT.site, "camera-01", model)
        self._loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[float] = self._loop.create_future()
        self._client = mqtt.Client(enums.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = self._heard
        self._client.connect(broker.host, broker.port)

    def __enter__(self) -> Self:
        self._client.loop_start()
        self._client.subscribe("devices/replies", qos=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    async def publish(self, payload: bytes) -> None:
        """Give the broker a job, which it keeps for the agent."""
        self._answered = self._loop.create_future()
        told = properties.Properties(packettypes.PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        told.ResponseTopic, told.ContentType = "devices/replies", jobs.PNG
        sent = self._client.publish(self._topic, payload, qos=1, properties=told)
        await asyncio.to_thread(sent.wait_for_publish, PATIENCE_S)

    async def answered(self) -> float:
        """When the reply came. Raises TimeoutError, or ServerError for a reply that is no answer."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._answered

    def _heard(self, client: mqtt.Client, told: Any, message: mqtt.MQTTMessage) -> None:
        at, state = time.perf_counter(), json.loads(message.payload)["state"]
        self._loop.call_soon_threadsafe(self._note, at, state)

    def _note(self, at: float, state: str) -> None:
        if self._answered.done():
            return
        if state == "COMPLETED":
            self._answered.set_result(at)
        else:
            self._answered.set_exception(servers.ServerError(f"the job ended {state}"))


class Bench:
    """A broker, and an agent with one model that is started again and again."""

    def __init__(self, directory: Path, broker: servers.Mosquitto, order: Sequence[str], rounds: int) -> None:
        self._directory = directory
        self._broker = broker
        self._order = order
        self._rounds = rounds

    async def measure(self, subject: Subject) -> Told:
        home = self._directory / "homes" / subject.name
        manifest = subject.folder / "model.toml"
        said = manifest.read_text(encoding="utf-8").partition("[providers]")[0]
        manifest.write_text(f"{said}\n[providers]\norder = {json.dumps(self._order)}\n", encoding="utf-8")
        with Device(self._broker, subject.name) as device:
            async with self._agent(home, subject):
                pass  # it subscribes, so that the broker keeps its jobs from now on
            without_s = built_s = None
            if "tensorrt" in self._order:
                shutil.rmtree(home / "state" / "engines", ignore_errors=True)
                without_s, built_s = await self._start(home, subject, device, until_built=True)
            started = [await self._start(home, subject, device) for _ in range(self._rounds)]
        bare = [await self._bare(subject) for _ in range(self._rounds)]
        return Told(
            first_s=figures.median(first_s for first_s, _ in started),
            bare_s=figures.median(bare),
            graph_mb=subject.graph.stat().st_size / 1e6,
            without_engine_s=without_s,
            built_s=built_s,
        )

    async def _start(
        self, home: Path, subject: Subject, device: Device, *, until_built: bool = False
    ) -> tuple[float, float | None]:
        """Seconds to the first answer; and to TensorRT's service, if that is waited for."""
        await device.publish(subject.payload)
        began = time.perf_counter()
        async with self._agent(home, subject) as agent:
            first_s = await device.answered() - began
            built_s = None
            if until_built:
                await _runs_on(agent, "tensorrt")
                built_s = time.perf_counter() - began
        return first_s, built_s

    @asynccontextmanager
    async def _agent(self, home: Path, subject: Subject) -> AsyncIterator[program.Program]:
        agent = program.Program("agent", ["edge-agent", "run"], home / "agent.toml")
        agent.configure(
            {
                "site": AGENT.site,
                "name": f"{AGENT.name}-{subject.name}",
                "state": "state",
                "models": str(subject.folder.parent),
                "broker": {"host": self._broker.host, "port": self._broker.port},
                "uplink_broker": {"host": self._broker.host, "port": ports.free()},
            }
        )
        try:
            await agent.start()
            yield agent
        finally:
            await agent.close()

    async def _bare(self, subject: Subject) -> float:
        """Seconds of a Python that opens the graph on the provider that serves at first, and runs it once."""
        providers = ["CPUExecutionProvider"]
        if "cuda" in self._order:
            providers.insert(0, "CUDAExecutionProvider")
        words = (str(subject.graph), json.dumps(providers), json.dumps(subject.shape))
        began = time.perf_counter()
        bare = await asyncio.create_subprocess_exec(sys.executable, "-c", _BARE, *words)
        if await bare.wait():
            raise servers.ServerError(f"a bare Python does not run {subject.graph}")
        return time.perf_counter() - began


async def _runs_on(agent: program.Program, provider: str) -> None:
    """Wait until the agent's model runs on that provider."""
    async with asyncio.timeout(BUILD_PATIENCE_S):
        while (told := await agent.ask("/status")) is None or told["models"][0]["provider"] != provider:
            if not agent.running:
                raise servers.ServerError(f"the agent ended; its log:\n{agent.log.read_text()[-2000:]}")
            await asyncio.sleep(LOOK_S)


def lay_out(directory: Path, sizes: Sizes) -> list[Subject]:
    """The demo's model, and one with as many layers and weights as models for real pictures have."""
    demo = Path(shutil.copytree(pictures.DEMO, directory / "demo" / pictures.DEMO.name))
    (picture,) = pictures.draw(pixels=128, count=1)
    deep = directory / "deep" / "deep"
    deep.mkdir(parents=True)
    (deep / "model.toml").write_text(_DEEP, encoding="utf-8")
    _convolutions(deep / "model.onnx", sizes.layers, sizes.channels)
    return [Subject(demo, (1, 1, 128, 128), picture), Subject(deep, (1, 3, 64, 64), picture)]


def _convolutions(path: Path, layers: int, channels: int) -> None:
    """A graph of 3 x 3 convolutions, each with its normalisation and a ReLU, and the means of the last."""
    import onnx  # not there where the agent is installed

    chance = np.random.default_rng(1)
    nodes, weights = [], []
    last, wide = "x", 3
    for layer in range(layers):
        kernel = (chance.random((channels, wide, 3, 3), np.float32) - 0.5) * np.float32(2 / (9 * wide) ** 0.5)
        weights.append(onnx.numpy_helper.from_array(kernel, f"kernel{layer}"))
        sums = {"scale": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0}
        for name, value in sums.items():
            column = np.full(channels, value, np.float32)
            weights.append(onnx.numpy_helper.from_array(column, f"{name}{layer}"))
        step = 2 if layer in (0, layers // 4, layers // 2) else 1
        given = [f"{name}{layer}" for name in sums]
        nodes += [
            onnx.helper.make_node(
                "Conv", [last, f"kernel{layer}"], [f"c{layer}"], pads=[1] * 4, strides=[step] * 2
            ),
            onnx.helper.make_node("BatchNormalization", [f"c{layer}", *given], [f"n{layer}"]),
            onnx.helper.make_node("Relu", [f"n{layer}"], [f"r{layer}"]),
        ]
        last, wide = f"r{layer}", channels
    nodes.append(onnx.helper.make_node("GlobalAveragePool", [last], ["y"]))
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("x", (3, 64, 64)), ("y", (channels, 1, 1)))
    ]
    graph = onnx.helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


async def measure(options: figures.Options, order: Sequence[str]) -> dict[str, Any]:
    """Measure for each subject, print the table, return the figures."""
    sizes = QUICK if options.quick else Sizes()
    told: dict[str, Told] = {}
    with tempfile.TemporaryDirectory(prefix="backhaul-first-answer-") as folder:
        directory = Path(folder)
        async with servers.Mosquitto(directory / "broker") as broker:
            bench = Bench(directory, broker, order, sizes.rounds)
            for subject in lay_out(directory, sizes):
                told[subject.name] = await bench.measure(subject)
    _report(told, order)
    return {
        name: {
            "first_s": figures.significant(one.first_s),
            "ratio_to_bare": figures.significant(one.first_s / one.bare_s),
        }
        | (
            {}
            if one.without_engine_s is None or one.built_s is None
            else {
                "without_engine_s": figures.significant(one.without_engine_s),
                "built_s": figures.significant(one.built_s),
            }
        )
        for name, one in told.items()
    }


def _report(told: dict[str, Told], order: Sequence[str]) -> None:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    figures.show(
        f"From the start of an agent's process to its first answer, on {', '.join(order)}",
        ("model", "graph MB", "s", "bare Python s", "of bare", "without engine s", "TensorRT serves after s"),
        (
            (
                name,
                *(f"{one.graph_mb:.1f}", seconds(one.first_s), seconds(one.bare_s)),
                f"{one.first_s / one.bare_s:.2f}",
                *(seconds(one.without_engine_s), seconds(one.built_s)),
            )
            for name, one in told.items()
        ),
        ("Medians; the engine is built once. Files are in the system's cache.",),
    )


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    order = ["cpu"]
    if "--gpu" in given:
        given.remove("--gpu")
        order = ["tensorrt", "cuda", "cpu"]
    options = figures.options(
        "first_answer", "from start to first answer; with --gpu on a GPU, by TensorRT", given
    )
    figures.save(options.json, "first_answer", asyncio.run(measure(options, order)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

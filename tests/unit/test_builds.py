"""TensorRT's engines are built beside the agent, by real processes, while other providers serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from edge_agent import engine, loading, models, runtime, sessions, status
from edge_agent.builds import builder, builds, cache, host, identity, program
from shared import jobs, manifests
from tests import gpu
from tests import models as packages

PATIENCE_S = 20.0
ORDER = "tensorrt"
JOB = engine.Work(
    jobs.JSON, b'{"inputs":[{"name":"window","shape":[1,4],"datatype":"FP32","data":[1,2,3,6]}]}'
)


def maker(how: str, limit_s: float = PATIENCE_S) -> builder.Builder:
    return builder.Builder(limit_s, (*gpu.BUILDER, how))


class Site:
    """An engine on a machine with a GPU, its builds, and what is to be seen of them."""

    def __init__(
        self, folder: Path, how: str, *, again_s: float = 3600.0, limit_s: float = PATIENCE_S
    ) -> None:
        self.folder = folder
        self.cache = cache.Cache(folder / "engines", 1 << 20)
        self.builds = builds.Builds(
            self.cache, maker(how, limit_s), look=self.look, again_s=lambda times: again_s if times else 0.0
        )
        self.machine = engine.Engine(models.Catalogue(), opener=runtime.opener(engines=self.builds))
        self.builds.is_served = lambda model: loading.is_served(self.machine, model)
        self.swapped = asyncio.Event()
        self.at = gpu.HOST

    def look(self) -> identity.Host:
        return self.at

    def load(self, extra: str = "") -> models.Model:
        where = self.folder / "m"
        model = models.load(where if where.exists() else packages.write_scorer(where, extra=extra))
        loading.load_one(self.machine, model, ORDER)
        return model

    @property
    def provider(self) -> str:
        (one,) = self.machine.loaded()
        return one.provider

    @property
    def reason(self) -> str:
        (one,) = self.machine.loaded()
        return one.reason or ""

    def score(self, model: models.Model) -> float | None:
        ((made,),) = self.machine.run(model, [JOB])
        return getattr(made, "score", None)

    @contextlib.asynccontextmanager
    async def building(self) -> AsyncIterator[None]:
        """While the block lasts, engines are built."""
        task = asyncio.create_task(
            loading.build(self.builds, self.machine, ORDER, self.swapped.set), name="builds"
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ended(self, outcome: builder.Outcome, times: int = 1) -> None:
        await until(lambda: self.builds.outcomes[outcome] >= times)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what other processes do raises no event here
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> gpu.Module:
    made = gpu.Module()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    return made


async def test_another_provider_serves_while_tensorrt_builds(tmp_path: Path) -> None:
    """The model answers at once and says why not by TensorRT; the engine is swapped in without a job lost."""
    site = Site(tmp_path, "gated")
    os.mkfifo(tmp_path / "engines.gate")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines.gate").rename(tmp_path / "engines" / "gate")
    model = site.load()
    assert site.provider == "cpu"
    assert "yet to be built" in site.reason
    answered: list[float | None] = []
    stop = asyncio.Event()

    async def devices() -> None:
        while not stop.is_set():
            answered.append(await asyncio.to_thread(site.score, model))

    async with site.building(), asyncio.TaskGroup() as group:
        group.create_task(devices())
        await until(lambda: site.builds.building() is not None)
        assert site.builds.as_dicts()[0]["state"] == "building"
        assert metric(site, "building_seconds", model="mean@1.0.0") is not None
        before = len(answered)
        await until(lambda: len(answered) >= before + 20)
        assert site.provider == "cpu"
        await asyncio.to_thread((tmp_path / "engines" / "gate").write_bytes, b"go")
        await site.swapped.wait()
        assert site.provider == "tensorrt"
        after = len(answered)
        await until(lambda: len(answered) >= after + 20)
        stop.set()
    assert set(answered) == {3.0}
    assert site.builds.as_dicts()[0]["state"] == "built"
    assert site.builds.building() is None
    assert metric(site, "building_seconds", model="mean@1.0.0") is None
    assert metric(site, "builds_total", outcome="built") == 1
    assert metric(site, "cache_bytes") > len(gpu.ENGINE)


def metric(site: Site, name: str, **labels: str) -> Any:
    """A metric's value; None where it has none with these labels."""
    samples = [one for family in status.of_engines(site.builds) for one in family.samples]
    told = {(one.name, *sorted(one.labels.items())): one.value for one in samples}
    return told.get((f"backhaul_agent_tensorrt_{name}", *sorted(labels.items())))


async def test_an_engine_that_is_there_serves_from_the_start(tmp_path: Path) -> None:
    """The next start of the agent builds nothing."""
    first = Site(tmp_path, "build")
    first.load()
    async with first.building():
        await first.swapped.wait()
    again = Site(tmp_path, "crash")
    again.load()
    assert again.provider == "tensorrt"
    assert again.reason == ""
    async with again.building():
        await asyncio.sleep(0)
    assert not again.builds.outcomes


@pytest.mark.parametrize(
    ("how", "outcome", "words"),
    [
        ("crash", builder.Outcome.CRASHED, "SIGSEGV"),
        ("out of memory", builder.Outcome.CRASHED, "SIGKILL"),
        ("refuse", builder.Outcome.FAILED, "NonMaxSuppression is not supported"),
        ("nothing", builder.Outcome.BROKEN, "no engine"),
        ("empty", builder.Outcome.BROKEN, "empty"),
        ("again", builder.Outcome.BROKEN, "built again"),
        ("crash at its own engine", builder.Outcome.BROKEN, "does not open: it was killed by SIGSEGV"),
    ],
)
async def test_a_build_that_fails_hurts_nobody(
    tmp_path: Path, how: str, outcome: builder.Outcome, words: str
) -> None:
    """It is counted and said, nothing of it stays on disk, and the model goes on as it was."""
    site = Site(tmp_path, how)
    model = site.load()
    async with site.building():
        await site.ended(outcome)
        await until(lambda: site.builds.as_dicts()[0]["failures"] == 1)
        (told,) = site.builds.as_dicts()
        assert words in told["reason"]
        assert site.score(model) == 3.0
    assert site.provider == "cpu"
    assert site.builds.outcomes == {outcome: 1}
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["failures.json"]


async def test_a_build_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """So is whatever it started; its time is a setting."""
    site = Site(tmp_path, "slow", limit_s=0.5)
    site.load()
    async with site.building():
        await site.ended(builder.Outcome.TIMED_OUT)
    assert site.provider == "cpu"


async def test_an_agent_that_stops_leaves_no_builder(tmp_path: Path) -> None:
    """The process goes with its agent, and what it had built is taken off the disk."""
    site = Site(tmp_path, "slow")
    site.load()
    async with site.building():
        await until(lambda: bool(list((tmp_path / "engines").glob(".*/.log"))))
        (log,) = (tmp_path / "engines").glob(".*/.log")
        await until(lambda: len(running_on(str(log.parent))) == 1)
    assert running_on(str(log.parent)) == []
    assert not log.exists()


async def test_a_builder_goes_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    """It is not there to build for nobody, on a GPU that the next agent needs."""
    child = "from edge_agent.builds import program; program.stand_back(); import signal; signal.pause()"
    starts = f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]])"
    parent = f"import signal, subprocess, sys; held = {starts}; signal.pause()"
    word = str(tmp_path)
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, word)

    def is_ready() -> bool:
        scores = [Path(f"/proc/{one}/oom_score_adj") for one in running_on(word) if one != agent.pid]
        return [path.read_text().strip() for path in scores] == [str(program.OOM_SCORE)]

    try:
        await until(is_ready)
    finally:
        agent.kill()
        await agent.wait()
    await until(lambda: running_on(word) == [])


def running_on(word: str) -> list[int]:
    """The processes with that word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in path.read_bytes().decode(errors="replace").split("\0"):
                found.append(int(path.parent.name))
    return found


async def test_a_build_that_failed_is_tried_again(tmp_path: Path) -> None:
    """In this life, after a while; and the next life knows how often it failed."""
    site = Site(tmp_path, "crash", again_s=0.01)
    site.load()
    async with site.building():
        await site.ended(builder.Outcome.CRASHED, 3)
    later = Site(tmp_path, "build", again_s=3600.0)
    later.load()
    assert "failed" in later.reason
    assert later.builds.as_dicts()[0]["failures"] >= 3
    async with later.building():
        await asyncio.sleep(0.05)
    assert not later.builds.outcomes


def test_pauses_grow_to_an_end() -> None:
    """A minute at first, twice as long each time, six hours at most."""
    pauses = [builds.again_s(times) for times in range(12)]
    assert pauses[:4] == [0.0, 60.0, 120.0, 240.0]
    assert pauses == sorted(pauses)
    assert builds.again_s(1000) == builds.AGAIN_MAX_S


def truncate(site: Site) -> None:
    (engine,) = (site.folder / "engines").glob("*/x.engine")
    engine.write_bytes(gpu.ENGINE[:-1])


def upgrade(site: Site) -> None:
    site.at = identity.Host(**{**as_dict(gpu.HOST), "driver": "575.10"})


def as_dict(one: identity.Host) -> dict[str, str]:
    return {name: getattr(one, name) for name in identity.Host.__struct_fields__}


@pytest.mark.parametrize("harm", [truncate, upgrade])
async def test_a_broken_or_foreign_engine_is_built_anew(tmp_path: Path, harm: Callable[[Site], None]) -> None:
    """It is never opened, it is counted, and the model serves by other means until there is a new one."""
    first = Site(tmp_path, "build")
    first.load()
    async with first.building():
        await first.swapped.wait()
    again = Site(tmp_path, "build")
    harm(again)
    again.load()
    assert again.provider == "cpu"
    assert again.builds.discarded == 1
    async with again.building():
        await again.swapped.wait()
    assert again.provider == "tensorrt"
    assert len(list((tmp_path / "engines").glob("*/x.engine"))) == 1


async def test_an_engine_that_does_not_open_is_built_anew(tmp_path: Path) -> None:
    """Whatever TensorRT has against it: it goes, the model serves by other means, and the pause grows."""
    site = Site(tmp_path, "build")
    model = models.load(packages.write_scorer(tmp_path / "m"))
    aim = site.builds._aim(model)
    (site.cache.stage(aim.identity) / "x.engine").write_bytes(b"of another kind")
    site.cache.seal(aim.identity, 1.0)
    site.load()
    assert site.provider == "cpu"
    assert "could not deserialize" in site.reason
    assert site.builds.as_dicts()[0]["failures"] == 1
    with pytest.raises(cache.Absent):
        site.cache.find(aim.identity)


async def test_a_model_for_tensorrt_alone_waits_for_its_engine(tmp_path: Path) -> None:
    """Until then it is away, as one is whose server is not there; and it is loaded when it is asked again."""
    site = Site(tmp_path, "build")
    only = '[providers]\norder = ["tensorrt"]'
    with pytest.raises(runtime.Unavailable, match="yet to be built"):
        site.load(only)
    async with site.building():
        await site.ended(builder.Outcome.BUILT)
        model = await asyncio.to_thread(site.load)
    assert site.provider == "tensorrt"
    assert site.score(model) == 3.0


def test_a_machine_without_tensorrt_wants_no_engine(tmp_path: Path) -> None:
    """Its models run by other means, say what is missing, and nothing is ever built."""
    site = Site(tmp_path, "build")

    def look() -> identity.Host:
        raise host.Missing("a library does not load: libnvinfer.so.10")

    site.builds = builds.Builds(site.cache, maker("build"), look=look)
    site.machine = engine.Engine(models.Catalogue(), opener=runtime.opener(engines=site.builds))
    site.load()
    assert site.provider == "cpu"
    assert "libnvinfer.so.10" in site.reason
    assert site.builds.as_dicts() == []


async def test_what_nobody_is_served_by_is_not_built(tmp_path: Path) -> None:
    """A model that was unloaded before its turn came costs no build."""
    now = 0.0
    site = Site(tmp_path, "build")
    site.builds._clock = lambda: now
    model = site.load()
    site.machine.unload(model.key)
    now = builds.FORGOTTEN_S + 1
    async with site.building():
        await until(lambda: not site.builds.as_dicts())
    assert not site.builds.outcomes


def built(package: Path, folder: Path, sha256: str, site: Path | None) -> tuple[int, str]:
    """Status and last line of the real program, on a machine with a GPU if there is a `site`."""
    ended = subprocess.run(
        [*builder.PROGRAM, str(package), str(folder), sha256],
        env={**os.environ, "PYTHONPATH": str(site or gpu.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout.strip().rpartition("\n")[2]


def test_the_program_opens_the_engine_as_the_agent_will(tmp_path: Path) -> None:
    """It ends well if TensorRT runs the smallest and the largest batch by it, and else says why not."""
    package = packages.write_scorer(tmp_path / "m", extra="[batching]\nmax_batch = 4")
    sha256 = models.load(package).sha256
    site = gpu.site(tmp_path / "site", "build")
    engine = tmp_path / "x.engine"
    engine.write_bytes(gpu.ENGINE)
    assert built(package, tmp_path, sha256, site) == (0, "")
    assert built(package, tmp_path, "0" * 64, site) == (1, f"{package} has changed since it was loaded")
    engine.write_bytes(b"of another kind")
    assert built(package, tmp_path, sha256, site) == (
        1,
        "TensorRT EP could not deserialize engine from cache",
    )


def test_the_program_sees_that_tensorrt_does_not_run(tmp_path: Path) -> None:
    """Without a GPU ONNX Runtime takes the CPU and says nothing; the program does."""
    if gpu.TENSORRT in ort.get_available_providers():
        pytest.skip("this ONNX Runtime was built for a GPU")
    package = packages.write_scorer(tmp_path / "m")
    status, said = built(package, tmp_path, models.load(package).sha256, None)
    assert status == 1
    assert "TensorRT" in said


async def test_a_table_of_ranges_lies_beside_the_engine(tmp_path: Path) -> None:
    """Where TensorRT looks for it, when it builds and when it opens."""
    site = Site(tmp_path, "build")
    where = packages.write_scorer(
        tmp_path / "m", extra='[providers.tensorrt]\nprecision = "int8"\ncalibration = "ranges"'
    )
    (where / "ranges").write_bytes(b"TRT-8503-Entropy")
    site.load()
    async with site.building():
        await site.swapped.wait()
    (table,) = (tmp_path / "engines").glob("*/calibration.table")
    assert table.read_bytes() == b"TRT-8503-Entropy"


def test_no_provider_below_tensorrt_hands_it_nodes(tmp_path: Path, module: gpu.Module) -> None:
    """Where CUDA comes first, TensorRT gets none of what CUDA leaves: it would build an engine at once."""
    model = models.load(packages.write_scorer(tmp_path / "m"))
    opened = runtime.OnnxRuntime(model, ("cuda", "tensorrt", "cpu"), streams=2)
    assert opened.provider == "cuda"
    assert [one.providers for one in module.opened] == [["CUDAExecutionProvider", "CPUExecutionProvider"]] * 2
    (scores,) = opened.run({"window": np.ones((3, 4), np.float32)})
    assert scores[:, 0].tolist() == [1.0, 1.0, 1.0]


def test_no_engine_is_wanted_of_a_graph_that_carries_states(tmp_path: Path, module: gpu.Module) -> None:
    """It runs by other means, and says why."""
    site = Site(tmp_path, "build")
    plain = models.load(packages.write_scorer(tmp_path / "m"))
    carried = (manifests.State(input="h", output="h2"),)
    model = msgspec.structs.replace(plain, manifest=msgspec.structs.replace(plain.manifest, states=carried))
    opened = sessions.open_(module, model, ("tensorrt", "cpu"), engines=site.builds)
    assert opened.provider == "cpu"
    assert not opened.is_coming
    assert "carries states" in opened.refused[0]
    assert site.builds.as_dicts() == []

"""Which models are in memory: bounded, the least used ones leave, and come back when they are needed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from edge_agent import engine, models, outcomes, reloads, room, runtime, sessions
from shared import jobs
from tests import models as packages

WINDOW = engine.Work(
    jobs.JSON,
    msgspec.json.encode(
        {"inputs": [{"name": "window", "shape": [1, 4], "datatype": "FP32", "data": [4, 4, 4, 4]}]}
    ),
)


class Watched:
    """Opens real graphs, and can be told to hold or to fail."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.error: Exception | None = None
        self.opening = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._open = runtime.opener()

    def __call__(self, model: models.Model, order: Sequence[str]) -> runtime.Runtime:
        self.opened.append(model.name)
        self.opening.set()
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        return self._open(model, order)


def packages_of(folder: Path, *names: str) -> list[models.Model]:
    return [models.load(packages.write_scorer(folder / name, name=name)) for name in names]


def in_memory(machine: engine.Engine) -> list[str]:
    return [one.name for one in machine.loaded() if one.loaded]


def score(machine: engine.Engine, model: models.Model) -> float | None:
    ((made,),) = machine.run(model, [WINDOW])
    return made.score if isinstance(made, outcomes.Prediction) else None


@pytest.fixture(autouse=True)
def no_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STAY", 0.0)


def test_the_least_used_leaves_and_comes_back(tmp_path: Path) -> None:
    """All are served, as many as may be are in memory, and what was learnt of each stays known."""
    opener = Watched()
    machine = engine.Engine(models.Catalogue(), opener=opener, limits=room.Limits(max_models=2))
    a, b, c = packages_of(tmp_path, "a", "b", "c")
    for model in (a, b, c):
        machine.load(model)
    assert machine.names() == ["a", "b", "c"]
    assert in_memory(machine) == ["b", "c"]
    assert machine.items_per_s("a") > 0
    assert score(machine, b) == 4
    assert score(machine, a) == 4  # c was used longest ago
    assert in_memory(machine) == ["a", "b"]
    assert opener.opened == ["a", "b", "c", "a"]
    assert (machine.models.unloads, machine.models.reloads) == (2, 1)
    machine.close()


def test_bytes_are_bounded_by_what_manifests_say(tmp_path: Path) -> None:
    """A model that says what it takes is believed; one that can never fit is refused, and says why."""
    limits = room.Limits(max_bytes=10 << 20)
    machine = engine.Engine(models.Catalogue(), limits=limits)
    wishes = {"a": 4, "b": 5, "c": 6, "d": 11}
    for name, wish in wishes.items():
        folder = packages.write_scorer(tmp_path / name, name=name)
        manifest = folder / "model.toml"
        manifest.write_text(f"memory_mb = {wish}\n{manifest.read_text()}")
    for name in "abc":
        machine.load(models.load(tmp_path / name))
    assert in_memory(machine) == ["c"]
    assert [one.bytes >> 20 for one in machine.loaded()] == [4, 5, 6]
    with pytest.raises(room.TooLarge, match="max_loaded_bytes"):
        machine.load(models.load(tmp_path / "d"))
    machine.close()


async def test_neither_what_runs_nor_what_is_kept_makes_room(tmp_path: Path) -> None:
    """Then who needs room is told to come again; and has it when that is over."""
    machine = engine.Engine(models.Catalogue(), limits=room.Limits(max_models=1))
    a, b = packages_of(tmp_path, "a", "b")
    machine.load(b)
    machine.load(a)
    async with machine.held(a):
        with pytest.raises(room.NoRoom):
            machine.models.wake(b.key)
    machine.keep([a.key])
    with pytest.raises(room.NoRoom):
        machine.models.wake(b.key)
    ((failed,),) = machine.run(b, [WINDOW])
    assert isinstance(failed, outcomes.ItemFailed)
    assert failed.kind is outcomes.Failure.INFERENCE_FAILED
    machine.keep([])
    assert score(machine, b) == 4
    assert in_memory(machine) == ["b"]
    machine.close()


def test_a_model_that_was_needed_stays_for_a_while(tmp_path: Path) -> None:
    """Models that take turns do not spend their time on being loaded."""
    one, other = packages_of(tmp_path, "a", "b")
    tenant = room.Tenant(one.key, 1, used_at=5.0, stays_until=9.0, fixed=False)
    limits = room.Limits(max_models=1)
    with pytest.raises(room.NoRoom):
        room.make([tenant], other, 1, limits, now=8.0)
    assert room.make([tenant], other, 1, limits, now=9.0) == [one.key]


async def test_others_run_while_a_model_comes_back(tmp_path: Path) -> None:
    """Who asks is told that it is away; it is loaded meanwhile, and its coming back is told."""
    opener = Watched()
    machine = engine.Engine(models.Catalogue(), opener=opener, limits=room.Limits(max_models=2))
    a, b, c = packages_of(tmp_path, "a", "b", "c")
    for model in (a, b, c):
        machine.load(model)
    back = asyncio.Event()
    returning = reloads.Reloads(machine, 10.0, back.set)
    task = asyncio.create_task(returning.run())
    opener.go_on.clear()
    opener.opening.clear()
    assert returning.away(a)
    await asyncio.to_thread(opener.opening.wait, 10)
    assert not returning.away(c)
    assert await asyncio.to_thread(score, machine, c) == 4
    opener.go_on.set()
    async with asyncio.timeout(10):
        await back.wait()
    assert not returning.away(a)
    assert in_memory(machine) == ["a", "c"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    machine.close()


async def test_the_wait_for_a_model_is_bounded(tmp_path: Path) -> None:
    """One that cannot be loaded again, or takes too long, is waited for no longer: its tasks fail, with the
    reason."""
    opener = Watched()
    machine = engine.Engine(models.Catalogue(), opener=opener, limits=room.Limits(max_models=1))
    a, b = packages_of(tmp_path, "a", "b")
    machine.load(a)
    machine.load(b)
    back = asyncio.Event()
    returning = reloads.Reloads(machine, 10.0, back.set)
    task = asyncio.create_task(returning.run())
    opener.error = runtime.BadGraph("the disk is broken")
    assert returning.away(a)
    async with asyncio.timeout(10):
        await back.wait()
    assert not returning.away(a)
    ((failed,),) = machine.run(a, [WINDOW])
    assert isinstance(failed, outcomes.ItemFailed)
    assert "the disk is broken" in failed.reason
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    impatient = reloads.Reloads(machine, -1.0, back.set)
    assert not impatient.away(a)
    machine.close()


async def test_a_wait_ends_though_nobody_asks_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks that waited may have expired: who asks later is not told that the time is over."""
    monkeypatch.setattr(reloads, "FAILED_S", 0.0)
    monkeypatch.setattr(reloads, "AGAIN_S", 0.01)
    machine = engine.Engine(models.Catalogue(), limits=room.Limits(max_models=1))
    a, b = packages_of(tmp_path, "a", "b")
    machine.load(b)
    machine.load(a)
    machine.keep([a.key])
    said = asyncio.Event()
    returning = reloads.Reloads(machine, 0.1, said.set)
    task = asyncio.create_task(returning.run())
    assert returning.away(b)
    with contextlib.suppress(TimeoutError):
        while True:  # as long as it is tried
            said.clear()
            async with asyncio.timeout(1):
                await said.wait()
    assert returning.away(b)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    machine.close()


def test_threads_that_need_more_than_fits_all_get_their_answers(tmp_path: Path) -> None:
    """Whoever is first: no run meets a model that has just left."""
    machine = engine.Engine(models.Catalogue(), limits=room.Limits(max_models=2))
    served = packages_of(tmp_path, "a", "b", "c")
    for model in served:
        machine.load(model)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        made = threads.map(lambda number: score(machine, served[number % 3]), range(60))
        assert list(made) == [4] * 60
    assert sum(one.loaded for one in machine.loaded()) <= 2
    machine.close()


def test_providers_are_told_what_a_model_may_take(tmp_path: Path) -> None:
    """The less of what settings and manifest say, shared by the sessions of a model; nothing by default."""
    (model,) = packages_of(tmp_path, "a")
    assert sessions.bound("cuda", model, None, 2) == {}
    assert sessions.bound("cuda", model, 1 << 30, 2)["gpu_mem_limit"] == str(1 << 29)
    assert sessions.bound("cpu", model, 1 << 30, 1) == {}
    manifest = model.folder / "model.toml"
    manifest.write_text(f"memory_mb = 256\n{manifest.read_text()}")
    wish = models.load(model.folder)
    assert sessions.bound("migraphx", wish, 1 << 30, 1) == {"migraphx_mem_limit": str(256 << 20)}

"""The engine: payloads in, outcomes out, and a bad item hurts nobody else."""

from __future__ import annotations

import concurrent.futures
import csv
import io
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import engine, models, outcomes, runtime
from shared import jobs
from tests import models as packages


@pytest.fixture
def machine() -> Iterator[engine.Engine]:
    made = engine.Engine(models.Catalogue())
    yield made
    made.close()


def loaded(machine: engine.Engine, folder: Path) -> models.Model:
    model = models.load(folder)
    machine.load(model)
    return model


def windows(*rows: Any, name: str = "window") -> engine.Work:
    width = len(rows[0])
    return engine.Work(
        jobs.JSON,
        msgspec.json.encode(
            {"inputs": [{"name": name, "shape": [len(rows), width], "datatype": "FP32", "data": rows}]}
        ),
        len(rows),
    )


def picture(grey: int) -> engine.Work:
    return engine.Work(jobs.PNG, packages.png(grey))


def scores(made: Sequence[outcomes.Outcome]) -> list[float | None]:
    return [one.score if isinstance(one, outcomes.Prediction) else None for one in made]


def with_function(
    folder: Path, function: Callable[[runtime.Batch], Sequence[runtime.Array]]
) -> tuple[engine.Engine, models.Model]:
    """An engine whose models are run by a Python function."""
    machine = engine.Engine(models.Catalogue(), opener=lambda model, order: runtime.CallableRuntime(function))
    return machine, loaded(machine, packages.write_scorer(folder))


def mean(batch: runtime.Batch) -> Sequence[runtime.Array]:
    return [batch["window"].mean(axis=1, keepdims=True)]


def test_a_picture_gets_its_label(machine: engine.Engine, tmp_path: Path) -> None:
    """From an encoded picture to a label, a score and JSON."""
    model = loaded(machine, packages.write_classifier(tmp_path / "m"))
    ((dark,), (bright,)) = machine.run(model, [picture(51), picture(204)])
    assert isinstance(dark, outcomes.Prediction)
    assert dark.label == "dark"
    assert dark.score == pytest.approx(0.8)
    assert dark.output == b'[{"label":"dark","score":0.8},{"label":"bright","score":0.2}]'
    assert isinstance(bright, outcomes.Prediction)
    assert bright.label == "bright"


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6), max_batch=st.integers(1, 9))
def test_every_item_gets_its_own_outcome(
    sizes: list[int], max_batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However items are spread over payloads and cut into batches, each gets its own answer, in order."""
    batches: list[int] = []

    def watched(batch: runtime.Batch) -> Sequence[runtime.Array]:
        batches.append(len(batch["window"]))
        return mean(batch)

    machine = engine.Engine(models.Catalogue(), opener=lambda model, order: runtime.CallableRuntime(watched))
    folder = tmp_path_factory.getbasetemp() / f"batch-{max_batch}"
    model = loaded(
        machine, packages.write_scorer(folder, width=1, extra=f"[batching]\nmax_batch = {max_batch}")
    )
    batches.clear()
    numbers = iter(range(sum(sizes)))
    work = [windows(*([float(next(numbers))] for _ in range(size))) for size in sizes]
    made = machine.run(model, work)
    assert [len(one) for one in made] == sizes
    assert [score for one in made for score in scores(one)] == list(range(sum(sizes)))
    assert sum(batches) == sum(sizes)
    assert all(size == max_batch for size in batches[:-1])
    assert batches[-1] <= max_batch


def test_an_item_that_cannot_be_read_fails_alone(machine: engine.Engine, tmp_path: Path) -> None:
    """In one batch, a broken picture and a broken row leave their neighbours' answers alone."""
    model = loaded(machine, packages.write_classifier(tmp_path / "m"))
    broken = engine.Work(jobs.PNG, packages.png(7)[:40])
    ((first,), (second,), (third,)) = machine.run(model, [picture(0), broken, picture(255)])
    assert isinstance(first, outcomes.Prediction)
    assert first.label == "dark"
    assert isinstance(second, outcomes.ItemFailed)
    assert second.kind is outcomes.Failure.INVALID_INPUT
    assert isinstance(third, outcomes.Prediction)
    assert third.label == "bright"
    assert machine.run(model, [broken]) == [[second]]


def test_the_item_that_makes_the_graph_fail_fails_alone(machine: engine.Engine, tmp_path: Path) -> None:
    """When a whole batch fails in the runtime, its items run one by one, and only the culprit fails."""
    model = loaded(machine, packages.write_picker(tmp_path / "m"))
    data = [0, 1, 99, 3]
    payload = {"inputs": [{"name": "index", "shape": [4], "datatype": "INT64", "data": data}]}
    (made,) = machine.run(model, [engine.Work(jobs.JSON, msgspec.json.encode(payload), 4)])
    assert scores(made) == [10, 20, None, 40]
    culprit = made[2]
    assert isinstance(culprit, outcomes.ItemFailed)
    assert culprit.kind is outcomes.Failure.INFERENCE_FAILED
    assert "99" in culprit.reason


def test_a_payload_that_cannot_be_read_fails_every_item(machine: engine.Engine, tmp_path: Path) -> None:
    """A task of three items has three outcomes, also when its payload is rubbish or holds another number."""
    model = loaded(machine, packages.write_scorer(tmp_path / "m"))
    rubbish = engine.Work(jobs.JSON, b"{", 3)
    fewer = windows([1, 2, 3, 4], [5, 6, 7, 8])._replace(items=3)
    good = windows([10, 10, 10, 10])
    made = machine.run(model, [rubbish, good, fewer])
    assert [scores(one) for one in made] == [[None] * 3, [10], [None] * 3]
    assert isinstance(made[2][0], outcomes.ItemFailed)
    assert "has 2 items, and its task 3" in made[2][0].reason


def test_a_large_payload_runs_in_slices(machine: engine.Engine, tmp_path: Path) -> None:
    """Opened once, run slice by slice: the outcomes together are those of one run."""
    model = loaded(machine, packages.write_scorer(tmp_path / "m", extra="[batching]\nmax_batch = 4"))
    rows = np.arange(22 * 4, dtype=np.float32).reshape(22, 4)
    sink = io.BytesIO()
    table = pa.table({"window": pa.array(list(rows), pa.list_(pa.float32()))})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    work = engine.Work(jobs.ARROW, sink.getvalue(), 22)
    items = machine.open(model, work)
    sliced = [one for start in range(0, 22, 5) for one in machine.run_items(model, items, start, start + 5)]
    assert [sliced] == machine.run(model, [work])
    assert scores(sliced) == rows.mean(axis=1).tolist()


def test_threads_share_a_model(machine: engine.Engine, tmp_path: Path) -> None:
    """Several threads run at once, and each gets its own answers."""
    model = loaded(machine, packages.write_scorer(tmp_path / "m"))

    def run(number: int) -> list[float | None]:
        return [
            score for (one,) in machine.run(model, [windows([number] * 4)] * 5) for score in scores([one])
        ]

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for number, made in enumerate(threads.map(run, range(100))):
            assert made == [number] * 5


def test_a_loaded_model_is_warm_measured_and_found(machine: engine.Engine, tmp_path: Path) -> None:
    """After loading, a model is in the catalogue, its speed is known, and the status says what runs it."""
    model = models.load(packages.write_scorer(tmp_path / "m"))
    assert not machine.has("mean")
    assert machine.items_per_s("mean") == 0
    status = machine.load(model)
    assert (status.name, status.version, status.provider, status.wanted) == ("mean", "1.0.0", "cpu", "cpu")
    assert status.warm
    assert status.items_per_second > 0
    assert set(status.run_s) == {1, 8}
    assert machine.loaded() == [status]
    assert machine.find("mean") is model
    assert machine.names() == ["mean"]
    assert machine.items_per_s("mean") == status.items_per_second


def test_speed_is_that_of_the_latest_batches(tmp_path: Path) -> None:
    """The moving average follows what batches take now, and decoding is told apart from the run."""
    seconds, work = iter(range(10_000)), iter(range(10_000))
    function = runtime.CallableRuntime(mean)
    machine = engine.Engine(
        models.Catalogue(),
        opener=lambda model, order: function,
        clock=lambda: float(next(seconds)),
        work_clock=lambda: float(next(work)),
    )
    model = loaded(machine, packages.write_scorer(tmp_path / "m"))  # decoding and run take a second each
    for _ in range(50):
        machine.run(model, [windows([1, 1, 1, 1])])
    (status,) = machine.loaded()
    assert (status.run_s, status.read_s) == ({1: 1.0, 8: 1.0}, 1.0)
    assert status.items_per_second == pytest.approx(1 / 2, rel=1e-3)
    for _ in range(50):
        machine.run(model, [windows([1, 1, 1, 1])] * 4)
    (status,) = machine.loaded()
    assert status.run_s == {1: 1.0, 4: 1.0, 8: 1.0}
    assert status.batch_size == 8
    assert machine.sizing(model).size == 8
    assert status.items_per_second == pytest.approx(4 / 2, rel=1e-3)


def test_only_batches_that_ran_whole_tell_of_their_size(tmp_path: Path) -> None:
    """Where a culprit made the items run one by one, the time they took says nothing about a batch."""

    def function(batch: runtime.Batch) -> Sequence[runtime.Array]:
        if (batch["window"] > 9).any():
            raise RuntimeError("too large")
        return mean(batch)

    machine, model = with_function(tmp_path / "m", function)
    good, culprit = windows([1, 1, 1, 1]), windows([99, 1, 1, 1])
    machine.run(model, [good, culprit, good, good])
    assert 4 not in machine.loaded()[0].run_s
    machine.run(model, [good] * 4)
    assert 4 in machine.loaded()[0].run_s


def test_a_model_that_learns_nothing_has_whole_batches(machine: engine.Engine, tmp_path: Path) -> None:
    """With `learn = false` the manifest's bound is the size, whatever is measured."""
    model = loaded(machine, packages.write_scorer(tmp_path / "m", extra="[batching]\nlearn = false"))
    for _ in range(20):
        machine.run(model, [windows([1, 1, 1, 1])])
    policy = machine.sizing(model)
    assert policy.size == 8
    assert policy.take(100, 0.0) == 8
    assert policy.waits(1, 1.0, 0.0)


def test_a_model_that_fails_at_once_is_not_a_fast_one(tmp_path: Path) -> None:
    """Failures don't count as speed: else the scheduler would send a broken agent ever more."""
    healthy = True

    def function(batch: runtime.Batch) -> Sequence[runtime.Array]:
        if not healthy:
            raise RuntimeError("the device fell off the bus")
        return mean(batch)

    machine, model = with_function(tmp_path / "m", function)
    before = machine.loaded()
    healthy = False
    for _ in range(20):
        ((made,),) = machine.run(model, [windows([1, 1, 1, 1])])
        assert isinstance(made, outcomes.ItemFailed)
        assert "fell off the bus" in made.reason
    assert machine.loaded() == before


def test_a_model_that_cannot_run_zeros_is_not_served(tmp_path: Path) -> None:
    """A graph that opens and does not run is found at load, not by the first part on the line."""

    def function(batch: runtime.Batch) -> Sequence[runtime.Array]:
        raise RuntimeError("out of memory")

    machine = engine.Engine(models.Catalogue(), opener=lambda model, order: runtime.CallableRuntime(function))
    model = models.load(packages.write_scorer(tmp_path / "m"))
    with pytest.raises(
        engine.WarmUpFailed, match=r"mean@1\.0\.0: a run of 1 items of zeros failed.*out of memory"
    ):
        machine.load(model)
    assert not machine.has("mean")
    with pytest.raises(engine.NotLoaded):
        machine.run(model, [windows([1, 1, 1, 1])])


class Watched(runtime.CallableRuntime):
    """A runtime that knows whether it was closed, and can be held in the middle of a run."""

    def __init__(self) -> None:
        super().__init__(mean)
        self.closed = False
        self.held = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, batch: runtime.Batch) -> Sequence[runtime.Array]:
        self.held.set()
        assert self.go_on.wait(10)
        assert not self.closed
        return super().run(batch)

    def close(self) -> None:
        self.closed = True


def closed(*runtimes: Watched) -> list[bool]:
    return [one.closed for one in runtimes]


def test_a_model_is_replaced_under_load(tmp_path: Path) -> None:
    """Runs in flight finish on the runtime they began with, which is closed after the last of them."""
    runtimes = [Watched(), Watched()]
    waiting = iter(runtimes)
    machine = engine.Engine(models.Catalogue(), opener=lambda model, order: next(waiting))
    model = loaded(machine, packages.write_scorer(tmp_path / "m"))
    old, new = runtimes
    old.held.clear()
    old.go_on.clear()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        running = threads.submit(machine.run, model, [windows([2, 2, 2, 2])])
        assert old.held.wait(10)
        machine.load(model)
        assert closed(old, new) == [False, False]
        assert scores(machine.run(model, [windows([3, 3, 3, 3])])[0]) == [3]
        old.go_on.set()
        assert scores(running.result(10)[0]) == [2]
    assert closed(old, new) == [True, False]
    machine.unload(model.key)
    assert closed(old, new) == [True, True]
    assert not machine.has("mean")


def test_a_run_that_meets_a_replacement_goes_to_the_new_one(tmp_path: Path) -> None:
    """A model replaced at the very moment when a run looks it up is not missing for that run."""
    machine = engine.Engine(models.Catalogue(), opener=lambda model, order: Watched())
    model = loaded(machine, packages.write_scorer(tmp_path / "m"))

    class Meddling(dict[Any, Any]):
        """Replaces the model after it was looked up, and before the caller has it."""

        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            machine.models._served = dict(self)
            machine.load(model)
            return found

    machine.models._served = Meddling(machine.models._served)
    assert scores(machine.run(model, [windows([5, 5, 5, 5])])[0]) == [5]


def test_a_replacement_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    """A provider that does not open, or does not run, costs nothing: what served goes on serving."""
    orders: list[tuple[str, ...]] = []

    def opener(model: models.Model, order: Sequence[str]) -> runtime.Runtime:
        orders.append(tuple(order))
        if order == ("tensorrt",):
            raise runtime.BadGraph("no TensorRT here")
        return runtime.CallableRuntime(mean)

    machine = engine.Engine(models.Catalogue(), opener=opener)
    model = loaded(machine, packages.write_scorer(tmp_path / "m"))
    with pytest.raises(runtime.BadGraph):
        machine.load(model, ("tensorrt",))
    assert orders == [(), ("tensorrt",)]
    assert scores(machine.run(model, [windows([4, 4, 4, 4])])[0]) == [4]


def test_pitting_is_seen_on_real_pictures(machine: engine.Engine, tmp_path: Path) -> None:
    """A real model on real parts, through the whole engine: at least 97 of 100 tiles are judged rightly."""
    data = packages.DATA / "bsdata"
    if not data.is_dir():
        pytest.skip("the data folder is not here")
    shutil.copy(data / "bsd_pitting_64.onnx", tmp_path / "model.onnx")
    (tmp_path / "model.toml").write_text(
        'name = "pitting"\nversion = "1"\n'
        '[[inputs]]\nname = "image"\nkind = "image"\nwidth = 64\nheight = 64\ncolour = "grey"\n'
        '[[outputs]]\nname = "prob"\nkind = "classification"\nlabels = ["clean", "pitting"]\n'
        '[providers]\norder = ["cpu"]\n'
    )
    model = loaded(machine, tmp_path)
    with (data / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    made = machine.run(model, [engine.Work(jobs.PNG, (data / row["file"]).read_bytes()) for row in rows])
    right = sum(
        isinstance(one, outcomes.Prediction) and one.label == row["label"]
        for (one,), row in zip(made, rows, strict=True)
    )
    assert right >= 97


def test_a_real_model_scores_rows_of_readings(machine: engine.Engine, tmp_path: Path) -> None:
    """An autoencoder on windows of a machine's temperature: a window of noise scores above a real one."""
    data = packages.DATA / "machine-temperature"
    if not data.is_dir():
        pytest.skip("the data folder is not here")
    shutil.copy(data / "machine_temp_ae.onnx", tmp_path / "model.onnx")
    (tmp_path / "model.toml").write_text(
        'name = "temperature"\nversion = "1"\n[[inputs]]\nname = "window"\nkind = "tensor"\nshape = [48]\n'
        '[[outputs]]\nname = "score"\nkind = "scores"\n[providers]\norder = ["cpu"]\n'
    )
    model = loaded(machine, tmp_path)
    noise = np.random.default_rng(1).normal(0, 3, 48).tolist()
    (made,) = machine.run(model, [windows([0.1] * 48, noise)])
    calm, wild = scores(made)
    assert calm is not None
    assert wild is not None
    assert wild > calm

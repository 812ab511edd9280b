"""Models that carry a state: every item finds what the one before it in its stream left behind."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import engine, models, outcomes, runtime, streams
from edge_agent.journal import records
from shared import jobs, tasks
from tests import models as packages
from tests.unit import journals

NUMBERS = (1, 10, 100, 1000)
BAD = 9
"""An index on which the graph fails."""


@pytest.fixture
def machine() -> Iterator[engine.Engine]:
    made = engine.Engine(models.Catalogue())
    yield made
    made.close()


def loaded(machine: engine.Engine, folder: Path) -> models.Model:
    model = models.load(folder)
    machine.load(model)
    return model


def work(stream: str | None, *indices: int | float, final: bool = True, own: bool = False) -> engine.Work:
    datatype = "INT64" if all(isinstance(one, int) for one in indices) else "FP32"
    tensor = {"name": "index", "shape": [len(indices)], "datatype": datatype, "data": indices}
    payload = msgspec.json.encode({"inputs": [tensor]})
    place = None if stream is None else streams.Stream(stream, own=own, final=final)
    return engine.Work(jobs.JSON, payload, len(indices), place)


def sums(made: Sequence[Sequence[outcomes.Outcome]]) -> list[list[float | None]]:
    return [[one.score if isinstance(one, outcomes.Prediction) else None for one in task] for task in made]


def kinds(made: Sequence[outcomes.Outcome]) -> list[outcomes.Failure | None]:
    return [one.kind if isinstance(one, outcomes.ItemFailed) else None for one in made]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_an_item_finds_what_the_one_before_it_left(
    machine: engine.Engine, tmp_path: Path, axis: int, batch: int | str
) -> None:
    """Across tasks and runs, wherever the graph has its batch, and if it is fixed to one."""
    model = loaded(machine, packages.write_counter(tmp_path / "m", axis=axis, batch=batch))
    assert sums(machine.run(model, [work("a", 0), work("b", 1), work("a", 2)])) == [[1], [10], [101]]
    assert sums(machine.run(model, [work("b", 1, 1), work("a", 3)])) == [[20, 30], [1101]]


@given(
    turns=st.lists(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=5)),
            min_size=1,
            max_size=6,
        ),
        max_size=4,
    ),
    max_batch=st.integers(1, 4),
)
def test_streams_do_not_mix(
    turns: list[list[tuple[str, list[int]]]], max_batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However items of several streams fall into tasks, runs and batches, each stream has its own sums."""
    folder = tmp_path_factory.getbasetemp() / f"counter-{max_batch}"
    if not folder.exists():
        packages.write_counter(folder, extra=f"[batching]\nmax_batch = {max_batch}")
    machine = engine.Engine(models.Catalogue())
    model = loaded(machine, folder)
    totals: defaultdict[str, int] = defaultdict(int)
    for turn in turns:
        expected: list[list[float | None]] = []
        for stream, indices in turn:
            expected.append([])
            for index in indices:
                totals[stream] += NUMBERS[index]
                expected[-1].append(float(totals[stream]))
        assert sums(machine.run(model, [work(stream, *indices) for stream, indices in turn])) == expected
    machine.close()


def test_a_stream_of_its_own_begins_and_ends_with_its_task(machine: engine.Engine, tmp_path: Path) -> None:
    """Its items go from state to state, whole or in slices, and nothing of it is kept."""
    model = loaded(machine, packages.write_counter(tmp_path / "m"))
    alone = work("task", 0, 1, 2, own=True)
    assert sums(machine.run(model, [alone, work(None, 0, 0)])) == [[1, 11, 111], [1, 2]]
    assert sums(machine.run(model, [alone])) == [[1, 11, 111]]
    items = machine.open(model, alone)
    sliced = [machine.run_items(model, items, start, start + 1, alone.stream) for start in range(3)]
    assert sums(sliced) == [[1], [11], [111]]
    assert len(machine.streams) == 0


def test_what_is_tried_again_finds_the_state_as_it_was(machine: engine.Engine, tmp_path: Path) -> None:
    """A task that fails, and is to be tried again, moves nothing on, and what is behind it waits: not so the
    other streams. When it has failed for good, the stream goes on without the item that failed."""
    model = loaded(machine, packages.write_counter(tmp_path / "m"))
    machine.run(model, [work("a", 3)])
    first, second, other = machine.run(
        model, [work("a", 0, BAD, 1, final=False), work("a", 2, final=False), work("b", 1, final=False)]
    )
    assert kinds(first) == [None, outcomes.Failure.INFERENCE_FAILED, outcomes.Failure.NOT_RUN]
    assert kinds(second) == [outcomes.Failure.NOT_RUN]
    assert sums([other]) == [[10]]
    made = machine.run(model, [work("a", 0, BAD, 1), work("a", 2)])
    assert sums(made) == [[1001, None, 1011], [1111]]


def test_a_slice_that_fails_keeps_what_came_before(machine: engine.Engine, tmp_path: Path) -> None:
    """A task that runs slice by slice goes on from the item on which the model failed, with its state."""
    model = loaded(machine, packages.write_counter(tmp_path / "m"))
    broken = work("a", 0, 1, BAD, 2, final=False)
    made = machine.run_items(model, machine.open(model, broken), 0, 4, broken.stream)
    assert kinds(made) == [None, None, outcomes.Failure.INFERENCE_FAILED, outcomes.Failure.NOT_RUN]
    assert sums(machine.run(model, [work("a", 3)])) == [[1011]]


def test_an_item_that_cannot_be_read_leaves_its_stream_as_it_was(
    machine: engine.Engine, tmp_path: Path
) -> None:
    """It fails alone: those behind it find the state of those before it."""
    model = loaded(machine, packages.write_counter(tmp_path / "m"))
    (made, other) = machine.run(model, [work("a", 0, 0.5, 1), work("b", 2)])
    assert kinds(made) == [None, outcomes.Failure.INVALID_INPUT, None]
    assert sums([made, other]) == [[1, None, 11], [100]]
    assert sums(machine.run(model, [work("a", 3)])) == [[1011]]


def test_the_answer_holds_the_graphs_outputs_and_not_its_states(
    machine: engine.Engine, tmp_path: Path
) -> None:
    """What is carried on is nobody's answer, and no output that clients are told of."""
    model = loaded(machine, packages.write_counter(tmp_path / "m"))
    assert [one.name for one in machine.outputs(model)] == ["sum"]
    ((made,),) = machine.run(model, [work("a", 0)])
    assert isinstance(made, outcomes.Prediction)
    assert (made.raw, made.state) == (None, None)


def test_another_version_begins_its_own_streams(machine: engine.Engine, tmp_path: Path) -> None:
    """A state is of the graph that made it; that of a version which is served no longer is forgotten."""
    first = loaded(machine, packages.write_counter(tmp_path / "1"))
    second = loaded(machine, packages.write_counter(tmp_path / "2", version="2.0.0"))
    machine.run(first, [work("a", 0)])
    assert sums(machine.run(second, [work("a", 1)])) == [[10]]
    machine.load(first)
    assert sums(machine.run(first, [work("a", 0)])) == [[2]]
    machine.unload(first.key)
    assert len(machine.streams) == 1
    machine.load(first)
    assert sums(machine.run(first, [work("a", 0)])) == [[1]]


def test_the_streams_that_are_kept_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the bound the one that was used longest ago begins anew, which is counted, and said once."""
    kept = streams.Streams(most=2)
    keys = [streams.Key(models.Key("m", "1"), "0", name, own=False) for name in "abcde"]
    with caplog.at_level(logging.WARNING):
        for key in keys:
            assert kept.get(key) is None
            kept.put(key, (np.zeros(1),))
            kept.get(keys[0])
            if key != keys[0]:
                kept.put(keys[0], (np.ones(1),))
    assert len(kept) == 2
    assert kept.get(keys[0]) is not None
    assert kept.get(keys[1]) is None
    assert kept.begun == 6
    assert kept.dropped == {"full": 3}
    assert len(caplog.records) == 1


def test_a_stream_that_rests_for_too_long_begins_anew() -> None:
    """By a clock that nobody sets back."""
    now = [0.0]
    kept = streams.Streams(idle_s=10, clock=lambda: now[0])
    key = streams.Key(models.Key("m", "1"), "0", "a", own=False)
    kept.put(key, (np.zeros(1),))
    now[0] = 9
    assert kept.get(key) is not None
    kept.put(key, (np.zeros(1),))
    now[0] = 18
    assert kept.get(key) is not None
    now[0] = 19
    assert kept.get(key) is None
    assert kept.dropped == {"idle": 1}


def test_a_tasks_stream_is_the_one_it_names_or_its_devices(tmp_path: Path) -> None:
    """The device's of a device's job; of the hub's tasks, whose device may be another site's, one of their
    own."""
    model = models.load(packages.write_counter(tmp_path / "m"))
    ours = journals.task(device="camera-1")
    theirs = msgspec.structs.replace(ours, origin=records.Origin.HUB, hub_attempt=1)
    named = msgspec.structs.replace(theirs, stream="line 3")
    assert streams.of(model, ours) == streams.Stream("camera-1", own=False, final=False)
    assert streams.of(model, msgspec.structs.replace(ours, attempt=2)) == ("camera-1", False, True)
    assert streams.of(model, theirs) == (tasks.format_id(theirs.task_id), True, False)
    assert streams.of(model, named) == ("line 3", False, False)
    assert streams.of(models.load(packages.write_scorer(tmp_path / "s")), ours) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('output = "after"', 'output = "behind"'), "no output 'behind'"),
        (('input = "before"', 'input = "earlier"'), "also takes 'before'"),
        (("axis = 0", "axis = 3"), "no dimension 3"),
        (("axis = 0", "shape = [3]"), r"shape \[2\] an item, and \[3\] is needed"),
        (("axis = 0", 'dtype = "int64"'), "the graph takes float32"),
    ],
)
def test_a_state_that_the_graph_does_not_have_is_refused(
    machine: engine.Engine, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    """When the model is loaded, and in words."""
    folder = packages.write_counter(tmp_path / "m")
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace(*change))
    with pytest.raises(runtime.BadGraph, match=says):
        loaded(machine, folder)

"""What every runtime promises, whatever runs the model: ONNX Runtime, a function in Python, the agent's own
server of the Open Inference Protocol, or a stranger's."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from demo import program, servers
from edge_agent import engine, models, outcomes, runtime
from edge_agent.oip import messages, tensors
from tests.conformance import packages, stranger
from tests.integration import agents

KINDS = ["onnx", "python", "agent", "stranger", "stranger, in JSON"]

Open = Callable[[packages.Package], runtime.Runtime]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[program.Program]:
    """A real agent that serves all models."""
    home = tmp_path_factory.mktemp("agent")
    for package in packages.ALL:
        package.write(home / "models" / package.name)
    with servers.Mosquitto(home / "mosquitto") as broker, asyncio.Runner() as loop:
        one = agents.agent(home, broker)
        try:
            loop.run(one.start())
            yield one
        finally:
            loop.run(one.close())


@pytest.fixture(scope="module")
def strange() -> Iterator[stranger.Server]:
    with stranger.Server({one.name: one.strange() for one in packages.ALL}) as server:
        yield server


@pytest.fixture(params=KINDS)
def folder_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[packages.Package], Path]:
    """Writes a package that is run in the way of this turn."""
    table = {"python": '[runtime]\nkind = "python"\nfunction = "predict:run"\n'}.get(request.param, "")
    if request.param == "agent":
        table = f'[runtime]\nkind = "oip"\nurl = "{request.getfixturevalue("agent").url}"\n'
    elif request.param.startswith("stranger"):
        binary = str("JSON" not in request.param).lower()
        url = request.getfixturevalue("strange").url
        table = f'[runtime]\nkind = "oip"\nurl = "{url}"\nbinary = {binary}\n'
    return lambda package: package.write(tmp_path / package.name, table)


@pytest.fixture
def open_(folder_of: Callable[[packages.Package], Path]) -> Iterator[Open]:
    """Opens packages; they are closed at the end."""
    opener = runtime.opener(python=True)
    opened: list[runtime.Runtime] = []

    def open_one(package: packages.Package) -> runtime.Runtime:
        opened.append(opener(models.load(folder_of(package)), ("cpu",)))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def extremes(dtype: str) -> runtime.Array:
    """Two items of 2 x 3 numbers, among them what is lost first on a way through other types."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.array([True, False, False] * 4).reshape(2, 2, 3)
    info = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    values = [info.min, info.max, 0, 1]
    if isinstance(info, np.finfo):
        values += [info.tiny, info.smallest_subnormal, -0.0, 1 / 3, np.pi, 1 + info.eps]
    return np.resize(np.array(values, kind), (2, 2, 3))


@pytest.mark.parametrize("dtype", packages.DTYPES)
def test_numbers_come_out_as_they_went_in(open_: Open, dtype: str) -> None:
    """Of every dtype, bit by bit: the smallest and the largest, and fractions that no text shows short."""
    given = extremes(dtype)
    (made,) = open_(packages.same(dtype)).run({"x": given})
    assert made.dtype == given.dtype
    assert made.tobytes() == given.tobytes()


@pytest.mark.parametrize("count", [1, 2, packages.MAX_BATCH, 3 * packages.MAX_BATCH + 1])
def test_each_item_has_its_own_row(open_: Open, count: int) -> None:
    """In batches of any size, of several inputs and outputs, the outputs in the manifest's order."""
    a = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    b = a[::-1] / 7
    total, product = open_(packages.TWO).run({"a": a, "b": b})
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(product, a * b)


@pytest.mark.parametrize("count", [1, packages.FIXED - 1, packages.FIXED, 2 * packages.FIXED + 1])
def test_a_model_of_a_fixed_batch_takes_any_number(open_: Open, count: int) -> None:
    """Batches are cut and filled up to what the model takes, and only the items' own rows come back."""
    given = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    (made,) = open_(packages.FOUR).run({"x": given})
    np.testing.assert_array_equal(made, given * 2)


def test_several_threads_run_it_at_once(open_: Open) -> None:
    """Each gets the answer to its own batch."""
    opened = open_(packages.TWO)

    def ask(number: int) -> bool:
        a = np.full((number % packages.MAX_BATCH + 1, 3), number, np.float32)
        total, product = opened.run({"a": a, "b": a})
        return np.array_equal(total, a + a) and np.array_equal(product, a * a)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(120)))


def test_a_run_that_fails_says_why_and_the_next_succeeds(open_: Open) -> None:
    """An error names the culprit, and spoils nothing for those after it."""
    opened = open_(packages.PICK)
    with pytest.raises(Exception, match="99"):
        opened.run({"place": np.array([0, 99], np.int64)})
    (made,) = opened.run({"place": np.array([3, 0], np.int64)})
    assert made.tolist() == [40, 10]


def test_it_says_what_runs_it_and_what_it_gives(open_: Open) -> None:
    """There is a name, the provider that was wanted is the one that runs, and the outputs are described,
    unless only a run can tell."""
    opened = open_(packages.TWO)
    assert opened.name
    assert (opened.wanted, opened.reason) == (opened.provider, None)
    if opened.outputs:
        assert list(opened.outputs) == [
            runtime.Output("sum", "float32", (3,)),
            runtime.Output("product", "float32", (3,)),
        ]
    else:
        assert opened.provider == "python"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("shape = [3]", "shape = [4]", "'a'"),
        ('dtype = "float32"', 'dtype = "float64"', "'a'"),
        ('name = "a"', 'name = "c"', "'a'"),
        ('name = "sum"', 'name = "total"', "'total'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_told(
    folder_of: Callable[[packages.Package], Path], old: str, new: str, words: str
) -> None:
    """When the model is loaded, with the name of what differs; a function is held to nothing but its run."""
    folder = folder_of(packages.TWO)
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace(old, new, 1))
    model = models.load(folder)
    if 'kind = "python"' in manifest.read_text():
        pytest.skip("what a function takes and gives is not declared")
    with pytest.raises(runtime.BadGraph, match=words):
        runtime.opener()(model, ("cpu",))


def test_an_engine_takes_it_like_any_other(folder_of: Callable[[packages.Package], Path]) -> None:
    """Loaded and warmed up, it gives predictions and the numbers themselves; the item that makes it fail
    fails alone."""
    model = models.load(folder_of(packages.PICK))
    machine = engine.Engine(models.Catalogue(), opener=runtime.opener(python=True))
    try:
        told = machine.load(model, ("cpu",))
        assert told.warm
        given = tensors.Tensor("place", np.array([1, 99, 2], np.int64))
        payload = messages.pack(messages.write({}, {"inputs": [given]}, binary=True))
        (made,) = machine.run(model, [engine.Work(messages.CONTENT_TYPE, payload, 3)])
        first, bad, last = made
        assert isinstance(first, outcomes.Prediction)
        assert isinstance(last, outcomes.Prediction)
        assert (first.output, last.output) == (b'{"number":20}', b'{"number":30}')
        assert first.raw is not None
        assert (first.raw["number"], first.raw["number"].dtype) == (20, np.int64)
        assert isinstance(bad, outcomes.ItemFailed)
        assert bad.kind is outcomes.Failure.INFERENCE_FAILED
        assert [(one.name, one.dtype, one.shape) for one in machine.outputs(model)] == [
            ("number", "int64", ())
        ]
    finally:
        machine.close()

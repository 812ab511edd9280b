"""TensorRT's engines on disk: what tells one from another, what is not trusted, what goes to make room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import msgspec
import pytest
from hypothesis import strategies

from edge_agent import models, sessions
from edge_agent.builds import cache, host, identity
from tests import gpu
from tests import models as packages


def of(folder: Path, at: identity.Host = gpu.HOST) -> identity.Identity:
    model = models.load(folder)
    return identity.of(model, at, sessions.engine_options(model))


def built(held: cache.Cache, wanted: identity.Identity, content: bytes = gpu.ENGINE) -> None:
    folder = held.stage(wanted)
    (folder / "x.engine").write_bytes(content)
    (folder / "x.profile").write_bytes(b"shapes")
    held.seal(wanted, 2.5)


@pytest.fixture
def held(tmp_path: Path) -> cache.Cache:
    return cache.Cache(tmp_path / "engines", 1 << 20)


@pytest.fixture
def wanted(tmp_path: Path) -> identity.Identity:
    return of(packages.write_scorer(tmp_path / "m"))


def change_precision(folder: Path) -> None:
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text() + '[providers.tensorrt]\nprecision = "fp16"\n')


def change_batch(folder: Path) -> None:
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text() + "[batching]\nmax_batch = 3\n")


def change_graph(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as graph:
        graph.write(b"\x3a\x00")


def change_weights(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(b"weights")


@pytest.mark.parametrize("change", [change_precision, change_batch, change_graph, change_weights])
def test_another_graph_precision_or_shape_is_another_engine(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Whatever makes TensorRT build something else has an engine of its own; weights beside the graph too."""
    folder = packages.write_scorer(tmp_path / "m")
    before = of(folder).digest
    assert of(folder).digest == before
    change(folder)
    assert of(folder).digest != before


@pytest.mark.parametrize("field", identity.Host.__struct_fields__)
def test_another_machine_or_library_is_another_engine(tmp_path: Path, field: str) -> None:
    """Each version, the GPU and its compute capability count."""
    folder = packages.write_scorer(tmp_path / "m")
    other = msgspec.structs.replace(gpu.HOST, **{field: "other"})
    assert of(folder, other).digest != of(folder).digest


def test_what_says_only_how_results_are_read_needs_no_new_engine(tmp_path: Path) -> None:
    """Thresholds and names may change for nothing."""
    folder = packages.write_scorer(tmp_path / "m")
    before = of(folder).digest
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace("threshold = 10.0", "threshold = 11.0"))
    (folder / ".notes").write_text("what begins with a dot is of no package")
    assert of(folder).digest == before


def test_an_engine_is_found_as_it_was_built(held: cache.Cache, wanted: identity.Identity) -> None:
    """Before it is built it is absent; after it all of its files are there."""
    with pytest.raises(cache.Absent):
        held.find(wanted)
    built(held, wanted)
    folder = held.find(wanted)
    assert (folder / "x.engine").read_bytes() == gpu.ENGINE


def truncate(folder: Path) -> None:
    (folder / "x.engine").write_bytes(gpu.ENGINE[:-1])


def flip(folder: Path) -> None:
    (folder / "x.engine").write_bytes(gpu.ENGINE[:-1] + b"?")


def add(folder: Path) -> None:
    (folder / "y.engine").write_bytes(b"from elsewhere")


def take(folder: Path) -> None:
    (folder / "x.profile").unlink()


def unseal(folder: Path) -> None:
    (folder / cache.BUILT).unlink()


def garble(folder: Path) -> None:
    (folder / cache.BUILT).write_bytes(b"{")


def rename(folder: Path) -> None:
    text = (folder / cache.BUILT).read_text()
    (folder / cache.BUILT).write_text(text.replace("NVIDIA L4", "NVIDIA T4"))


@pytest.mark.parametrize("harm", [truncate, flip, add, take, unseal, garble, rename])
def test_what_is_broken_is_never_opened(
    tmp_path: Path, wanted: identity.Identity, harm: Callable[[Path], None]
) -> None:
    """TensorRT may crash at it: it is found out first, said, thrown away, and can be built again."""
    built(cache.Cache(tmp_path / "engines", 1 << 20), wanted)
    harm(tmp_path / "engines" / wanted.digest)
    held = cache.Cache(tmp_path / "engines", 1 << 20)
    with pytest.raises(cache.Unusable):
        held.find(wanted)
    with pytest.raises(cache.Absent):
        held.find(wanted)
    built(held, wanted)
    held.find(wanted)


def test_what_an_agent_died_of_twice_is_not_opened_again(tmp_path: Path, wanted: identity.Identity) -> None:
    """Once may be a power cut. A life in which it opened ends the count."""
    built(cache.Cache(tmp_path / "engines", 1 << 20), wanted)

    def dies() -> None:
        held = cache.Cache(tmp_path / "engines", 1 << 20)
        held.find(wanted)
        held.opening(wanted, begins=True)

    dies()
    held = cache.Cache(tmp_path / "engines", 1 << 20)
    held.find(wanted)
    held.opening(wanted, begins=True)
    held.opening(wanted, begins=False)
    dies()
    dies()
    with pytest.raises(cache.Deadly):
        cache.Cache(tmp_path / "engines", 1 << 20).find(wanted)


@pytest.mark.parametrize("content", [None, b""])
def test_what_is_no_engine_is_not_taken(
    held: cache.Cache, wanted: identity.Identity, content: bytes | None
) -> None:
    """A build that leaves nothing, or an empty file, has built nothing."""
    folder = held.stage(wanted)
    if content is not None:
        (folder / "x.engine").write_bytes(content)
    with pytest.raises(cache.Unusable):
        held.seal(wanted, 1.0)
    with pytest.raises(cache.Absent):
        held.find(wanted)


def test_engines_of_other_versions_go(tmp_path: Path, held: cache.Cache, wanted: identity.Identity) -> None:
    """After an upgrade what no version here takes is thrown away, with half-built and unreadable folders."""
    old = msgspec.structs.replace(wanted, host=msgspec.structs.replace(gpu.HOST, tensorrt="8503"))
    for one in (old, wanted):
        built(held, one)
    held.stage(msgspec.structs.replace(wanted, graph="another"))
    (tmp_path / "engines" / "junk").mkdir()
    gone = held.tidy(gpu.HOST)
    assert gone.keys() == {old.digest, "junk"}
    assert "tensorrt 8503" in gone[old.digest]
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [wanted.digest]


def test_failures_are_remembered(tmp_path: Path, held: cache.Cache) -> None:
    """They outlive the agent, end with a success, and a file that cannot be read costs only them."""
    held.note("one", cache.Failed(2, "a crash"))
    held.note("two", cache.Failed(1, "no memory"))
    held.note("one", None)
    assert cache.Cache(tmp_path / "engines", 0).failures() == {"two": cache.Failed(1, "no memory")}
    (tmp_path / "engines" / "failures.json").write_bytes(b"{")
    assert held.failures() == {}


def test_the_engine_unused_for_longest_goes_first(tmp_path: Path, wanted: identity.Identity) -> None:
    """What was looked for lately stays, and what is needed stays whatever its age."""
    room = cache.Cache(tmp_path / "engines", 1 << 20)
    one, two, three = (msgspec.structs.replace(wanted, graph=name) for name in "123")
    for each in (one, two, three):
        built(room, each, bytes(1000))
    room.find(one)
    small = cache.Cache(tmp_path / "engines", 4000)
    assert small.collect(()) == [two.digest]
    assert small.collect({three.digest}) == []
    assert cache.Cache(tmp_path / "engines", 0).collect({three.digest}) == [one.digest]
    room.find(three)


kept = strategies.builds(
    cache.Kept, strategies.text("abc", min_size=1), strategies.integers(0, 100), strategies.floats(0, 9)
)


@hypothesis.given(
    strategies.lists(kept, unique_by=lambda one: one.digest, max_size=12),
    strategies.integers(0, 300),
    strategies.sets(strategies.text("abc", min_size=1)),
)
def test_what_goes_is_no_more_than_must(here: list[cache.Kept], most: int, needed: set[str]) -> None:
    """What stays fits, or only what is needed stays; nothing goes that need not; older before newer."""
    gone = cache.excess(here, most, needed)
    assert not needed & set(gone)
    by_digest = {one.digest: one for one in here}
    left = [one for one in here if one.digest not in gone]
    assert sum(one.size for one in left) <= most or all(one.digest in needed for one in left)
    if gone:
        without_last = sum(one.size for one in left) + by_digest[gone[-1]].size
        assert without_last > most
    used = [by_digest[digest].used for digest in gone]
    assert used == sorted(used)
    assert all(one.used >= used[-1] for one in left if gone and one.digest not in needed)


def test_a_machine_without_tensorrt_says_what_is_missing() -> None:
    """Nothing is built there, and the reason can be read."""
    import onnxruntime as ort

    if gpu.TENSORRT in ort.get_available_providers():
        pytest.skip("this ONNX Runtime was built for a GPU")
    with pytest.raises(host.Missing, match=r"libcuda\.so\.1|libonnxruntime_providers_tensorrt\.so"):
        host.look()

"""The hub's packages on the agent's disk, and an agent that has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.registry import plan, shelf, wanted
from shared import packages
from tests import models


@pytest.fixture
def here(tmp_path: Path) -> shelf.Shelf:
    return shelf.Shelf(tmp_path / "shelf", packages.LIMITS)


def come(here: shelf.Shelf, tmp_path: Path, version: str = "1") -> wanted.Wanted:
    """A package whose archive has come."""
    folder = models.write_classifier(tmp_path / version, version=version)
    archive = tmp_path / f"{version}.tar"
    with archive.open("wb") as sink:
        packed = packages.pack(folder, sink)
    archive.rename(here.partial(packed.sha256))
    return wanted.Wanted(model="brightness", version=version, sha256=packed.sha256, size=packed.size)


def test_a_package_is_there_when_it_is_whole(here: shelf.Shelf, tmp_path: Path) -> None:
    """Unpacked and noted, its archive is gone; a shelf that is opened anew knows all of it."""
    one = come(here, tmp_path)
    assert here.stored() == {}
    here.put(one)
    here.note(plan.Stored(wanted=one, served_at=4.5))
    again = shelf.Shelf(tmp_path / "shelf", packages.LIMITS)
    assert again.stored() == {one.sha256: plan.Stored(wanted=one, served_at=4.5)}
    assert not again.partial(one.sha256).exists()
    again.verify(one.sha256)
    again.remove(one.sha256)
    assert again.stored() == {}


@pytest.mark.parametrize("damage", ["changed", "added", "removed"])
def test_a_package_that_was_changed_is_found_out(here: shelf.Shelf, tmp_path: Path, damage: str) -> None:
    """One bit, a file more, a file less: it is not what was signed."""
    one = come(here, tmp_path)
    here.put(one)
    graph = here.folder(one.sha256) / "model.onnx"
    match damage:
        case "changed":
            graph.write_bytes(graph.read_bytes()[:-1] + b"?")
        case "added":
            (here.folder(one.sha256) / "more.py").write_text("")
        case "removed":
            graph.unlink()
    with pytest.raises(shelf.Damaged):
        here.verify(one.sha256)


def test_an_archive_of_other_bytes_is_refused_and_gone(here: shelf.Shelf, tmp_path: Path) -> None:
    """What came under a SHA-256 that it does not have leaves nothing behind."""
    one = come(here, tmp_path)
    with here.partial(one.sha256).open("ab") as archive:
        archive.write(bytes(512))
    with pytest.raises(packages.BadArchive):
        here.put(one)
    assert here.stored() == {}
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == [".partial"]
    assert not here.partial(one.sha256).exists()


def test_what_a_crash_left_is_taken_away(here: shelf.Shelf, tmp_path: Path) -> None:
    """Drafts, folders without a note, parts of what nobody wants: gone; packages and what is coming: kept."""
    whole, coming, stale = (come(here, tmp_path, version) for version in "123")
    here.put(whole)
    here.desire(wanted.Desired((coming,)))
    (tmp_path / "shelf" / ".draft.0a1b").mkdir()
    (tmp_path / "shelf" / ("a" * 64)).mkdir()
    (tmp_path / "shelf" / ".wanted.json.draft").write_text("{")
    here.tidy({whole.sha256, coming.sha256})
    names = {path.name for path in (tmp_path / "shelf").iterdir()}
    assert names == {whole.sha256, f"{whole.sha256}.json", "wanted.json", ".partial"}
    assert here.partial(coming.sha256).exists()
    assert not here.partial(stale.sha256).exists()
    assert here.desired() == wanted.Desired((coming,))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"models": [{"model": "../m", "version": "1", "sha256": "%s", "size": 1}]}' % (b"a" * 64),
        b'{"models": [{"model": "m", "version": "1", "sha256": "../../etc", "size": 1}]}',
        b'{"models": [{"model": "m", "version": "1", "sha256": "%s", "size": -1}]}' % (b"a" * 64),
    ],
)
def test_an_answer_that_names_what_cannot_be_is_none(body: bytes) -> None:
    """What the hub says becomes names of files: names that lead elsewhere are refused."""
    with pytest.raises(wanted.BadAnswer):
        wanted.parse(body)


def test_an_agent_without_a_hub_to_fetch_from_loads_none_of_it() -> None:
    """Every site would pay for it with memory."""
    script = """
import sys
from edge_agent import agent, command
LOADED_LATE = ("edge_agent.registry", "edge_agent.trials.", "shared.rollouts", "cryptography")
here = {name for name in sys.modules if name.startswith(LOADED_LATE)}
sys.exit(str(here) if here - {"edge_agent.trials.watch"} else 0)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

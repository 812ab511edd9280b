"""A package tried before it is shipped."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from edge_agent import trial
from shared import packages
from tests import models


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.01)


def tried(capsys: pytest.CaptureFixture[str], *words: str) -> trial.Report:
    assert trial.main([*words, "--json"]) == 0, capsys.readouterr().err
    return msgspec.json.decode(capsys.readouterr().out, type=trial.Report)


def test_a_package_is_told_by_what_really_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it takes and gives with shapes, the provider that runs, and each batch size up to the largest."""
    folder = models.write_classifier(tmp_path / "m", extra="[batching]\nmax_batch = 6")
    report = tried(capsys, str(folder))
    assert (report.model, report.version, report.provider) == ("brightness", "1.0.0", "cpu")
    assert [(one.name, one.dtype, one.shape) for one in report.inputs] == [("image", "float32", (1, 8, 8))]
    assert [(one.name, one.dtype, one.shape) for one in report.outputs] == [("prob", "float32", (2,))]
    assert [speed.batch for speed in report.speeds] == [1, 2, 4, 6]
    assert all(0 < speed.p50_ms <= speed.p99_ms and speed.items_per_s > 0 for speed in report.speeds)
    assert report.memory_mb > 0
    archive = io.BytesIO()
    assert packages.pack(folder, archive) == (report.sha256, report.bytes, report.files)
    archive.seek(0)
    (tmp_path / "m.tar").write_bytes(archive.getvalue())
    assert tried(capsys, str(tmp_path / "m.tar")).sha256 == report.sha256


def test_a_sample_shows_what_the_model_says_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture beside the manifest is run as a device's would be, or the one that is named."""
    folder = models.write_classifier(tmp_path / "m")
    (folder / "sample.png").write_bytes(models.png(250))
    assert tried(capsys, str(folder)).sample[0]["label"] == "bright"
    (tmp_path / "dark.png").write_bytes(models.png(3))
    assert tried(capsys, str(folder), "--sample", str(tmp_path / "dark.png")).sample[0]["label"] == "dark"
    (tmp_path / "broken.png").write_bytes(models.png(3)[:40])
    assert trial.main([str(folder), "--sample", str(tmp_path / "broken.png")]) == 1
    assert "failed: " in capsys.readouterr().out


def test_it_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report for people has the same in it, a line each."""
    assert trial.main([str(models.write_classifier(tmp_path / "m"))]) == 0
    said = capsys.readouterr().out
    for part in (
        "brightness@1.0.0: 2 files",
        "runs on    cpu of onnxruntime",
        "image: float32 [batch, 1, 8, 8]",
    ):
        assert part in said
    assert "batch 8    p50" in said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("manifest", "model.toml: missing"),
        ("field", "unknown field"),
        ("graph", "opens on none of the providers"),
        ("shape", "the manifest's items make"),
        ("link", "symbolic link"),
        ("archive", "no archive"),
        ("nothing", "No such file"),
    ],
)
def test_a_package_that_cannot_be_used_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str, said: str
) -> None:
    """Whatever is wrong with it, the status is 1 and the message says what."""
    folder = models.write_classifier(tmp_path / "m")
    manifest = folder / "model.toml"
    match spoil:
        case "manifest":
            manifest.unlink()
        case "field":
            manifest.write_text(f"colour = 1\n{manifest.read_text()}")
        case "graph":
            (folder / "model.onnx").write_bytes(b"no graph")
        case "shape":
            manifest.write_text(manifest.read_text().replace("width = 8", "width = 9"))
        case "link":
            (folder / "other").symlink_to("/etc/passwd")
        case "archive":
            folder = manifest
        case "nothing":
            folder = tmp_path / "elsewhere"
    assert trial.main([str(folder)]) == 1
    assert said in capsys.readouterr().err

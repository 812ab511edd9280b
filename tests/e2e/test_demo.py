"""The demo itself, as a user runs it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from demo import __main__ as demo
from demo import report, rollouts, servers

DEMO = [sys.executable, "-m", "demo"]
PATIENCE_S = 120.0
STOP_S = 30.0


@pytest.fixture(autouse=True)
def _servers() -> None:
    """A machine without the servers cannot run the demo."""
    try:
        for name in ("mosquitto", "postgres", "redis-server"):
            servers.binary(name)
    except servers.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


def of(directory: Path) -> list[psutil.Process]:
    """The processes that have anything to do with `directory`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(directory) in word for word in process.cmdline()):
                found.append(process)
    return found


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; an orphan may stay a zombie until the system's first process takes note."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_the_demo_balances_its_books(tmp_path: Path) -> None:
    """A short demo loses nothing, doubles nothing, replies to every job, shows overflow and work offline,
    tells the truth about the pictures, and leaves no process behind."""
    file, home = tmp_path / "report.json", tmp_path / "home"
    argv = [*DEMO, "--duration", "12", "--headless", "--report", str(file), "--keep", str(home)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = report.read(file.read_bytes())
    assert outcome.problems == []
    assert (outcome.lost, outcome.duplicates_in_store) == (0, 0)
    assert outcome.published == outcome.accepted == outcome.replied == outcome.results_in_store > 300
    assert outcome.rejected == outcome.failed == 0
    done_by = (outcome.completed_at_edge, outcome.completed_in_pool, outcome.completed_at_other_site)
    assert sum(done_by) == outcome.published
    assert outcome.overflowed > 0
    assert outcome.completed_in_pool > 0
    assert outcome.replied_while_offline > 0
    assert outcome.accuracy is not None
    assert outcome.accuracy > 0.9
    assert outcome.lanes
    assert all(lane.missing == 0 and lane.numbered == lane.committed for lane in outcome.lanes)
    assert "The books balance" in done.stdout
    assert not alive(of(home))
    assert "Traceback" not in "".join(log.read_text() for log in home.rglob("*.log"))


def test_one_passes_one_is_stopped_and_one_is_taken_back_offline(tmp_path: Path) -> None:
    """A good version ends up everywhere; one that says something else is stopped where it was shadowed, no
    device got its word; one that fails is taken back by a plant that is cut off from the cloud. Through all
    of it each job gets its one reply and its one result."""
    file, home = tmp_path / "rollouts.json", tmp_path / "home"
    argv = [*DEMO, "--rollouts", "--headless", "--report", str(file), "--keep", str(home)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = msgspec.json.decode(file.read_bytes(), type=rollouts.Outcome)
    assert outcome.problems == []
    assert [(one.version, one.state) for one in outcome.rollouts] == [
        (rollouts.GOOD, "completed"),
        (rollouts.SWAPPED, "rolled_back"),
        (rollouts.BLIND, "rolled_back"),
    ]
    good, swapped, blind = outcome.rollouts
    assert good.results > 60
    assert swapped.results == 0
    assert "agreement" in swapped.reason
    assert 0 < blind.results < 60
    assert "errors" in blind.reason  # told by the plant, or by its rows
    assert "has gone back by itself" in done.stdout
    books = outcome.books
    assert books.published == books.replied == books.results_in_store > 300
    assert (books.lost, books.duplicates_in_store, books.failed) == (0, 0, blind.results)
    assert books.replied_while_offline > 0
    assert "Traceback" not in "".join(log.read_text() for log in home.rglob("*.log"))


@contextlib.contextmanager
def begun(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose cameras publish, with its temporary files in `home`."""
    home.mkdir()
    argv = [*DEMO, "--duration", "60", "--headless"]
    environment = os.environ | {"TMPDIR": str(home)}
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "== steady" in line:
                    break
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C in the middle, or an orderly end from outside, leaves neither a process nor a file."""
    home = tmp_path / "home"
    with begun(home) as process:
        running = family(process.pid)
        assert len(running) > 10
        process.send_signal(number)
        assert process.wait(STOP_S) == demo.INTERRUPTED
        assert not alive(running)
    assert list(home.glob("backhaul-*")) == []


def test_a_part_that_dies_ends_the_demo_with_its_log(tmp_path: Path) -> None:
    """If a program ends by itself, the demo says which, shows the end of its log and keeps the rest."""
    home = tmp_path / "home"
    with begun(home) as process:
        running = family(process.pid)
        hub = next(one for one in running if "cloud-hub" in " ".join(one.cmdline()))
        hub.kill()
        output, _ = process.communicate(timeout=STOP_S)
        assert process.returncode == demo.FAILED
        assert not alive(running)
    assert "hub has ended" in output
    (log,) = home.rglob("hub.log")
    assert f"the end of {log}" in output
    assert log.read_text().splitlines()[-1] in output


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--duration", "1"], "too short"),
        (["--keep", "."], "not empty"),
    ],
)
def test_a_wrong_argument_is_refused(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started for a demo that could not be played."""
    monkeypatch.chdir(Path(__file__).parent)
    assert demo.main(argv) == demo.WRONG
    assert words in capsys.readouterr().err

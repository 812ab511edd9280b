"""Child processes: waited for, stopped in time, killed with all that they started."""

import signal
import sys
from pathlib import Path

import psutil
import pytest

from demo import servers

# Says that it is there, then sits out every polite signal.
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("there", flush=True)
time.sleep(60)
"""

# Starts a child in a session of its own, where no signal to the group reaches it.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def python(code: str, directory: Path) -> servers.Process:
    return servers.Process("python", [sys.executable, "-c", code], directory / "python.log")


async def test_wait_returns_the_exit_status(tmp_path: Path) -> None:
    """A process that ends by itself is reaped, and its status told; it may be started again."""
    process = python("raise SystemExit(7)", tmp_path)
    for _ in range(2):
        await process.start()
        assert await process.wait() == 7
        assert not psutil.pid_exists(process.pid)


async def test_terminate_asks_with_the_signal_that_the_program_wants(tmp_path: Path) -> None:
    """The polite signal is the caller's choice."""
    process = servers.Process("sleep", ["sleep", "60"], tmp_path / "log", stop_signal=signal.SIGINT)
    await process.start()
    assert await process.terminate() == -signal.SIGINT


async def test_terminate_kills_what_does_not_end_in_time(tmp_path: Path) -> None:
    """A process that ignores the request is gone soon after the time limit."""
    process = python(STUBBORN, tmp_path)
    await process.start()
    await process.until(lambda: "there" in process.output(), timeout=10)
    assert await process.terminate(timeout=0.05) == -signal.SIGKILL
    assert not process.running


async def test_kill_takes_the_descendants_along(tmp_path: Path) -> None:
    """A grandchild in another session dies too."""
    process = python(PARENT, tmp_path)
    await process.start()
    await process.until(lambda: process.output().endswith("\n"), timeout=10)
    child = psutil.Process(int(process.output()))
    await process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # its new parent has to take note


async def test_a_process_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    """`until` does not sit out its time when there is nothing left to wait for; it shows the log's tail."""
    process = python("raise SystemExit('no configuration')", tmp_path)
    await process.start()
    with pytest.raises(servers.StartFailed, match=r"ended with status 1(.|\n)*no configuration"):
        await process.until(lambda: False, timeout=60)


async def test_a_process_that_is_not_ready_in_time_is_said_so(tmp_path: Path) -> None:
    """`until` gives up after its time; stopping the process is the caller's business."""
    process = python(STUBBORN, tmp_path)
    await process.start()
    with pytest.raises(servers.StartFailed, match="was not ready after"):
        await process.until(lambda: False, timeout=0.05)
    assert process.running
    await process.kill()


async def test_a_log_is_read_from_the_last_start_on(tmp_path: Path) -> None:
    """The log keeps every run; `output` is the last one's."""
    process = python("import sys; print('run')", tmp_path)
    for _ in range(2):
        await process.start()
        await process.wait()
    assert process.output() == "run\n"
    assert process.log.read_text() == "run\nrun\n"


async def test_a_program_that_cannot_be_run_is_said_so(tmp_path: Path) -> None:
    """The error names the process and the reason."""
    process = servers.Process("agent", [tmp_path / "nowhere"], tmp_path / "log")
    with pytest.raises(servers.StartFailed, match=r"agent could not be started: .*No such file"):
        await process.start()
    assert not process.running

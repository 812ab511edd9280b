"""No server outlives the program that started it, however that program ends.

A guardian is one small process beside ours, at the other end of a pipe. We write a line for each process that
we start and for each that we have seen end. When we are gone, killed with -9 or not, the kernel closes the
pipe, and the guardian stops what is left. (Linux' parent-death signal would fire when the *thread* that
started a server ends, and would need Python code between fork and exec.)

Run as a script, this module is the guardian itself: it imports only the standard library.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE = 5.0  # seconds between the polite signal and SIGKILL
POLL = 0.01
FORGET = 0  # in place of a signal's number


class Guardian:
    """Our end of the pipe. The process at the other end is started with the first `watch`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._watched: dict[int, int] = {}
        self._lock = threading.Lock()

    def watch(self, pid: int, stop_signal: signal.Signals) -> None:
        """Have `pid`, which leads a process group, stopped by `stop_signal` once this process is gone."""
        with self._lock:
            self._tell(pid, stop_signal)
            self._watched[pid] = stop_signal

    def release(self, pid: int) -> None:
        """Forget `pid`: it has ended, and its number may be given to another process."""
        with self._lock:
            self._watched.pop(pid, None)
            self._tell(pid, FORGET)

    def _tell(self, pid: int, number: int) -> None:
        if self._owner != os.getpid():  # a fork has no children yet: it gets a guardian of its own
            self._owner = os.getpid()
            self._process = None
            self._watched.clear()
            atexit.register(self._close)
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            for known in self._watched.items():
                self._send(*known)
        self._send(pid, number)

    def _send(self, pid: int, number: int) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pid} {int(number)}\n")
        self._process.stdin.flush()

    def _close(self) -> None:
        """At our ordinary exit, wait until the guardian has stopped whatever was not stopped before."""
        if self._process is not None and self._owner == os.getpid():
            self._process.communicate()


def alive(pid: int) -> bool:
    """Whether the process runs: one that has ended and waits for its parent to notice does not."""
    try:
        os.kill(pid, 0)
        # The state stands after the name, which is in parentheses and may itself hold any character.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # a system without /proc: believe the signal
    except PermissionError:
        return True


def main() -> None:
    """Read lines until the owner is gone, then stop what it has left running."""
    watched: dict[int, int] = {}
    for line in sys.stdin:
        pid, number = map(int, line.split())
        watched[pid] = number
    left = {pid: number for pid, number in watched.items() if number != FORGET}
    for pid, number in left.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + GRACE
    while any(map(alive, left)) and time.monotonic() < deadline:
        time.sleep(POLL)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

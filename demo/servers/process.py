"""One child process: started, watched until it is ready, stopped, always reaped."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.servers import guardian
from demo.servers.errors import ServerError, StartFailed

POLL = 0.005  # seconds between looks at a process that is starting or stopping
WATCH = 0.02  # seconds between looks at one that runs
KILL_TIMEOUT = 10.0  # seconds; only a process stuck in the kernel takes longer than an instant
TAIL = 20  # lines of the log that an error shows

_guardian = guardian.Guardian()


class Process:
    """A program run as a child of ours, with its output appended to a log file.

    It leads a session of its own, so that Ctrl-C in a terminal reaches only us, who stop it when we are ready
    to. It does not outlive us (see `guardian`). It is not bound to an event loop.

    `user`: the name of the user it runs as, which takes root; its supplementary groups are dropped.
    `env`: its whole environment; None: ours. `stop_signal`: what asks it to end by itself.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.log = log
        self._env = env
        self._user = user
        self._stop_signal = stop_signal
        self._popen: subprocess.Popen[bytes] | None = None
        self._released = True
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id. Raises `ServerError` when it was never started."""
        if self._popen is None:
            raise ServerError(f"{self.name} was not started")
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs and before it was started."""
        if self._popen is None:
            return None
        status = self._popen.poll()
        if status is not None and not self._released:
            self._released = True
            _guardian.release(self._popen.pid)
        return status

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self.returncode is None

    async def start(self) -> None:
        """Start the program; it may be started again after it has ended. Does not wait for it to be ready."""
        if self.running:
            raise ServerError(f"{self.name} runs already, as process {self.pid}")
        self._spawn()

    def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            try:
                self._popen = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    start_new_session=True,
                    **_as_user(self._user),
                )
            except OSError as error:
                raise StartFailed(f"{self.name} could not be started: {error}") from error
        self._released = False
        _guardian.watch(self._popen.pid, self._stop_signal)

    async def until(self, ready: Callable[[], bool], *, timeout: float) -> None:
        """Wait until `ready()` is true; it is asked every few milliseconds, so it must be quick.

        Raises `StartFailed` when the process ends first or `timeout` seconds pass.
        """
        try:
            async with asyncio.timeout(timeout):
                await _poll(lambda: not self.running or ready(), POLL)
        except TimeoutError:
            raise StartFailed(self._with_log(f"{self.name} was not ready after {timeout:g} s")) from None
        if not self.running:
            raise StartFailed(self._with_log(f"{self.name} ended with status {self.returncode}"))

    async def wait(self) -> int:
        """Wait until the process has ended by itself or by another's hand; returns its exit status."""
        await _poll(lambda: not self.running, WATCH)
        if self.returncode is None:
            raise ServerError(f"{self.name} was not started")
        return self.returncode

    async def terminate(self, timeout: float = 10.0) -> int | None:
        """Ask it to end, kill it after `timeout` seconds; returns its exit status, None if never started."""
        if self.running:
            os.kill(self.pid, self._stop_signal)
            try:
                await self._ended([self.pid], timeout)
            finally:
                await self.kill()
        return self.returncode

    async def kill(self) -> None:
        """Kill it with all its descendants, in whatever group or session they are, and reap it."""
        if not self.running:
            return
        # A stopped process cannot start another child between our look at its children and their end.
        os.kill(self.pid, signal.SIGSTOP)
        family = [self.pid, *descendants(self.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._ended(family, KILL_TIMEOUT)
        if self.running:
            raise ServerError(f"{self.name}, process {self.pid}, outlived SIGKILL by {KILL_TIMEOUT:g} s")

    async def _ended(self, pids: Sequence[int], timeout: float) -> None:
        """Wait until all of `pids` have ended, or `timeout` seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await _poll(lambda: not self.running and not any(map(guardian.alive, pids)), POLL)

    def output(self) -> str:
        """What it has written since it was last started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def tail(self, lines: int = TAIL) -> str:
        """The last lines that it has written since it was last started."""
        return "\n".join(self.output().splitlines()[-lines:])

    def _with_log(self, message: str) -> str:
        return f"{message}; the end of {self.log}:\n{self.tail()}"


async def _poll(condition: Callable[[], bool], interval: float) -> None:
    """Ask every `interval` seconds until it is so."""
    while not condition():  # noqa: ASYNC110 - a line in a log and a grandchild's end raise no event
        await asyncio.sleep(interval)


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, parents before children; none where there is no /proc.

    A process group is not enough: each of PostgreSQL's processes leads one of its own.
    """
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    level = children.get(pid, [])
    while level:
        found += level
        level = [child for parent in level for child in children.get(parent, [])]
    return found


def _as_user(name: str | None) -> dict[str, Any]:
    """The arguments of `Popen` that run a program as the user called `name`."""
    if name is None:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

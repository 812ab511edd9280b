"""Opens the journal's file: connections, migrations, and what to do with a damaged one."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from edge_agent.journal import errors, sql

log: Final = logging.getLogger(__name__)

BUSY_S: Final = 10.0
"""How long to wait for a lock, should somebody look at the file with another program."""

_OF_VALUES: Final = (0, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)
"""Result codes that say something about what was to be stored, not about where."""

LOG_BYTES: Final = 16 << 20
"""What is left of the write-ahead log after a checkpoint, at most; a huge commit may need more of it."""
PAGE_BYTES: Final = 4096
_FRAME_HEADER: Final = 24
_MXFRAME: Final = slice(16, 20)
"""Where the -shm file says how many frames the write-ahead log holds (sqlite.org/walformat.html, 2.1)."""


class Opened(NamedTuple):
    """The writer's connection to a journal that is whole and of our schema."""

    connection: sqlite3.Connection
    moved_aside: Path | None
    """Where the damaged file is that stood here before, if one did."""


def open_for_writing(path: Path) -> Opened:
    """The journal at `path`, made or brought up to date.

    A damaged file is moved aside and replaced by a fresh journal: the agent must serve its devices.
    Raises JournalTooNew, JournalFull or JournalBroken.
    """
    try:
        return Opened(_open(path), None)
    except sqlite3.Error as error:
        if not is_corrupt(error):
            raise explain(error) from error
        aside = _move_aside(path)
        log.critical("%s is damaged (%s): kept as %s; starting a fresh journal", path, error, aside.name)
        return Opened(_open(path), aside)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def is_corrupt(error: BaseException) -> bool:
    """True if SQLite found the file itself to be damaged."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: BaseException) -> bool:
    """True if there was no room on the disk."""
    return (
        _code(error) == sqlite3.SQLITE_FULL
        or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
    )


def explain(error: Exception) -> Exception:
    """The journal's own error for one of SQLite's; others, and those that a caller's values caused, stay."""
    if not isinstance(error, sqlite3.Error) or _code(error) in _OF_VALUES:
        return error
    explained: errors.JournalError
    if is_full(error):
        explained = errors.JournalFull(f"the disk of the journal is full ({error})")
    else:
        explained = errors.JournalBroken(f"the journal cannot be used: {error}")
    explained.__cause__ = error
    return explained


def suspect(path: Path) -> None:
    """Have the journal checked through when it is opened next: damage showed while it was in use."""
    _marker(path).touch()


class WriteMeter:
    """Counts the bytes that commits write to the write-ahead log.

    SQLite has no call for it, but says it in the header of the -shm file. That file stays open here for
    as long as the database does: closing it would drop the process's locks on it (POSIX advisory locks).
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path.with_name(path.name + "-shm"), os.O_RDONLY)
        self._frames = self._read()

    def written(self) -> int:
        """Bytes written since the last call; called after every commit, by the thread that commits."""
        before, self._frames = self._frames, self._read()
        grown = self._frames - before if self._frames >= before else self._frames
        return grown * (PAGE_BYTES + _FRAME_HEADER)

    def close(self) -> None:
        """After the last connection was closed."""
        os.close(self._file)

    def _read(self) -> int:
        return int.from_bytes(os.pread(self._file, _MXFRAME.stop, 0)[_MXFRAME], sys.byteorder)


def migrate(connection: sqlite3.Connection, steps: list[sql.Migration]) -> None:
    """Bring the schema up to date, one transaction a step. Raises JournalTooNew."""
    version = version_of(connection)
    newest = steps[-1].number
    if version > newest:
        raise errors.JournalTooNew(
            f"the journal has schema {version}, this agent knows up to {newest}: "
            "run the newer agent again, or give this one a `state` folder of its own"
        )
    for step in steps[version:]:
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{step.script}\nPRAGMA user_version = {step.number};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def version_of(connection: sqlite3.Connection) -> int:
    """The schema's version; 0 in a file that was just made."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _open(path: Path) -> sqlite3.Connection:
    connection = _connect(path)
    try:
        if version_of(connection) == 0:  # before the first page is written; later it would be a write
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # free pages can be given back
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise errors.JournalBroken(f"{path} lies on a file system without shared memory: choose another")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        # Debian's SQLite overwrites deleted content with zeros: twice the wear on flash for nothing here.
        connection.execute("PRAGMA secure_delete = OFF")
        if _marker(path).exists():
            _check(connection)
            _marker(path).unlink()
        migrate(connection, sql.migrations())
        for table in ("meta", "lanes", "cursors"):  # without these nothing can begin
            connection.execute(f"SELECT * FROM {table}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # One thread at a time uses a connection, though not the one that opened it.
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        damage = sqlite3.DatabaseError(verdict)
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage


def _move_aside(path: Path) -> Path:
    """Rename the database and its write-ahead log; the name says when, as far as the clock knows."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{path.name}.corrupt-{stamp}"
    aside = path.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{name}-{number}")
    path.rename(aside)
    log_file = path.with_name(path.name + "-wal")
    if log_file.exists():
        log_file.rename(aside.with_name(aside.name + "-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    _marker(path).unlink(missing_ok=True)
    return aside


def _marker(path: Path) -> Path:
    return path.with_name(path.name + "-suspect")


def _code(error: BaseException) -> int:
    """SQLite's primary result code of an error, 0 if it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

"""How much a journal may hold, and what it does when the disk says no.

New work is refused early, so that the work already taken in can always finish: jobs may fill the quota
but for its last eighth, and a file of ballast beside the database is given up when the disk itself is
full. Space that a drained backlog leaves is handed back to the file system when the journal is idle.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from edge_agent.journal import database

log: Final = logging.getLogger(__name__)

FINISHING_SHARE: Final = 8
"""One part in so many of the quota is not for new work."""
BALLAST_BYTES: Final = 8 << 20
BALLAST_SHARE: Final = 32
"""The ballast is no larger than one part in so many of the quota."""
BALLAST_RETRY_S: Final = 5.0

VACUUM_STEP: Final = 256
"""Pages that are given back at a time, so that a job never waits long for its turn."""
FREE_SHARE: Final = 4
"""Free pages are kept for reuse up to one part in so many of the file: giving back is writing, too."""


class Space:
    """The room of one journal; used by the writer's thread alone."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._ballast = path.with_name(path.name + "-ballast")
        self._ballast_bytes = min(BALLAST_BYTES, max_bytes // BALLAST_SHARE)
        self._held = _size(self._ballast) == self._ballast_bytes
        self._tried = float("-inf")
        self._said = False
        """True once it was logged that there is no room."""
        self.max_bytes = max_bytes
        self.limit = max_bytes - max_bytes // FINISHING_SHARE
        """Bytes in use at which new work is refused."""

    def room(self, connection: sqlite3.Connection) -> int:
        """Bytes of new work that may be taken in; 0 while the ballast is given up."""
        if not self.hold():
            return 0
        return max(0, self.limit - used_bytes(connection))

    def hold(self) -> bool:
        """Have the ballast on disk; False if there is no room for it."""
        if self._held or time.monotonic() < self._tried + BALLAST_RETRY_S:
            return self._held
        self._tried = time.monotonic()
        try:
            file = os.open(self._ballast, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(file, 0, self._ballast_bytes)
                os.ftruncate(file, self._ballast_bytes)
            finally:
                os.close(file)
        except OSError as error:
            self._ballast.unlink(missing_ok=True)
            if not self._said:
                log.error("no new work is taken in: the disk has no room to finish it (%s)", error.strerror)
            self._said = True
            return False
        self._held, self._said = True, False
        return True

    def release(self) -> bool:
        """Give up the ballast for what must be written; False if that was done before."""
        if not self._held:
            return False
        self._ballast.unlink(missing_ok=True)
        self._held = False
        self._tried = time.monotonic()
        log.error("the disk is full: using the journal's ballast to finish what was accepted")
        return True

    def tidy(self, connection: sqlite3.Connection) -> bool:
        """Give back a step's worth of free pages; True if there is more to do."""
        self.hold()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free <= max(VACUUM_STEP, pages // FREE_SHARE):
            return False
        # As a script: `execute` would stop after the first page, for which SQLite says "row" without columns.
        connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_STEP})")
        if free - VACUUM_STEP > max(VACUUM_STEP, pages // FREE_SHARE):
            return True
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # only now the file shrinks
        return False


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the database's pages that hold something."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    used: int = (pages - free) * database.PAGE_BYTES
    return used


def size_bytes(path: Path) -> int:
    """Bytes on disk: the database and its write-ahead log."""
    return _size(path) + _size(path.with_name(path.name + "-wal"))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0

"""Which tasks run at this moment, in a file that outlives a killed process.

A task that kills the agent (a model that crashes its runtime, a picture that eats the memory) would do
so again after every restart. Its mark is what tells. A mark costs one small write to the page cache
and never waits for the disk: kill -9 leaves it, a power cut may not, and a power cut is nobody's fault.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edge_agent.journal import errors

log: Final = logging.getLogger(__name__)

_ID: Final = 16
"""Bytes of a task id. The file holds the number of marks in four bytes, then the marks."""


class Running:
    """The marks, and the lock that keeps a second process from this journal."""

    def __init__(self, path: Path) -> None:
        """Raises JournalInUse if another process has the file open."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise errors.JournalInUse(
                f"{path} is locked: another agent has this journal open; give each its own `state` folder"
            ) from None
        self._ids: set[bytes] = set()
        self.left_behind: Final = _parse(os.pread(self._file, os.fstat(self._file).st_size, 0))
        """The tasks that were running when the last process died."""

    def begin(self, task_ids: Iterable[bytes]) -> None:
        """These start to run."""
        self._ids.update(task_ids)
        self._write()

    def done(self, task_ids: Iterable[bytes]) -> None:
        """These have stopped running, whatever came of it."""
        self._ids.difference_update(task_ids)
        self._write()

    def clear(self) -> None:
        """Nothing runs."""
        self._ids.clear()
        self._write()

    def close(self) -> None:
        os.close(self._file)

    def _write(self) -> None:
        try:
            os.pwrite(self._file, len(self._ids).to_bytes(4, "little") + b"".join(self._ids), 0)
        except OSError as error:  # a full disk must not keep work from running
            log.warning("cannot note what is running: %s", error.strerror)


def _parse(content: bytes) -> list[bytes]:
    """The ids in a file's content; a torn or foreign file yields ids of no task, which match nothing."""
    marks = content[4 : 4 + _ID * int.from_bytes(content[:4], "little")]
    return [marks[at : at + _ID] for at in range(0, len(marks) - _ID + 1, _ID)]

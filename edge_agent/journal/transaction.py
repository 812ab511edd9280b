"""One commit in the making: what the operations of a group share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from edge_agent.journal import records
from edge_agent.journal.space import Space
from shared import lanes

_T = TypeVar("_T")


@dataclass(slots=True)
class Transaction:
    """Handed to each operation of a group, in the writer's thread."""

    connection: sqlite3.Connection
    space: Space
    results: list[records.ResultRow] = field(default_factory=list)
    """Rows that will leave as one chunk, whoever of the group brought them."""
    attempts: list[records.AttemptRow] = field(default_factory=list)
    """Likewise; after the rows, for the hub must know the rows of an attempt before its end."""
    appended: dict[lanes.Lane, int] = field(default_factory=dict)
    """The lanes that grew, with the highest number of each."""
    bytes_appended: int = 0
    refused: int = 0
    _room: int | None = None

    def admit(self, size: int) -> bool:
        """Take in `size` bytes of new work if there is room for them."""
        if self._room is None:
            self._room = self.space.room(self.connection)
        if size > self._room:
            self.refused += 1
            return False
        self._room -= size
        self.bytes_appended += size
        return True


Change = Callable[[Transaction], _T]
"""An operation: run in the writer's thread, inside a transaction that others share. It may be run
again, after a rollback, if another operation of its group failed."""

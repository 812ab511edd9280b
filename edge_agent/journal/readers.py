"""Reads beside the writer: a few threads with a connection each, which see the last commit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from edge_agent.journal import database

_T = TypeVar("_T")

READERS: Final = 2
"""One for the uplink, which may read megabytes, and one for whoever needs a payload meanwhile."""


class Readers:
    """A pool of connections that cannot write."""

    def __init__(self, path: Path, on_damage: Callable[[], None]) -> None:
        """`on_damage` is told, in a reader's thread, that the file is corrupt."""
        self._on_damage = on_damage
        self._threads = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="journal reader")
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(READERS):
            self._connections.put(database.open_for_reading(path))

    async def read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `query` returns, which runs in a thread. Raises what it raises, or JournalBroken."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, query)

    def close(self) -> None:
        """Wait for the reads under way, then close. Blocks."""
        self._threads.shutdown()
        while not self._connections.empty():
            self._connections.get().close()

    def _run(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        connection = self._connections.get()  # as many as threads: never waits
        try:
            return query(connection)
        except sqlite3.Error as error:
            if database.is_corrupt(error):
                self._on_damage()
            raise database.explain(error) from error
        finally:
            self._connections.put(connection)

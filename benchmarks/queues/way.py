"""What is compared: ways of bringing many small tasks through a store and one worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from demo import servers


@dataclass(frozen=True)
class Run:
    """One measurement of one way."""

    submitted_per_s: float
    """Tasks a second into the store, durable there."""
    tasks_per_s: float
    """Through the worker, from the first completion to the last: a steady drain, not the worker's start."""
    cpu_s: float | None = None
    """CPU seconds for 1,000 tasks while they drain, of the worker and of the store; None if not measured."""


class Way(Protocol):
    """A task queue that can be measured, again and again."""

    @property
    def name(self) -> str:
        """Its key among the figures."""

    @property
    def title(self) -> str:
        """Its words in the table."""

    @property
    def count(self) -> int:
        """How many tasks take it seconds."""

    async def measure(self, count: int) -> Run:
        """Queue `count` tasks, then let one worker do them all. Leaves nothing behind."""


@dataclass(frozen=True)
class Place:
    """Where the ways are measured: the servers that they share, one after the other."""

    directory: Path
    """For files of their own."""
    postgres: servers.Postgres
    valkey: servers.Valkey

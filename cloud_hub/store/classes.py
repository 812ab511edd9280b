"""Classes of queued tasks: alike in where they may go and to whom their share is charged; and their depths.

So the scheduler looks at the first tasks of each class, and a task that can run nowhere now holds up only
its own kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from cloud_hub.store import pool, sql

_SQL: Final = sql.load("classes")


class Key(NamedTuple):
    """What makes a class."""

    model: str
    version: str = ""
    """'': any."""
    queue: str = ""
    selector: str = ""
    """Where its tasks may run; '': anywhere."""
    origin_agent: int = 0
    """Of the agent that handed them over; 0: submitted to the hub."""


class Class(NamedTuple):
    """A class as the scheduler knows it."""

    class_id: int
    model: str
    version: str
    queue: str
    selector: str
    origin_agent: int
    home: str | None
    """The site of the origin."""


class Known:
    """Classes that have been looked up. They never change, so each is looked up once."""

    def __init__(self) -> None:
        self._by_id: dict[int, Class] = {}

    def __iter__(self) -> Iterator[Class]:
        return iter(self._by_id.values())

    def __getitem__(self, class_id: int) -> Class:
        return self._by_id[class_id]

    async def learn(self, connection: pool.Connection, class_ids: Collection[int]) -> None:
        """Look up those of `class_ids` that are not known."""
        if missing := [class_id for class_id in class_ids if class_id not in self._by_id]:
            self._by_id |= await select(connection, missing)

    def forget(self) -> None:
        """The database may have been put back to an older state, and count its classes anew from there."""
        self._by_id.clear()


_known: Final[WeakKeyDictionary[pool.Connection, dict[Key, int]]] = WeakKeyDictionary()
"""What a connection has read of committed classes. They never change; and a database that was put back
to an older state has closed the connection."""


async def resolve(connection: pool.Connection, keys: Iterable[Key]) -> dict[Key, int]:
    """The ids of classes, those that are new made in the connection's transaction."""
    known = _known.setdefault(connection, {})
    found = {key: known[key] for key in set(keys) if key in known}
    missing = sorted(set(keys) - found.keys())
    while missing:
        columns = _columns(missing)
        for class_id, *key_, settled in await (await connection.execute(_SQL["there"], columns)).fetchall():
            key = Key(*key_)
            found[key] = class_id
            if settled:
                known[key] = class_id
        missing = [key for key in missing if key not in found]
        if missing:
            await connection.execute(_SQL["make"], _columns(missing))
    return found


async def select(connection: pool.Connection, class_ids: Collection[int]) -> dict[int, Class]:
    """Classes by id."""
    cursor = await connection.execute(_SQL["select"], {"class_ids": list(class_ids)})
    return {row[0]: Class(*row) for row in await cursor.fetchall()}


async def depths(connection: pool.Connection) -> dict[tuple[str, str, int], int]:
    """How many tasks wait, by model, queue and priority; those after a failed attempt not counted."""
    rows = await (await connection.execute(_SQL["depths"])).fetchall()
    return {(model, queue, priority): waiting for model, queue, priority, waiting in rows}


async def compact(connection: pool.Connection) -> None:
    """Add up the counters' rows. From time to time, by whoever leads."""
    await connection.execute(_SQL["compact"])


def _columns(keys: Collection[Key]) -> dict[str, list[object]]:
    return {
        "models": [key.model for key in keys],
        "versions": [key.version for key in keys],
        "queues": [key.queue for key in keys],
        "selectors": [key.selector for key in keys],
        "origins": [key.origin_agent for key in keys],
    }

"""The window on the journal's queue: what runs next, while the journal and the executor go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent import models, settings, window
from edge_agent.journal import journal, records
from tests import models as packages
from tests.unit import journals

SMALL = 4
"""Tasks that fit into the window of these tests."""


@pytest.fixture
def catalogue(tmp_path: Path) -> models.Catalogue:
    served = models.Catalogue()
    package = packages.write_classifier(
        tmp_path / "surface", name="surface", extra="[batching]\nmax_batch = 2\nmax_delay_ms = 0"
    )
    served.add(models.load(package))
    return served


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[journal.Journal]:
    async with journals.opened(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def carrying(catalogue: models.Catalogue, tmp_path: Path) -> models.Catalogue:
    """The same, and a model that carries a state."""
    catalogue.add(models.load(packages.write_counter(tmp_path / "counter")))
    return catalogue


class Held:
    """The journal, but what it says of the queue arrives only when it is let go."""

    def __init__(self, book: journal.Journal) -> None:
        self._book = book
        self.has_read = asyncio.Event()
        self.go_on = asyncio.Event()

    async def waiting(self, limit: int) -> list[records.Task]:
        found = await self._book.waiting(limit)
        self.has_read.set()
        await self.go_on.wait()
        return found


class Between:
    """The journal, and something that happens between two looks at the queue."""

    def __init__(self, book: journal.Journal, happens: Callable[[], Awaitable[None]]) -> None:
        self._book = book
        self._happens = happens

    async def waiting(self, limit: int) -> list[records.Task]:
        found = await self._book.waiting(limit)
        await self._happens()
        return found

    async def oldest(self, names: Collection[str], limit: int) -> list[records.Task]:
        return await self._book.oldest(names, limit)


def behind(book: Any, catalogue: models.Catalogue, counts: records.Counts) -> window.Window:
    """The window of an agent that has just opened this journal."""
    fresh = window.Window(book, catalogue, settings.Engine(window=SMALL), {})
    fresh.recover(counts)
    return fresh


def drained(one: window.Window) -> list[bytes]:
    """The tasks that the window lets run, in order."""
    ids: list[bytes] = []
    while (turn := one.take(ahead=False)) is not None:
        ids += [task.task_id for task in turn.tasks]
    return ids


async def test_a_task_that_ends_while_the_window_is_filled_is_not_let_in_again(
    book: journal.Journal, catalogue: models.Catalogue
) -> None:
    """The journal was read before the commit of its end: its ghost would run without a payload."""
    ending = await journals.accept(book)
    staying = await journals.accept(book)
    held = Held(book)
    one = behind(held, catalogue, await book.counts())
    one.offer([ending])
    one.take(ahead=False)
    filling = asyncio.create_task(one.refill())
    await held.has_read.wait()
    await book.finish([journals.finished(ending.task_id)])
    one.ended(ending.task_id)
    held.go_on.set()
    await filling
    assert drained(one) == [staying.task_id]


async def test_a_task_that_finds_no_room_while_the_window_is_filled_is_not_forgotten(
    book: journal.Journal, catalogue: models.Catalogue
) -> None:
    """It came after the journal was read, and waits in the journal alone: the window must look again."""
    waiting = [await journals.accept(book)]
    held = Held(book)
    one = behind(held, catalogue, await book.counts())
    filling = asyncio.create_task(one.refill())
    await held.has_read.wait()
    for _ in range(SMALL + 1):
        late = await journals.accept(book)
        waiting.append(late)
        one.offer([late])
    held.go_on.set()
    await filling
    ran = drained(one)
    assert one.wants_more
    await one.refill()
    ran += drained(one)
    assert set(ran) == {task.task_id for task in waiting}


async def test_one_refill_at_a_time(book: journal.Journal, catalogue: models.Catalogue) -> None:
    """Several executors find the window low at once: one of them reads the journal."""
    await journals.accept(book)
    held = Held(book)
    one = behind(held, catalogue, await book.counts())
    wanted = [one.wants_more]
    filling = asyncio.create_task(one.refill())
    await held.has_read.wait()
    wanted.append(one.wants_more)
    held.go_on.set()
    await filling
    assert wanted == [True, False]


async def test_a_version_is_needed_until_the_last_task_on_it_has_ended(
    book: journal.Journal, catalogue: models.Catalogue
) -> None:
    """What waits, runs or may wait in the journal keeps a version that retires; nothing else does."""
    (model,) = catalogue
    one = behind(book, catalogue, await book.counts())
    assert not one.needs(model.key)
    task = await journals.accept(book)
    one.offer([task])
    catalogue.retire(model.key)
    assert one.needs(model.key)
    late = await journals.accept(book)
    one.offer([late])  # it was being accepted: it runs as well
    assert drained(one) == [task.task_id, late.task_id]
    for ended in (task, late):
        assert one.needs(model.key)
        one.ended(ended.task_id)
    assert not one.needs(model.key)
    one.models_changed()
    assert one.needs(model.key), "tasks may wait in the journal alone"
    await book.finish([journals.finished(task.task_id), journals.finished(late.task_id)])
    await one.refill()
    assert not one.needs(model.key)


async def test_of_a_stream_the_youngest_give_way(book: journal.Journal, carrying: models.Catalogue) -> None:
    """What came later in a stream never runs before what gave way, though its priority is higher."""
    first = await journals.accept(book, model="counter", priority=1)
    second = await journals.accept(book, model="counter", priority=9)
    one = behind(book, carrying, await book.counts())
    await one.refill()
    others = [await journals.accept(book, priority=5) for _ in range(SMALL - 1)]
    one.offer(others)
    ran = drained(one)
    assert first.task_id in ran
    assert second.task_id not in ran
    assert one.wants_more


async def test_the_window_knows_that_more_waits_whatever_ends_while_it_looks(
    book: journal.Journal, carrying: models.Catalogue
) -> None:
    """Where streams wait the queue is read twice, and tasks may end in between: no other is forgotten."""
    streams = [await journals.accept(book, model="counter", device=str(number)) for number in range(SMALL)]
    waiting = [await journals.accept(book) for _ in range(2 * SMALL)]

    async def end() -> None:
        ids = [task.task_id for task in streams]
        for task_id in await book.finish([journals.finished(task_id) for task_id in ids]):
            one.ended(task_id)

    one = behind(Between(book, end), carrying, await book.counts())
    ran: list[bytes] = []
    while one.wants_more:
        await one.refill()
        ran += drained(one)
    assert set(ran) == {task.task_id for task in waiting}


async def test_who_takes_anothers_place_in_a_crowded_window_is_not_forgotten(
    book: journal.Journal, catalogue: models.Catalogue
) -> None:
    """The window holds a task more than fit, for one was tried again."""
    one = behind(book, catalogue, await book.counts())
    waiting = [await journals.accept(book) for _ in range(SMALL + 1)]
    one.offer(waiting[:1])
    drained(one)
    one.offer(waiting[1:])
    one.retry(waiting[0].again())
    urgent = await journals.accept(book, priority=9)
    one.offer([urgent])
    assert drained(one)[0] == urgent.task_id


async def test_a_newer_lease_that_comes_while_the_window_is_filled_keeps_its_stream_out(
    book: journal.Journal, carrying: models.Catalogue
) -> None:
    """What was read of that task is the older lease: nothing behind it is let in before it is read again."""
    first = await journals.accept(book, model="counter")
    await journals.accept(book, model="counter")

    async def renew() -> None:
        one.renew(first, msgspec.structs.replace(first, hub_attempt=2))

    one = behind(Between(book, renew), carrying, await book.counts())
    await one.refill()
    assert drained(one) == []
    assert one.wants_more


@pytest.mark.parametrize("change", ["lease", "version"])
async def test_what_is_offered_anew_keeps_its_place_in_a_full_window(
    book: journal.Journal, catalogue: models.Catalogue, tmp_path: Path, change: str
) -> None:
    """The window holds a task more than fit, for one was tried again: none of them is forgotten."""
    one = behind(book, catalogue, await book.counts())
    waiting = [await journals.accept(book) for _ in range(SMALL + 1)]
    one.offer(waiting[:1])
    drained(one)
    one.offer(waiting[1:])
    one.retry(waiting[0].again())
    if change == "lease":
        one.renew(waiting[2], msgspec.structs.replace(waiting[2], hub_attempt=2))
    else:
        newer = packages.write_classifier(tmp_path / "newer", name="surface", version="2.0.0")
        catalogue.add(models.load(newer))
        one.reroute("surface")
    assert set(drained(one)) == {task.task_id for task in waiting}

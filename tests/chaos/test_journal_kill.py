"""kill -9 of a process that writes to its journal, again and again: nothing it was told is lost.

Run as a program, this file is the victim: it does all that an agent does to its journal, many things at a
time, and says what was acknowledged to it on its standard output.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from edge_agent.journal import journal, outbox, records
from shared import lanes, tasks
from tests.unit import journals

JOIN_CHUNKS = 16
"""So few that chunks are joined all the time."""


def items_of(task_id: bytes) -> int:
    """How many items a task has can be told from its id, so that both sides know it."""
    return task_id[-1] % 3 + 1


def lease_id(number: int) -> bytes:
    """The task in a record of the lane `leases`."""
    return number.to_bytes(16, "big")


# The victim


class Victim:
    """Writes until it is killed."""

    def __init__(self, book: journal.Journal, seed: int) -> None:
        self.book = book
        self.dice = random.Random(seed)
        self.waiting: list[bytes] = []
        self.away: list[bytes] = []

    def say(self, what: str, *task_ids: bytes) -> None:
        """One write to the pipe, whole even if it is the last."""
        os.write(1, " ".join([what, *(task_id.hex() for task_id in task_ids)]).encode() + b"\n")

    def take(self, ids: list[bytes]) -> list[bytes]:
        self.dice.shuffle(ids)
        count = self.dice.randint(0, min(6, len(ids)))
        taken = ids[:count]
        del ids[:count]
        return taken

    async def accept(self) -> None:
        while True:
            ids = [tasks.new_id() for _ in range(self.dice.randint(1, 3))]
            arrived = [
                journals.task(os.urandom(self.dice.choice([10, 3000, 20_000])), task_id=i, items=items_of(i))
                for i in ids
            ]
            assert None not in await self.book.accept(arrived)
            self.say("accepted", *ids)
            self.waiting += ids

    async def finish(self) -> None:
        while True:
            ids = self.take(self.waiting)
            self.book.running.begin(ids)
            await self.book.finish([journals.finished(i, items_of(i)) for i in ids])
            self.book.running.done(ids)
            self.say("finished", *ids)
            await asyncio.sleep(0)

    async def lease(self) -> None:
        cursors = await self.book.cursors()
        cursor = cursors.get(journals.LEASES, records.Cursor(0, 0)).cursor
        while True:
            ids = [lease_id(cursor + step) for step in range(1, self.dice.randint(2, 5))]
            cursor += len(ids)
            await journals.take_leases(self.book, cursor, journals.leases(ids))
            self.say("leased", ids[-1])
            await asyncio.sleep(0.002)

    async def overflow(self) -> None:
        while True:
            ids = self.take(self.waiting)
            given = await self.book.hand_over(ids)
            self.say("handed_over", *given)
            self.waiting += set(ids) - set(given)  # leased, perhaps
            self.away += given
            ids = self.take(self.away)
            await self.book.reclaim(ids)
            self.say("reclaimed", *ids)
            self.waiting += ids

    async def run(self) -> None:
        self.waiting = [task.task_id for task in await self.book.waiting(1_000_000)]
        away = await self.book.waiting(1_000_000, holder=records.Holder.HUB)
        self.away = [task.task_id for task in away]
        self.say("ready")
        async with asyncio.TaskGroup() as group:
            for work in (self.accept, self.accept, self.finish, self.finish, self.lease, self.overflow):
                group.create_task(work(), name=work.__name__)


async def be_killed(folder: Path, seed: int) -> None:
    with mock.patch.object(outbox, "JOIN_CHUNKS", JOIN_CHUNKS):
        async with journals.opened(folder, max_bytes=1 << 40) as book:
            await Victim(book, seed).run()


# The witness


class Place(NamedTuple):
    lane: lanes.Lane
    number: int


class Witness:
    """Holds a journal to what its victims were told, and plays the hub in between."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder = folder
        self.dice = dice
        self.told: dict[str, set[bytes]] = {
            word: set() for word in ("ready", "accepted", "finished", "leased", "handed_over", "reclaimed")
        }
        self.records: dict[Place, tuple[bytes, int]] = {}
        """What was ever seen at a number."""

    def kill_one(self) -> None:
        """Start a victim, let it work for a moment, kill it, and hear what it was told until then."""
        with subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.folder), str(self.dice.random())],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as victim:
            assert victim.stdout is not None
            lines = list(itertools.islice(victim.stdout, self.dice.randint(1, 300)))
            victim.kill()
            lines += victim.stdout.readlines()
        assert lines[0] == b"ready\n"
        for line in lines:
            word, *ids = line.decode().split()
            self.told[word].update(bytes.fromhex(task_id) for task_id in ids)

    async def check(self) -> None:
        """Open the journal that was left and hold it to its promises."""
        async with journals.opened(self.folder, max_bytes=1 << 40) as book:
            acked = {lane: numbers.acked for lane, numbers in (await book.lanes()).items()}
            for lane, (numbered, at) in (await book.lanes()).items():
                await self._read(book, lane, at, numbered)
            held = await book.waiting(1_000_000) + await book.waiting(1_000_000, holder=records.Holder.HUB)
            replied = {reply.task_id for reply in await book.unreplied(1_000_000)}
            cursor = (await book.cursors()).get(journals.LEASES, records.Cursor(0, 0))
            self._judge({task.task_id for task in held}, replied, cursor)
            for lane, numbers in (await book.lanes()).items():
                await book.acknowledged(lane, self.dice.randint(acked[lane], numbers.numbered))

    async def _read(self, book: journal.Journal, lane: lanes.Lane, acked: int, numbered: int) -> None:
        """Every number after the hub's cursor is there once, and is what it was when last seen."""
        batches = await journals.sent(book, lane, acked, max_rows=100)
        assert numbered == (batches[-1].span.last if batches else acked)
        for number, row in enumerate(journals.rows_of(batches), acked + 1):
            record = (row["task_id"], row.get("item", 0))
            assert self.records.setdefault(Place(lane, number), record) == record

    def _judge(self, held: set[bytes], replied: set[bytes], cursor: records.Cursor) -> None:
        rows = Counter(record for place, record in self.records.items() if place.lane.name == "results")
        assert set(rows.values()) <= {1}, "a result row is there twice"
        ended = {task_id for task_id, _ in rows}
        assert not held & ended, "a task is both waiting and finished"
        for task_id in ended:
            assert {item for i, item in rows if i == task_id} == set(range(items_of(task_id)))
        assert replied == ended, "a reply is missing, or was never earned"
        assert self.told["accepted"] <= held | ended, "an acknowledged job is lost"
        assert self.told["finished"] <= ended, "an acknowledged result is lost"
        given = {task_id for place, (task_id, _) in self.records.items() if place.lane.name == "tasks"}
        assert self.told["handed_over"] <= given, "an acknowledged overflow is lost"
        leased = {lease_id(number) for number in range(1, cursor.cursor + 1)}
        assert cursor.committed == cursor.cursor
        assert self.told["leased"] <= leased, "the cursor went back"
        assert {i for i in held | ended if i[:8] == bytes(8)} == leased, "cursor and leases disagree"


@pytest.mark.parametrize("kills", [5, pytest.param(250, marks=pytest.mark.soak)], ids=["a few", "many"])
async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, kills: int) -> None:
    """However often the agent is killed in the middle of its work: each acknowledged job is held or ended;
    each result row is in the lane once, with its reply; numbers have no gap and never change their record;
    leases are here exactly up to the cursor."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    witness = Witness(tmp_path, random.Random(seed))
    for _ in range(kills):
        await asyncio.to_thread(witness.kill_one)
        await witness.check()
    assert len(witness.told["accepted"]) > kills
    assert len(witness.told["finished"]) > kills


async def test_a_task_that_kills_the_agent_is_counted(tmp_path: Path) -> None:
    """A task that was running at each kill -9 has as many crashes on its record."""
    async with journals.opened(tmp_path) as book:
        poison, harmless = [(await journals.accept(book)).task_id for _ in range(2)]
    program = f"""
import asyncio, os, pathlib, signal
from tests.unit import journals

async def main():
    async with journals.opened(pathlib.Path({str(tmp_path)!r})) as book:
        book.running.begin([bytes.fromhex("{poison.hex()}"), bytes.fromhex("{harmless.hex()}")])
        book.running.done([bytes.fromhex("{harmless.hex()}")])
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    for _ in range(3):
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, cwd=Path(__file__).parents[2]
        )
        assert await killed.wait() == -9
    async with journals.opened(tmp_path) as book:
        found = await book.find([poison, harmless])
        assert (found[poison].crashes, found[harmless].crashes) == (3, 0)


if __name__ == "__main__":
    asyncio.run(be_killed(Path(sys.argv[1]), hash(sys.argv[2])))

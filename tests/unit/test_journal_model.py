"""The journal against a model of it in plain Python: whatever is done in whatever order, they agree."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import msgspec
import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st

from edge_agent.journal import journal, outbox, records
from shared import lanes
from tests.unit import journals

_T = TypeVar("_T")

DOWN = lanes.Lane("results", 1)
KEYS = 4
"""Ended keys that are remembered: so few that they are forgotten, too."""

some = st.lists(st.integers(0, 1000), max_size=4)
"""Picks among whatever there is."""
jobs = st.lists(st.tuples(st.integers(0, 9), st.floats(-2, 2), st.integers(1, 3)), max_size=4)
"""Priority, tag and items of new tasks."""


class Record(NamedTuple):
    """What stands at one number of a lane."""

    kind: str
    task_id: bytes
    item: int = 0


class Books:
    """A lane as the model has it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        """Those not acknowledged."""
        self.acked = 0

    @property
    def numbered(self) -> int:
        return self.acked + len(self.records)


class Model:
    """What a journal holds, in dictionaries."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, records.Task] = {}
        self.handed_over: dict[bytes, records.Task] = {}
        self.replies: dict[bytes, bytes] = {}
        self.ended_keys: dict[str, bytes] = {}
        self.lanes = {journals.RESULTS: Books(), journals.TASKS: Books()}
        self.cursor = records.Cursor(0, 0)

    @property
    def tasks(self) -> dict[bytes, records.Task]:
        return self.waiting | self.handed_over

    def live(self, name: str) -> lanes.Lane:
        return max(lane for lane in self.lanes if lane.name == name)

    def append(self, name: str, new: Iterable[Record]) -> None:
        self.lanes[self.live(name)].records += new

    def end(self, task_id: bytes) -> bool:
        """The task is gone and its reply is there; False if it was not here."""
        task = self.tasks.get(task_id)
        if task is None:
            return False
        self.waiting.pop(task_id, None)
        self.handed_over.pop(task_id, None)
        self.replies[task_id] = b"{}"
        if task.idempotency_key is not None:
            self.ended_keys[task.idempotency_key] = task_id
            while len(self.ended_keys) > KEYS:
                del self.ended_keys[next(iter(self.ended_keys))]
        return True


class Journals(stateful.RuleBasedStateMachine):
    """Does the same to a journal and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.joining = mock.patch.multiple(outbox, JOIN_CHUNKS=5, SMALL_ROWS=4)
        self.joining.start()
        self.folders = [Path(tempfile.mkdtemp(prefix="journal-"))]
        self.model = Model()
        self.known: list[bytes] = []
        self.open()

    def run(self, step: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(step)

    def open(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        entering = self.stack.enter_async_context(journals.opened(self.folders[-1], keys=KEYS))
        self.book: journal.Journal = self.run(entering)

    def close(self) -> None:
        self.run(self.stack.aclose())

    def teardown(self) -> None:
        self.close()
        self.joining.stop()
        self.runner.close()
        for folder in self.folders:
            shutil.rmtree(folder)

    def pick(self, numbers: list[int]) -> list[bytes]:
        """Some of the tasks that there ever were, each once."""
        if not self.known:
            return []
        return list(dict.fromkeys(self.known[number % len(self.known)] for number in numbers))

    @stateful.rule(
        new=st.lists(st.tuples(st.integers(0, 9), st.floats(-2, 2), st.integers(1, 3)), max_size=4)
    )
    def accept(self, new: list[tuple[int, float, int]]) -> None:
        arrived = [journals.task(priority=p, tag=tag, items=items) for p, tag, items in new]
        for accepted in self.run(self.book.accept(arrived)):
            assert accepted is not None
            assert accepted.task is not None
            assert not accepted.repeated
            self.model.waiting[accepted.task_id] = accepted.task.without_payload()
            self.known.append(accepted.task_id)

    @stateful.rule(number=st.integers(0, 9))
    def accept_with_key(self, number: int) -> None:
        key = f"key {number}"
        (accepted,) = self.run(self.book.accept([journals.task(idempotency_key=key)]))
        assert accepted is not None
        held = [task for task in self.model.tasks.values() if task.idempotency_key == key]
        if held:
            assert (accepted.repeated, accepted.task, accepted.reply) == (True, held[0], None)
        elif key in self.model.ended_keys:
            assert (accepted.repeated, accepted.task_id) == (True, self.model.ended_keys[key])
            assert accepted.reply is not None
            assert accepted.reply.body == b"{}"
        else:
            assert not accepted.repeated
            assert accepted.task is not None
            self.model.waiting[accepted.task_id] = accepted.task.without_payload()
            self.known.append(accepted.task_id)

    @stateful.rule(numbers=some, attempts=st.booleans())
    def finish(self, numbers: list[int], attempts: bool) -> None:
        ids = self.pick(numbers)
        tasks = self.model.tasks
        ends = [
            records.Finished(
                task_id,
                [
                    journals.row(task_id, item)
                    for item in (
                        range(tasks[task_id].items_done, tasks[task_id].items) if task_id in tasks else [0]
                    )
                ],
                journals.reply(task_id),
                journals.end_of_attempt(task_id) if attempts else None,
            )
            for task_id in ids
        ]
        ended = self.run(self.book.finish(ends))
        assert ended == [task_id for task_id in ids if self.model.end(task_id)]
        rows = [
            Record("results", row.task_id, row.item)
            for end in ends
            if end.task_id in ended
            for row in end.rows
        ]
        self.model.append("results", rows + [Record("attempts", i) for i in ended if attempts])

    @stateful.rule(numbers=some)
    def checkpoint(self, numbers: list[int]) -> None:
        for task_id in self.pick(numbers):
            task = self.model.tasks.get(task_id)
            item = 0 if task is None else task.items_done
            part = records.Part(item, 0, None, f"{item}")
            reached = records.Checkpoint(task_id, item + 1, [journals.row(task_id, item)], part)
            here = task_id in self.model.waiting
            assert self.run(self.book.checkpoint(reached)) == here
            if here:
                assert task is not None
                self.model.waiting[task_id] = msgspec.structs.replace(task, items_done=item + 1)
                self.model.append("results", [Record("results", task_id, item)])

    @stateful.rule(numbers=some)
    def hand_over(self, numbers: list[int]) -> None:
        ids = self.pick(numbers)
        given = self.run(self.book.hand_over(ids))
        assert given == [task_id for task_id in ids if task_id in self.model.waiting]
        for task_id in given:
            task = self.model.waiting.pop(task_id)
            self.model.handed_over[task_id] = msgspec.structs.replace(task, holder=records.Holder.HUB)
        self.model.append("tasks", [Record("tasks", task_id) for task_id in given])

    @stateful.rule(numbers=some)
    def reclaim(self, numbers: list[int]) -> None:
        ids = self.pick(numbers)
        back = {task.task_id: task for task in self.run(self.book.reclaim(ids))}
        assert list(back) == [task_id for task_id in ids if task_id in self.model.handed_over]
        assert all(task.withdrawn for task in back.values())
        for task_id in back:
            del self.model.handed_over[task_id]
        self.model.waiting |= back

    @stateful.rule(numbers=some)
    def end_by_the_hub(self, numbers: list[int]) -> None:
        ids = self.pick(numbers)
        passed, done = self.model.cursor
        self.model.cursor = records.Cursor(passed + len(ids), done + len(ids))
        ends = [records.Returned(task_id, journals.reply(task_id)) for task_id in ids]
        ended = self.run(self.book.apply_returned(DOWN, self.model.cursor.cursor, len(ids), ends))
        assert ended == [task_id for task_id in ids if self.model.end(task_id)]

    @stateful.rule(numbers=some)
    def replied(self, numbers: list[int]) -> None:
        ids = self.pick(numbers)
        self.run(self.book.replied(ids))
        for task_id in ids:
            self.model.replies.pop(task_id, None)

    @stateful.rule(which=st.integers(0, 9), share=st.floats(0, 1))
    def acknowledge(self, which: int, share: float) -> None:
        lane = sorted(self.model.lanes)[which % len(self.model.lanes)]
        books = self.model.lanes[lane]
        count = round(share * len(books.records))
        self.run(self.book.acknowledged(lane, books.acked + count))
        del books.records[:count]
        books.acked += count
        if count and not books.records and lane != self.model.live(lane.name):
            del self.model.lanes[lane]

    @stateful.rule(name=st.sampled_from(["results", "tasks"]))
    def open_generation(self, name: str) -> None:
        live = self.model.live(name)
        fresh = self.run(self.book.open_generation(name))
        if self.model.lanes[live].records:
            assert fresh == lanes.Lane(name, live.generation + 1)
            self.model.lanes[fresh] = Books()
        else:
            assert fresh == live

    @stateful.rule()
    def new_epoch(self) -> None:
        before = self.book.epoch
        assert self.run(self.book.new_epoch()) == self.book.epoch != before
        for books in self.model.lanes.values():
            books.acked = 0
        self.model.cursor = records.Cursor(0, 0)

    @stateful.rule()
    def reopen(self) -> None:
        epoch = self.book.epoch
        self.close()
        self.open()
        assert self.book.epoch == epoch

    @stateful.rule()
    def kill(self) -> None:
        """Go on with the files as they are at this moment, as kill -9 would leave them."""
        self.run(self.book.flush())
        folder = Path(tempfile.mkdtemp(prefix="journal-"))
        for name in ("journal.db", "journal.db-wal", "journal.db-running"):
            shutil.copy(self.folders[-1] / name, folder)
        self.close()
        self.folders.append(folder)
        self.open()

    @stateful.invariant()
    def they_agree(self) -> None:
        self.run(self.agree())

    async def agree(self) -> None:
        model, book = self.model, self.book
        assert await book.lanes() == {lane: (b.numbered, b.acked) for lane, b in model.lanes.items()}
        order = sorted(model.waiting.values(), key=lambda task: (-task.priority, task.tag, task.seq))
        assert await book.waiting(1000) == order
        away = await book.waiting(1000, holder=records.Holder.HUB)
        assert {task.task_id: task for task in away} == model.handed_over
        replies = await book.unreplied(1000)
        assert {reply.task_id: reply.body for reply in replies} == model.replies
        cursors = await book.cursors()
        assert cursors.get(DOWN, records.Cursor(0, 0)) == model.cursor
        counts = await book.counts()
        assert sum(counts.waiting_items.values()) == sum(task.items_left for task in model.waiting.values())
        for task in model.tasks.values():
            parts = await book.parts(task.task_id)
            assert [part.items for part in parts] == [str(item) for item in range(task.items_done)]
        assert counts.to_sync == sum(len(books.records) for books in model.lanes.values())
        for lane, books in model.lanes.items():
            found = []
            for batch in await journals.sent(book, lane, books.acked, max_rows=7):
                for row in journals.rows_of([batch]):
                    found.append(Record(batch.kind.name, row["task_id"], row.get("item", 0)))
                    if batch.kind.name == "tasks":
                        assert (row["payload"] is not None) == (row["task_id"] in model.handed_over)
            assert found == [
                record._replace(item=0) if record.kind == "tasks" else record for record in books.records
            ]


def _explore(examples: int, steps: int) -> None:
    stateful.run_state_machine_as_test(
        Journals,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_journal_does_what_the_model_does() -> None:
    """Accept, checkpoint, finish, hand over, take back, acknowledge, new lanes and epochs, restarts and
    kills, in any order: the journal holds exactly what the model holds, in the same order and numbers."""
    _explore(examples=20, steps=20)


@pytest.mark.soak
def test_the_journal_does_what_the_model_does_for_long() -> None:
    """The same, with many more and longer stories."""
    _explore(examples=600, steps=60)

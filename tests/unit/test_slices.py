"""Tasks of many items: run slice by slice, committed on the way, stopped between slices, and gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent import clock, engine, models, runner, runtime, settings, slices, window
from edge_agent.journal import journal, records
from shared import jobs, lanes, tasks
from tests import models as packages
from tests.unit import journals

PATIENCE_S = 10.0
MAX_BATCH = 2
ITEMS = 10


class Model:
    """Gives back the number that an item is. Once it is held, each of its runs waits for a permit."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.fails_on: set[int] = set()
        self.held = False
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)

    def __call__(self, batch: runtime.Batch) -> Sequence[runtime.Array]:
        numbers = [int(number) for number in batch["window"][:, 0]]
        if self.held:
            self._arrived.release()
            assert self._permits.acquire(timeout=PATIENCE_S)
        if self.fails_on.intersection(numbers):
            raise RuntimeError("it jammed")
        self.ran += numbers
        return [batch["window"].mean(axis=1, keepdims=True)]

    async def at_work(self) -> None:
        """Wait until one more run waits for its permit."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=PATIENCE_S)

    def go_on(self, runs: int = 1) -> None:
        self._permits.release(runs)

    def let_go(self) -> None:
        self.held = False
        self._permits.release(100)


class Site:
    """An executor with its journal; `model` is all it runs."""

    def __init__(self, book: journal.Journal, folder: Path, policy: settings.Engine, *, syncs: bool) -> None:
        self.book = book
        self.model = Model()
        self.finished: asyncio.Queue[records.Finished] = asyncio.Queue()
        catalogue = models.Catalogue()
        self.machine = engine.Engine(
            catalogue, opener=lambda model, order: runtime.CallableRuntime(self.model)
        )
        extra = f"[batching]\nmax_batch = {MAX_BATCH}\nmax_delay_ms = 0"
        package = folder / "numbers"
        if not package.exists():
            packages.write_scorer(package, name="numbers", extra=extra)
        self.machine.load(models.load(package))
        self.model.ran.clear()
        self.window = window.Window(book, catalogue, policy, {})
        self.runner = runner.Runner(
            book, self.machine, self.window, clock.Offset(), "site", 1, self._on_finished, syncs=syncs
        )

    def _on_finished(self, finished: Sequence[records.Finished]) -> None:
        for one in finished:
            self.finished.put_nowait(one)

    async def job(self, items: int = ITEMS, **fields: Any) -> records.Task:
        """A device's task, accepted and offered."""
        task = await journals.accept(self.book, **work(items), **fields)
        self.runner.offer([task])
        return task

    async def lease(self, task_id: bytes, attempt: int = 1, items: int = ITEMS, **columns: Any) -> None:
        """A lease, as the uplink takes it."""
        last = (await self.book.cursors()).get(journals.LEASES, records.Cursor(0, 0)).cursor + 1
        batch = journals.leases([task_id], attempt=attempt, **(work(items) | {"version": None} | columns))
        taken = await self.book.apply_leases(
            journals.LEASES, last, batch, stamp=lambda model, queue, items: 0.0, accepted_us=clock.wall_us()
        )
        self.runner.renew(taken.renewed)
        self.runner.offer(taken.new)

    async def end(self) -> records.Finished:
        async with asyncio.timeout(PATIENCE_S):
            return await self.finished.get()

    async def rows(self) -> list[dict[str, Any]]:
        """The result rows on the lane."""
        return [row for row in await self._sent() if "item" in row]

    async def attempts(self) -> list[tuple[int, str, int]]:
        """Ends of attempts on the lane: number, state, items done."""
        return [
            (row["attempt"], row["state"], row["items_done"]) for row in await self._sent() if "state" in row
        ]

    async def _sent(self) -> list[dict[str, Any]]:
        return journals.rows_of(await journals.sent(self.book, journals.RESULTS))


def work(items: int) -> dict[str, Any]:
    """A payload of numbers from 0 on, each an item."""
    data = [number for number in range(items) for _ in range(4)]
    tensor = {"name": "window", "shape": [items, 4], "datatype": "FP32", "data": data}
    payload = json.dumps({"inputs": [tensor]}).encode()
    return {"model": "numbers", "content_type": jobs.JSON, "payload": payload, "items": items}


@contextlib.asynccontextmanager
async def site(
    folder: Path, policy: settings.Engine | None = None, *, syncs: bool = True, stop: bool = True
) -> AsyncIterator[Site]:
    """A site that runs; at the end nothing may be left of what came."""
    async with journals.opened(folder / "state", now_us=clock.wall_us) as book:
        one = Site(book, folder, policy or settings.Engine(), syncs=syncs)
        one.window.recover(await book.counts())
        running = asyncio.create_task(one.runner.run())
        try:
            yield one
            async with asyncio.timeout(PATIENCE_S):
                if stop:
                    await one.runner.stop()
                    assert (one.window.tasks_total, one.window.device_items) == (0, 0)
                    assert set(one.window.items.values()) <= {0}
        finally:
            one.model.let_go()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            one.machine.close()


def whole(end: records.Finished, state: str = "COMPLETED") -> None:
    """A reply that says what became of all items."""
    assert end.reply is not None
    said = json.loads(end.reply.body)
    assert said["state"] == state
    assert [(item["item"], item.get("score")) for item in said["items"]] == [(n, n) for n in range(ITEMS)]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are committed after every second slice."""
    monkeypatch.setattr(slices, "COMMIT_ITEMS", 2 * MAX_BATCH)


async def test_rows_leave_while_the_task_runs(tmp_path: Path) -> None:
    """The rows of the first slices are on the lane, with the checkpoint behind them, before the last ran."""
    async with site(tmp_path) as one:
        one.model.held = True
        task = await one.job()
        one.model.go_on(2)
        for _ in range(3):
            await one.model.at_work()
        assert [row["item"] for row in await one.rows()] == [0, 1, 2, 3]
        assert (await one.book.find([task.task_id]))[task.task_id].items_done == 4
        assert (await one.book.counts()).waiting_items == {("numbers", 5): ITEMS - 4}
        one.model.let_go()
        whole(await one.end())
        assert [row["item"] for row in await one.rows()] == list(range(ITEMS))
        assert one.runner.counts["items"] == ITEMS


async def test_a_task_of_one_batch_is_one_commit(tmp_path: Path) -> None:
    """A task that fits into a batch costs the journal what it always did: its acceptance and its end."""
    async with site(tmp_path) as one:
        before = one.book.counters.commits
        await one.job(MAX_BATCH)
        await one.end()
        assert one.book.counters.commits == before + 2


async def test_a_fast_model_commits_with_its_last_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices are grouped: a task that is done before a commit is due has one, with its end."""
    monkeypatch.setattr(slices, "COMMIT_ITEMS", 1024)
    async with site(tmp_path) as one:
        before = one.book.counters.commits
        await one.job()
        whole(await one.end())
        assert one.book.counters.commits == before + 2


@pytest.mark.parametrize("syncs", [True, False], ids=["with a hub", "alone"])
async def test_a_killed_agent_goes_on_from_the_checkpoint(tmp_path: Path, syncs: bool) -> None:
    """After kill -9 the items before the checkpoint do not run again, and the reply has them all the same;
    a site that stands alone keeps no rows."""
    async with site(tmp_path, syncs=syncs, stop=False) as one:
        one.model.held = True
        await one.job()
        one.model.go_on(3)
        for _ in range(4):
            await one.model.at_work()
        left = tmp_path / "left" / "state"
        left.mkdir(parents=True)
        for name in ("journal.db", "journal.db-wal", "journal.db-running"):
            shutil.copy(tmp_path / "state" / name, left)
    async with site(tmp_path / "left", syncs=syncs) as one:
        whole(await one.end())
        assert one.model.ran == list(range(4, ITEMS))
        assert [row["item"] for row in await one.rows()] == (list(range(ITEMS)) if syncs else [])
    assert journals.peek(left, "SELECT (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM parts)") == [
        (0, 0)
    ]


async def test_a_lease_begins_at_its_checkpoint(tmp_path: Path) -> None:
    """Items that the hub has are not run; the rows are those from there on, and the task is complete."""
    task_id = tasks.new_id()
    async with site(tmp_path) as one:
        await one.lease(task_id, attempt=3, items_done=7)
        await one.end()
        assert one.model.ran == [7, 8, 9]
        assert [(row["item"], row["attempt"]) for row in await one.rows()] == [(7, 3), (8, 3), (9, 3)]
        assert await one.attempts() == [(3, "COMPLETED", ITEMS)]


async def test_a_lease_of_which_all_is_done_completes(tmp_path: Path) -> None:
    """If only the word that it is complete was lost, nothing runs and the word is said again."""
    async with site(tmp_path) as one:
        await one.lease(tasks.new_id(), items_done=ITEMS)
        await one.end()
        assert one.model.ran == []
        assert await one.attempts() == [(1, "COMPLETED", ITEMS)]


async def test_what_goes_on_shares_no_batch(tmp_path: Path) -> None:
    """A task with a checkpoint and one item left runs beside others of its model, and each gets its own."""
    async with site(tmp_path) as one:
        one.model.held = True
        await one.job(1)
        await one.model.at_work()
        await one.lease(tasks.new_id(), items_done=ITEMS - 1)
        await one.job(1)
        one.model.let_go()
        for _ in range(3):
            await one.end()
        assert sorted(one.model.ran) == [0, 0, ITEMS - 1]
        assert sorted(row["score"] for row in await one.rows()) == [0, 0, ITEMS - 1]


async def test_preempted_while_it_runs(tmp_path: Path) -> None:
    """It stops after the slice that runs, and what was done goes up with the checkpoint; the next lease goes
    on from there, and no item has run twice."""
    task_id = tasks.new_id()
    async with site(tmp_path) as one:
        one.model.held = True
        await one.lease(task_id)
        one.model.go_on(2)
        for _ in range(3):
            await one.model.at_work()
        assert await one.runner.stop_task(task_id, slices.Stop.PREEMPT, 1)
        one.model.let_go()
        end = await one.end()
        assert end.attempt is not None
        assert (end.attempt.state, end.attempt.items_done) == ("QUEUED", 6)
        await one.lease(task_id, attempt=2, items_done=6)
        await one.end()
        assert one.model.ran == list(range(ITEMS))
        assert [row["item"] for row in await one.rows()] == list(range(ITEMS))
        assert await one.attempts() == [(1, "QUEUED", 6), (2, "COMPLETED", ITEMS)]


@pytest.mark.parametrize("room", [10, 1], ids=["in the window", "in the journal alone"])
@pytest.mark.parametrize("wish", [slices.Stop.PREEMPT, slices.Stop.CANCEL])
async def test_stopped_while_it_waits(tmp_path: Path, room: int, wish: runner.Wish) -> None:
    """A task that waits is put back or cancelled at once, wherever it waits, and never runs."""
    async with site(tmp_path, settings.Engine(window=room)) as one:
        one.model.held = True
        await one.job(1)
        await one.model.at_work()
        first, second = tasks.new_id(), tasks.new_id()
        await one.lease(first, items=1, items_done=0)
        await one.lease(second, attempt=4, items_done=3)
        assert (second in one.window) == (room > 1)
        assert await one.runner.stop_task(second, wish, 4)
        end = await one.end()
        assert end.task_id == second
        state = "QUEUED" if wish is slices.Stop.PREEMPT else "TERMINATED"
        assert await one.attempts() == [(4, state, 3)]
        one.model.let_go()
        for _ in range(2):
            await one.end()
        assert one.model.ran == [0, 0]


async def test_a_batch_that_runs_is_not_cut(tmp_path: Path) -> None:
    """A preemption lets a task that is whole in its batch come to its end."""
    task_id = tasks.new_id()
    async with site(tmp_path) as one:
        one.model.held = True
        await one.lease(task_id, items=MAX_BATCH)
        await one.model.at_work()
        assert await one.runner.stop_task(task_id, slices.Stop.PREEMPT, 1)
        one.model.let_go()
        await one.end()
        assert await one.attempts() == [(1, "COMPLETED", MAX_BATCH)]


async def test_a_word_about_another_attempt_is_for_nobody(tmp_path: Path) -> None:
    """Neither the wrong number, nor none, nor an unknown task, nor a device's own is preempted."""
    task_id = tasks.new_id()
    async with site(tmp_path) as one:
        one.model.held = True
        own = await one.job()
        await one.model.at_work()
        await one.lease(task_id, attempt=2)
        for wrong, attempt in ((task_id, 1), (task_id, None), (tasks.new_id(), 2), (own.task_id, 0)):
            assert not await one.runner.stop_task(wrong, slices.Stop.PREEMPT, attempt)
        assert not await one.runner.stop_task(task_id, slices.Stop.CANCEL, 1)
        one.model.let_go()
        whole(await one.end())
        await one.end()
        assert await one.attempts() == [(2, "COMPLETED", ITEMS)]


@pytest.mark.parametrize("runs", [True, False], ids=["while it runs", "while it waits"])
async def test_a_newer_lease_replaces_the_older(tmp_path: Path, runs: bool) -> None:
    """The task runs once, and says its newest number from then on; it is counted once."""
    task_id = tasks.new_id()
    async with site(tmp_path) as one:
        one.model.held = True
        if not runs:
            await one.job(1)
            await one.model.at_work()
        await one.lease(task_id)
        if runs:
            one.model.go_on(1)
            await one.model.at_work()
            await one.model.at_work()
        await one.lease(task_id, attempt=2)
        assert [(lease.task_id, lease.attempt) for lease in one.runner.leases()] == [(task_id, 2)]
        assert one.window.tasks_total == (1 if runs else 2)
        one.model.let_go()
        for _ in range(1 if runs else 2):
            await one.end()
        assert sorted(one.model.ran) == sorted([*range(ITEMS), *([] if runs else [0])])
        leased = [row for row in await one.rows() if row["task_id"] == task_id]
        assert [row["item"] for row in leased] == list(range(ITEMS))
        assert {row["attempt"] for row in leased[4:]} == {2}
        assert await one.attempts() == [(2, "COMPLETED", ITEMS)]


async def test_a_newer_lease_overtakes_the_end_of_the_older(tmp_path: Path) -> None:
    """An attempt that is put back when its task was leased anew says nothing: the task runs under the new."""
    task_id = tasks.new_id()
    async with site(tmp_path) as one:
        one.model.held = True
        await one.lease(task_id)
        await one.model.at_work()
        finish = one.book.finish
        once = asyncio.Event()

        async def late(finished: Sequence[records.Finished]) -> list[bytes]:
            if not once.is_set():
                once.set()
                await one.lease(task_id, attempt=2)
            return await finish(finished)

        one.book.finish = late  # type: ignore[method-assign]
        assert await one.runner.stop_task(task_id, slices.Stop.PREEMPT, 1)
        one.model.let_go()
        await one.end()
        assert await one.attempts() == [(2, "COMPLETED", ITEMS)]
        assert [row["item"] for row in await one.rows()] == list(range(ITEMS))


async def test_a_deadline_that_passes_while_it_runs(tmp_path: Path) -> None:
    """A device's task ends as expired: what was done counts, the rest are expired, in rows and reply."""
    async with site(tmp_path) as one:
        one.model.held = True
        await one.job(deadline_ms=300, accepted_us=clock.wall_us())
        one.model.go_on(2)
        for _ in range(3):
            await one.model.at_work()
        await asyncio.sleep(0.35)  # the deadline itself
        one.model.let_go()
        end = await one.end()
        assert end.reply is not None
        said = json.loads(end.reply.body)
        assert (said["state"], said["reason"]) == ("TERMINATED", "expired")
        outcomes = ["ok"] * 6 + ["expired"] * 4
        assert [item["outcome"] for item in said["items"]] == outcomes
        assert [row["outcome"] for row in await one.rows()] == outcomes


async def test_a_lease_whose_deadline_passes_while_it_runs(tmp_path: Path) -> None:
    """The hub hears how far it came; what became of the other items it says itself."""
    async with site(tmp_path) as one:
        one.model.held = True
        await one.lease(tasks.new_id(), deadline_ms=200)
        await one.model.at_work()
        await asyncio.sleep(0.25)  # the deadline itself
        one.model.let_go()
        await one.end()
        assert await one.attempts() == [(1, "TERMINATED", 2)]
        assert [row["outcome"] for row in await one.rows()] == ["ok", "ok"]


async def test_an_attempt_that_takes_too_long(tmp_path: Path) -> None:
    """A device's task tries again from where it came, with a time-out of its own for each attempt; the last
    one fails the items that are left."""
    async with site(tmp_path) as one:
        one.model.held = True
        await one.job(timeout_ms=100, max_attempts=2)
        for _ in range(2):
            await one.model.at_work()
            await asyncio.sleep(0.15)  # the time-out itself
            one.model.go_on()
        end = await one.end()
        assert end.reply is not None
        said = json.loads(end.reply.body)
        assert [item["outcome"] for item in said["items"]] == ["ok"] * 4 + ["failed"] * 6
        assert "timeout_ms" in said["items"][-1]["error"]
        assert one.model.ran == [0, 1, 2, 3]
        assert [row["attempt"] for row in await one.rows()] == [0, 0] + [1] * 8


async def test_a_lease_that_takes_too_long(tmp_path: Path) -> None:
    """The hub hears of a failure that another attempt may mend, and of the checkpoint."""
    async with site(tmp_path) as one:
        one.model.held = True
        await one.lease(tasks.new_id(), timeout_ms=100)
        await one.model.at_work()
        await asyncio.sleep(0.15)  # the time-out itself
        one.model.let_go()
        await one.end()
        assert await one.attempts() == [(1, "FAILED", 2)]


@pytest.mark.parametrize("leased", [True, False], ids=["the hub's", "a device's"])
async def test_an_item_on_which_the_model_fails(tmp_path: Path, leased: bool) -> None:
    """The items before it are done. A device's task goes on from it, and fails that item alone at the last
    try; of the hub's the hub decides."""
    async with site(tmp_path) as one:
        one.model.fails_on = {5}
        if leased:
            await one.lease(tasks.new_id())
            await one.end()
            assert await one.attempts() == [(1, "FAILED", 5)]
            assert [row["item"] for row in await one.rows()] == [0, 1, 2, 3, 4]
        else:
            await one.job(max_attempts=2)
            end = await one.end()
            assert end.reply is not None
            said = json.loads(end.reply.body)
            failed = [item["item"] for item in said["items"] if item["outcome"] == "failed"]
            assert (said["state"], failed) == ("COMPLETED", [5])
            assert [row["item"] for row in await one.rows()] == list(range(ITEMS))
            assert one.runner.counts["items"] == ITEMS


async def test_a_task_whose_every_item_failed_in_slices(tmp_path: Path) -> None:
    """It is a dead letter, though most of its failures are in earlier commits."""
    async with site(tmp_path) as one:
        one.model.fails_on = set(range(ITEMS))
        await one.job(max_attempts=1)
        end = await one.end()
        assert end.reply is not None
        said = json.loads(end.reply.body)
        assert (said["state"], said["reason"], len(said["items"])) == ("TERMINATED", "not_retriable", ITEMS)


@pytest.mark.parametrize("leased", [True, False], ids=["the hub's", "a device's"])
async def test_a_graceful_stop_keeps_the_checkpoint(tmp_path: Path, leased: bool) -> None:
    """It stops at an item boundary: the hub's task is put back, a device's goes on at the next start."""
    async with site(tmp_path, stop=False) as one:
        one.model.held = True
        task_id = tasks.new_id()
        await (one.lease(task_id) if leased else one.job())
        await one.model.at_work()
        stopping = asyncio.create_task(one.runner.stop())
        await asyncio.sleep(0)
        one.model.go_on()
        async with asyncio.timeout(PATIENCE_S):
            await stopping
        assert [row["item"] for row in await one.rows()] == [0, 1]
        assert await one.attempts() == ([(1, "QUEUED", 2)] if leased else [])
    async with site(tmp_path) as one:
        if not leased:
            whole(await one.end())
            assert one.model.ran == list(range(2, ITEMS))
        assert (await one.book.counts()).waiting == 0


async def test_a_task_that_the_hub_ended_meanwhile_stops(tmp_path: Path) -> None:
    """The hub's result came first: no more of its slices run, and nothing more is said of it."""
    async with site(tmp_path) as one:
        one.model.held = True
        task = await one.job()
        one.model.go_on(1)
        await one.model.at_work()
        await one.model.at_work()
        await one.book.apply_returned(lanes.Lane("results"), 1, 1, [records.Returned(task.task_id)])
        one.model.let_go()
        async with asyncio.timeout(PATIENCE_S):
            await one.runner.stop()
        assert one.finished.empty()
        assert one.model.ran == [0, 1, 2, 3]
        assert await one.rows() == []


async def test_a_lease_lives_by_the_items_of_its_own_task(tmp_path: Path) -> None:
    """A task that runs slice by slice reports what it has done itself, its checkpoint with it, and for how
    long the slice has run; one that waits lives by the agent's work."""
    runs, waits = tasks.new_id(), tasks.new_id()
    async with site(tmp_path) as one:
        one.model.held = True
        await one.lease(runs, items_done=2)
        await one.model.at_work()
        await one.lease(waits, attempt=5, items_done=1)
        began = time.monotonic()
        first = {lease.task_id: lease for lease in one.runner.leases()}
        one.model.go_on()
        await one.model.at_work()
        second = {lease.task_id: lease for lease in one.runner.leases()}
        assert (first[runs].progress, first[runs].done, second[runs].done) == (0, 2, 4)
        assert (second[runs].progress, second[waits].progress) == (2, 2)
        assert (second[waits].attempt, second[waits].done, second[waits].running_s) == (5, 1, 0.0)
        await asyncio.sleep(0.05)
        (late,) = [lease.running_s for lease in one.runner.leases() if lease.task_id == runs]
        assert 0.05 <= late <= time.monotonic() - began
        one.model.let_go()
        for _ in range(2):
            await one.end()


async def test_leases_are_known_again_after_a_restart(tmp_path: Path) -> None:
    """The heartbeats of an agent that was killed name the leases that wait in its journal."""
    task_id = tasks.new_id()
    async with journals.opened(tmp_path / "state") as book:
        batch = journals.leases([task_id], attempt=3, **(work(ITEMS) | {"version": None}))
        await journals.take_leases(book, 1, batch)
    async with site(tmp_path) as one:
        one.model.held = True
        await one.model.at_work()
        assert [(lease.task_id, lease.attempt) for lease in one.runner.leases()] == [(task_id, 3)]
        one.model.let_go()
        await one.end()


async def test_our_own_task_leased_to_us_goes_back_whole(tmp_path: Path) -> None:
    """Preempted, a task of our own device's stays in the journal for the hub's result; leased to us again it
    goes on from what it has here, for its reply needs all items."""
    async with site(tmp_path) as one:
        task = await journals.accept(one.book, **work(ITEMS))
        await one.book.hand_over([task.task_id])
        one.model.held = True
        await one.lease(task.task_id)
        one.model.go_on(2)
        for _ in range(3):
            await one.model.at_work()
        assert await one.runner.stop_task(task.task_id, slices.Stop.PREEMPT, 1)
        one.model.let_go()
        assert (await one.end()).given_back
        (away,) = await one.book.waiting(10, holder=records.Holder.HUB)
        assert msgspec.structs.replace(away, payload=None).task_id == task.task_id
        await one.lease(task.task_id, attempt=2, items_done=8)  # 6 and 7 were done elsewhere
        whole(await one.end())
        assert await one.attempts() == [(1, "QUEUED", 6), (2, "COMPLETED", ITEMS)]


async def test_short_jobs_do_not_wait_for_a_long_one(tmp_path: Path) -> None:
    """Between two slices all that is more urgent runs, then one batch of the same priority; what is less
    urgent waits for the end."""
    async with site(tmp_path) as one:
        one.model.held = True
        await one.job(priority=5)
        await one.model.at_work()
        for priority in (5, 5, 5, 5, 1, 9, 9, 9, 9):
            await one.job(1, priority=priority)
        one.model.let_go()
        for _ in range(10):
            await one.end()
        urgent, same, less = [0, 0, 0, 0], [0, 0], [0]
        assert one.model.ran == [0, 1, *urgent, *same, 2, 3, *same, *range(4, ITEMS), *less]


async def test_a_long_task_gives_way_to_a_more_urgent_one(tmp_path: Path) -> None:
    """Of two long tasks the urgent one runs through; the other goes on after it, from where it was."""
    async with site(tmp_path) as one:
        one.model.held = True
        slow = await one.job(priority=2)
        await one.model.at_work()
        urgent = await one.job(priority=7)
        one.model.let_go()
        assert [(await one.end()).task_id for _ in range(2)] == [urgent.task_id, slow.task_id]
        assert one.model.ran == [0, 1, *range(ITEMS), *range(2, ITEMS)]

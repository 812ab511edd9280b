"""Models that do not all fit into memory, on an executor that has work for each of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from edge_agent import clock, engine, models, reloads, room, runner, runtime, settings, slices, window
from edge_agent.journal import journal, records
from shared import jobs
from tests import models as packages
from tests.unit import journals

PATIENCE_S = 10.0
RUN_S = 0.005


def slowly(batch: runtime.Batch) -> Sequence[runtime.Array]:
    """A graph that takes its time."""
    time.sleep(RUN_S)
    return [batch["window"].mean(axis=1, keepdims=True)]


class Site:
    """An executor of one thread that serves models of which one is in memory at a time."""

    def __init__(self, book: journal.Journal, folder: Path, names: Sequence[str]) -> None:
        self.book = book
        self.finished: asyncio.Queue[records.Finished] = asyncio.Queue()
        catalogue = models.Catalogue()
        self.machine = engine.Engine(
            catalogue,
            opener=lambda model, order: runtime.CallableRuntime(slowly),
            limits=room.Limits(max_models=1),
        )
        for name in names:
            package = packages.write_scorer(
                folder / name, name=name, extra="[batching]\nmax_batch = 1\nmax_delay_ms = 0"
            )
            self.machine.load(models.load(package))
        self.reloads = reloads.Reloads(self.machine, PATIENCE_S, lambda: self.runner.wake())
        self.window = window.Window(
            book, catalogue, settings.Engine(), {}, self.machine.sizing, self.reloads.away
        )
        self.runner = runner.Runner(
            book, self.machine, self.window, clock.Offset(), "site", 1, self._on_finished
        )

    def _on_finished(self, finished: Sequence[records.Finished]) -> None:
        for one in finished:
            self.finished.put_nowait(one)

    async def jobs(self, model: str, count: int, items: int = 1, priority: int = 5) -> list[bytes]:
        tensor = {"name": "window", "shape": [items, 4], "datatype": "FP32", "data": [4] * 4 * items}
        arrived = [
            journals.task(
                json.dumps({"inputs": [tensor]}).encode(),
                model=model,
                content_type=jobs.JSON,
                items=items,
                priority=priority,
            )
            for _ in range(count)
        ]
        taken = [one.task for one in await self.book.accept(arrived) if one is not None and one.task]
        self.runner.offer(taken)
        return [task.task_id for task in taken]

    async def end(self) -> records.Finished:
        async with asyncio.timeout(PATIENCE_S):
            return await self.finished.get()


@contextlib.asynccontextmanager
async def site(folder: Path, *names: str) -> AsyncIterator[Site]:
    async with journals.opened(folder / "state", now_us=clock.wall_us) as book:
        one = Site(book, folder, names)
        running = [asyncio.create_task(work) for work in (one.runner.run(), one.reloads.run())]
        try:
            yield one
            async with asyncio.timeout(PATIENCE_S):
                await one.runner.stop()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            one.machine.close()


def outcomes_of(end: records.Finished) -> list[str]:
    assert end.reply is not None
    return [item["outcome"] for item in json.loads(end.reply.body)["items"]]


async def test_a_model_whose_work_never_ends_makes_room(tmp_path: Path) -> None:
    """It always has a batch that runs, and one that comes next: more urgent work of another model has a turn
    all the same, and no attempt fails for want of memory."""
    async with site(tmp_path, "b", "a") as one:
        await one.jobs("a", 200)
        await one.end()
        (urgent,) = await one.jobs("b", 1, priority=9)
        ends = [await one.end() for _ in range(200)]
    assert [end.task_id for end in ends].index(urgent) < 150
    assert all(outcomes_of(end) == ["ok"] for end in ends)


async def test_a_long_task_makes_room_between_two_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model's short job does not wait for its end; then it goes on from its checkpoint."""
    monkeypatch.setattr(slices, "COMMIT_S", 0.05)
    async with site(tmp_path, "b", "a") as one:
        (long,) = await one.jobs("a", 1, items=200)
        (short,) = await one.jobs("b", 1)
        ends = [await one.end() for _ in range(2)]
    assert [end.task_id for end in ends] == [short, long]
    assert outcomes_of(ends[0]) == ["ok"]
    assert outcomes_of(ends[1]) == ["ok"] * 200


async def test_who_is_called_back_stays_until_it_has_run(tmp_path: Path) -> None:
    """Another one that is called back at the same time does not push it out before."""
    async with site(tmp_path, "a", "b", "c") as one:
        assert one.machine.models.wake(models.Key("a", "1.0.0"))
        with pytest.raises(room.NoRoom):
            one.machine.models.wake(models.Key("b", "1.0.0"))


async def test_a_model_that_comes_anew_waits_for_what_runs(tmp_path: Path) -> None:
    """A new version is loaded beside work that never ends."""
    async with site(tmp_path, "a") as one:
        await one.jobs("a", 200)
        await one.end()
        newer = packages.write_scorer(tmp_path / "newer", name="newer")
        await asyncio.to_thread(one.machine.load, models.load(newer))
        assert one.window.tasks_total
        ends = [await one.end() for _ in range(199)]
    assert all(outcomes_of(end) == ["ok"] for end in ends)

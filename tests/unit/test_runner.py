"""The executor: what it does when the journal and its memory disagree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from edge_agent import clock, engine, models, runner, settings, window
from edge_agent.journal import records
from tests import models as packages
from tests.unit import journals

PATIENCE_S = 10.0


async def test_a_task_that_left_the_journal_while_it_waited_is_dropped(tmp_path: Path) -> None:
    """The hub's result for it came first, and its payload is gone: the executor goes on with the next."""
    catalogue = models.Catalogue()
    machine = engine.Engine(catalogue)
    machine.load(models.load(packages.write_classifier(tmp_path / "surface", name="surface")))
    ended: asyncio.Queue[bytes] = asyncio.Queue()

    def on_finished(finished: Sequence[records.Finished]) -> None:
        for one in finished:
            ended.put_nowait(one.task_id)

    async with journals.opened(tmp_path / "state") as book:
        waiting = window.Window(book, catalogue, settings.Engine(window_bytes=1), {})
        executor = runner.Runner(book, machine, waiting, clock.Offset(), "site", 1, on_finished)
        gone, stays = [await journals.accept(book, payload=packages.png(200)) for _ in range(2)]
        executor.offer([gone, stays])
        await book.finish([journals.finished(gone.task_id)])
        running = asyncio.create_task(executor.run())
        async with asyncio.timeout(PATIENCE_S):
            assert await ended.get() == stays.task_id
            await executor.stop()
        assert waiting.tasks_total == 0
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    machine.close()

"""Runs what waits: the window says what is next, threads run it, the journal takes the outcome.

    window -> engine (threads) -> finisher -> journal, then replies

A task leaves the books only with the commit that holds its rows and its reply, so a crash anywhere
runs it again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from edge_agent import clock, engine, models, outcomes, verdicts, window
from edge_agent.journal import journal, records
from shared import tasks

log: Final = logging.getLogger(__name__)

CRASHES: Final = 3
"""A task that was running when the agent died so often is set aside: it may be what kills it."""
FINISHING: Final = 512
"""Finished tasks that wait for their commit, at most: then the engine waits too."""

DEADLINE_LOOK_S: Final = 0.05
"""While tasks wait, passed deadlines are looked for this often; no batch is formed with one anyway."""

_Result = Sequence[outcomes.Outcome] | None
"""The outcomes of a task's items; None if it was cancelled between two of them."""


class Runner:
    """The agent's executor: tasks of its devices and of the hub alike."""

    def __init__(
        self,
        book: journal.Journal,
        machine: engine.Engine,
        waiting: window.Window,
        offset: clock.Offset,
        site: str,
        threads: int,
        on_finished: Callable[[Sequence[records.Finished]], None],
        *,
        syncs: bool = True,
    ) -> None:
        """`on_finished` is told of tasks whose end is committed, unless the hub's result came before. Without
        `syncs`, for a site that stands alone, the reply is all that remains of a task: its rows have nowhere
        to go, and would fill the disk."""
        self._journal = book
        self._engine = machine
        self._window = waiting
        self._offset = offset
        self._site = site
        self._threads = threads
        self._on_finished = on_finished
        self._syncs = syncs
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._cancelled: set[bytes] = set()
        self._finishing: asyncio.Queue[records.Finished] = asyncio.Queue(FINISHING)
        self._stopping = False
        self._unfinished = 0
        """Tasks taken from the window whose end is not committed."""
        self._quiet = asyncio.Event()
        self._turns = asyncio.Event()
        self._ends = asyncio.Event()
        self._leases: dict[bytes, tuple[int, int | None]] = {}
        """Of each task of the hub: its attempt, and the items done once it runs."""
        self._busy = 0
        """Batches that run, or wait for their thread."""
        self.running = 0
        self.counts: Counter[str] = Counter()

    def offer(self, arrived: Iterable[records.Task]) -> None:
        """Tasks that the journal has committed and that are to run here."""
        for task in arrived:
            if task.origin is records.Origin.HUB:
                self._leases[task.task_id] = (task.attempt, None)
            self._window.offer([task])
        self.wake()

    def cancel(self, task_id: bytes) -> bool:
        """End a task at the next item boundary; False if it is not here."""
        if task_id not in self._window:
            return False
        self._cancelled.add(task_id)
        self._ends.set()
        return True

    def forget(self, task_id: bytes) -> None:
        """The task ended elsewhere: do not start it. If it runs already, its rows will be shadows."""
        if self._window.remove(task_id):
            self._window.ended(task_id)

    def wake(self) -> None:
        """Something changed that decides what may run."""
        self._turns.set()
        self._ends.set()

    def leases(self) -> Iterator[tuple[bytes, int, int]]:
        """(task id, attempt, progress) of the hub's tasks here.

        Progress counts items: of the task once it runs, of the whole agent while it waits its turn, so
        that a lease is kept alive by work and by nothing else.
        """
        done = self.counts["items"]
        for task_id, (attempt, own) in self._leases.items():
            yield task_id, attempt, done if own is None else done + own

    async def run(self) -> None:
        """Run what waits until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                # One batch more than threads: while one runs, the next is handed to the pool.
                for number in range(self._threads + 1):
                    group.create_task(self._run_turns(), name=f"runner: turns {number}")
                group.create_task(self._end_what_waits(), name="runner: deadlines")
                group.create_task(self._finish(), name="runner: finish")
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def stop(self) -> None:
        """Let what runs come to its end and its commit. Of what has not started, the hub's tasks are put
        back, for others to run, and the devices' stay in the journal."""
        self._stopping = True
        for task in self._window.take_leased():
            self._unfinished += 1
            await self._finishing.put(verdicts.put_back(task))
        while self._unfinished:
            self._quiet.clear()
            await self._quiet.wait()

    # What is next

    async def _run_turns(self) -> None:
        while True:
            turn = await self._next_turn()
            self._unfinished += len(turn.tasks)
            try:
                results, run = await self._run(turn)
            finally:
                self._busy -= 1
                self._turns.set()  # the next batch may go while this one's ends are written
            for task, result in results:
                await self._judge(task, result, run)

    async def _next_turn(self) -> window.Turn:
        while True:
            self._turns.clear()
            if not self._stopping:
                if self._window.wants_more:
                    await self._window.refill()
                ahead = self._busy >= self._threads
                turn = self._window.take(ahead=ahead)
                if turn is not None:
                    self._busy += 1
                    return turn
                await _wait(self._turns, None if ahead else self._window.wake_at())
            else:
                await self._turns.wait()

    async def _end_what_waits(self) -> None:
        """Deadlines that pass and words to cancel end a task before a batch is formed with it."""
        while True:
            self._ends.clear()
            for task in self._window.expired():
                await self._terminate(task, tasks.Reason.EXPIRED, "the deadline passed before it could run")
            for task_id in list(self._cancelled):
                task_ = self._window.get(task_id)
                if task_ is not None and self._window.remove(task_id):
                    self._cancelled.discard(task_id)
                    await self._terminate(task_, tasks.Reason.CANCELLED, "cancelled before it ran")
            await _wait(self._ends, time.monotonic() + DEADLINE_LOOK_S if self._window.tasks_total else None)

    # Running

    async def _run(self, turn: window.Turn) -> tuple[list[tuple[records.Task, _Result]], verdicts.Run]:
        """Run a batch; each of its tasks with its outcomes, None if it was cancelled."""
        missing = [task.task_id for task in turn.tasks if task.payload is None]
        payloads = await self._journal.payloads(missing) if missing else {}
        members: list[records.Task] = []
        work: list[engine.Work] = []
        for task in turn.tasks:
            payload = payloads.get(task.task_id) if task.payload is None else task.payload
            if payload is None:
                self._drop(task)
            elif task.crashes >= CRASHES:
                await self._set_aside(task)
            else:
                members.append(task)
                work.append(engine.Work(task.content_type, payload, task.items))
        ids = [task.task_id for task in members]
        for task in members:
            if task.task_id in self._leases:
                self._leases[task.task_id] = (task.attempt, 0)
        started_us = clock.wall_us()
        started = time.monotonic()
        self.running += len(members)
        self._journal.running.begin(ids)
        results: Sequence[_Result]
        try:
            if len(members) == 1 and members[0].items > turn.model.max_batch:
                results = [await self._run_slices(turn.model, members[0], work[0])]
            else:
                loop = asyncio.get_running_loop()
                results = await loop.run_in_executor(self._pool, self._engine.run, turn.model, work)
        finally:
            self._journal.running.done(ids)
            self.running -= len(members)
        run = verdicts.Run(
            version=turn.model.version,
            started_us=started_us,
            run_us=int((time.monotonic() - started) * 1e6),
            clock_offset_us=self._offset.offset_us,
            clock_error_us=self._offset.error_us,
        )
        return list(zip(members, results, strict=True)), run

    async def _run_slices(
        self, model: models.Model, task: records.Task, work: engine.Work
    ) -> list[outcomes.Outcome] | None:
        """A task of many items, a batch at a time: between two it can be cancelled. None: it was."""
        loop = asyncio.get_running_loop()
        items = await loop.run_in_executor(self._pool, self._engine.open, model, work)
        done: list[outcomes.Outcome] = []
        began = time.monotonic()
        while len(done) < len(items):
            if task.task_id in self._cancelled:
                return None
            if task.timeout_ms is not None and (time.monotonic() - began) * 1000 > task.timeout_ms:
                late = f"the attempt took longer than timeout_ms = {task.timeout_ms}"
                done += [outcomes.ItemFailed(late, outcomes.Failure.INFERENCE_FAILED)] * (
                    len(items) - len(done)
                )
                break
            stop = min(len(items), len(done) + model.max_batch)
            done += await loop.run_in_executor(
                self._pool, self._engine.run_items, model, items, len(done), stop
            )
            if task.task_id in self._leases:
                self._leases[task.task_id] = (task.attempt, len(done))
        return done

    # Ends

    async def _judge(self, task: records.Task, result: _Result, run: verdicts.Run) -> None:
        """Finish the task, or try again what may succeed then."""
        if result is None:
            await self._terminate(task, tasks.Reason.CANCELLED, "cancelled while it ran", counted=True)
            return
        self.counts["items"] += len(result)
        failures = [one for one in result if isinstance(one, outcomes.ItemFailed)]
        broken = [one for one in failures if one.kind is outcomes.Failure.INFERENCE_FAILED]
        if broken and task.origin is records.Origin.HUB:  # the hub decides whether there is another attempt
            await self._finishing.put(verdicts.failed(task, broken[0].reason, run.run_us))
        elif broken and task.origin is records.Origin.DEVICE and task.attempt + 1 < task.max_attempts:
            self._unfinished -= 1
            self._window.retry(task.again())
            self.wake()
        else:
            self.counts["failed"] += bool(failures)
            await self._finishing.put(verdicts.completed(task, result, run, self._site))

    async def _terminate(
        self, task: records.Task, reason: tasks.Reason, error: str, *, counted: bool = False
    ) -> None:
        """`counted`: the task was taken from the window before."""
        self._unfinished += not counted
        self.counts[reason] += 1
        await self._finishing.put(verdicts.terminated(task, reason, error, self._site))

    def _drop(self, task: records.Task) -> None:
        """The task has left the journal since it was taken: the hub's result for it came first."""
        self._window.ended(task.task_id)
        self._leases.pop(task.task_id, None)
        self._cancelled.discard(task.task_id)
        self._unfinished -= 1
        self._quiet.set()

    async def _set_aside(self, task: records.Task) -> None:
        log.error(
            "task %s ran %d times when the agent died: set aside", tasks.format_id(task.task_id), task.crashes
        )
        self.counts["poison"] += 1
        why = f"the agent died {task.crashes} times while it ran"
        await self._terminate(task, tasks.Reason.EXHAUSTED, why, counted=True)

    async def _finish(self) -> None:
        """Commit what is finished, as much at a time as there is."""
        while True:
            finished = [await self._finishing.get()]
            while not self._finishing.empty():
                finished.append(self._finishing.get_nowait())
            if not self._syncs:
                finished = [msgspec.structs.replace(one, rows=(), attempt=None) for one in finished]
            here = set(await self._journal.finish(finished))
            for one in finished:
                self._window.ended(one.task_id)
                self._leases.pop(one.task_id, None)
                self._cancelled.discard(one.task_id)
            self.counts["finished"] += len(finished)
            self._on_finished([one for one in finished if one.task_id in here])
            self._unfinished -= len(finished)
            self._quiet.set()


async def _wait(event: asyncio.Event, until: float | None) -> None:
    """Until `event`, or the monotonic time `until`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            await event.wait()

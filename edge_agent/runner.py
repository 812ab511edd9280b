"""Runs what waits: the window says what is next, threads run it, the journal takes the outcome.

    window -> engine (threads) -> finisher -> journal, then replies

A task leaves the books only with the commit that holds its rows and its reply, so a crash anywhere
runs it again; one of many items from its checkpoint on (see `slices`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from edge_agent import clock, ends, engine, leases, models, outcomes, slices, streams, verdicts, window
from edge_agent.journal import journal, records
from edge_agent.trials import watch
from shared import tasks

log: Final = logging.getLogger(__name__)

CRASHES: Final = 3
"""A task that was running when the agent died so often is set aside: it may be what kills it."""
DEADLINE_LOOK_S: Final = 0.05
"""While tasks wait, passed deadlines are looked for this often; no batch is formed with one anyway."""

Wish = Literal[slices.Stop.CANCEL, slices.Stop.PREEMPT]
"""What the hub may want of a task that is here."""


class _Member(NamedTuple):
    """A task whose turn has come, and its payload."""

    task: records.Task
    work: engine.Work


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
        self._syncs = syncs
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._wishes: dict[bytes, Wish] = {}
        """Of tasks that are to stop, and have not yet."""
        self._stopping = False
        self._turns = asyncio.Event()
        self._ends = asyncio.Event()
        self._leases = leases.Leases()
        self._busy = 0
        """Batches that run, or wait for their thread."""
        self._long = 0
        """Tasks that run slice by slice."""
        self.running = 0
        self.watching: Mapping[str, watch.Watch] = {}
        """By model, who is told what came of its batches."""
        self.counts: Counter[str] = Counter()
        self._out = ends.Ends(
            book,
            site,
            self.counts,
            on_finished=on_finished,
            on_gone=self._gone,
            on_again=self._again,
            syncs=syncs,
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing runs here, and nothing waits to."""
        return not self._busy and self._window.is_empty

    def offer(self, arrived: Sequence[records.Task]) -> None:
        """Tasks that the journal has committed and that are to run here."""
        self._leases.note(arrived)
        self._window.offer(arrived)
        self.wake()

    def renew(self, renewed: Iterable[records.Renewed]) -> None:
        """Tasks that are to run here already have newer attempts. What runs goes on under its new number:
        a task never runs twice at a time."""
        for before, task in renewed:
            self._leases.note([task])
            if self._wishes.get(task.task_id) is slices.Stop.PREEMPT:
                del self._wishes[task.task_id]  # that was the older attempt
            self._window.renew(before, task)
        self.wake()

    async def stop_task(self, task_id: bytes, wish: Wish, attempt: int | None = None) -> bool:
        """Have a task stop at once if it waits, else at the next item boundary; False if it is not here.

        `attempt` fences: a word about another attempt than the one that is here is for nobody. A batch that
        runs is not cut, so a task that is whole in it comes to its end.
        """
        held = self._window.get(task_id)
        if held is None:
            found = (await self._journal.find([task_id])).get(task_id)
            held = self._window.get(task_id)  # it may have come in meanwhile
            if held is None:
                if (
                    found is None
                    or found.holder is not records.Holder.EDGE
                    or not _meant(found, wish, attempt)
                ):
                    return False
                self._window.hold(found)
                held = found
        if not _meant(held, wish, attempt):
            return False
        self._wishes[task_id] = wish
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

    def leases(self) -> Iterator[leases.Report]:
        """Of each of the hub's tasks here, how far it is."""
        return self._leases.reports(self.counts["items"])

    async def run(self) -> None:
        """Run what waits until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                # One batch more than threads: while one runs, the next is handed to the pool.
                for number in range(self._threads + 1):
                    group.create_task(self._run_turns(), name=f"runner: turns {number}")
                group.create_task(self._end_what_waits(), name="runner: deadlines")
                group.create_task(self._out.run(), name="runner: finish")
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def stop(self) -> None:
        """Let batches that run come to their end and their commit, and tasks of many items to their next item
        boundary. What has not ended then, the hub's tasks, are put back, for others to run; the devices' stay
        in the journal. Both keep their checkpoints."""
        self._stopping = True
        for task in self._window.take_leased():
            self._out.taken(1)
            await self._out.put_back(task)
        await self._out.all_left()

    # What is next

    async def _run_turns(self) -> None:
        while True:
            turn = await self._next_turn()
            try:
                judge = await self._run(turn)
            finally:
                self._busy -= 1
                self._turns.set()  # the next batch may go while this one's ends are written
            await judge

    async def _run(self, turn: window.Turn) -> Coroutine[Any, Any, None]:
        """Run what a turn brings; then what came of it is to be awaited."""
        self._out.taken(len(turn.tasks))
        async with self._engine.held(turn.model):  # its turn has come: it is no more the one to make room
            members = await self._members(turn)
            if len(members) == 1 and slices.needed(turn.model, members[0].task):
                return self._judge_slices(await self._run_slices(turn.model, members[0]))
            made, run = await self._run_batch(turn.model, members)
        return self._judge_batch(turn.model, members, made, run)

    async def _next_turn(self) -> window.Turn:
        while True:
            self._turns.clear()
            if not self._stopping:
                if self._window.wants_more:
                    self._leases.note(await self._window.refill())
                ahead = self._busy >= self._threads
                if not (ahead and self._long):  # between slices there is no gap to be filled
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
                self._out.taken(1)
                await self._out.terminate(
                    task, tasks.Reason.EXPIRED, "the deadline passed before it could run"
                )
            for task_id, wish in list(self._wishes.items()):
                held = self._window.get(task_id)
                if held is not None and self._window.remove(task_id):
                    del self._wishes[task_id]
                    self._out.taken(1)
                    if wish is slices.Stop.CANCEL:
                        await self._out.terminate(held, tasks.Reason.CANCELLED, "cancelled before it ran")
                    else:
                        await self._out.put_back(held)
            await _wait(self._ends, time.monotonic() + DEADLINE_LOOK_S if self._window.tasks_total else None)

    # Running

    async def _members(self, turn: window.Turn) -> list[_Member]:
        """The tasks of a turn that may run, with their payloads."""
        missing = [task.task_id for task in turn.tasks if task.payload is None]
        payloads = await self._journal.payloads(missing) if missing else {}
        members: list[_Member] = []
        for task in turn.tasks:
            payload = payloads.get(task.task_id) if task.payload is None else task.payload
            if payload is None:
                self._drop(task)
            elif task.crashes >= CRASHES:
                await self._set_aside(task)
            else:
                stream = streams.of(turn.model, task)
                members.append(_Member(task, engine.Work(task.content_type, payload, task.items, stream)))
        return members

    async def _run_batch(
        self, model: models.Model, members: Sequence[_Member]
    ) -> tuple[list[list[outcomes.Outcome]], verdicts.Run]:
        """Run tasks in one batch; of each the outcomes of its items."""
        ids = [member.task.task_id for member in members]
        self._leases.starts(ids)
        started_us = clock.wall_us()
        started = time.monotonic()
        with self._marked(ids):
            loop = asyncio.get_running_loop()
            work = [member.work for member in members]
            made = await loop.run_in_executor(self._pool, self._engine.run, model, work)
        run = verdicts.Run(
            version=model.version,
            started_us=started_us,
            run_us=int((time.monotonic() - started) * 1e6),
            clock_offset_us=self._offset.offset_us,
            clock_error_us=self._offset.error_us,
        )
        return made, run

    async def _run_slices(self, model: models.Model, member: _Member) -> slices.End:
        """Run a task of many items, a batch at a time."""
        one = slices.Slices(
            member.task,
            model,
            self._engine,
            self._pool,
            self._journal,
            self._offset,
            asked=self._asked,
            moved=self._moved,
            between=self._give_way,
            ran=self._ran_slice,
            syncs=self._syncs,
        )
        self._long += 1
        try:
            with self._marked([member.task.task_id]):
                end = await one.run(member.work)
            if self._stays(end) and not await one.commit():
                return end._replace(stop=slices.Stop.GONE)
        finally:
            self._long -= 1
        return end

    async def _give_way(self, task: records.Task) -> None:
        """Between two slices: all that is more urgent goes first, and of the task's own priority one batch,
        so that nobody's short job waits for the end of a long one."""
        turns = 0
        while not self._stopping and self._window.goes_before(task):
            turn = self._window.take(ahead=False)
            if turn is None:
                break  # it waits for company
            turns += 1
            self._leases.waits(task)
            await (await self._run(turn))
            if turn.tasks[0].priority == task.priority:
                break
        if turns:
            self._leases.moves(task.task_id, task.items_done, self.counts["items"])

    @contextlib.contextmanager
    def _marked(self, ids: Sequence[bytes]) -> Iterator[None]:
        """While these run, the journal's marks say so."""
        self.running += len(ids)
        self._journal.running.begin(ids)
        try:
            yield
        finally:
            self._journal.running.done(ids)
            self.running -= len(ids)

    def _asked(self, task_id: bytes) -> slices.Stop | None:
        return self._wishes.get(task_id) or (slices.Stop.LEAVE if self._stopping else None)

    def _moved(self, task_id: bytes, items_done: int) -> records.Task:
        """A task that runs slice by slice is at a boundary."""
        before = self._window.get(task_id)
        assert before is not None  # it runs
        self.counts["items"] += items_done - before.items_done
        self._leases.moves(task_id, items_done, self.counts["items"])
        return self._window.progressed(task_id, items_done)

    def _ran_slice(self, model: models.Model, ran: watch.Ran, run_us: int) -> None:
        if (told := self.watching.get(model.name)) is not None:
            told(model, [ran], run_us)

    # What came of it

    async def _judge_batch(
        self,
        model: models.Model,
        members: Sequence[_Member],
        made: Sequence[Sequence[outcomes.Outcome]],
        run: verdicts.Run,
    ) -> None:
        """End the tasks of a batch, or try again what may succeed then."""
        if (told := self.watching.get(model.name)) is not None:
            ran = [
                watch.Ran(one.task, one.work, 0, result) for one, result in zip(members, made, strict=True)
            ]
            told(model, ran, run.run_us)  # first: what is tried again may go elsewhere then
        for member, result in zip(members, made, strict=True):
            task = self._window.get(member.task.task_id) or member.task  # the hub may have leased it anew
            failures = [one for one in result if isinstance(one, outcomes.ItemFailed)]
            broken = [one for one in failures if one.kind is outcomes.Failure.INFERENCE_FAILED]
            if not broken and any(one.kind is outcomes.Failure.NOT_RUN for one in failures):
                self._again(task)  # right behind the one of its stream that is tried again
                self._out.left()
                continue
            self.counts["items"] += len(result)
            if (
                broken and task.origin is records.Origin.HUB
            ):  # the hub decides whether there is another attempt
                await self._out.put(verdicts.failed(task, broken[0].reason, run.run_us))
            elif broken and task.attempt + 1 < task.max_attempts:
                self._again(task.again())
                self._out.left()
            else:
                self.counts["failed"] += bool(failures)
                await self._out.put(verdicts.completed(task, result, run, self._site))

    def _stays(self, end: slices.End) -> bool:
        """Whether a task that stopped goes on here, later: one that made room, or a device's, unless its end
        has come."""
        own = end.task.origin is records.Origin.DEVICE
        return end.stop is slices.Stop.ROOM or (own and end.stop in (slices.Stop.LEAVE, slices.Stop.FAILED))

    async def _judge_slices(self, end: slices.End) -> None:
        """End a task that ran slice by slice, or have it go on from its checkpoint."""
        task, rows = end.task, end.rows
        match end.stop:
            case None:
                await self._out.close(task, rows, end.run)
            case slices.Stop.GONE:
                self._drop(task)
            case slices.Stop.CANCEL:
                await self._out.terminate(task, tasks.Reason.CANCELLED, "cancelled while it ran", rows)
            case slices.Stop.EXPIRED:
                await self._out.terminate(
                    task, tasks.Reason.EXPIRED, "the deadline passed while it ran", rows
                )
            case slices.Stop.LEAVE if self._stays(end):
                self._out.left()
            case slices.Stop.FAILED if self._stays(end):
                self._again((self._window.get(task.task_id) or task).again())  # it may be leased anew
                self._out.left()
            case slices.Stop.ROOM:
                self._again(self._window.get(task.task_id) or task)
                self._out.left()
            case slices.Stop.FAILED:
                await self._out.put(verdicts.failed(task, end.error, end.run.run_us, rows))
            case slices.Stop.PREEMPT | slices.Stop.LEAVE:
                await self._out.put_back(task, end.run.run_us, rows)

    def _again(self, task: records.Task) -> None:
        """A task waits for its turn again."""
        self._leases.waits(task)
        self._window.retry(task)
        self.wake()

    def _drop(self, task: records.Task) -> None:
        """The task has left the journal since it was taken: the hub's result for it came first."""
        self._gone(task.task_id)
        self._out.left()

    def _gone(self, task_id: bytes) -> None:
        if self._window.ended(task_id):
            self.wake()
        self._leases.ends(task_id)
        self._wishes.pop(task_id, None)

    async def _set_aside(self, task: records.Task) -> None:
        log.error(
            "task %s ran %d times when the agent died: set aside", tasks.format_id(task.task_id), task.crashes
        )
        self.counts["poison"] += 1
        why = f"the agent died {task.crashes} times while it ran"
        await self._out.terminate(task, tasks.Reason.EXHAUSTED, why)


def _meant(task: records.Task, wish: Wish, attempt: int | None) -> bool:
    """Whether a word about an attempt is about what is here."""
    if wish is slices.Stop.PREEMPT:
        return task.leased and attempt == task.hub_attempt
    return attempt is None or attempt == task.hub_attempt


async def _wait(event: asyncio.Event, until: float | None) -> None:
    """Until `event`, or the monotonic time `until`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            await event.wait()

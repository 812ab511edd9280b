"""From a request to the journal, and from the end of its tasks to the answer.

A request is accepted when its tasks are committed; from then on they run whatever becomes of the client. They
run here: what the hub knows of a task are its verdicts, and the client wants the graph's own numbers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_agent import clock, engine, overflow, runner, settings, window
from edge_agent.http import Refused
from edge_agent.journal import errors, journal, records
from edge_agent.oip import answers, messages, requests, tensors
from shared import tasks

RETRY_MAX_S: Final = 60
"""The longest that a client is told to wait before it comes again."""

_Answer = asyncio.Future[answers.Made | answers.Failed]


class Service:
    """Answers requests that have passed the door."""

    def __init__(
        self,
        book: journal.Journal,
        machine: engine.Engine,
        waiting: window.Window,
        executor: runner.Runner,
        policy: settings.Settings,
    ) -> None:
        self._journal = book
        self._engine = machine
        self._window = waiting
        self._runner = executor
        self._policy = policy
        self._waiting: dict[bytes, list[_Answer]] = {}
        """Who waits for the end of which task; several, where a request was repeated."""
        self._count = 0
        self.taking = False
        """Whether requests are accepted: not while the agent starts or stops."""
        self.total = 0
        """Requests that were accepted."""
        self.refused = 0
        """Requests for which there was no room."""

    def leave(self) -> None:
        """Who still waits is told that the agent stops; what was accepted stays so."""
        left = answers.Failed(503, "the agent stops; the request is kept and will run")
        for one in [one for waiting in self._waiting.values() for one in waiting]:
            _settle(one, left)

    def ended(self, replies: Sequence[records.Reply]) -> None:
        """Tasks have ended, and their ends are committed."""
        for reply in replies:
            waiting = self._waiting.pop(reply.task_id, ())
            if waiting:
                said = answers.read(reply)
                for one in waiting:
                    _settle(one, said)

    async def ask(self, ask: requests.Ask) -> answers.Made:
        """The outputs for a request. Raises Refused."""
        arrived = self._tasks(ask)
        limit = self._policy.oip.waiting
        if len(arrived) > limit:
            most = limit * ask.model.max_batch
            raise Refused(413, f"the request has {ask.items:,} items; at most {most:,} are taken together")
        if not self.taking:
            raise self._later("the agent is starting or stopping", 1)
        if self._count + len(arrived) > limit:
            raise self._later("too many requests wait for their answers", self._wait_s(ask.priority))
        self._count += len(arrived)
        try:
            return await self._answers(ask, arrived)
        finally:
            self._count -= len(arrived)

    async def _answers(self, ask: requests.Ask, arrived: Sequence[records.Task]) -> answers.Made:
        """Accept the tasks, and put their answers together."""
        places = [self._wait_for(task.task_id) for task in arrived]
        try:
            waits = await self._accept(ask, arrived, places)
            async with asyncio.timeout(self._policy.oip.answer_s):
                said = [await one for one in waits]
        except TimeoutError:
            raise Refused(
                504,
                f"no answer within {self._policy.oip.answer_s:g} s; the request is kept and will run "
                "(with an idempotency_key it can be asked for again)",
            ) from None
        finally:
            self._forget(places)
        made: list[answers.Made] = []
        for number, one in enumerate(said):
            if isinstance(one, answers.Failed):
                where = f"items {number * ask.model.max_batch} and on: " if number else ""
                retry = {"Retry-After": "1"} if one.status == 503 else None
                raise Refused(one.status, where + one.error, retry)
            made.append(one)
        return _together(made)

    async def _accept(
        self, ask: requests.Ask, arrived: Sequence[records.Task], places: list[tuple[bytes, _Answer]]
    ) -> list[_Answer]:
        """Commit the tasks and have them run; the answer of each. Refused if there is no room."""
        try:
            accepted = await self._journal.accept(arrived)
        except errors.JournalFull:
            accepted = [None] * len(arrived)
        except errors.JournalError as error:
            raise self._later(f"the agent's journal fails: {error}", RETRY_MAX_S) from None
        waits: list[_Answer] = []
        new: list[records.Task] = []
        for place, taken in enumerate(accepted):
            if taken is None:
                continue
            if taken.repeated:
                places[place] = self._repeated(taken, places[place])
            elif taken.task is not None:
                new.append(taken.task)
            waits.append(places[place][1])
        self._runner.offer(new)
        if len(waits) < len(arrived):
            raise self._later("the agent's journal is full; its results must be synced first", RETRY_MAX_S)
        self.total += 1
        return waits

    def _repeated(self, known: records.Accepted, place: tuple[bytes, _Answer]) -> tuple[bytes, _Answer]:
        """Wait for the first request with this idempotency key, instead of our own."""
        self._forget([place])
        if known.task is not None and answers.here(known.task):
            return self._wait_for(known.task_id)
        said = answers.OTHER_WAY if known.reply is None else answers.read(known.reply)
        done: _Answer = asyncio.get_running_loop().create_future()
        done.set_result(said)
        return known.task_id, done

    def _tasks(self, ask: requests.Ask) -> list[records.Task]:
        now_us = clock.wall_us()
        metadata = ask.metadata
        speed = self._engine.items_per_s(ask.model.name, ask.model.version) * self._policy.engine.threads
        parts = list(ask.payloads())
        return [
            records.Task(
                task_id=tasks.new_id(),
                origin=records.Origin.DEVICE,
                model=ask.model.name,
                version=ask.model.version,
                priority=ask.priority,
                queue=metadata.queue,
                tag=self._window.stamp(ask.priority, metadata.queue, items / (speed or 1.0)),
                device=None,
                content_type=messages.CONTENT_TYPE,
                items=items,
                max_attempts=metadata.max_attempts,
                timeout_ms=metadata.timeout_ms,
                deadline_ms=metadata.deadline_ms,
                accepted_us=now_us,
                client_id=ask.id,
                traceparent=metadata.traceparent,
                idempotency_key=_key(metadata.idempotency_key, number, len(parts)),
                stream=metadata.stream,
                payload=payload,
            )
            for number, (payload, items) in enumerate(parts)
        ]

    def _wait_for(self, task_id: bytes) -> tuple[bytes, _Answer]:
        answer: _Answer = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, []).append(answer)
        return task_id, answer

    def _forget(self, places: Sequence[tuple[bytes, _Answer]]) -> None:
        for task_id, answer in places:
            answer.cancel()
            left = [one for one in self._waiting.get(task_id, ()) if one is not answer]
            if left:
                self._waiting[task_id] = left
            else:
                self._waiting.pop(task_id, None)

    def _later(self, why: str, after_s: float) -> Refused:
        self.refused += 1
        return Refused(503, why, {"Retry-After": str(min(RETRY_MAX_S, max(1, math.ceil(after_s))))})

    def _wait_s(self, priority: int) -> float:
        """What a request of that priority would wait now, by the slowest model."""
        speeds = [one.items_per_second for one in self._engine.loaded() if one.items_per_second]
        speed = min(speeds, default=0.0) * self._policy.engine.threads
        return overflow.predicted_wait_s(self._window.items_ahead(priority), speed)


def _together(made: Sequence[answers.Made]) -> answers.Made:
    """The outputs of all tasks of a request, as if it had been one."""
    first = made[0]
    if len(made) == 1:
        return first
    columns = zip(*(one.outputs for one in made), strict=True)
    try:
        joined = [
            tensors.Tensor(column[0].name, np.concatenate([one.array for one in column]))
            for column in columns
        ]
    except ValueError as error:
        raise Refused(500, f"the items' outputs do not go together, ask for one at a time: {error}") from None
    return answers.Made(first.version, joined)


def _key(given: str | None, number: int, count: int) -> str | None:
    """The idempotency key of one of a request's tasks."""
    return given if given is None or count == 1 else f"{given}#{number}"


def _settle(answer: _Answer, said: answers.Made | answers.Failed) -> None:
    if not answer.done():
        answer.set_result(said)

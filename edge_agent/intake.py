"""From a device's message to the journal, and the decision where its task runs.

    MQTT -> inbox (bounded by what the broker may send unacknowledged) -> parse -> journal -> PUBACK
                                                                                    |
                                                                        run here, or hand over

The broker gets its acknowledgement only after the commit that holds the task. All messages that wait
share one commit.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from edge_agent import clock, engine, hub, models, overflow, replies, runner, settings, verdicts, window
from edge_agent.journal import errors, journal, records
from edge_agent.oip import answers
from shared import jobs, link, tasks, topics

log: Final = logging.getLogger(__name__)

TOGETHER: Final = 128
"""Messages taken at a time, at most: they share a commit."""
REMEMBERED: Final = 200
"""Decisions kept for whoever asks why."""

OTHER_WAY: Final = "the idempotency key is that of a request at the agent's local port"
NO_ROOM: Final = "the agent's journal is full; try again when its results have been synced"


class Intake:
    """Takes the jobs of the site's devices."""

    def __init__(
        self,
        mqtt: link.Link,
        book: journal.Journal,
        machine: engine.Engine,
        waiting: window.Window,
        executor: runner.Runner,
        answers: replies.Replies,
        beyond: hub.Hub,
        agent: topics.Agent,
        policy: settings.Settings,
        on_overflow: Callable[[], None],
    ) -> None:
        """`on_overflow` is called when tasks were handed over: the hub should know how busy this agent is."""
        self._link = mqtt
        self._journal = book
        self._engine = machine
        self._window = waiting
        self._runner = executor
        self._replies = answers
        self._hub = beyond
        self._agent = agent
        self._policy = policy
        self._on_overflow = on_overflow
        self._inbox = link.Inbox(policy.intake.in_flight)
        self.tags: Mapping[str, Collection[str]] = {}
        """By model, the user properties of its jobs by which a version is chosen."""
        self.counts: Counter[str] = Counter()
        self.decisions: deque[tuple[str, overflow.Decision]] = deque(maxlen=REMEMBERED)
        """The last decisions other than to run here at once, by task id."""
        mqtt.subscribe(topics.jobs(agent.site), 1, self._inbox.put)

    async def run(self) -> None:
        """Take jobs until cancelled."""
        while True:
            messages = await self._inbox.take(TOGETHER)
            await self._take(messages)
            for message in messages:
                self._link.ack(message)

    async def _take(self, messages: list[link.Message]) -> None:
        """Commit the jobs in `messages`, then run them or hand them over; refuse the others."""
        arrived: list[records.Task] = []
        refused: list[records.Reply] = []
        for message in messages:
            self.counts["jobs"] += 1
            try:
                arrived.append(self._parse(message))
            except jobs.Rejected as why:
                refused.append(self._refuse(message, str(why), why.field))
        if arrived:
            try:
                accepted = await self._journal.accept(arrived)
            except errors.JournalFull as full:
                log.warning("the disk is full: %s", full)
                accepted = [None] * len(arrived)
            new: list[records.Task] = []
            for task, taken in zip(arrived, accepted, strict=True):
                if taken is None:
                    refused.append(self._refuse_task(task, NO_ROOM))
                elif taken.repeated and answers.asked_here(taken):
                    refused.append(self._refuse_task(task, OTHER_WAY))
                elif taken.repeated:
                    self._answer_again(task, taken)
                else:
                    assert taken.task is not None
                    new.append(taken.task)
            await self._place(new)
        if refused:
            self._replies.put(refused)

    def _parse(self, message: link.Message) -> records.Task:
        """The task of the job in a message; Rejected says what is wrong with it."""
        try:
            topic = topics.parse_job(message.topic)
        except topics.BadTopic as wrong:
            raise jobs.Rejected(str(wrong), "topic") from None
        job = jobs.parse(
            topic.model,
            message.payload,
            message.content_type,
            message.properties,
            max_payload=self._policy.intake.max_payload,
        )
        metadata = job.metadata
        if metadata.selector is not None:
            raise jobs.Rejected(
                "a device's job runs at its site, or where the hub has room: submit it to the hub to select",
                "selector",
            )
        if not self._hub.there:
            try:
                self._engine.find(job.model, metadata.version)
            except models.UnknownModel as unknown:
                raise jobs.Rejected(str(unknown), "model") from None
        correlation = message.correlation
        if correlation is None and metadata.correlation is not None:
            correlation = metadata.correlation.encode()
        return records.Task(
            task_id=tasks.new_id(),
            origin=records.Origin.DEVICE,
            model=job.model,
            version=metadata.version,
            priority=job.priority,
            queue=metadata.queue,
            tag=self._window.stamp(
                job.priority, metadata.queue, self._cost_s(job.model, metadata.version, job.items)
            ),
            device=topic.device,
            content_type=job.content_type,
            items=job.items,
            max_attempts=metadata.max_attempts,
            timeout_ms=metadata.timeout_ms,
            deadline_ms=metadata.deadline_ms,
            accepted_us=clock.wall_us(),
            response_topic=message.response_topic or metadata.response_topic,
            correlation=correlation,
            client_id=job.client_id,
            traceparent=metadata.traceparent,
            idempotency_key=metadata.idempotency_key,
            tags=self._tags(job),
            stream=metadata.stream,
            payload=job.payload,
        )

    def _tags(self, job: jobs.Job) -> str | None:
        """What the journal keeps of a job's user properties: that by which its version is chosen."""
        keys = self.tags.get(job.model)
        found = job.tags(keys) if keys is not None else None
        return msgspec.json.encode(found).decode() if found else None

    def _answer_again(self, task: records.Task, known: records.Accepted) -> None:
        """A device repeated a job: it gets the reply of the first, now or when that has ended."""
        self.counts["repeated"] += 1
        if known.reply is not None:
            self._replies.repeat(known.reply)
        else:
            address = replies.Address(task.response_topic, task.correlation)
            self._replies.ask_again(known.task_id, address)

    async def _place(self, arrived: list[records.Task]) -> None:
        """Run each new task here, or hand it over."""
        away: list[bytes] = []
        for task in arrived:
            decision = self._decide(task)
            if decision.why is not overflow.Why.ROOM:
                self.decisions.append((tasks.format_id(task.task_id), decision))
            if decision.hand_over:
                self._hub.handed_over.add(task.task_id)
                self._window.refund(task, self._cost_s(task.model, task.version, task.items))
                away.append(task.task_id)
            else:
                self._runner.offer([task])
        if away:
            self.counts["overflowed"] += len(away)
            await self._journal.hand_over(away)
            self._on_overflow()

    def _decide(self, task: records.Task) -> overflow.Decision:
        remaining = task.remaining_ms(clock.wall_us())
        return overflow.decide(
            overflow.Situation(
                items_ahead=self._window.items_ahead(task.priority),
                items_per_s=self._speed(task.model, task.version),
                model_here=self._engine.has(task.model, task.version),
                hub_reachable=self._hub.reachable,
                handed_over=len(self._hub.handed_over),
                state_here=self._engine.carries(task.model),
            ),
            priority=task.priority,
            remaining_s=None if remaining is None else remaining / 1000,
            policy=self._policy.overflow,
        )

    def _cost_s(self, model: str, version: str | None, items: int) -> float:
        """Predicted seconds of the executor, the unit in which queues share it."""
        return items / (self._speed(model, version) or 1.0)

    def _speed(self, model: str, version: str | None) -> float:
        """Items per second of all threads together; 0 while it is not known."""
        if not self._engine.has(model, version):
            return 0.0
        return self._engine.items_per_s(model, version) * self._policy.engine.threads

    def _refuse(self, message: link.Message, detail: str, field: str | None = None) -> records.Reply:
        self.counts["rejected"] += 1
        log.info("job on %s rejected: %s", message.topic, detail)
        return verdicts.rejected(
            site=self._agent.site,
            detail=detail,
            field=field,
            response_topic=message.response_topic,
            correlation=message.correlation,
        )

    def _refuse_task(self, task: records.Task, detail: str) -> records.Reply:
        self.counts["rejected"] += 1
        return verdicts.rejected(
            site=self._agent.site,
            detail=detail,
            field=None,
            response_topic=task.response_topic,
            correlation=task.correlation,
            client_id=task.client_id,
        )

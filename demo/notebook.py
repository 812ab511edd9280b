"""What the cameras know: each job they published, the truth about its picture, and the reply that came.

It is kept apart from the system, so that the system's books can be checked against it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from shared import tasks


@dataclass(slots=True, eq=False)
class Job:
    """One picture that a camera published. Instants are monotonic, in seconds."""

    key: str
    """Its idempotency key and its correlation data."""
    site: str
    device: str
    label: str
    """What the picture really shows."""
    published_at: float
    accepted: bool = False
    """The site's broker has acknowledged it."""
    replied_at: float | None = None
    task_id: str | None = None
    state: str | None = None
    said: str | None = None
    """The label in the reply."""
    offline: bool = False
    """Published and replied to while its site was cut off from the cloud."""


class _Item(msgspec.Struct):
    label: str | None = None


class _Reply(msgspec.Struct):
    task_id: str
    state: str
    items: list[_Item] = []


_decoder: Final = msgspec.json.Decoder(_Reply)


class Notebook:
    """The cameras' own record of their jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.repeated = 0
        """Replies that came again: at least once is what QoS 1 promises."""
        self.other_ids: list[tuple[str, str]] = []
        """Key and task id of replies that name another task than the first reply to the same job."""
        self.unknown = 0
        """Replies to no job of ours."""
        self.published: Counter[str] = Counter()
        """Jobs by site."""
        self.replied: Counter[str] = Counter()
        """Jobs with a reply by site."""
        self._cut_since: dict[str, float] = {}
        self._changed = asyncio.Event()

    @property
    def outstanding(self) -> int:
        """Jobs that wait for their reply."""
        return self.published.total() - self.replied.total()

    def publish(self, key: str, site: str, device: str, label: str, now: float) -> Job:
        """Note a job that is about to be published."""
        job = self.jobs[key] = Job(key, site, device, label, now)
        self.published[site] += 1
        self._changed.set()
        return job

    def reply(self, correlation: bytes | None, body: bytes, now: float) -> None:
        """Note a reply. Raises msgspec.DecodeError when it cannot be read."""
        job = self.jobs.get((correlation or b"").decode(errors="replace"))
        if job is None:
            self.unknown += 1
            return
        reply = _decoder.decode(body)
        if job.replied_at is not None:
            self.repeated += 1
            if reply.task_id != job.task_id:
                self.other_ids.append((job.key, reply.task_id))
            return
        job.task_id, job.state, job.replied_at = reply.task_id, reply.state, now
        if reply.state == tasks.State.COMPLETED and reply.items:
            job.said = reply.items[0].label
        cut_since = self._cut_since.get(job.site)
        job.offline = cut_since is not None and job.published_at >= cut_since
        self.replied[job.site] += 1
        self._changed.set()

    def cut(self, site: str, now: float) -> None:
        """`site` has lost its link to the cloud."""
        self._cut_since[site] = now

    def healed(self, site: str) -> None:
        """`site` has its link again."""
        self._cut_since.pop(site, None)

    async def settled(self) -> None:
        """Return as soon as every job published so far has its reply."""
        await self.until(lambda: not self.outstanding)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as `condition`, of what is noted here, holds."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

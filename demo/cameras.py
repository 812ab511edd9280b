"""Simulated inspection cameras: they publish fresh pictures over MQTT 5 and take the verdicts back."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from demo import surfaces
from demo.notebook import Notebook
from shared import jobs, link, topics

log: Final = logging.getLogger(__name__)

SESSION_S: Final = 3600
"""How long the broker keeps replies for a camera that has lost its connection."""
RETRY_S: Final = 0.1
CATCH_UP_S: Final = 1.0
"""A camera that was held up makes up for so much of it; pictures that it missed before are gone."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture, and what it shows."""

    label: str
    image: bytes
    content_type: str


def draw(rng: np.random.Generator, kind: surfaces.Kind = "png") -> Picture:
    """The next picture of `rng`'s sequence; takes a millisecond or two."""
    surface = surfaces.generate(rng, kind=kind)
    return Picture(surface.label, surface.image, jobs.PNG if kind == "png" else jobs.JPEG)


class Camera:
    """One camera. It publishes at least once: what was not acknowledged, again with the same key.

    What the broker has acknowledged, it never publishes again: from there on no job may be lost.
    """

    def __init__(
        self,
        site: str,
        device: str,
        model: str,
        address: link.Address,
        notebook: Notebook,
        *,
        kind: surfaces.Kind,
        seed: int,
    ) -> None:
        self.site = site
        self.device = device
        self._topic = topics.job(site, device, model)
        self._replies = f"cameras/{device}/replies"
        self._notebook = notebook
        self._kind = kind
        self._rng = np.random.default_rng(seed)
        self._stopped = asyncio.Event()
        self._link = link.Link(address, device, session_expiry_s=SESSION_S)
        self._link.subscribe(self._replies, 1, self._replied)
        self._taken = 0

    async def run(self, interval_s: float) -> None:
        """Publish a picture every `interval_s` seconds until `stop`; take replies until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run(), name=f"{self.device}: link")
            group.create_task(self._watch_line(interval_s), name=f"{self.device}: line")

    def stop(self) -> None:
        """Publish no more."""
        self._stopped.set()

    async def ready(self) -> None:
        """Return as soon as replies can be received."""
        await self._link.wait_connected()

    async def publish(self, picture: Picture) -> None:
        """Publish one picture; return when the broker has it."""
        self._taken += 1
        key = f"{self.device}-{self._taken}"
        job = self._notebook.publish(key, self.site, self.device, picture.label, time.monotonic())
        while True:
            try:
                await self._link.publish(
                    self._topic,
                    picture.image,
                    qos=1,
                    content_type=picture.content_type,
                    response_topic=self._replies,
                    correlation=key.encode(),
                    properties={"idempotency_key": key},
                )
            except link.LinkDown:
                await asyncio.sleep(RETRY_S)
            else:
                job.accepted = True
                return

    async def _watch_line(self, interval_s: float) -> None:
        await self.ready()
        due = time.monotonic() + interval_s * random.random()  # so that cameras do not shoot in step
        while not await self._stopped_by(due):
            await self.publish(draw(self._rng, self._kind))
            due = max(due + interval_s, time.monotonic() - CATCH_UP_S)

    async def _stopped_by(self, due: float) -> bool:
        """Wait until `due`, or until stopped; returns whether it was stopped."""
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                return await self._stopped.wait()
        except TimeoutError:
            return False

    def _replied(self, message: link.Message) -> None:
        try:
            self._notebook.reply(message.correlation, message.payload, time.monotonic())
        except msgspec.DecodeError as error:
            log.error("%s: a reply that cannot be read: %s: %r", self.device, error, message.payload[:200])
        self._link.ack(message)


class Line:
    """The cameras along one site's line."""

    def __init__(
        self, site: str, model: str, address: link.Address, notebook: Notebook, *, cameras: int, seed: int
    ) -> None:
        self.site = site
        self.cameras = [
            Camera(
                site,
                f"{site}-camera-{number}",
                model,
                address,
                notebook,
                kind="png" if number % 2 else "jpeg",
                seed=seed * 1000 + number,
            )
            for number in range(1, cameras + 1)
        ]
        self._rng = np.random.default_rng(seed)

    async def run(self, rate_per_s: float) -> None:
        """Publish `rate_per_s` pictures a second, all cameras together, until `stop`; then take replies
        until cancelled."""
        async with asyncio.TaskGroup() as group:
            for camera in self.cameras:
                group.create_task(camera.run(len(self.cameras) / rate_per_s), name=camera.device)

    def stop(self) -> None:
        for camera in self.cameras:
            camera.stop()

    async def draw(self, count: int) -> list[Picture]:
        """Pictures for a burst, drawn beforehand: cameras in a hurry must not wait for the brush."""
        return await asyncio.to_thread(lambda: [draw(self._rng, "jpeg") for _ in range(count)])

    async def burst(self, pictures: Sequence[Picture], seconds: float) -> None:
        """Publish all of `pictures` within `seconds`, or as fast as the broker takes them."""
        async with asyncio.TaskGroup() as group:
            for number, camera in enumerate(self.cameras):
                share = pictures[number :: len(self.cameras)]
                group.create_task(self._hurry(camera, share, seconds), name=f"{camera.device}: burst")

    async def _hurry(self, camera: Camera, pictures: Sequence[Picture], seconds: float) -> None:
        start = time.monotonic()
        for number, picture in enumerate(pictures):
            await camera.publish(picture)
            ahead = start + seconds * (number + 1) / len(pictures) - time.monotonic()
            if ahead > 0:
                await asyncio.sleep(ahead)

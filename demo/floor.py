"""The shop floors: all sites' cameras at work on a system, and their account with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from demo import background, books, report, scene, system
from demo.cameras import Line
from demo.notebook import Notebook
from demo.tap import Tap

SETTLE_TIMEOUT_S: Final = 30.0
"""How long the last jobs and records may take."""
LOOK_EVERY_S: Final = 0.2


class Floor:
    """The cameras of every site of `whole`, which publish `rate_per_s` pictures a second at each.

    async with floor.at_work():
        await floor.notebook.until(lambda: floor.notebook.replied["plant-a"] >= 100)
        outcome = await floor.close()
    """

    def __init__(
        self, whole: system.System, *, rate_per_s: float = 20.0, cameras: int = 4, seed: int = 1
    ) -> None:
        self.notebook = Notebook()
        self.lines = {
            site.name: Line(
                site.name, system.MODEL, site.address, self.notebook, cameras=cameras, seed=seed + number
            )
            for number, site in enumerate(whole.sites.values())
        }
        self._whole = whole
        self._rate_per_s = rate_per_s
        self._tap = Tap(whole.cloud_address)
        self._began = 0.0

    @property
    def devices(self) -> Sequence[str]:
        return [camera.device for line in self.lines.values() for camera in line.cameras]

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Publish until `close`, and take replies until the block ends."""
        lines = self.lines.values()
        async with background.beside(self._tap.run(), *(line.run(self._rate_per_s) for line in lines)):
            await asyncio.gather(*(camera.ready() for line in lines for camera in line.cameras))
            self._began = time.monotonic()
            yield

    def stop(self) -> None:
        """Publish no more."""
        for line in self.lines.values():
            line.stop()

    async def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> list[str]:
        """Wait until every job has its reply and nothing is under way; returns what still is after
        `timeout_s`."""
        left = ["jobs wait for their replies"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.notebook.settled()
                # The programs are asked over HTTP: nobody here can raise an event.
                while left := (await scene.look(self._whole, self.notebook)).under_way:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_EVERY_S)
        return left

    async def balance(self) -> report.Report:
        """The account as it stands."""
        return report.make(
            self.notebook,
            await books.read(self._whole.dsn, self.devices),
            duration_s=time.monotonic() - self._began,
            bytes_per_result=self._tap.bytes_per_row,
        )

    async def close(self, timeout_s: float = SETTLE_TIMEOUT_S) -> report.Report:
        """Stop, wait until everything is at rest, `timeout_s` at most, and balance the books."""
        self.stop()
        await self.settle(timeout_s)
        return await self.balance()

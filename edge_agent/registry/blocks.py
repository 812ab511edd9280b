"""Which packages are not tried now, why, and when they will be."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Final

from edge_agent.registry.wanted import Wanted
from shared import backoff

log: Final = logging.getLogger(__name__)

AGAIN_BASE_S: Final = 1.0
AGAIN_MAX_S: Final = 300.0
"""Longest pause between two tries of what may succeed later."""
LOOK_S: Final = 1.0


class Block:
    """Why a package is not tried now."""

    def __init__(self) -> None:
        self.reason = ""
        self.again: float | None = None
        """When it is tried again, monotonic seconds; None: when something else is wanted."""
        self.have = 0
        """Bytes that had come."""
        self.waits = backoff.Backoff(AGAIN_BASE_S, AGAIN_MAX_S)


class Blocks:
    """The packages that are not to be tried, each for a while or until something else is wanted."""

    def __init__(self) -> None:
        self._blocks: dict[Wanted, Block] = {}

    def get(self, one: Wanted) -> Block | None:
        return self._blocks.get(one)

    def now(self) -> set[Wanted]:
        """Those that are not to be tried now."""
        now = time.monotonic()
        return {one for one, block in self._blocks.items() if block.again is None or now < block.again}

    def rest_s(self) -> float | None:
        """How long until one is to be tried again; None if none is.

        One whose time has come, and of which nobody wants anything, is no reason to look at once.
        """
        now = time.monotonic()
        rests = [block.again - now for block in self._blocks.values() if block.again is not None]
        return min((rest if rest > 0 else LOOK_S for rest in rests), default=None)

    def refuse(self, one: Wanted, reason: str) -> None:
        """Do not try it again as long as it is the one that is wanted."""
        log.error("%s is refused: %s", one, reason)
        self._set(one, reason, None)

    def put_off(self, one: Wanted, reason: str, after_s: float | None = None, *, have: int = 0) -> None:
        """Try it again after a while: longer and longer, unless more of it came than ever before."""
        before = self._blocks.get(one)
        if before is None or before.again is None:
            log.warning("%s is tried again later: %s", one, reason)
        block = self._set(one, reason, 0.0)
        if have > block.have:
            block.have = have
            block.waits.succeeded(float("inf"))
        block.again = time.monotonic() + (block.waits.next() if after_s is None else after_s)

    def release(self, one: Wanted) -> None:
        """It succeeded."""
        self._blocks.pop(one, None)

    def release_waiting(self) -> None:
        """What waits for its time need not."""
        for block in self._blocks.values():
            if block.again is not None:
                block.again = 0.0

    def keep(self, wanted: Collection[Wanted]) -> None:
        """Forget all but these."""
        self._blocks = {one: block for one, block in self._blocks.items() if one in wanted}

    def _set(self, one: Wanted, reason: str, again: float | None) -> Block:
        block = self._blocks.setdefault(one, Block())
        block.reason, block.again = reason, again
        return block

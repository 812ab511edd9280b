"""Leads the running rollouts: gathers how they stand, has the policy decide, and takes its steps.

Only the hub that leads does so, and each step is written under its token, with the evidence, from the
state and stage that was decided on. So neither a hub that was outlived nor one that an operator was
quicker than takes a step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Final

from cloud_hub import fleet, leader
from cloud_hub.rollouts import active, policy, standing
from cloud_hub.store import agents, leadership, pool, rollouts, tallies
from shared import signals

log: Final = logging.getLogger(__name__)

EVERY_S: Final = 1.0
"""Between two looks, at least."""
SHARE: Final = 0.1
"""The part of the time that may go into looking: a large fleet is looked at less often."""
CLEAR_EVERY_S: Final = 60.0
"""How often counts that nobody needs any more are looked for."""

KINDS: Final = {
    policy.Step.PROMOTE: rollouts.Kind.PROMOTED,
    policy.Step.COMPLETE: rollouts.Kind.COMPLETED,
    policy.Step.PAUSE: rollouts.Kind.PAUSED,
    policy.Step.ROLL_BACK: rollouts.Kind.ROLLED_BACK,
}
"""What the policy's decisions come to."""


class Conductor:
    """This hub's part in leading the rollouts."""

    def __init__(
        self,
        connections: pool.Pool,
        lead: leader.Leader,
        members: fleet.Fleet,
        silent_after_s: float,
        known: active.Active,
    ) -> None:
        """`members`: the fleet as this hub hears it. `known` is told at once what was changed."""
        self._connections = connections
        self._leader = lead
        self._fleet = members
        self._silent_after_s = silent_after_s
        self._active = known
        self.counts: Counter[rollouts.Kind] = Counter()
        """Steps that were taken."""

    async def run(self) -> None:
        """Look and take steps while this hub leads, until cancelled."""
        clear_at = time.monotonic()
        while True:
            began = time.monotonic()
            took_any = False
            try:
                if self._leader.leading:
                    took_any = await self.look()
                    if began >= clear_at:
                        clear_at = began + CLEAR_EVERY_S
                        await self.clear()
            except leadership.Deposed as deposed:
                log.info("no step of a rollout: %s", deposed)
            except pool.UNAVAILABLE as error:
                log.warning("no step of a rollout: PostgreSQL is not available: %s", error)
            took_s = time.monotonic() - began
            await asyncio.sleep(0.0 if took_any else max(EVERY_S, took_s / SHARE))

    async def look(self) -> bool:
        """Look at every running rollout once; True if one of them was taken a step on.

        Raises leadership.Deposed if this hub does not lead, or pool.UNAVAILABLE.
        """
        async with self._connections.connection() as connection:
            running = [
                one for one in await rollouts.active(connection) if one.state is rollouts.State.RUNNING
            ]
            if not running:
                return False
            found = await standing.read(connection, running, self._heard, self._silent_after_s)
        steps = [await self._decide(one) for one in found]
        if any(steps):
            await self._active.refresh()
        return any(steps)

    async def clear(self) -> None:
        """Forget the counts of rollouts that have ended: a large fleet's are many. Raises as `look` does."""
        async with self._leader.writing() as connection:
            if gone := await tallies.clear(connection):
                log.debug("counts of rollouts that have ended: %d rows forgotten", gone)

    async def _decide(self, one: standing.Standing) -> bool:
        """Have the policy decide on a rollout, and do so; True if that was a step."""
        assert one.situation is not None  # it runs
        decision = policy.decide(one.situation, one.at)
        if decision.step is policy.Step.WAIT:
            return False
        kind = KINDS[decision.step]
        try:
            async with self._leader.writing() as connection:
                await standing.take(connection, one, kind, rollouts.By.POLICY, decision.reason)
        except rollouts.Moved as moved:
            log.info("%s, before it was %s", moved, kind)
            return False
        self.counts[kind] += 1
        plan = one.rollout.plan
        log.info("the rollout of %s@%s was %s: %s", plan.model, plan.version, kind, decision.reason)
        return True

    def _heard(self, row: agents.Agent) -> tuple[float, signals.Telemetry | None] | None:
        member = self._fleet.find(row.place)
        if member is None or member.epoch != row.epoch:
            return None
        return max(0.0, time.monotonic() - member.heard), member.telemetry

"""The hub that decides sleeps while others go on, and wakes up believing that it still decides.

One of the faults of `tests/chaos/test_scheduler_faults.py`, in short.
"""

from __future__ import annotations

from datetime import UTC, datetime

from tests.chaos import faults, rig


async def test_a_leader_that_was_outlived_does_no_harm() -> None:
    """With tasks queued, leased and half done, it is stopped until another hub leads and has placed tasks,
    and woken: it says that it leads no more. Each task that a client was told of is recorded once."""
    async with rig.running() as whole:
        async with whole.client.at_work():
            await whole.busy()
            began = datetime.now(UTC)
            await faults.pause_leader(whole)
        await whole.settled()
        print(f"leader paused: {await whole.account(began)}")

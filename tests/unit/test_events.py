"""The fan-out inside a hub: it wakes who waits and is never held up by one who does not listen."""

from __future__ import annotations

import asyncio

from cloud_hub import events
from shared import tasks, topics

PRESS_A = topics.Agent("lyon", "press-a")


async def test_a_full_mailbox_drops_the_oldest_and_counts_it() -> None:
    """Publishing never waits: who does not read keeps the newest events and learns how many were lost."""
    here = events.Events()
    with here.subscribe(events.TaskQueued, limit=3) as mailbox:
        for n in range(10):
            here.publish(events.TaskQueued(f"model-{n}"))
        assert [event.model for event in mailbox.take() if isinstance(event, events.TaskQueued)] == [
            "model-7",
            "model-8",
            "model-9",
        ]
        assert mailbox.lost == 7
        assert mailbox.take() == []


async def test_a_mailbox_has_the_kinds_that_were_asked_for() -> None:
    """A subscriber of one kind of event is not woken by another."""
    here = events.Events()
    with here.subscribe(events.FleetChanged) as mailbox:
        here.publish(events.TaskQueued("defects"))
        assert not await mailbox.changed(timeout_s=0)
        here.publish(events.FleetChanged(PRESS_A))
        assert await mailbox.changed(timeout_s=0)
        assert mailbox.take() == [events.FleetChanged(PRESS_A)]


async def test_who_waits_for_a_task_is_woken_by_its_end_alone() -> None:
    """The end of one task wakes all who wait for it, and nobody who waits for another."""
    here = events.Events()
    one, other = tasks.new_id(), tasks.new_id()
    with here.ending(one) as first, here.ending(one) as second, here.ending(other) as third:
        here.publish(events.TaskEnded(one, tasks.State.COMPLETED))
        assert (first.is_set(), second.is_set(), third.is_set()) == (True, True, False)
    here.publish(events.TaskEnded(one, tasks.State.COMPLETED))  # nobody waits any more


async def test_closing_wakes_everyone() -> None:
    """When the hub stops every wait comes to its end, and one that begins then does not begin to wait."""
    here = events.Events()
    with here.subscribe(events.TaskEnded) as mailbox, here.ending(tasks.new_id()) as ended:
        waiting = asyncio.create_task(mailbox.changed())
        here.close()
        assert await waiting
        assert mailbox.closed
        assert ended.is_set()
    with here.subscribe(events.TaskEnded) as late, here.ending(tasks.new_id()) as ended:
        assert late.closed
        assert await late.changed(timeout_s=0)
        assert ended.is_set()


async def test_a_subscriber_that_left_costs_nothing() -> None:
    """Who has gone is not kept: neither his mailbox nor the tasks that he waited for."""
    here = events.Events()
    with here.subscribe(events.TaskEnded), here.ending(tasks.new_id()):
        assert here.subscribers == 1
    assert here.subscribers == 0
    assert not here._endings

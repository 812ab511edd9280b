"""The fleet as a hub hears it."""

from __future__ import annotations

import time

from cloud_hub import fleet
from shared import signals, topics

PLACE = topics.Agent("lyon", "press")


def heartbeat(sequence: int) -> signals.Telemetry:
    return signals.Telemetry(epoch=1, sequence=sequence, capacity=1)


def test_late_heartbeats_are_dropped_and_those_of_a_new_start_are_not() -> None:
    """An agent that starts again counts from 1; that its first heartbeat was lost does not make it mute."""
    heard = fleet.Fleet(silent_after_s=10.0)
    member = fleet.Member(agent_id=1, agent=PLACE, epoch=1, online=True, heard=time.monotonic())
    heard.join(member)
    assert [heard.heard(member, heartbeat(n)) for n in (1, 2, 5, 4, 5, 6)] == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    heard.born(member)
    assert [heard.heard(member, heartbeat(n)) for n in (2, 3, 2, 1)] == [True, True, False, True]

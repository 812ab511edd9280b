"""Stable shares: who is among P percent, decided by a hash and by nothing that changes.

The same agent or job of a rollout always gets the same point of 0 to 100, so whoever is within 5 % is within
25 % too, on every hub and agent and after every restart. Another rollout deals anew.
"""

from __future__ import annotations

import hashlib
from typing import Final

_POINTS: Final = 2**53
"""As many as a float tells apart, so that no point is rounded up to 100."""


def of_agent(rollout_id: str, agent: str) -> float:
    """Where `agent`, as `site/name`, stands in this rollout: 0 to less than 100, evenly."""
    return _point(b"agent", rollout_id, agent.encode())


def of_job(rollout_id: str, task_id: bytes) -> float:
    """Where a job stands in this rollout: 0 to less than 100, evenly, whatever its agent has."""
    return _point(b"job", rollout_id, task_id)


def _point(what: bytes, rollout_id: str, whose: bytes) -> float:
    digest = hashlib.sha256(b"\0".join((what, rollout_id.encode(), whose))).digest()
    return (int.from_bytes(digest[:8]) >> 11) / _POINTS * 100

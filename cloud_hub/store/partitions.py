"""Months of result rows: partitions by the time in the task ids, made ahead and dropped whole."""

from __future__ import annotations

from datetime import datetime

from cloud_hub.store import pool


async def ensure(connection: pool.Connection, now: datetime, ahead: int = 2) -> list[str]:
    """Make the partitions of this month and the next `ahead`; returns the names of those made."""
    raise NotImplementedError


async def drop_before(connection: pool.Connection, instant: datetime) -> list[str]:
    """Drop the months that end at or before `instant`, rows and all; returns their names."""
    raise NotImplementedError

"""The scheduler loses its leader, its lock, its database, its agents: no task is lost, none recorded twice.

Three hubs, a pool of agents and a client that submits all the time. So tasks are in every place where a task
can be: in a request, queued, on a lane down, running with some of their items done, on a lane up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest

from tests.chaos import faults, rig

pytestmark = pytest.mark.chaos


@pytest.fixture
async def whole() -> AsyncIterator[rig.Rig]:
    async with rig.running() as whole:
        yield whole


@pytest.mark.parametrize("fault", faults.ALL, ids=lambda fault: fault.__name__)
async def test_each_task_is_done_and_recorded_once(
    fault: faults.Fault, whole: rig.Rig, measured: Callable[[str], None]
) -> None:
    """Whatever fails while they are submitted, placed and run, and then no lease, depth or ledger is off."""
    async with whole.client.at_work():
        await whole.busy()
        began = datetime.now(UTC)
        await fault(whole)
        await whole.goes_on()
    await whole.settled()
    measured(f"{fault.__name__.replace('_', ' ')}: {await whole.account(began)}")

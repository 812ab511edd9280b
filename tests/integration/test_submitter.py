"""Group commit on a real store: groups side by side keep to the limits of the queues."""

from __future__ import annotations

import asyncio

from cloud_hub import queues
from cloud_hub.api import admission, submissions
from cloud_hub.store import queues as queue_store
from tests.integration import stores

MOST = 2000
REQUESTS = 60
EACH = 100


async def test_groups_side_by_side_keep_to_a_limit(database: str) -> None:
    """More comes at once than two groups hold: the queue gets exactly as much as it may, the rest is told."""
    async with stores.fresh(database) as connections:
        async with connections.connection() as connection:
            await queue_store.put(connection, queue_store.Queue(name="archive", max_queued=MOST))
        limits = queues.Queues(connections)
        await limits.refresh()
        submitter = submissions.Submitter(submissions.into(connections, limits=limits))
        running = asyncio.create_task(submitter.run())
        asked = [
            submitter.submit([stores.submission(queue="archive") for _ in range(EACH)])
            for _ in range(REQUESTS)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        admitted = [one for one in answers if not isinstance(one, BaseException)]
        assert len(admitted) == MOST // EACH
        assert sum(isinstance(one, admission.Full) for one in answers) == REQUESTS - len(admitted)
        async with connections.connection() as connection:
            assert await stores.scalar(connection, b"SELECT count(*) FROM tasks") == MOST

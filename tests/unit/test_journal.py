"""Tasks and replies in the journal: taken in once, kept until they are done, answered once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_agent.journal import errors, records
from shared import lanes, tasks
from tests.unit import journals

DOWN_RESULTS = lanes.Lane("results", 1)


async def test_an_accepted_task_is_there_after_a_restart(tmp_path: Path) -> None:
    """Every field of a task that was accepted survives the agent, and its payload beside it."""
    everything = journals.task(
        b"\x00payload",
        version="3",
        priority=9,
        queue="line-2",
        tag=1.25,
        items=7,
        timeout_ms=1000,
        deadline_ms=2000,
        correlation=b"\xff",
        client_id="client",
        mqtt_version=4,
        traceparent="00-1-2-00",
        idempotency_key="part 12",
    )
    async with journals.opened(tmp_path) as book:
        (accepted,) = await book.accept([everything])
        assert accepted is not None
        assert accepted.task == msgspec.structs.replace(everything, seq=1)
    async with journals.opened(tmp_path) as book:
        (found,) = await book.waiting(10)
        assert found == accepted.task.without_payload()
        assert await book.payloads([found.task_id]) == {found.task_id: b"\x00payload"}


async def test_tasks_wait_by_priority_then_share_then_arrival(tmp_path: Path) -> None:
    """What runs next is the highest priority, in it the lowest tag, in that the first to come."""
    async with journals.opened(tmp_path) as book:
        order = [(5, 2.0), (9, 8.0), (5, 1.0), (0, 0.0), (5, 2.0), (9, 7.0), (5, -3.5)]
        for priority, tag in order:
            await journals.accept(book, priority=priority, tag=tag)
        waiting = await book.waiting(100)
        expected = sorted(enumerate(order, 1), key=lambda place: (-place[1][0], place[1][1], place[0]))
        assert [task.seq for task in waiting] == [seq for seq, _ in expected]

        paged: list[records.Task] = []
        while page := await book.waiting(2, after=paged[-1] if paged else None):
            paged += page
        assert paged == waiting


async def test_a_key_that_waits_is_the_same_task(tmp_path: Path) -> None:
    """A job whose idempotency key waits adds nothing, be it in the same commit or after a restart."""
    async with journals.opened(tmp_path) as book:
        first, again = await book.accept([journals.task(idempotency_key="k") for _ in range(2)])
        assert first is not None
        assert again is not None
        assert not first.repeated
        assert again.repeated
        assert again.task_id == first.task_id
    async with journals.opened(tmp_path) as book:
        (later,) = await book.accept([journals.task(idempotency_key="k")])
        assert later is not None
        assert later.task is not None
        assert (later.repeated, later.task_id, later.task.task_id) == (True, first.task_id, first.task_id)
        assert (await book.counts()).waiting == 1


async def test_a_key_that_has_ended_gets_its_reply_again(tmp_path: Path) -> None:
    """A job repeated after its task has ended gets the reply of then, where it asks for it now."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book, idempotency_key="k")
        await book.finish([records.Finished(task.task_id, reply=journals.reply(task.task_id, b"verdict"))])
    async with journals.opened(tmp_path) as book:
        elsewhere, nowhere = await book.accept(
            [
                journals.task(idempotency_key="k", response_topic="new", correlation=b"8"),
                journals.task(idempotency_key="k", response_topic=None),
            ]
        )
        assert elsewhere is not None
        assert nowhere is not None
        assert (elsewhere.task, elsewhere.task_id, elsewhere.repeated) == (None, task.task_id, True)
        assert elsewhere.reply == records.Reply(
            task_id=task.task_id,
            topic="new",
            correlation=b"8",
            content_type="application/json",
            body=b"verdict",
        )
        assert nowhere.reply is not None
        assert (nowhere.reply.topic, nowhere.reply.correlation) == ("answers", None)
        assert (await book.counts()).waiting == 0


async def test_a_key_that_ended_without_a_reply_is_known(tmp_path: Path) -> None:
    """The key of a task that ended unanswered is still not run a second time."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book, idempotency_key="k")
        await book.finish([records.Finished(task.task_id, [journals.row(task.task_id)])])
        (again,) = await book.accept([journals.task(idempotency_key="k")])
        assert again == records.Accepted(None, task.task_id, repeated=True, reply=None)


@pytest.mark.parametrize(
    ("keys", "max_bytes", "body"), [(3, 1 << 30, 10), (1000, 1 << 20, 22_000)], ids=["count", "bytes"]
)
async def test_the_oldest_ended_keys_are_forgotten(
    tmp_path: Path, keys: int, max_bytes: int, body: int
) -> None:
    """Ended keys are remembered up to a number, and up to a sixteenth of the quota; the newest stay."""
    async with journals.opened(tmp_path, keys=keys, max_bytes=max_bytes) as book:
        for key in range(6):
            task = await journals.accept(book, idempotency_key=f"k{key}")
            await book.finish(
                [records.Finished(task.task_id, reply=journals.reply(task.task_id, b"x" * body))]
            )
        accepted = await book.accept([journals.task(idempotency_key=f"k{key}") for key in range(6)])
        assert [one.repeated for one in accepted if one is not None] == [False] * 3 + [True] * 3


async def test_a_finished_task_leaves_its_rows_and_its_reply(tmp_path: Path) -> None:
    """The commit that ends a task holds its rows for the hub and its reply for the device."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book, items=3)
        assert await book.finish([journals.finished(task.task_id, items=3)]) == [task.task_id]
    async with journals.opened(tmp_path) as book:
        rows = journals.rows_of(await journals.sent(book, journals.RESULTS))
        assert [(row["task_id"], row["item"]) for row in rows] == [(task.task_id, n) for n in range(3)]
        assert await book.unreplied(10) == [journals.reply(task.task_id)]
        assert await book.waiting(10) == []


async def test_a_task_ends_once(tmp_path: Path) -> None:
    """The second end of a task adds nothing: the first result is the one."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book)
        end = journals.finished(task.task_id)
        assert await book.finish([end, end]) == [task.task_id]
        assert await book.finish([end, journals.finished(tasks.new_id())]) == []
        assert (await book.lanes())[journals.RESULTS].numbered == 1


async def test_a_reply_waits_until_the_broker_has_it(tmp_path: Path) -> None:
    """Replies are given out, oldest task first, until they are reported as sent; then never again."""
    async with journals.opened(tmp_path) as book:
        ids = [(await journals.accept(book)).task_id for _ in range(5)]
        await book.finish([journals.finished(task_id) for task_id in reversed(ids)])
        first = await book.unreplied(2)
        assert [reply.task_id for reply in first] == ids[:2]
        rest = await book.unreplied(10, after=first[-1].task_id)
        assert [reply.task_id for reply in rest] == ids[2:]
        await book.replied([ids[0], ids[3]])
        left = [ids[1], ids[2], ids[4]]
        assert [reply.task_id for reply in await book.unreplied(10)] == left
    async with journals.opened(tmp_path) as book:
        assert [reply.task_id for reply in await book.unreplied(10)] == left


async def test_a_handed_over_task_goes_with_what_it_needs(tmp_path: Path) -> None:
    """A handed-over task does not wait here any more, and travels whole; of its deadline what is left."""
    now = journals.NOW_US
    async with journals.opened(tmp_path, now_us=lambda: now) as book:
        task = await journals.accept(
            book, payload=b"p", deadline_ms=5000, idempotency_key="k", correlation=b"c", priority=7
        )
        assert await book.hand_over([task.task_id, tasks.new_id()]) == [task.task_id]
        assert await book.hand_over([task.task_id]) == []
        assert await book.waiting(10) == []
        assert [held.task_id for held in await book.waiting(10, holder=records.Holder.HUB)] == [task.task_id]

        now += 1_500_000
        (record,) = journals.rows_of(await journals.sent(book, journals.TASKS))
        assert {
            name: record[name] for name in ("task_id", "payload", "deadline_ms", "priority", "items")
        } == {
            "task_id": task.task_id,
            "payload": b"p",
            "deadline_ms": 3500,
            "priority": 7,
            "items": 1,
        }
        assert (record["idempotency_key"], record["correlation"]) == ("k", b"c")


async def test_a_task_taken_back_runs_here_and_the_hub_hears_its_end(tmp_path: Path) -> None:
    """Of a task that was taken back only its id still travels, and it says that the hub may know it."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book)
        assert not task.withdrawn
        await book.hand_over([task.task_id])
        (back,) = await book.reclaim([task.task_id, tasks.new_id()])
        assert (back.task_id, back.holder, back.hub_attempt) == (task.task_id, records.Holder.EDGE, 0)
        assert back.withdrawn
        assert await book.reclaim([task.task_id]) == []
        (record,) = journals.rows_of(await journals.sent(book, journals.TASKS))
        assert (record["task_id"], record["payload"]) == (task.task_id, None)

        row, attempt = journals.row(task.task_id), journals.end_of_attempt(task.task_id)
        await book.finish([records.Finished(task.task_id, [row], attempt=attempt)])
        (record,) = journals.rows_of(await journals.sent(book, journals.TASKS))
        assert (record["task_id"], record["payload"]) == (task.task_id, None)
        results, attempts = await journals.sent(book, journals.RESULTS)
        assert (results.kind.name, attempts.kind.name) == ("results", "attempts")


async def test_a_task_can_be_handed_over_again(tmp_path: Path) -> None:
    """A task that was taken back may go to the hub once more, with its payload."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book)
        await book.hand_over([task.task_id])
        await book.reclaim([task.task_id])
        assert await book.hand_over([task.task_id]) == [task.task_id]
        last = journals.rows_of(await journals.sent(book, journals.TASKS))[-1]
        assert last["payload"] == b"picture"


async def test_a_deadline_goes_on_while_the_agent_is_down(tmp_path: Path) -> None:
    """What is left of a deadline counts from acceptance, over restarts; no clock can lengthen it."""
    async with journals.opened(tmp_path) as book:
        await journals.accept(book, deadline_ms=1000)
        await journals.accept(book)
    async with journals.opened(tmp_path) as book:
        task, endless = await book.waiting(2)
        assert task.remaining_ms(journals.NOW_US + 400_000) == 600
        assert task.remaining_ms(journals.NOW_US + 10**12) == 0
        assert task.remaining_ms(0) == 1000
        assert endless.remaining_ms(0) is None


async def test_leases_and_their_cursor_are_one_commit(tmp_path: Path) -> None:
    """Leased tasks are here exactly when the cursor has passed them; withdrawn ones only count."""
    ids = [tasks.new_id() for _ in range(3)]
    async with journals.opened(tmp_path) as book:
        taken = await journals.take_leases(book, 3, journals.leases(ids, deadline_ms=700))
        assert [(task.task_id, task.payload) for task in taken] == [(i, b"leased picture") for i in ids]
        assert await journals.take_leases(book, 4, journals.leases([tasks.new_id()], payload=None)) == []
    async with journals.opened(tmp_path) as book:
        assert await book.cursors() == {journals.LEASES: records.Cursor(4, 4)}
        waiting = await book.waiting(10)
        assert [task.task_id for task in waiting] == ids
        assert {(task.origin, task.hub_attempt, task.attempt) for task in waiting} == {("hub", 1, 1)}
        assert {task.remaining_ms(journals.NOW_US) for task in waiting} == {700}


async def test_only_a_newer_lease_of_a_task_counts(tmp_path: Path) -> None:
    """The attempt number fences: an equal or older lease changes nothing, a newer one is the task's."""
    task_id = tasks.new_id()
    async with journals.opened(tmp_path) as book:
        await journals.take_leases(book, 1, journals.leases([task_id], attempt=2))
        assert await journals.take_leases(book, 2, journals.leases([task_id], attempt=1)) == []
        assert await journals.take_leases(book, 3, journals.leases([task_id], attempt=2)) == []
        (newer,) = await journals.take_leases(book, 4, journals.leases([task_id], attempt=3))
        assert (newer.attempt, newer.hub_attempt) == (3, 3)
        assert len(await book.waiting(10)) == 1


async def test_rows_and_checkpoint_are_one_commit(tmp_path: Path) -> None:
    """Of a task of many items the journal holds exactly the rows of those that its checkpoint counts; what
    the reply will say of them stays until the task ends, and goes with it."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book, items=5)
        for first in (0, 2):
            rows = [journals.row(task.task_id, item) for item in (first, first + 1)]
            part = records.Part(first, 1, "torn", f"{first},{first + 1}")
            assert await book.checkpoint(records.Checkpoint(task.task_id, first + 2, rows, part))
    async with journals.opened(tmp_path) as book:
        (found,) = await book.waiting(10)
        assert (found.items_done, found.items_left) == (4, 1)
        assert (await book.counts()).waiting_items == {("surface", 5): 1}
        assert [row["item"] for row in journals.rows_of(await journals.sent(book, journals.RESULTS))] == [
            *range(4)
        ]
        assert await book.parts(task.task_id) == [
            records.Part(0, 1, "torn", "0,1"),
            records.Part(2, 1, "torn", "2,3"),
        ]
        last = records.Finished(task.task_id, [journals.row(task.task_id, 4)], journals.reply(task.task_id))
        assert await book.finish([last]) == [task.task_id]
        assert await book.parts(task.task_id) == []
        late = records.Checkpoint(task.task_id, 5, [journals.row(task.task_id, 4)])
        assert not await book.checkpoint(late)
        assert (await book.lanes())[journals.RESULTS].numbered == 5
    assert journals.peek(tmp_path, "SELECT count(*) FROM checkpoints") == [(0,)]


async def test_a_task_that_came_further_is_not_what_kills_the_agent(tmp_path: Path) -> None:
    """Deaths count against a task that was running only until it gets beyond its checkpoint."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book, items=5)
    for deaths in (1, 2):
        async with journals.opened(tmp_path) as book:
            book.running.begin([task.task_id])
            marks = (tmp_path / "journal.db-running").read_bytes()
        (tmp_path / "journal.db-running").write_bytes(marks)  # as kill -9 would have left it
        async with journals.opened(tmp_path) as book:
            (found,) = await book.waiting(10)
            assert found.crashes == deaths
    async with journals.opened(tmp_path) as book:
        await book.checkpoint(records.Checkpoint(task.task_id, 1, [journals.row(task.task_id)]))
        (found,) = await book.waiting(10)
        assert (found.crashes, found.items_done) == (0, 1)


async def test_a_lease_brings_the_checkpoint_of_the_hub(tmp_path: Path) -> None:
    """A leased task goes on from the hub's checkpoint or its own, whichever is further."""
    task_id = tasks.new_id()
    async with journals.opened(tmp_path) as book:
        (first,) = await journals.take_leases(book, 1, journals.leases([task_id], items=9, items_done=2))
        assert first.items_done == 2
        await book.checkpoint(records.Checkpoint(task_id, 5, [journals.row(task_id, i) for i in (2, 3, 4)]))
        for attempt, hubs, best in ((2, 4, 5), (3, 7, 7)):
            batch = journals.leases([task_id], items=9, items_done=hubs, attempt=attempt)
            (again,) = await journals.take_leases(book, attempt, batch)
            assert (again.attempt, again.items_done) == (attempt, best)
        assert await book.waiting(10) == [again.without_payload()]
        assert (await book.counts()).leased_items == 2


@pytest.mark.parametrize("state", [tasks.State.QUEUED, tasks.State.FAILED, tasks.State.TERMINATED])
async def test_the_end_of_an_older_attempt_ends_nothing(tmp_path: Path, state: tasks.State) -> None:
    """Once a newer lease is here, any end of the older attempt but its completion is dropped."""
    task_id = tasks.new_id()
    async with journals.opened(tmp_path) as book:
        for attempt in (1, 2):
            await journals.take_leases(book, attempt, journals.leases([task_id], attempt=attempt))
        old = records.Finished(task_id, attempt=journals.end_of_attempt(task_id, 1, state=state))
        assert await book.finish([old]) == []
        assert (await book.lanes())[journals.RESULTS].numbered == 0
        done = records.Finished(task_id, [journals.row(task_id)], attempt=journals.end_of_attempt(task_id, 1))
        assert await book.finish([done]) == [task_id]


async def test_our_own_task_may_be_leased_to_us(tmp_path: Path) -> None:
    """A task that we handed over and got back as a lease still answers its device."""
    async with journals.opened(tmp_path) as book:
        task = await journals.accept(book, response_topic="device/7")
        await book.hand_over([task.task_id])
        (leased,) = await journals.take_leases(book, 1, journals.leases([task.task_id], attempt=4))
        assert (leased.origin, leased.holder, leased.hub_attempt) == ("device", "edge", 4)
        assert (leased.response_topic, leased.withdrawn) == ("device/7", True)


async def test_a_lease_against_the_rules_keeps_none_from_running(tmp_path: Path) -> None:
    """A lease that no journal can hold is left out; its neighbours run and the cursor passes it."""
    good = tasks.new_id()
    async with journals.opened(tmp_path) as book:
        batch = (
            journals.leases([tasks.new_id()], priority=77).to_pylist() + journals.leases([good]).to_pylist()
        )
        taken = await journals.take_leases(book, 2, type(journals.leases([good])).from_pylist(batch))
        assert [task.task_id for task in taken] == [good]
        assert (await book.cursors())[journals.LEASES].cursor == 2


async def test_a_task_that_the_hub_ended_is_answered_here(tmp_path: Path) -> None:
    """The hub's end of a handed-over task keeps its reply, moves the cursor, and sends no rows back."""
    async with journals.opened(tmp_path) as book:
        ids = [(await journals.accept(book, idempotency_key=key)).task_id for key in ("a", "b")]
        await book.hand_over(ids)
        ends = [records.Returned(task_id, journals.reply(task_id)) for task_id in [*ids, tasks.new_id()]]
        assert await book.apply_returned(DOWN_RESULTS, 3, 3, ends) == ids
        assert (await book.cursors())[DOWN_RESULTS] == (3, 3)
        assert [reply.task_id for reply in await book.unreplied(10)] == ids
        assert await book.read(journals.RESULTS, 0, 1000, 1 << 20) is None
        (again,) = await book.accept([journals.task(idempotency_key="a")])
        assert again is not None
        assert again.reply is not None


async def test_the_first_end_wins_over_the_hubs(tmp_path: Path) -> None:
    """A task taken back ends here or at the hub, whichever comes first; the other adds nothing."""
    async with journals.opened(tmp_path) as book:
        here, there = [(await journals.accept(book)).task_id for _ in range(2)]
        await book.hand_over([here, there])
        await book.reclaim([here, there])
        await book.finish([journals.finished(here)])
        ends = [records.Returned(task_id, journals.reply(task_id, b"hub")) for task_id in (here, there)]
        assert await book.apply_returned(DOWN_RESULTS, 2, 2, ends) == [there]
        assert await book.finish([journals.finished(there)]) == []
        assert {reply.task_id: reply.body for reply in await book.unreplied(9)} == {
            here: b"{}",
            there: b"hub",
        }


async def test_counts_tell_what_is_held(tmp_path: Path) -> None:
    """Counts are of tasks by holder, items by model and priority, replies, and records to sync."""
    async with journals.opened(tmp_path) as book:
        ids = [(await journals.accept(book, items=n, priority=n)).task_id for n in (1, 1, 2, 3)]
        await journals.accept(book, model="other", items=5)
        await book.hand_over(ids[3:])
        await book.finish([journals.finished(ids[0])])
        assert await book.counts() == records.Counts(
            waiting=3,
            waiting_items={("surface", 1): 1, ("surface", 2): 2, ("other", 5): 5},
            leased_items=0,
            handed_over=1,
            unreplied=1,
            to_sync=2,
        )


async def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    """What is asked of a journal after its end fails at once and does nothing."""
    async with journals.opened(tmp_path) as book:
        pass
    with pytest.raises(errors.JournalClosed):
        await book.accept([journals.task()])


def test_an_idle_agent_does_not_load_arrow(tmp_path: Path) -> None:
    """A journal that takes in tasks but has sent no record costs an agent none of pyarrow's memory."""
    program = """
import asyncio, pathlib, sys
from edge_agent import settings
from edge_agent.journal import journal, records

async def main():
    path = pathlib.Path(sys.argv[1]) / "journal.db"
    async with journal.Journal.open(path, "site", "agent", settings.Journal()) as book:
        await book.accept([records.Task(
            task_id=bytes(16), origin=records.Origin.DEVICE, model="m", version=None, priority=5, queue="q",
            tag=0.0, device="d", content_type="image/png", items=1, max_attempts=1, timeout_ms=None,
            deadline_ms=None, accepted_us=0, payload=b"p")])
        await book.counts(), await book.waiting(5), await book.unreplied(5), await book.lanes()
    print("pyarrow" in sys.modules)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


async def test_a_job_keeps_the_tags_by_which_its_version_is_chosen(tmp_path: Path) -> None:
    """They are there after a start as well, go with the task, and a task without any leaves nothing more."""
    async with journals.opened(tmp_path) as book:
        tagged = await journals.accept(book, tags='{"group":"beta"}')
        plain = await journals.accept(book)
        assert journals.peek(tmp_path, "SELECT count(*) FROM tags") == [(1,)]
    async with journals.opened(tmp_path) as book:
        waiting = {task.task_id: task.tags for task in await book.waiting(10)}
        assert waiting == {tagged.task_id: '{"group":"beta"}', plain.task_id: None}
        assert (await book.find([tagged.task_id]))[tagged.task_id].tags == '{"group":"beta"}'
        await book.finish([journals.finished(tagged.task_id), journals.finished(plain.task_id)])
        assert journals.peek(tmp_path, "SELECT count(*) FROM tags") == [(0,)]

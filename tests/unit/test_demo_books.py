"""The demo's books: whatever is lost, doubled or made up between cameras and store, the balance says so."""

from hypothesis import given
from hypothesis import strategies as st

from demo import books, report
from demo.notebook import Job, Notebook
from shared import tasks

DEVICES = ("plant-a-camera-1", "plant-a-camera-2", "plant-b-camera-1")


def task_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012d}"


def row(number: int, device: str, label: str = "ok", site: str = "plant-a") -> books.Row:
    return books.Row(task_id(number), 0, device, tasks.Outcome.OK, label, site, 0.1)


def published(notebook: Notebook, number: int, device: str) -> Job:
    return notebook.publish(f"key-{number}", device[:7], device, "ok", now=float(number))


def replied(notebook: Notebook, number: int, state: str = tasks.State.COMPLETED, label: str = "ok") -> None:
    items = f'[{{"item": 0, "label": "{label}"}}]'
    body = f'{{"task_id": "{task_id(number)}", "state": "{state}", "items": {items}}}'
    notebook.reply(f"key-{number}".encode(), body.encode(), now=number + 0.5)


def day(count: int) -> tuple[Notebook, list[books.Row]]:
    """A day on which everything went well."""
    notebook = Notebook()
    rows = []
    for number in range(count):
        device = DEVICES[number % len(DEVICES)]
        published(notebook, number, device)
        replied(notebook, number)
        rows.append(row(number, device))
    return notebook, rows


@given(st.integers(0, 30), st.data())
def test_every_missing_row_is_lost_and_every_further_one_a_duplicate(count: int, data: st.DataObject) -> None:
    """Rows taken away, doubled or invented are counted exactly, however many of each."""
    notebook, rows = day(count)
    some = st.sets(st.sampled_from(range(count))) if count else st.just(set())
    missing = data.draw(some)
    doubled = data.draw(some) - missing
    invented = data.draw(st.integers(0, 5))
    stored = [one for number, one in enumerate(rows) if number not in missing]
    stored += [rows[number]._replace(item=1) for number in doubled]
    stored += [row(1000 + number, DEVICES[0]) for number in range(invented)]
    balance = books.balance(notebook, stored)
    assert (balance.lost, balance.duplicates) == (len(missing), len(doubled) + invented)


@given(st.integers(0, 10), st.integers(0, 10))
def test_a_job_without_a_reply_may_own_a_row_that_no_camera_knows(waiting: int, unknown: int) -> None:
    """Such jobs and such rows are set against each other, device by device; the rest is lost or too much."""
    notebook, rows = day(3)
    for number in range(waiting):
        published(notebook, 100 + number, DEVICES[0])
    rows += [row(200 + number, DEVICES[0]) for number in range(unknown)]
    balance = books.balance(notebook, rows)
    assert balance.lost == max(0, waiting - unknown)
    assert balance.duplicates == max(0, unknown - waiting)


def test_a_row_of_one_device_does_not_make_up_for_anothers() -> None:
    """One camera's stray row never hides another camera's lost job."""
    notebook, rows = day(3)
    published(notebook, 100, DEVICES[0])
    rows.append(row(200, DEVICES[1]))
    balance = books.balance(notebook, rows)
    assert (balance.lost, balance.duplicates) == (1, 1)


def test_a_row_under_the_wrong_device_is_lost_and_too_much() -> None:
    """A result that was filed under another camera is no result of this one."""
    notebook, rows = day(1)
    balance = books.balance(notebook, [rows[0]._replace(device=DEVICES[1])])
    assert (balance.lost, balance.duplicates) == (1, 1)


def test_a_rejected_job_has_no_row() -> None:
    """A refusal is an answer; a row for it would be too much."""
    notebook, _ = day(0)
    published(notebook, 1, DEVICES[0])
    replied(notebook, 1, tasks.State.REJECTED)
    assert books.balance(notebook, []).lost == 0
    assert books.balance(notebook, [row(1, DEVICES[0])]).duplicates == 1


def test_a_reply_that_says_something_else_than_the_row_is_counted() -> None:
    """What a device was told and what is recorded must be the same."""
    notebook, rows = day(2)
    assert books.balance(notebook, [rows[0]._replace(label="pit"), rows[1]]).unlike == 1


def test_repeated_replies_are_told_from_replies_to_another_task() -> None:
    """At least once may bring a reply twice; but one job must not become two tasks."""
    notebook, _ = day(1)
    replied(notebook, 0)
    assert (notebook.repeated, notebook.other_ids) == (1, [])
    body = f'{{"task_id": "{task_id(7)}", "state": "COMPLETED"}}'
    notebook.reply(b"key-0", body.encode(), now=9.0)
    assert notebook.other_ids == [("key-0", task_id(7))]


async def test_the_notebook_settles_with_the_last_reply() -> None:
    """`settled` returns once no job waits, and waits again after the next job."""
    notebook, _ = day(2)
    await notebook.settled()
    published(notebook, 5, DEVICES[0])
    assert notebook.outstanding == 1
    replied(notebook, 5)
    await notebook.settled()


def test_only_jobs_published_and_replied_to_within_the_cut_count_as_offline() -> None:
    """A reply to an older job that arrives during the cut proves nothing about working offline."""
    notebook = Notebook()
    published(notebook, 1, DEVICES[2])
    notebook.cut("plant-b", now=2.0)
    published(notebook, 3, DEVICES[2])
    published(notebook, 4, DEVICES[0])
    published(notebook, 5, DEVICES[2])
    for number in (1, 3, 4):
        replied(notebook, number)
    notebook.healed("plant-b")
    replied(notebook, 5)
    assert [key for key, job in notebook.jobs.items() if job.offline] == ["key-3"]


LANE = books.Lane("plant-a", "edge-1", 1, "up", "results.1", numbered=9, cursor=9, committed=9)


def made(notebook: Notebook, rows: list[books.Row], lane: books.Lane = LANE) -> report.Report:
    return report.make(notebook, books.Stored(rows, 1, 0, [lane]), duration_s=1.0, bytes_per_result=20.0)


def test_a_good_day_has_no_problems() -> None:
    """Where all is in order, the report says so, and says where each job was done."""
    notebook, rows = day(9)
    rows[0] = rows[0]._replace(site="cloud")
    rows[1] = rows[1]._replace(site="plant-b")
    rows = [
        one if "plant-a" in one.device or one.site != "plant-a" else one._replace(site="plant-b")
        for one in rows
    ]
    outcome = made(notebook, rows)
    assert outcome.problems == []
    assert (outcome.completed_at_edge, outcome.completed_in_pool, outcome.completed_at_other_site) == (
        7,
        1,
        1,
    )
    assert outcome.accuracy == 1.0
    assert outcome.reply_latency_ms.p50 == 500.0
    assert report.read(report.dumps(outcome)) == outcome


def test_each_kind_of_trouble_is_a_problem() -> None:
    """Whatever does not balance is said, in words and with its number."""
    notebook, rows = day(3)
    published(notebook, 50, DEVICES[0])
    for outcome, words in (
        (made(notebook, rows), ["1 jobs got no reply", "1 jobs have no result"]),
        (made(notebook, [*rows, row(50, DEVICES[0])]), ["1 jobs got no reply"]),
        (made(day(3)[0], [*rows, row(60, DEVICES[0])]), ["1 rows in PostgreSQL"]),
        (made(day(3)[0], rows, LANE._replace(committed=7)), ["2 of 9 records are missing"]),
        (made(day(3)[0], rows, LANE._replace(cursor=5, committed=5)), ["4 of 9 records still wait"]),
    ):
        assert len(outcome.problems) == len(words)
        assert all(problem.startswith(word) for problem, word in zip(outcome.problems, words, strict=True))

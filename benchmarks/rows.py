"""Result rows as an agent makes them: by `edge_agent.verdicts`, from tasks of cameras on a line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import msgspec

from edge_agent import clock, outcomes, verdicts
from edge_agent.journal import records
from shared import jobs, tasks

CAMERAS = 24
LABELS = ("ok", "scratch", "pit", "dent", "stain", "burr")
WEIGHTS = (90, 3, 3, 2, 1, 1)
COMMIT_ROWS = 250
"""What an agent under load commits at a time."""

_EVERY_US = 700
"""Between two jobs of a busy agent."""


def batches(count: int, seed: int = 1) -> Iterator[tuple[list[records.Task], list[records.Finished]]]:
    """`count` tasks of one item each and their ends, as many at a time as share a commit."""
    chance = random.Random(seed)
    observed_us = clock.wall_us() - count * _EVERY_US
    for begin in range(0, count, COMMIT_ROWS):
        accepted = []
        for _ in range(min(COMMIT_ROWS, count - begin)):
            observed_us += chance.randrange(2 * _EVERY_US)
            accepted.append(_task(chance, observed_us))
        yield accepted, _finished(chance, accepted)


def _task(chance: random.Random, observed_us: int) -> records.Task:
    return records.Task(
        task_id=tasks.new_id(),
        origin=records.Origin.DEVICE,
        model="surface-defects",
        version="1.0.0",
        priority=jobs.DEFAULT_PRIORITY,
        queue=tasks.DEFAULT_QUEUE,
        tag=0.0,
        device=f"camera-{chance.randrange(CAMERAS):02}",
        content_type=jobs.PNG,
        items=1,
        max_attempts=3,
        timeout_ms=None,
        deadline_ms=None,
        accepted_us=observed_us,
        payload=b"",
    )


def _finished(chance: random.Random, ended: Sequence[records.Task]) -> list[records.Finished]:
    """Their ends, less the replies: the devices have them, and the uplink has nothing to do with them."""
    finished = []
    for task in ended:
        (label,) = chance.choices(LABELS, WEIGHTS)
        score = round(chance.uniform(0.5, 1.0), 6)
        output = json.dumps([{"label": label, "score": score}], separators=(",", ":")).encode()
        run = verdicts.Run(
            version="1.0.0",
            started_us=task.accepted_us + chance.randrange(800, 30_000),
            run_us=chance.randrange(350, 3_000),
            clock_offset_us=-1_840,
            clock_error_us=310,
        )
        end = verdicts.completed(task, [outcomes.Prediction(label, score, output)], run, "plant-a")
        finished.append(msgspec.structs.replace(end, reply=None))
    return finished

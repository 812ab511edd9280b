"""What the rest of the agent offers to a trial, and asks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_agent import engine, models, outcomes
from edge_agent.journal import records

Route = Callable[[bytes, str | None, str | None], str | None]
"""The version that a job runs on, by its task id, its stream (`records.Task.runs_in`) and its tags
(`records.Task.tags`); None: the one that serves who names none."""


class Ran(NamedTuple):
    """Items of one task that ran together."""

    task: records.Task
    work: engine.Work
    first: int
    """Which of the task's items is the first of them."""
    made: Sequence[outcomes.Outcome]


Watch = Callable[[models.Model, Sequence[Ran], int], None]
"""Told of each batch of a model that is tried: on which version it ran, what came of it, and in how many
microseconds."""

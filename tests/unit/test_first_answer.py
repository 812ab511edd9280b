"""The benchmark of an agent's start runs, and its jobs are answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import first_answer


@pytest.mark.usefixtures("broker")
def test_an_agent_that_starts_answers_what_waited_for_it(tmp_path: Path) -> None:
    """For each model the time to the first answer is measured, beside a bare Python's."""
    written = tmp_path / "figures.json"
    assert first_answer.main(["--quick", "--json", str(written)]) == 0
    told = json.loads(written.read_text())["first_answer"]
    assert told.keys() == {"surface-defects", "deep"}
    for name, one in told.items():
        assert 0 < one["first_s"] < first_answer.PATIENCE_S, name
        assert one["ratio_to_bare"] > 0, name

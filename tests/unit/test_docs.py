"""The docs say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from shared import tasks

DOCS = Path(__file__).parents[2] / "docs"


def test_the_diagram_of_states_is_the_table() -> None:
    """The state diagram in the docs has exactly the transitions of the one table in the code."""
    text = (DOCS / "architecture.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE))
    table = {(str(source), str(target)) for source, targets in tasks.TRANSITIONS.items() for target in targets}
    assert drawn == table


def test_every_room_in_the_docs_exists() -> None:
    """A file or folder that the architecture names is there."""
    text = (DOCS / "architecture.md").read_text()
    named = set(re.findall(r"`((?:shared|edge_agent|cloud_hub|demo)/[\w./]+)`", text))
    assert len(named) > 15
    missing = [name for name in named if not (DOCS.parent / name).exists()]
    assert not missing

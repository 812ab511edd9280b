"""The docs say what the code does."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from cloud_hub import settings as hub_settings
from edge_agent import settings as agent_settings
from shared import manifests, tasks, topics
from shared.rollouts import gates, stages

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
]

LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TOML: Final = re.compile(r"^(?:```toml|cat >\S+ <<'TOML')\n(.*?)^(?:```|TOML)$", re.MULTILINE | re.DOTALL)
TEST: Final = re.compile(r"`(tests/\S+?\.py)::(\w+)`")


def test_the_diagram_of_states_is_the_table() -> None:
    """The state diagram in the docs has exactly the transitions of the one table in the code."""
    text = (DOCS / "architecture.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE))
    table = {
        (str(source), str(target)) for source, targets in tasks.TRANSITIONS.items() for target in targets
    }
    assert drawn == table


def test_every_room_in_the_docs_exists() -> None:
    """A file or folder that the architecture names is there."""
    text = (DOCS / "architecture.md").read_text()
    named = set(re.findall(r"`((?:shared|edge_agent|cloud_hub|demo)/[\w./]+)`", text))
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_reference_is_made_from_the_code() -> None:
    """Tables of settings, schemas, routes and command lines are those that `docs/generate.py` makes now."""
    pages = _generator().pages()
    assert len(pages) > 5
    stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run `python docs/generate.py`"


def test_every_promise_names_tests_that_exist() -> None:
    """A test that the docs name as proof is in the file that they name."""
    named = {found for page in PAGES for found in TEST.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 40
    there = {
        (path, node.name)
        for path in {path for path, _ in named if (ROOT / path).exists()}
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not named - there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """A link within the repository ends at a file, and at a heading in it if it names one."""
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def test_every_page_is_in_the_index() -> None:
    """Whoever begins at the index comes to every page by one click."""
    linked = {
        (DOCS / target.partition("#")[0]).resolve()
        for target in LINK.findall((DOCS / "README.md").read_text(encoding="utf-8"))
    }
    assert not {page for page in DOCS.rglob("*.md") if page.name != "README.md"} - linked


def test_settings_in_the_docs_can_be_loaded(tmp_path: Path) -> None:
    """Each settings file that a page shows is taken by the program that it is for."""
    loaded = 0
    for page in PAGES:
        for text in TOML.findall(page.read_text(encoding="utf-8")):
            file = tmp_path / "settings.toml"
            file.write_text(text, encoding="utf-8")
            if re.search(r"^site = ", text, re.MULTILINE):
                agent_settings.load(file)
            elif re.search(r"^\[\[inputs\]\]", text, re.MULTILINE):
                manifests.parse(text, file)
            elif re.search(r"^database = ", text, re.MULTILINE):
                hub_settings.load(file)
            else:
                continue
            loaded += 1
    assert loaded >= 9


def test_stages_and_gates_in_the_docs_can_be_read() -> None:
    """Each stage and each gate of the tables about rollouts is one, and the gates are the default."""
    text = (DOCS / "how-to/roll-out-a-model.md").read_text(encoding="utf-8")
    tables = {
        head: [word for row in rows.splitlines() for word in re.findall(r"`([^`]+)`", row.split("|")[1])]
        for head, rows in re.findall(r"^\| a (stage|gate) \|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    }
    assert [str(stages.parse(stage)) for stage in tables["stage"]] == tables["stage"]
    assert [gates.parse(gate) for gate in tables["gate"]] == list(gates.DEFAULT)


def test_the_topics_are_those_of_the_code() -> None:
    """The reference lists exactly the topics that the one module for them builds and parses."""
    listed = re.findall(
        r"^\| `(backhaul/v1/\S+)` \|", (DOCS / "reference/topics.md").read_text(), re.MULTILINE
    )
    known = re.findall(r"^ +(backhaul/v1/\S+)", topics.__doc__ or "", re.MULTILINE)
    assert sorted(listed) == sorted(known)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code forges make them."""
    titles = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _generator() -> ModuleType:
    """`docs/generate.py`, which is a program and in no package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

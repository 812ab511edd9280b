"""The commands in the docs, run as a reader would, on real servers: what they print is what the page says.

The `sh` and `python` blocks of a page are run in order, in one shell. A `text` block right after one is what
it prints, where … stands for whatever differs from run to run. All other blocks are only for reading. The
pages name fixed ports; here each is exchanged for a free one.

The how-tos begin where the quickstart leaves off, so they run while its servers, hub and agent do.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import psutil
import pytest

from demo import servers
from demo.servers import ports

ROOT: Final = Path(__file__).parents[2]
QUICKSTART: Final = ROOT / "docs" / "quickstart.md"
HOW_TO: Final = sorted((ROOT / "docs" / "how-to").glob("*.md"))

PORTS: Final = (8080, 9100, 9101, 9102, 15432, 16379, 18831, 18832)
"""The hub's HTTP, three agents' HTTP, PostgreSQL, Valkey, the site's broker and the cloud's."""
NUMBER: Final = re.compile(r"(?<![\d.])\d{4,5}(?![\d.])")
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAST: Final = "\n## Stop\n"
"""Where the quickstart clears away."""

WHEELS: Final = ROOT / ".servers" / "wheels"
"""Where `.ci/setup` has put what a page lets its reader download; no test does."""

PATIENCE_S: Final = 120.0
"""For the commands of one page."""
STOP_S: Final = 20.0


@dataclass(frozen=True)
class Block:
    """Commands, and what they print if the page says it."""

    where: str
    command: str
    prints: str | None = None


def blocks(page: Path, begin: int = 0, end: int | None = None) -> list[Block]:
    """The commands of a page, or of the part of its text from `begin` to `end`."""
    text = page.read_text(encoding="utf-8")[:end]
    found: list[Block] = []
    answerable = False
    for fence in FENCE.finditer(text, begin):
        language, body = fence.groups()
        if language == "text" and answerable:
            found[-1] = Block(found[-1].where, found[-1].command, body)
        answerable = language in ("sh", "python")
        if answerable:
            line = text.count("\n", 0, fence.start()) + 1
            command = body if language == "sh" else f"python - <<'PYTHON'\n{body}PYTHON\n"
            found.append(Block(f"{page.relative_to(ROOT)}, line {line},", command))
    return found


@dataclass
class Place:
    """Where a reader sits: a folder like the repository's, ports, and programs on the PATH."""

    home: Path
    ports: Mapping[int, int] = field(default_factory=lambda: {port: ports.free() for port in PORTS})

    def __post_init__(self) -> None:
        for name in ("demo", "docs"):
            (self.home / name).symlink_to(ROOT / name)

    def exchange(self, text: str) -> str:
        """`text` with this place's ports for those of the pages."""
        return NUMBER.sub(lambda found: str(self.ports.get(int(found[0]), found[0])), text)

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def check(self, block: Block, printed: str) -> None:
        """Fail unless the page tells the truth about what a block prints."""
        if block.prints is None:
            return
        promised = "".join(self.exchange(block.prints).split())  # a page breaks and aligns lines to be read
        pattern = ".*?".join(re.escape(piece) for piece in promised.split("…"))
        assert re.fullmatch(pattern, "".join(printed.split())), (
            f"{block.where} says\n\n{block.prints}\nbut what is printed is\n\n{printed}"
        )

    def environment(self) -> dict[str, str]:
        client = servers.binary("mosquitto_rr")
        scripts = sysconfig.get_path("scripts")
        programs = [scripts, str(servers.binary("psql").path.parent), str(client.path.parent)]
        wheels = {"PIP_FIND_LINKS": str(WHEELS), "PIP_NO_INDEX": "1"} if WHEELS.is_dir() else {}
        return {
            **(client.env or os.environ),
            **wheels,
            "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
            "BACKHAUL_HUB": self.url(8080),
        }


class Shell:
    """A bash that is given commands block by block. It stops at the first that fails; all ends with it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._blocks = 0
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=place.home,
            env=place.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._type("set -e\n")

    def run(self, some: list[Block]) -> list[tuple[Block, str]]:
        """Run all of `some`; what each has printed."""
        impatience = threading.Timer(PATIENCE_S, os.killpg, (self._bash.pid, signal.SIGKILL))
        impatience.start()
        try:
            return [(block, self._run(block)) for block in some]
        finally:
            impatience.cancel()

    def _run(self, block: Block) -> str:
        self._blocks += 1
        output = self._place.home / f"{self._bash.pid}-{self._blocks}.out"
        command = self._place.exchange(block.command)
        self._type(f"{{\n{command}\n}} >{output} 2>&1 </dev/null\necho done\n")
        assert self._bash.stdout is not None
        finished = self._bash.stdout.readline() == "done\n"
        printed = output.read_text() if output.exists() else ""
        assert finished, f"{block.where} fails:\n\n{block.command}\n{printed}"
        return printed

    def _type(self, text: str) -> None:
        assert self._bash.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading from it will tell
            self._bash.stdin.write(text)
            self._bash.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = psutil.Process(self._bash.pid).children(recursive=True) if self._bash.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGTERM)
        self._bash.communicate()
        _, stubborn = psutil.wait_procs(family, STOP_S)
        for one in stubborn:
            one.kill()


@dataclass(frozen=True)
class Quickstart:
    """The quickstart, carried out but for its end."""

    place: Place
    printed: list[tuple[Block, str]]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quickstart]:
    try:
        for name in ("mosquitto", "mosquitto_rr", "postgres", "psql", "redis-server"):
            servers.binary(name)
    except servers.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    place = Place(tmp_path_factory.mktemp("reader"))
    last = QUICKSTART.read_text(encoding="utf-8").index(LAST)
    with Shell(place) as shell:
        yield Quickstart(place, shell.run(blocks(QUICKSTART, end=last)))
        shell.run(blocks(QUICKSTART, begin=last))


def test_the_quickstart_does_what_it_says(quickstart: Quickstart) -> None:
    """Every command of the quickstart works, one after the other, and prints what the page says."""
    for block, printed in quickstart.printed:
        quickstart.place.check(block, printed)


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_does_what_it_says(page: Path, quickstart: Quickstart) -> None:
    """Every command of a how-to works on the system of the quickstart, and prints what the page says."""
    found = blocks(page)
    with Shell(quickstart.place) as shell:
        for block, printed in shell.run(found):
            quickstart.place.check(block, printed)


def test_the_metrics_are_those_of_the_reference(quickstart: Quickstart) -> None:
    """Agent and hub expose the metrics that the reference lists, each with its type and its help."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for title, port in (("## Of an agent", 9100), ("## Of the hub", 8080)):
        section = page.partition(f"\n{title}\n")[2].partition("\n## ")[0]
        listed = set(re.findall(r"^\| `(\w+)`[^|]*\| (\w+) \| (.*) \|$", section, re.MULTILINE))
        exposed = httpx.get(f"{quickstart.place.url(port)}/metrics").text
        kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", exposed, re.MULTILINE))
        said = dict(re.findall(r"^# HELP (\w+) (.*)$", exposed, re.MULTILINE))
        assert listed == {
            (name, kind, said[name]) for name, kind in kinds.items() if not name.endswith("_created")
        }

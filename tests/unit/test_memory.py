"""What models took goes back to the system when they go; each test looks at a process of its own."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks import loading, pictures
from shared import jobs
from tests import models

ROOT: Final = Path(__file__).parents[2]

CYCLES: Final = """
import json, sys
from benchmarks import cycles
from edge_agent import engine, models, runtime

class Kept(runtime.OnnxRuntime):
    def close(self):
        kept.append(self)

kept = []
package, keeps = json.loads(sys.argv[1])
machine = engine.Engine(models.Catalogue(), opener=Kept if keeps else None)
print(json.dumps([look.own_mb for look in cycles.turn(machine, [cycles.Package(*package)], [2, 8])]))
"""
HOLES: Final = """
import json, os
from benchmarks import meters
from edge_agent import memory

blocks = [bytearray(60_000) for _ in range(1_000)]  # of the heap: larger ones come from the system each time
del blocks[:-1]  # the last one lies above the hole
before = meters.own_mb(os.getpid())
memory.give_back()
print(json.dumps([before, meters.own_mb(os.getpid())]))
"""

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library gives nothing back at a word"
)


def ran(script: str, *arguments: Any) -> Sequence[float]:
    """What a script says at its end, in MB."""
    words = [json.dumps(one) for one in arguments]
    ended = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told: list[float] = json.loads(ended.stdout)
    return told


@pytest.mark.parametrize("keeps", [False, True], ids=["as it is", "sessions kept"])
def test_models_that_come_and_go_leave_nothing(tmp_path: Path, keeps: bool) -> None:
    """From the second cycle to the eighth memory grows by less than one session; if sessions were kept, it
    would grow by more."""
    payload = tmp_path / "payload"
    payload.write_bytes(models.png(128, size=128))
    package = (str(pictures.DEMO), jobs.PNG, str(payload))
    second, eighth = ran(CYCLES, (package, keeps))
    assert (eighth - second > loading.BOUND_MB) is keeps


def test_what_was_freed_below_something_goes_back() -> None:
    """A hole in the heap, which the C library keeps by itself, goes back at a word."""
    before, after = ran(HOLES)
    assert before - after > 50

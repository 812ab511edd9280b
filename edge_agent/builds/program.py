"""The program that builds an engine of TensorRT, or opens one to see that it runs.

    python -m edge_agent.builds.program PACKAGE FOLDER SHA256

It ends with 0 if TensorRT runs the graph, and says on its last line why not. It takes what of the machine
nobody else wants, is the first to go when memory runs out, and goes when the agent does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

from edge_agent import models, sessions

NICE: Final = 10
OOM_SCORE: Final = 900
"""Of 1,000, which would be the first to be killed whatever it takes: proc(5), oom_score_adj."""
_PR_SET_PDEATHSIG: Final = 1
"""prctl(2)"""


def main() -> int:
    package, folder, sha256 = sys.argv[1:]
    stand_back()
    model = models.load(Path(package))
    if model.sha256 != sha256:
        print(f"{package} has changed since it was loaded")
        return 1
    return run(model, Path(folder))


def run(model: models.Model, folder: Path) -> int:
    """Have TensorRT run the graph with the engine in `folder`, which it builds if there is none."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    below = [one for one in (sessions.CUDA, sessions.CPU) if one in sessions.offered((one,))]
    providers = [
        (sessions.EXECUTION_PROVIDERS[one], sessions.provider_options(one, model, folder))
        for one in (sessions.TENSORRT, *below)
    ]
    session = ort.InferenceSession(os.fspath(model.path), providers=providers, enable_fallback=0)
    running = session.get_providers()[0]
    if running != sessions.EXECUTION_PROVIDERS[sessions.TENSORRT]:
        print(f"TensorRT's libraries did not load, ONNX Runtime chose {running}")
        return 1
    session.disable_fallback()
    sessions.probe(session, model)
    return 0


def stand_back() -> None:
    """Let the agent go first, in everything."""
    os.nice(NICE)
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(str(OOM_SCORE), encoding="ascii")
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as failure:  # noqa: BLE001 - whatever it is, the agent is told in one line
        print(sessions.line(failure))
        sys.exit(1)

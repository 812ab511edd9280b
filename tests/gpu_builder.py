"""A program that builds engines in place of TensorRT, well or badly.

    gpu_builder.py HOW PACKAGE FOLDER SHA256

It is called twice: to build an engine, and when there is one to see that it opens.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

ENGINE: Final = b"an engine"


def build(how: str, folder: Path) -> int:
    engine = folder / "x.engine"
    match how:
        case "build" if not engine.exists():
            engine.write_bytes(ENGINE)
        case "slow":
            signal.pause()
        case "gated" if not engine.exists():  # until somebody opens the other end
            (folder.parent / "gate").read_bytes()
            engine.write_bytes(ENGINE)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "crash at its own engine":
            if engine.exists():
                os.kill(os.getpid(), signal.SIGSEGV)
            engine.write_bytes(ENGINE)
        case "out of memory":
            os.kill(os.getpid(), signal.SIGKILL)
        case "empty":
            engine.open("ab").close()
        case "again":
            engine.write_bytes(os.urandom(9))
        case "refuse":
            print("a warning\nNonMaxSuppression is not supported")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(build(sys.argv[1], Path(sys.argv[3])))

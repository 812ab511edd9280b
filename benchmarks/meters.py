"""What processes cost: CPU seconds and memory, from the outside."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


class Cpu:
    """CPU seconds of a process and all below it, those that have ended included, since this was made."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._total()

    def seconds(self) -> float:
        return self._total() - self._before

    def _total(self) -> float:
        total = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def resident_mb(pid: int) -> float:
    """Resident memory now (MB, of 10^6 bytes)."""
    return int(psutil.Process(pid).memory_info().rss) / 1e6


def peak_mb(pid: int) -> float:
    """The most resident memory that the process has had (MB), by the kernel's own book."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"/proc/{pid}/status does not say VmHWM")


def own_mb(pid: int) -> float:
    """Memory that the process made for itself (MB): not that of files, such as libraries, which others share
    and the system may drop."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"/proc/{pid}/smaps_rollup does not say Anonymous")

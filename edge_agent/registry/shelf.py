"""The hub's packages on the agent's disk.

    state/models/wanted.json           what the hub said last
    state/models/gone-back.json        the rollouts that this agent has gone back from, and why
    state/models/starts.json           how often in a row it has begun with one and then died
    state/models/SHA256/               a package, unpacked
    state/models/SHA256.json           what it is; written when the package is whole
    state/models/.partial/SHA256       an archive of which not all has come

An unpacked package packs to the very archive that it came from, so what lies here can be compared with its
SHA-256 at any time, and with its signature. All of this blocks: it is for threads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.registry import plan, wanted
from shared import packages

_WANTED: Final = "wanted.json"
_GONE_BACK: Final = "gone-back.json"
_STARTS: Final = "starts.json"
_NOTES: Final = (_WANTED, _GONE_BACK, _STARTS)
_PARTIAL: Final = ".partial"


class Damaged(Exception):
    """A package that is not what it was when it came."""


class Shelf:
    """The packages in one folder, which is nobody else's."""

    def __init__(self, folder: Path, limits: packages.Limits) -> None:
        self._folder = folder
        self._limits = limits
        (folder / _PARTIAL).mkdir(parents=True, exist_ok=True)

    def stored(self) -> dict[str, plan.Stored]:
        """Every package that is whole, by SHA-256."""
        found: dict[str, plan.Stored] = {}
        for path in sorted(self._folder.glob("*.json")):
            if path.name in _NOTES or not self.folder(path.stem).is_dir():
                continue
            with contextlib.suppress(msgspec.DecodeError):
                one = msgspec.json.decode(path.read_bytes(), type=plan.Stored)
                if one.wanted.sha256 == path.stem:
                    found[path.stem] = one
        return found

    def desired(self) -> wanted.Desired | None:
        """What the hub said last; None if that is not known."""
        with contextlib.suppress(FileNotFoundError, wanted.BadAnswer):
            return wanted.parse((self._folder / _WANTED).read_bytes())
        return None

    def desire(self, said: wanted.Desired) -> None:
        """Remember what the hub said."""
        _write(self._folder / _WANTED, msgspec.json.encode(said))

    def gone_back(self) -> dict[str, str]:
        """The rollouts that this agent has gone back from by itself, and why."""
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode((self._folder / _GONE_BACK).read_bytes(), type=dict[str, str])
        return {}

    def go_back(self, rollouts: Mapping[str, str]) -> None:
        """Remember these, and no others."""
        _write(self._folder / _GONE_BACK, msgspec.json.encode(rollouts))

    def starts(self) -> dict[str, int]:
        """How often in a row the agent has begun with each rollout and then died, as far as is known."""
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode((self._folder / _STARTS).read_bytes(), type=dict[str, int])
        return {}

    def start(self, starts: Mapping[str, int]) -> None:
        """Remember these, and no others."""
        _write(self._folder / _STARTS, msgspec.json.encode(starts))

    def folder(self, sha256: str) -> Path:
        return self._folder / sha256

    def partial(self, sha256: str) -> Path:
        """Where an archive goes while it comes."""
        return self._folder / _PARTIAL / sha256

    def tidy(self, keep_partial: Collection[str]) -> None:
        """Take away what a crash has left, and what has come of packages that nobody wants any more."""
        whole = self.stored()
        for path in self._folder.iterdir():
            if path.name not in (*_NOTES, _PARTIAL) and path.name.partition(".")[0] not in whole:
                _remove(path)
        for path in (self._folder / _PARTIAL).iterdir():
            if path.name not in keep_partial or path.name in whole:
                _remove(path)

    def put(self, one: wanted.Wanted) -> None:
        """Unpack the archive that has come. Raises packages.BadArchive, also if its SHA-256 is another; the
        archive is gone then."""
        folder, archive = self.folder(one.sha256), self.partial(one.sha256)
        if folder.exists():
            shutil.rmtree(folder)
        try:
            with archive.open("rb") as source:
                packages.unpack(source, folder, self._limits, sha256=one.sha256)
        except packages.BadArchive:
            archive.unlink(missing_ok=True)
            raise
        self.note(plan.Stored(wanted=one))
        archive.unlink()

    def note(self, one: plan.Stored) -> None:
        """Remember this of a package that is there."""
        _write(self._folder / f"{one.wanted.sha256}.json", msgspec.json.encode(one))

    def verify(self, sha256: str) -> None:
        """Raises Damaged unless the package is what it was when it came."""
        try:
            with open(os.devnull, "wb") as nowhere:
                now = packages.pack(self.folder(sha256), nowhere, self._limits).sha256
        except (packages.BadArchive, FileNotFoundError) as error:
            raise Damaged(str(error)) from None
        if now != sha256:
            raise Damaged(f"its SHA-256 is {now} and should be {sha256}")

    def remove(self, sha256: str) -> None:
        """Take a package off the disk."""
        (self._folder / f"{sha256}.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder(sha256), ignore_errors=True)


def _write(path: Path, body: bytes) -> None:
    """Replace a file; after a power cut it is the old one or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

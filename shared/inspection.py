"""A model package's archive looked through as its bytes pass: what is in it, and whether it is whole.

So a hub that takes one and a command that sends one never hold more of it than its manifest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from shared import manifests, packages

MAX_MANIFEST_BYTES: Final = 1 << 20
_PIECE: Final = 1 << 20


class Found(NamedTuple):
    """What an archive is, and says of itself."""

    packed: packages.Packed
    manifest: manifests.Manifest
    text: str
    """The manifest as it is written."""


class Inspection:
    """Looks through one archive."""

    def __init__(self, limits: packages.Limits = packages.LIMITS) -> None:
        self._reader = packages.Reader(limits)
        self._digest = hashlib.sha256()
        self._size = 0
        self._files: set[str] = set()
        self._manifest = bytearray()
        self._in_manifest = False

    def take(self, piece: bytes) -> None:
        """The next bytes. Raises packages.BadArchive."""
        self._digest.update(piece)
        self._size += len(piece)
        for part in self._reader.feed(piece):
            if isinstance(part, packages.Entry):
                self._files.add(part.name)
                self._in_manifest = part.name == manifests.MANIFEST
                if self._in_manifest and part.size > MAX_MANIFEST_BYTES:
                    raise packages.BadArchive(
                        f"its {manifests.MANIFEST} has {part.size:,} bytes, which no manifest needs"
                    )
            elif self._in_manifest:
                self._manifest += part

    def finish(self) -> Found:
        """What it was, once all bytes have passed. Raises packages.BadArchive or manifests.BadPackage."""
        self._reader.finish()
        if manifests.MANIFEST not in self._files:
            raise packages.BadArchive(
                f"there is no {manifests.MANIFEST} in it; pack the folder that holds that file"
            )
        try:
            text = self._manifest.decode()
        except UnicodeDecodeError:
            raise packages.BadArchive(f"its {manifests.MANIFEST} is not UTF-8") from None
        manifest = manifests.parse(text, Path(manifests.MANIFEST))
        if manifest.source not in self._files:
            raise packages.BadArchive(f"its manifest names {manifest.source!r}, which is not in it")
        packed = packages.Packed(self._digest.hexdigest(), self._size, self._reader.files)
        return Found(packed, manifest, text)


def inspect(source: BinaryIO, limits: packages.Limits = packages.LIMITS) -> Found:
    """Look through an archive. Raises packages.BadArchive or manifests.BadPackage."""
    inspection = Inspection(limits)
    while piece := source.read(_PIECE):
        inspection.take(piece)
    return inspection.finish()

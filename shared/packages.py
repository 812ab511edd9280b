"""Model packages as one file: the archive that a folder becomes to be pushed, kept and fetched.

An archive is a POSIX ustar file (IEEE Std 1003.1, "pax", ustar interchange format) in one canonical form:
regular files and folders in the order of their names, nobody's, of no time, and two blocks of zeros at the
end. So equal folders make equal bytes and have one SHA-256. Whatever else a tar file may hold (links,
devices, extended headers, sparse files) has no way in: what is not as `pack` would have written it is
refused. `tar -tvf` lists an archive, `tar -xf` unpacks it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec

CONTENT_TYPE: Final = "application/x-tar"

MAX_NAME_BYTES: Final = 100
"""Of a path within the package: what the header has room for."""
MAX_FILE_BYTES: Final = 8**11 - 1
"""Of one file: what the header can say, 8 GiB less one byte."""

_BLOCK: Final = 512
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_FILE: Final = b"0"
_FOLDER: Final = b"5"
_KINDS: Final = {
    b"\0": "a file of the time before ustar",
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"7": "a contiguous file",
    b"g": "an extended header",
    b"x": "an extended header",
    b"L": "a long name of GNU tar",
    b"K": "a long link of GNU tar",
    b"S": "a sparse file",
}
_LEFT_OUT: Final = "__pycache__"
"""What Python leaves beside a package's code, and is never of it."""
_END: Final = bytes(2 * _BLOCK)
_PIECE: Final = 1 << 20


class BadArchive(ValueError):
    """A folder that cannot be packed, or a file that is no package; the message says why."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive may hold; more is refused before any of it is written."""

    max_entries: int = 4096
    """Files and folders."""
    max_bytes: int = 8 << 30
    """Of all files together."""


LIMITS: Final = Limits()


class Packed(NamedTuple):
    """What an archive is known by."""

    sha256: str
    size: int
    """Bytes of the archive."""
    files: int


class Entry(NamedTuple):
    """A file or a folder of an archive."""

    name: str
    """Its path within the package, with slashes; a folder's ends with one."""
    size: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


def pack(folder: Path, sink: BinaryIO, limits: Limits = LIMITS) -> Packed:
    """Write the archive of `folder` to `sink`. What begins with a dot is left out, and so is `__pycache__`.

    Raises BadArchive for what has no place in a package, OSError for what cannot be read or written.
    """
    digest = hashlib.sha256()
    size = files = 0

    def write(data: bytes) -> None:
        nonlocal size
        digest.update(data)
        sink.write(data)
        size += len(data)

    names = _Names(limits)
    for path in _walk(folder):
        entry = _entry(folder, path)
        names.add(entry)
        write(_header(entry))
        if not entry.is_folder:
            files += 1
            with path.open("rb") as source:
                left = entry.size
                while piece := source.read(min(_PIECE, left)):
                    write(piece)
                    left -= len(piece)
                if left or source.read(1):
                    raise BadArchive(f"{path} changed while it was packed; try again")
            write(bytes(-entry.size % _BLOCK))
    write(_END)
    return Packed(digest.hexdigest(), size, files)


def unpack(source: BinaryIO, folder: Path, limits: Limits = LIMITS, *, sha256: str | None = None) -> Packed:
    """Unpack an archive to `folder`, which must not be there yet. It appears whole and on the disk.

    Until then it is under a dot's name beside. Raises BadArchive for what is no archive, is beyond `limits`,
    or has another SHA-256 than it should; then, as after an OSError, nothing is left behind.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    digest = hashlib.sha256()
    size = 0
    reader = Reader(limits)
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        with _Writer(draft) as writer:
            while data := source.read(_PIECE):
                digest.update(data)
                size += len(data)
                for part in reader.feed(data):
                    writer.take(part)
        reader.finish()
        if sha256 is not None and digest.hexdigest() != sha256:
            raise BadArchive(f"its SHA-256 is {digest.hexdigest()} and should be {sha256}; fetch it again")
        writer.sync()
        draft.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Packed(digest.hexdigest(), size, reader.files)


class Reader:
    """Reads an archive as its bytes come, and checks every one of them; it holds no more than a header."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._names = _Names(limits)
        self._header = bytearray()
        self._left = 0
        """Bytes of the present file that are to come."""
        self._padding = 0
        self._ended = False
        self.files = 0

    def feed(self, data: bytes | memoryview) -> Iterator[Entry | memoryview]:
        """An entry where one begins, and then its bytes, as many as there are. Raises BadArchive."""
        rest = memoryview(data)
        while rest:
            if self._left:
                piece, rest = rest[: self._left], rest[self._left :]
                self._left -= len(piece)
                yield piece
            elif self._padding:
                piece, rest = rest[: self._padding], rest[self._padding :]
                if any(piece):
                    raise BadArchive("there are bytes between its files")
                self._padding -= len(piece)
            elif self._ended:
                raise BadArchive("there are bytes behind its end")
            else:
                wanted = (len(_END) if self._header and not self._header[0] else _BLOCK) - len(self._header)
                self._header += rest[:wanted]
                rest = rest[wanted:]
                if entry := self._begin():
                    yield entry

    def finish(self) -> None:
        """Raises BadArchive unless the archive has come to its end."""
        if not self._ended and self._names.is_empty:
            raise BadArchive("it is no archive of a model package, or breaks off where it begins")
        if not self._ended:
            raise BadArchive("it breaks off before its end; send or fetch it again")

    def _begin(self) -> Entry | None:
        """The entry that a whole header begins."""
        header = bytes(self._header)
        if len(header) < _BLOCK:
            return None
        if not header[0]:  # no name: the end, two blocks of zeros
            if any(header):
                raise BadArchive("it is no archive of a model package: pack it with `backhaul models pack`")
            self._ended = len(header) == len(_END)
            if self._ended:
                self._header.clear()
            return None
        self._header.clear()
        entry = _read_header(header)
        self._names.add(entry)
        self._left, self._padding = entry.size, -entry.size % _BLOCK
        self.files += not entry.is_folder
        return entry


class _Names:
    """The entries of an archive so far, each of which must have its place there."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._folders = {""}
        self._folded: set[str] = set()
        self._last: list[bytes] = []
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._folded

    def add(self, entry: Entry) -> None:
        path = entry.name.removesuffix("/")
        for part in path.split("/"):
            _check_part(part, entry.name)
        if len(entry.name.encode()) > MAX_NAME_BYTES:
            raise BadArchive(f"{entry.name}: the path is longer than {MAX_NAME_BYTES} bytes; shorten it")
        parent, slash, _ = path.rpartition("/")
        if parent + slash not in self._folders:
            raise BadArchive(f"{entry.name!r} is in a folder that is not there")
        folded = path.casefold()
        if folded in self._folded:
            raise BadArchive(
                f"{entry.name!r} is there twice, or differs from another name by case alone; rename one"
            )
        place = _place(path)
        if place <= self._last:
            raise BadArchive(f"{entry.name!r} is not in its order; pack it with `backhaul models pack`")
        self._last = place
        self._folded.add(folded)
        if entry.is_folder:
            self._folders.add(entry.name)
        self._bytes += entry.size
        if len(self._folded) > self._limits.max_entries:
            raise BadArchive(f"there are more than {self._limits.max_entries:,} files and folders in it")
        if self._bytes > self._limits.max_bytes:
            raise BadArchive(f"its files have more than the {self._limits.max_bytes:,} bytes that are taken")


class _Writer:
    """Writes the parts of an archive into a folder that nobody else writes to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = [root]
        self._file: BinaryIO | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(sync=False)

    def take(self, part: Entry | memoryview) -> None:
        if isinstance(part, memoryview):
            assert self._file is not None
            self._file.write(part)
            return
        self._close(sync=True)
        path = self._root / part.name
        if part.is_folder:
            path.mkdir()
            self._folders.append(path)
        else:
            self._file = path.open("xb")

    def sync(self) -> None:
        """Have all of it survive a power cut."""
        self._close(sync=True)
        for folder in reversed(self._folders):
            _sync(folder)

    def _close(self, *, sync: bool) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                if sync:
                    file.flush()
                    os.fsync(file.fileno())


def _walk(folder: Path) -> Iterator[Path]:
    """What is in a folder, in the archive's order: a folder before what is in it."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name.encode("utf-8", "surrogateescape")):
        if path.name.startswith(".") or path.name == _LEFT_OUT:
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _entry(folder: Path, path: Path) -> Entry:
    if path.is_symlink():
        raise BadArchive(f"{path} is a symbolic link; put what it points to in its place")
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return Entry(f"{name}/", 0)
    if not path.is_file():
        raise BadArchive(f"{path} is neither a file nor a folder; take it out")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise BadArchive(f"{path} has {size:,} bytes, and a file may have {MAX_FILE_BYTES:,}")
    return Entry(name, size)


def _check_part(part: str, name: str) -> None:
    """Names that mean the same, and nothing else, on every system that a package may come to."""
    if not part or part in (".", "..") or part != unicodedata.normalize("NFC", part):
        what = "it leads elsewhere" if part in ("", ".", "..") else "it is not in Unicode's form NFC"
        raise BadArchive(f"{name!r} cannot be a name in a package: {what}")
    if part.startswith(".") or part.endswith((".", " ")) or part == _LEFT_OUT:
        raise BadArchive(
            f"{name!r} cannot be a name in a package: a dot begins it, a dot or a space ends it, or it is "
            f"{_LEFT_OUT}"
        )
    for letter in part:
        if letter in '\\:*?"<>|' or not letter.isprintable():
            raise BadArchive(f"{name!r} cannot be a name in a package: {letter!r} is in it")


def _place(path: str) -> list[bytes]:
    """A key that sorts paths as `_walk` does."""
    return [part.encode() for part in path.split("/")]


def _header(entry: Entry) -> bytes:
    fields = (
        entry.name.encode(),
        b"0000755" if entry.is_folder else b"0000644",
        b"0000000",  # user
        b"0000000",  # group
        b"%011o" % entry.size,
        b"00000000000",  # time
        b" " * 8,  # the checksum is taken as if it were blank
        _FOLDER if entry.is_folder else _FILE,
        b"",  # link
        b"ustar",
        b"00",  # version
        b"",  # names of user and group
        b"",
        b"0000000",  # device
        b"0000000",
        b"",  # prefix of the name
    )
    block = _HEADER.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _read_header(block: bytes) -> Entry:
    """The entry that a header speaks of; BadArchive unless it is the header that this entry has."""
    raw, _, _, _, raw_size, _, _, kind, *_ = _HEADER.unpack(block)
    if block[257:262] != b"ustar":
        raise BadArchive("it is no archive of a model package: pack it with `backhaul models pack`")
    try:
        name = raw.rstrip(b"\0").decode()
        size = int(raw_size.rstrip(b"\0 "), 8)
    except ValueError:
        raise BadArchive(f"it has a header that cannot be read, for {raw.rstrip(bytes(1))!r}") from None
    if kind not in (_FILE, _FOLDER):
        raise BadArchive(
            f"{name!r} is {_KINDS.get(kind, 'of an unknown kind')}; a package has files and folders only"
        )
    entry = Entry(name, size)
    is_folder = kind == _FOLDER
    possible = entry.is_folder == is_folder and 0 <= size <= (0 if is_folder else MAX_FILE_BYTES)
    if not possible or _header(entry) != block:
        raise BadArchive(
            f"{name!r} is not as `backhaul models pack` would have written it; pack it with that"
        )
    return entry


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

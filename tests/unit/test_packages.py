"""Model packages as one file: what goes in comes out, and nothing else has a way in."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import packages

Tree = Mapping[str, bytes]
"""Contents by path; a path that ends with a slash is an empty folder."""

PARTS = st.text("abcXYZ019_-äß中", min_size=1, max_size=6)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.binary(max_size=1500), max_size=6).map(
    lambda tree: {
        path: body for path, body in tree.items() if not any(other.startswith(f"{path}/") for other in tree)
    }
)
"""Trees that any file system can hold: no file stands where a folder is."""


def write(folder: Path, tree: Tree) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in tree.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix() + ("/" if path.is_dir() else ""): (
            b"" if path.is_dir() else path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
    }


def packed(folder: Path) -> bytes:
    sink = io.BytesIO()
    packages.pack(folder, sink)
    return sink.getvalue()


@settings(max_examples=60)
@given(tree=TREES, piece=st.integers(1, 2000))
def test_what_is_packed_comes_out_again(tree: Tree, piece: int) -> None:
    """A folder that was packed and unpacked holds the same; the archive's SHA-256 and size are as told."""
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name) / "in", tree)
        sink = io.BytesIO()
        told = packages.pack(folder, sink)
        archive = sink.getvalue()
        assert told == (hashlib.sha256(archive).hexdigest(), len(archive), len(tree))
        assert packages.unpack(io.BytesIO(archive), Path(name) / "out", sha256=told.sha256) == told
        assert read(Path(name) / "out") == read(folder)
        reader = packages.Reader()  # however the bytes are cut
        entries = [
            part.name
            for start in range(0, len(archive), piece)
            for part in reader.feed(archive[start : start + piece])
            if isinstance(part, packages.Entry)
        ]
        reader.finish()
        assert sorted(entries) == sorted(read(folder))


@settings(max_examples=30)
@given(tree=TREES, data=st.data())
def test_equal_folders_make_equal_bytes(tree: Tree, data: st.DataObject) -> None:
    """In whatever order files were made, when, and with which permissions: the archive is the same."""
    with tempfile.TemporaryDirectory() as name:
        first = write(Path(name) / "first", tree)
        shuffled = data.draw(st.permutations(list(tree)))
        before = os.umask(0o077)
        try:
            second = write(Path(name) / "second", {path: tree[path] for path in shuffled})
        finally:
            os.umask(before)
        for path in second.rglob("*"):
            os.utime(path, (data.draw(st.integers(0, 2**31)),) * 2)
        (second / ".git").mkdir()
        (second / ".DS_Store").write_bytes(b"of no interest")
        write(second, {"__pycache__/graph.cpython-313.pyc": b"of no interest either"})
        assert packed(first) == packed(second)


def test_an_archive_is_a_tar_file_that_is_always_the_same(tmp_path: Path) -> None:
    """tar reads it, and every release makes these bytes: a SHA-256 that was signed stays good."""
    folder = write(
        tmp_path / "m", {"model.toml": b'name = "m"\n', "graph.onnx": b"\x08" * 600, "words/": b""}
    )
    archive = packed(folder)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        listed = [(one.name, one.size, one.mode, one.mtime, one.uid, one.isdir()) for one in tar]
    assert listed == [
        ("graph.onnx", 600, 0o644, 0, 0, False),
        ("model.toml", 11, 0o644, 0, 0, False),
        ("words", 0, 0o755, 0, 0, True),
    ]
    assert len(archive) == 512 + 1024 + 512 + 512 + 512 + 1024
    assert hashlib.sha256(archive).hexdigest() == (
        "8ad6e206f92ff8b87ef69a0a467cbbc114cee85db150565dc3b5e139bf60f5a8"
    )


# Hostile archives


def tar(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as made:
        for info, body in members:
            info.size = len(body)
            made.addfile(info, io.BytesIO(body))
    return out.getvalue()


def member(name: str, body: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, body


def archive_of(*entries: packages.Entry) -> bytes:
    """What `pack` would write of these entries if it checked none of them, with zeros in the files."""
    body = b"".join(
        packages._header(entry) + bytes(entry.size) + bytes(-entry.size % 512) for entry in entries
    )
    return body + bytes(1024)


def file(name: str, size: int = 1) -> packages.Entry:
    return packages.Entry(name, size)


GOOD = archive_of(file("model.toml", 700), file("words/", 0), file("words/en.txt", 3))

HOSTILE: dict[str, tuple[bytes, str]] = {
    "an absolute path": (archive_of(file("/etc/passwd")), "leads elsewhere"),
    "a path that climbs": (archive_of(file("..", 1)), "leads elsewhere"),
    "a path that climbs later": (archive_of(file("a/", 0), file("a/../b")), "leads elsewhere"),
    "a path that stays": (archive_of(file("./a")), "leads elsewhere"),
    "a double slash": (archive_of(file("a/", 0), file("a//b")), "leads elsewhere"),
    "a path of another system": (archive_of(file("a\\..\\b")), "is in it"),
    "a drive of another system": (archive_of(file("c:b")), "is in it"),
    "a letter that hides": (archive_of(file("model.to\u202eml")), "is in it"),
    "a NUL in a name": (archive_of(file("a\0b")), "is in it"),
    "a hidden name": (archive_of(file(".profile")), "a dot begins it"),
    "code that was compiled": (archive_of(file("__pycache__/", 0)), "or it is __pycache__"),
    "a name that is not in NFC": (archive_of(file("a\u0308")), "NFC"),
    "a name twice": (archive_of(file("a"), file("a")), "is there twice"),
    "names that differ by case": (archive_of(file("A"), file("a")), "by case"),
    "folders that differ by case": (archive_of(file("A/", 0), file("A/x"), file("a/", 0)), "by case"),
    "a file where a folder is": (archive_of(file("a/", 0), file("a")), "is there twice"),
    "a file in a file": (archive_of(file("a"), file("a/b")), "not there"),
    "a folder that is not there": (archive_of(file("a/b")), "not there"),
    "names out of order": (archive_of(file("b"), file("a")), "order"),
    "too many entries": (archive_of(*(file(f"f{n:03}", 0) for n in range(101))), "more than 100 files"),
    "too many bytes": (archive_of(file("a", 60_000), file("b", 60_000)), "more than the 100,000 bytes"),
    "a size that is not there": (archive_of(file("a", 99_999))[:5000], "breaks off"),
    "a folder with a size": (archive_of(packages.Entry("a/", 512)), "as `backhaul models pack`"),
    "a symbolic link": (tar(member("a", b"", type=tarfile.SYMTYPE, linkname="/etc")), "symbolic link"),
    "a hard link": (tar(member("a", b"", type=tarfile.LNKTYPE, linkname="b")), "hard link"),
    "a device": (tar(member("a", b"", type=tarfile.CHRTYPE)), "device"),
    "a block device": (tar(member("a", b"", type=tarfile.BLKTYPE)), "device"),
    "a pipe": (tar(member("a", b"", type=tarfile.FIFOTYPE)), "pipe"),
    "a sparse file": (tar(member("a", type=tarfile.GNUTYPE_SPARSE)), "sparse"),
    "an extended header": (
        tar(member("a", pax_headers={"path": "../b"}), kind=tarfile.PAX_FORMAT),
        "extended header",
    ),
    "a global header": (tar(member("a", type=tarfile.XGLTYPE)), "extended header"),
    "a size in an extended header": (
        tar(member("a", pax_headers={"size": "1"}), kind=tarfile.PAX_FORMAT),
        "extended header",
    ),
    "a long name of GNU tar": (tar(member("a" * 120), kind=tarfile.GNU_FORMAT), "long name|no archive"),
    "a name with a prefix": (tar(member("a" * 60 + "/" + "b" * 60)), "as `backhaul models pack`"),
    "a program": (tar(member("a", mode=0o755)), "as `backhaul models pack`"),
    "a file of somebody's": (tar(member("a", uid=7)), "as `backhaul models pack`"),
    "a file of some time": (tar(member("a", mtime=7)), "as `backhaul models pack`"),
    "another tar's": (tar(member("a"), kind=tarfile.GNU_FORMAT), "no archive|as `backhaul models pack`"),
    "no tar at all": (b"\x7fELF" + bytes(2000), "no archive"),
    "a zip file": (b"PK\3\4" + bytes(2000), "no archive"),
    "nothing": (b"", "no archive"),
    "bytes behind the end": (GOOD + b"x", "behind its end"),
    "zeros behind the end": (GOOD + bytes(512), "behind its end"),
    "bytes between files": (GOOD[: 512 + 701] + b"x" + GOOD[512 + 702 :], "between its files"),
    "a checksum that is wrong": (GOOD[:148] + b"000000" + GOOD[154:], "as `backhaul models pack`"),
    "half an end": (GOOD[:-512], "breaks off"),
    "bytes in its end": (GOOD[:-5] + b"hello", "no archive"),
}


@pytest.mark.parametrize(("archive", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_pack_would_not_write_is_refused_and_leaves_nothing(
    tmp_path: Path, archive: bytes, said: str
) -> None:
    """A hostile archive is refused in words that say why, and the disk is as it was before."""
    limits = packages.Limits(max_entries=100, max_bytes=100_000)
    with pytest.raises(packages.BadArchive, match=said):
        packages.unpack(io.BytesIO(archive), tmp_path / "m", limits)
    assert list(tmp_path.iterdir()) == []


def test_the_one_that_the_hostile_ones_are_made_of_is_good(tmp_path: Path) -> None:
    """What tells the hostile archives from this one is what they are refused for."""
    packages.unpack(io.BytesIO(GOOD), tmp_path / "m", packages.Limits(max_entries=100, max_bytes=100_000))
    assert read(tmp_path / "m") == {"model.toml": bytes(700), "words/": b"", "words/en.txt": bytes(3)}


@pytest.mark.parametrize("at", range(0, len(GOOD), 97))
def test_one_that_breaks_off_is_refused(tmp_path: Path, at: int) -> None:
    """Wherever the bytes end before the end, nothing is left behind."""
    with pytest.raises(packages.BadArchive, match="breaks off"):
        packages.unpack(io.BytesIO(GOOD[:at]), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=200)
@given(data=st.data())
def test_damage_is_refused_or_within_a_file(data: st.DataObject) -> None:
    """A byte that is not as it was is noticed, but for those within files: these the SHA-256 is for."""
    at = data.draw(st.integers(0, len(GOOD) - 1))
    damaged = bytearray(GOOD)
    damaged[at] ^= data.draw(st.integers(1, 255))
    reader = packages.Reader()
    try:
        parts = list(reader.feed(bytes(damaged)))
        reader.finish()
    except packages.BadArchive:
        return
    assert len(parts) == 5
    assert at in range(512, 512 + 700) or at in range(2560, 2563)


@settings(max_examples=200)
@given(noise=st.binary(max_size=3000))
def test_noise_is_refused_quietly(noise: bytes) -> None:
    """Whatever bytes come, the answer is BadArchive and nothing worse."""
    reader = packages.Reader()

    def whole() -> None:
        list(reader.feed(noise))
        reader.finish()

    with pytest.raises(packages.BadArchive):
        whole()


def test_another_sha256_is_refused(tmp_path: Path) -> None:
    """An archive that is whole and not the one that was meant leaves nothing behind."""
    with pytest.raises(packages.BadArchive, match="should be 0000"):
        packages.unpack(io.BytesIO(GOOD), tmp_path / "m", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """Nothing is ever unpacked over something."""
    write(tmp_path / "m", {"kept": b"1"})
    with pytest.raises(FileExistsError):
        packages.unpack(io.BytesIO(GOOD), tmp_path / "m")
    assert read(tmp_path) == {"m/": b"", "m/kept": b"1"}


# Folders that cannot be packed


def link(folder: Path) -> None:
    (folder / "graph.onnx").symlink_to("/etc/passwd")


def linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to(folder)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def case(folder: Path) -> None:
    write(folder, {"Words": b"", "words": b""})


def long(folder: Path) -> None:
    write(folder, {"a" * 60 + "/" + "b" * 60: b""})


def control(folder: Path) -> None:
    write(folder, {"a\nb": b""})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (link, "symbolic link"),
        (linked_folder, "symbolic link"),
        (pipe, "neither a file nor a folder"),
        (case, "by case"),
        (long, "longer than 100 bytes"),
        (control, r"'\\n' is in it"),
    ],
)
def test_what_has_no_place_in_a_package_is_not_packed(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    """Links, pipes and names that do not fit are named with what to do, rather than packed or left out."""
    folder = write(tmp_path / "m", {"model.toml": b""})
    make(folder)
    with pytest.raises(packages.BadArchive, match=said):
        packages.pack(folder, io.BytesIO())

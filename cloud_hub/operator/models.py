"""`backhaul models`: packages from a folder to the hub, and from there to the agents."""

from __future__ import annotations

import argparse
import base64
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cloud_hub.operator import client
from shared import inspection, manifests, packages, signatures

if TYPE_CHECKING:
    from rich.console import RenderableType


CHECK: Final = "edge_agent.trial"
"""The program that checks a package."""


class Archive(NamedTuple):
    """A package's archive, and what is in it."""

    path: Path
    packed: packages.Packed
    manifest: manifests.Manifest

    def __str__(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version}"


def run(hub: client.Client, arguments: argparse.Namespace) -> int:
    """Run one of the commands; returns the exit status."""
    try:
        return DOES[arguments.models](hub, arguments)
    except packages.BadArchive as error:
        raise client.Failed(f"{arguments.package}: {error}") from None
    except manifests.BadPackage as error:
        raise client.Failed(str(error)) from None
    except signatures.BadKey as error:
        raise client.Failed(f"{arguments.key}: {error}") from None
    except OSError as error:
        if error.filename is None:
            raise
        raise client.Failed(f"{error.filename}: {error.strerror}") from None


def _check(hub: client.Client, arguments: argparse.Namespace) -> int:
    """The agent's own check, in a process of its own: it knows how models run, and no hub has that loaded."""
    words = [str(arguments.package)]
    words += [
        f"--{name}={value}"
        for name in ("sample", "provider", "threads")
        if (value := getattr(arguments, name))
    ]
    words += [f"--{name}" for name in ("python", "json") if getattr(arguments, name)]
    return subprocess.run([sys.executable, "-m", CHECK, *words], check=False).returncode


def _pack(hub: client.Client, arguments: argparse.Namespace) -> int:
    manifest = _manifest(arguments.package)
    path = arguments.file or Path(f"{manifest.name}-{manifest.version}.tar")
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as sink:
            packed = packages.pack(arguments.package, sink)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if arguments.json:
        _say_line({"file": str(path), **packed._asdict()})
    else:
        print(f"{path}: {packed.files} files, {packed.size:,} bytes, SHA-256 {packed.sha256}")
    return 0


def _push(hub: client.Client, arguments: argparse.Namespace) -> int:
    pem = arguments.key.read_bytes() if arguments.key else None
    with _archive(arguments.package) as archive:
        name, version, sha256 = archive.manifest.name, archive.manifest.version, archive.packed.sha256
        signed = signatures.sign(pem, name, version, sha256) if pem is not None else None
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        headers = {"content-type": packages.CONTENT_TYPE, "content-digest": f"sha-256=:{digest}:"}
        if signed is not None:
            headers |= {"backhaul-key": signed.key, "backhaul-signature": signed.signature}
        present = _present(hub, name, version)
        if present and present["sha256"] == sha256 and signed in (None, _signed(present)):
            found = present
        else:
            is_other = present is not None and present["sha256"] != sha256
            # What the hub will refuse by its digest need not be sent along.
            found = hub.push(name, version, b"" if is_other else archive.path, headers)
    if arguments.json:
        _say_line(found | {"repeated": present is not None})
        return 0
    how = f"signed with {found['key']}" if found["key"] else "not signed"
    what = "was there already" if present else "pushed"
    print(f"{archive} {what}: {found['size']:,} bytes, SHA-256 {found['sha256']}, {how}")
    return 0


def _present(hub: client.Client, name: str, version: str) -> client.Answer | None:
    try:
        return hub.version(name, version)
    except client.Refused as refused:
        if refused.status == 404:
            return None
        raise


def _signed(version: client.Answer) -> signatures.Signed | None:
    return signatures.Signed(version["key"], version["signature"]) if version["key"] else None


def _list(hub: client.Client, arguments: argparse.Namespace) -> int:
    found = hub.models()
    if arguments.json:
        _say_line(found)
        return 0
    from cloud_hub.operator import show_models

    return _say(show_models.models(found["models"]))


def _show(hub: client.Client, arguments: argparse.Namespace) -> int:
    name, at, version = arguments.model.partition("@")
    found = hub.version(name, version) if at else hub.model(name)
    if arguments.json:
        _say_line(found)
        return 0
    from cloud_hub.operator import show_models

    return _say(show_models.version(found) if at else show_models.models([found]))


def _serve(hub: client.Client, arguments: argparse.Namespace) -> int:
    name, version = _version(arguments.model)
    found = hub.serve(name, version, arguments.where)
    if arguments.json:
        _say_line(found)
    else:
        print(f"{_agents(found['selector'])} are to serve {name}@{version}.")
    return 0


def _withdraw(hub: client.Client, arguments: argparse.Namespace) -> int:
    left = hub.withdraw(arguments.model, arguments.where)
    if arguments.json:
        _say_line(left)
        return 0
    rest = ", ".join(f"{one['selector'] or 'all agents'}: {one['version']}" for one in left["targets"])
    print(f"{arguments.model} is withdrawn there. Targets that are left: {rest or 'none'}.")
    return 0


def _remove(hub: client.Client, arguments: argparse.Namespace) -> int:
    name, version = _version(arguments.model)
    gone = hub.remove_version(name, version)
    if arguments.json:
        _say_line(gone)
    else:
        print(f"{name}@{version} is forgotten. Agents that have it are told nothing of it any more.")
    return 0


def _keygen(hub: client.Client, arguments: argparse.Namespace) -> int:
    try:
        key = signatures.generate(arguments.file)
    except FileExistsError:
        raise client.Failed(f"{arguments.file} is there already, and a key is never written over") from None
    if arguments.json:
        _say_line({"file": str(arguments.file), "key": key})
    else:
        print(
            f"{arguments.file} is the private key: keep it where releases are made. "
            "The public key, for agents:"
        )
        print(key)
    return 0


@contextlib.contextmanager
def _archive(package: Path) -> Iterator[Archive]:
    """The archive of a folder, made for as long as the block lasts, or one that there is."""
    if not package.is_dir():
        with package.open("rb") as source:
            found = inspection.inspect(source)
        yield Archive(package, found.packed, found.manifest)
        return
    manifest = _manifest(package)
    if not (package / manifest.source).is_file():
        raise packages.BadArchive(f"its manifest names {manifest.source!r}, which is not there")
    with tempfile.TemporaryDirectory(prefix="backhaul-") as folder:
        path = Path(folder) / "package.tar"
        with path.open("wb") as sink:
            packed = packages.pack(package, sink)
        yield Archive(path, packed, manifest)


def _manifest(folder: Path) -> manifests.Manifest:
    path = folder / manifests.MANIFEST
    try:
        return manifests.parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise client.Failed(f"{path} is missing; a model package is a folder with this file in it") from None
    except UnicodeDecodeError:
        raise client.Failed(f"{path} is not UTF-8") from None


def _version(model: str) -> tuple[str, str]:
    name, at, version = model.partition("@")
    if not at:
        raise client.Failed(
            f"{model!r} names no version: it would read NAME@VERSION, as `backhaul models` lists"
        )
    return name, version


def _agents(selector: str) -> str:
    return f"Agents with {selector}" if selector else "All agents"


def _say(shown: RenderableType) -> int:
    from cloud_hub.operator import show

    show.console().print(shown)
    return 0


def _say_line(answer: client.Answer) -> None:
    from cloud_hub.operator import show

    print(show.line(answer), flush=True)


DOES: Final[dict[str, Callable[[client.Client, argparse.Namespace], int]]] = {
    "check": _check,
    "pack": _pack,
    "push": _push,
    "list": _list,
    "show": _show,
    "serve": _serve,
    "withdraw": _withdraw,
    "rm": _remove,
    "keygen": _keygen,
}

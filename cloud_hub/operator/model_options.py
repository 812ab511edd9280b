"""The words of `backhaul models`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Add: TypeAlias = Callable[..., argparse.ArgumentParser]

WHERE = "the agents: those that have all these labels [all agents]"


def add(add_command: Add, everywhere: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command to a parser; `everywhere` makes what may stand behind any command."""
    models = add_command(
        "models",
        "models: which versions the hub has, and which agents are to serve what",
        "`push` brings one, `serve` says where; `backhaul models push --help` tells more.",
    )
    does = models.add_subparsers(dest="models", metavar="check|pack|push|list|show|serve|withdraw|rm|keygen")
    models.set_defaults(models="list")

    def one(name: str, what: str, more: str = "") -> argparse.ArgumentParser:
        text = f"{what[0].upper()}{what[1:]}. {more}".strip()
        return does.add_parser(name, help=what, description=text, parents=[everywhere()])

    check = one(
        "check",
        "open a package and run it: what it takes and gives, on what, how fast",
        "As an agent would: it needs what an agent needs, backhaul[edge]. The status is 1 for a package that "
        "cannot be used. The hub is not asked.",
    )
    _add_package(check)
    check.add_argument(
        "--sample", type=Path, metavar="FILE", help="run this picture, JSON request or Arrow stream"
    )
    check.add_argument("--provider", metavar="NAME", help="the execution provider to try first, such as cuda")
    check.add_argument("--threads", type=int, metavar="N", help="that work inside one run [1]")
    check.add_argument("--python", action="store_true", help="run code that the package brings")

    pack = one(
        "pack",
        "make a package's archive, to be carried where no hub can be reached from here",
        "Equal folders make equal files. The hub is not asked.",
    )
    pack.add_argument("package", type=Path, metavar="DIR", help="a folder with a model.toml")
    pack.add_argument("file", type=Path, nargs="?", metavar="FILE", help="where to [NAME-VERSION.tar]")

    push = one(
        "push",
        "bring a version of a model to the hub",
        "Name and version are those of its manifest. A version never changes; the same content again is "
        "harmless.",
    )
    _add_package(push)
    push.add_argument("--key", type=Path, metavar="FILE", help="the private key to sign it with")

    one("list", "the models of the hub, and who is to serve them")
    show = one("show", "one model, or one version with its manifest")
    _add_model(show)
    serve = one(
        "serve",
        "have agents serve a version",
        "Where several selectors fit an agent, the one that asks for most labels counts; among equals the "
        "newest.",
    )
    _add_model(serve, "NAME@VERSION")
    serve.add_argument("--where", default="", metavar="KEY=VALUE,…", help=WHERE)
    withdraw = one("withdraw", "take back what `serve` said for a selector")
    withdraw.add_argument("model", metavar="NAME")
    withdraw.add_argument("--where", default="", metavar="KEY=VALUE,…", help=WHERE)
    removed = one("rm", "forget a version that nobody is to serve")
    _add_model(removed, "NAME@VERSION")
    keygen = one(
        "keygen",
        "make a key to sign packages with, and tell the public key for the agents",
        "A file that is there is never written over. The hub is not asked.",
    )
    keygen.add_argument("file", type=Path, metavar="FILE", help="where the private key goes, PEM")


def _add_package(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "package", type=Path, metavar="DIR|FILE", help="a folder with a model.toml, or an archive of one"
    )


def _add_model(command: argparse.ArgumentParser, metavar: str = "NAME[@VERSION]") -> None:
    command.add_argument("model", metavar=metavar)

"""Loads SQL that lives in `.sql` files: named blocks for statements, numbered files for migrations.

A block begins with a line `-- name: what_it_does`; the comment lines after it describe it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

_HERE: Final = Path(__file__).parent
_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"--.*$", re.MULTILINE)


class Migration(NamedTuple):
    """One step of the schema: `script` leads from version `number - 1` to `number`."""

    number: int
    script: str


def queries(name: str) -> dict[str, str]:
    """The statements in `queries/NAME.sql`, by their names, without comments."""
    _, *parts = _NAME.split(_read(_HERE / "queries" / f"{name}.sql"))
    return {
        block: without_comments(text).strip() for block, text in zip(parts[::2], parts[1::2], strict=True)
    }


def migrations() -> list[Migration]:
    """All migrations in order; their numbers are 1, 2, 3…"""
    files = sorted((_HERE / "migrations").glob("*.sql"))
    return [Migration(int(file.name.partition("_")[0]), _read(file)) for file in files]


def schema() -> str:
    """What all migrations together amount to."""
    return _read(_HERE / "schema.sql")


def without_comments(text: str) -> str:
    """SQL without its comments; they may not stand inside a string."""
    return _COMMENT.sub("", text)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")

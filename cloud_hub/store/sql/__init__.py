"""The store's SQL: files of named blocks, so that statements are read and reviewed as SQL.

A block begins with `-- name: WORD`; comments under it are its description. Parameters are psycopg's,
`%(name)s`, and a literal percent sign is doubled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_HEAD: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(noun: str) -> dict[str, bytes]:
    """The blocks of `noun`.sql by name, without comments. ValueError if a name stands twice."""
    text = (Path(__file__).parent / f"{noun}.sql").read_text(encoding="utf-8")
    _preamble, *parts = _HEAD.split(text)
    blocks: dict[str, bytes] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in blocks:
            raise ValueError(f"{noun}.sql has two blocks named {name!r}")
        lines = (line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--"))
        blocks[name] = "\n".join(lines).removesuffix(";").encode()
    return blocks

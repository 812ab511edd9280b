"""Writes settings files; Python's standard library only reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Value = str | int | float | bool | Sequence[str]
Table = Mapping[str, Value]
Document = Mapping[str, Value | Table]
"""Settings, and tables of settings by section."""


def dumps(document: Document) -> str:
    """`document` as TOML, the settings outside of any section first, as TOML wants it."""
    lines = [_line(name, value) for name, value in document.items() if not isinstance(value, Mapping)]
    for section, table in document.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{section}]", *(_line(name, value) for name, value in table.items())]
    return "\n".join([*lines, ""])


def merged(base: Document, over: Document) -> dict[str, Value | Table]:
    """`base` with `over` laid over it, setting by setting."""
    whole = dict(base)
    for name, value in over.items():
        under = whole.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            whole[name] = {**under, **value}
        else:
            whole[name] = value
    return whole


def _line(name: str, value: Value) -> str:
    # What JSON writes is TOML, but for a character that TOML wants escaped and escapes of halves of one.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{name} = {text}"

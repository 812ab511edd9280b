"""Parts of a content (RFC 9110, sections 13 and 14): which is asked for, and whether it is still the same."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.IGNORECASE)
_TAG: Final = re.compile(r'(W/)?("[^"]*")')


class Unsatisfiable(Exception):
    """The range begins behind the end."""


class Span(NamedTuple):
    """Bytes `start` to `stop`, that one not included."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def asked(header: str | None, size: int) -> Span | None:
    """The span that a `Range` asks for, of a content of `size` bytes; None: all of it.

    Several ranges, other units and what cannot be read mean all of it, as the standard allows. Raises
    Unsatisfiable.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:  # so many at the end
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None  # which is no range
    if start >= size:
        raise Unsatisfiable
    return Span(start, stop)


def is_same(header: str | None, tag: str) -> bool:
    """Whether an `If-Range` names this content, or there is none: else all is sent instead of a part."""
    return header is None or header.strip() == tag


def is_known(header: str | None, tag: str) -> bool:
    """Whether an `If-None-Match` names this content: then it is not sent again."""
    if header is None:
        return False
    return header.strip() == "*" or any(known == tag for _, known in _TAG.findall(header))

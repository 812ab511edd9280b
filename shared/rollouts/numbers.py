"""Numbers as stages and gates write them: plain decimals that are read back as the same float."""

from __future__ import annotations

import decimal
import re
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]+)?")


def parse(text: str) -> float | None:
    """The number, or None if it is not digits with at most one point among them."""
    return float(text) if _NUMBER.fullmatch(text) else None


def plain(number: float) -> str:
    """The shortest decimal that is read back as `number`, without an exponent: `5`, `0.1`, `0.00001`."""
    return format(decimal.Decimal(repr(number)), "f").removesuffix(".0")

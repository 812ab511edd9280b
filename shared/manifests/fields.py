"""What the tables of a manifest are made of."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

DType = (
    Literal["float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64"]
    | Literal["int8", "int16", "int32", "int64", "bool"]
)
Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Labels = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the manifest: a misspelt field is an error, never silently ignored."""

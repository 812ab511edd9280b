"""What a graph carries from item to item."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.manifests import fields

Axis = Annotated[int, msgspec.Meta(ge=0, le=7)]


class State(fields.Table, frozen=True, kw_only=True):
    """A tensor that is carried from item to item of one stream: what the graph gives as `output` with an item
    it takes as `input` with the next. A stream begins with zeros.

    Shape and type are the graph's; where no graph says them, as with a function in Python, they are needed.
    """

    input: fields.Name
    output: fields.Name
    shape: tuple[fields.Positive, ...] | None = None
    """Of one item, without the dimension that counts the items."""
    dtype: fields.DType | None = None
    axis: Axis = 0
    """Which dimension counts the items: 1 for PyTorch's recurrent layers, `[layers, batch, hidden]`."""

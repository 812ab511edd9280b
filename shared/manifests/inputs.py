"""The inputs of a graph: how a payload becomes the numbers that each of them takes."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from shared.manifests import fields

Colour = Literal["grey", "rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
Resize = Literal["stretch", "fit", "height"]
Place = Literal["centre", "top-left"]
Pixel = Annotated[float, msgspec.Meta(ge=0, le=255)]

_CHANNELS: Final = {"grey": 1, "rgb": 3, "bgr": 3}


class ImageInput(fields.Table, frozen=True, kw_only=True, tag_field="kind", tag="image"):
    """An input of the graph that takes a picture.

    The picture is decoded, turned as its EXIF orientation says, converted to `colour`, resized where its
    size differs (bilinear), and each pixel (0 to 255) becomes `(pixel * scale - mean) / std`, with `mean` and
    `std` given once or for each channel.
    """

    name: fields.Name
    width: fields.Positive
    height: fields.Positive
    colour: Colour
    resize: Resize = "stretch"
    """How the picture comes to that size; see below."""

    place: Place | None = None
    """With `fit`: where in the input the picture lies; in its centre unless said."""

    pad: tuple[Pixel, ...] = (0.0,)
    """The pixel, 0 to 255, around a picture that does not fill its input; once or for each channel."""

    multiple_of: fields.Positive | None = None
    """With `fit` or `height`: the graph takes any size of which the sides are multiples of this."""

    max_width: fields.Positive | None = None
    """With `height`: the widest input; a picture that would be wider is squeezed into it."""

    layout: Layout = "nchw"
    dtype: fields.DType = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for field, values in (("mean", self.mean), ("std", self.std), ("pad", self.pad)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"`{field}` has {len(values)} numbers; colour {self.colour} takes 1 or {self.channels}"
                )
        if 0.0 in self.std:
            raise ValueError("`std` divides: 0 is not allowed")
        if not self.dtype.startswith("float"):
            if not self.is_identity:
                raise ValueError(
                    f"`scale`, `mean` and `std` need a float dtype: remove them for dtype {self.dtype}"
                )
            if not all(value.is_integer() for value in self.pad):
                raise ValueError(f"`pad` takes whole numbers for dtype {self.dtype}")
        self._check_size()

    def _check_size(self) -> None:
        """Whether what says how large the input is goes together."""
        for field, value, resizes in (
            ("place", self.place, ("fit",)),
            ("multiple_of", self.multiple_of, ("fit", "height")),
            ("max_width", self.max_width, ("height",)),
        ):
            if value is not None and self.resize not in resizes:
                wanted = " or ".join(f'resize = "{one}"' for one in resizes)
                raise ValueError(f"`{field}` goes with {wanted}: remove it, or change `resize`")
        if self.pad != (0.0,) and self.resize == "stretch":
            raise ValueError("`pad` has nothing to fill where pictures are stretched: remove it")
        if self.place == "centre" and self.multiple_of is not None:
            raise ValueError(
                "`place` cannot be the centre of an input as large as the picture (`multiple_of`): remove it"
            )
        if self.resize == "height" and self.max_width is None:
            raise ValueError('`max_width` is missing, which bounds the input of resize = "height"; add it')
        if self.max_width is not None and self.max_width < self.width:
            raise ValueError(f"`max_width` is {self.max_width}: it must be at least `width`, {self.width}")
        sides = ("height", "width") if self.resize == "fit" else ("width", "max_width")
        for field in sides if self.multiple_of is not None else ():
            if getattr(self, field) % self.multiple_of:
                raise ValueError(f"`{field}` must be a multiple of {self.multiple_of}, as `multiple_of` says")

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour]

    @property
    def is_identity(self) -> bool:
        """Whether the graph wants the pixels as they are."""
        return self.scale == 1.0 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    @property
    def varies(self) -> bool:
        """Whether the size of the input depends on the picture."""
        if self.resize == "height":
            return self.width != self.max_width
        return self.multiple_of is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item, without the batch dimension; of an input that varies, a usual one."""
        return self.shaped(self.height, self.width)

    @property
    def least(self) -> tuple[int, ...]:
        """The smallest shape of one item."""
        if self.varies and self.resize == "fit":
            return self.shaped(self.multiple_of or 1, self.multiple_of or 1)
        return self.shape

    @property
    def most(self) -> tuple[int, ...]:
        """The largest shape of one item."""
        return self.shaped(self.height, self.max_width or self.width)

    def shaped(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of one item of that size, in the input's layout."""
        if self.layout == "nchw":
            return (self.channels, height, width)
        return (height, width, self.channels)


class TensorInput(fields.Table, frozen=True, kw_only=True, tag_field="kind", tag="tensor"):
    """An input of the graph that takes numbers as they come.

    `shape` is that of one item, without the batch dimension; `[]` is one number an item.
    """

    name: fields.Name
    shape: tuple[fields.Positive, ...]
    dtype: fields.DType = "float32"

    @property
    def varies(self) -> bool:
        """Whether its size depends on the item: never."""
        return False

    @property
    def least(self) -> tuple[int, ...]:
        """The smallest shape of one item."""
        return self.shape

    @property
    def most(self) -> tuple[int, ...]:
        """The largest shape of one item."""
        return self.shape


Input = ImageInput | TensorInput

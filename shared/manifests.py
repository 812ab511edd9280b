"""The manifest of a model package, `model.toml`: how a payload becomes the graph's inputs, and how the
graph's outputs become a label and a score.

It holds all that differs between models, so no code is needed to ship a new one. Agents run by it, and the
hub reads it when a package is pushed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec

from shared import topics

MANIFEST: Final = "model.toml"

DType = (
    Literal["float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64"]
    | Literal["int8", "int16", "int32", "int64", "bool"]
)
Provider = Literal[
    "tensorrt", "cuda", "migraphx", "rocm", "openvino", "qnn", "coreml", "dml", "xnnpack", "cpu"
]
Colour = Literal["grey", "rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]

_CHOICES: Final = {
    "colour": get_args(Colour),
    "layout": get_args(Layout),
    "dtype": get_args(DType),
    "order": get_args(Provider),
    "inputs": ("image", "tensor"),
    "outputs": ("classification", "scores", "raw"),
}
_CHANNELS: Final = {"grey": 1, "rgb": 3, "bgr": 3}


class BadPackage(ValueError):
    """A model package that cannot be used; the message names the file, the field and the remedy."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the manifest: a misspelt field is an error, never silently ignored."""


class ImageInput(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="image"):
    """An input of the graph that takes a picture.

    The picture is decoded, converted to `colour`, resized to `width` x `height` pixels where it
    differs (bilinear), and each pixel (0 to 255) becomes `(pixel * scale - mean) / std`, with `mean`
    and `std` given once or for each channel.
    """

    name: Name
    width: Positive
    height: Positive
    colour: Colour
    layout: Layout = "nchw"
    dtype: DType = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"`{field}` has {len(values)} numbers; colour {self.colour} takes 1 or {self.channels}"
                )
        if 0.0 in self.std:
            raise ValueError("`std` divides: 0 is not allowed")
        if not self.dtype.startswith("float") and not self.is_identity:
            raise ValueError(
                f"`scale`, `mean` and `std` need a float dtype: remove them for dtype {self.dtype}"
            )

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour]

    @property
    def is_identity(self) -> bool:
        """Whether the graph wants the pixels as they are."""
        return self.scale == 1.0 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item, without the batch dimension."""
        if self.layout == "nchw":
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)


class TensorInput(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="tensor"):
    """An input of the graph that takes numbers as they come.

    `shape` is that of one item, without the batch dimension; `[]` is one number an item.
    """

    name: Name
    shape: tuple[Positive, ...]
    dtype: DType = "float32"


class Classification(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="classification"):
    """An output with one number for each of `labels`: the largest wins.

    With `softmax` the graph gives logits, which are turned into probabilities first.
    """

    name: Name
    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    top_k: Positive = 1
    softmax: bool = False


class Scores(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="scores"):
    """An output with one number an item, such as an anomaly score.

    With a `threshold`, `labels` are the two names for below it, and for at it or above.
    """

    name: Name
    threshold: float | None = None
    labels: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) != (self.labels is None):
            raise ValueError("`threshold` and `labels` go together: give both, or neither")


class Raw(_Strict, frozen=True, kw_only=True, tag_field="kind", tag="raw"):
    """An output that is passed on as nested lists of numbers."""

    name: Name


Input = ImageInput | TensorInput
Output = Classification | Scores | Raw


class Batching(_Strict, frozen=True, kw_only=True):
    """How many items may run together, and how long the first may wait for the others.

    Without a delay a free executor never waits; batches still form while it is busy.
    """

    max_batch: Positive = 8
    max_delay_ms: NonNegative = 0.0


class Providers(_Strict, frozen=True, kw_only=True):
    """The execution providers to try, the best first. Without `cpu`, the CPU is no way out."""

    order: Annotated[tuple[Provider, ...], msgspec.Meta(min_length=1)] = ("tensorrt", "cuda", "cpu")


class Limits(_Strict, frozen=True, kw_only=True):
    """What is refused before any memory is spent on it."""

    max_pixels: Positive = 16_777_216
    """Width times height of a picture, read from its header."""

    max_unpacked_bytes: Positive = 268_435_456
    """What a compressed Arrow payload may grow to."""


class Manifest(_Strict, frozen=True, kw_only=True):
    """The whole of `model.toml`."""

    name: str
    version: str
    file: Name = "model.onnx"
    inputs: Annotated[tuple[Input, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(min_length=1)]
    batching: Batching = Batching()
    providers: Providers = Providers()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        # Both stand in topics, where a job names its model as `name` or `name@version`.
        topics.check_name(self.name, "`name`:")
        topics.check_name(self.version, "`version`:")
        for what, names in (
            ("inputs", [one.name for one in self.inputs]),
            ("outputs", [one.name for one in self.outputs]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"`{what}` names one of them twice: {', '.join(names)}")


def parse(text: str, where: Path) -> Manifest:
    """The manifest in `text`; BadPackage says what is wrong with which field, and in which file (`where`)."""
    try:
        return msgspec.toml.decode(text, type=Manifest)
    except msgspec.ValidationError as error:
        raise BadPackage(f"{where}: {_explain(str(error))}") from None
    except msgspec.DecodeError as error:
        raise BadPackage(f"{where}: not TOML: {error}") from None


def item_size(shape: tuple[int, ...]) -> int:
    """How many numbers one item of that shape has."""
    return math.prod(shape)


def _explain(message: str) -> str:
    """msgspec's message as `field: what`, with what to do where that is not said already."""
    what, _, place = message.partition(" - at `$")
    field = place.rstrip("`").lstrip(".")
    if "missing required field" in what:
        what = what.replace("Object missing", "missing") + "; add it"
    elif "unknown field" in what:
        what = what.replace("Object contains unknown", "unknown") + "; correct its name, or remove it"
    elif what.startswith("Invalid"):  # of `inputs[0].kind` what counts is `inputs`, else the field itself
        named = field.removesuffix(".kind").rpartition(".")[2].partition("[")[0]
        what += f"; use one of {', '.join(_CHOICES[named])}" if named in _CHOICES else ""
    return f"{field}: {what}" if field else what

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
from shared.manifests import fields, inputs, outputs, runtimes, states, tensorrt

MANIFEST: Final = "model.toml"

Provider = Literal[
    "tensorrt", "cuda", "migraphx", "rocm", "openvino", "qnn", "coreml", "dml", "xnnpack", "cpu"
]

ImageInput = inputs.ImageInput
TensorInput = inputs.TensorInput
Classification = outputs.Classification
Scores = outputs.Scores
Detection = outputs.Detection
Heatmap = outputs.Heatmap
Ctc = outputs.Ctc
Raw = outputs.Raw
Input = inputs.Input
Output = outputs.Output
Onnx = runtimes.Onnx
Remote = runtimes.Remote
Python = runtimes.Python
TensorRT = tensorrt.TensorRT
State = states.State
Runtime = runtimes.Runtime

_CHOICES: Final = {
    "colour": get_args(inputs.Colour),
    "layout": get_args(inputs.Layout),
    "resize": get_args(inputs.Resize),
    "place": get_args(inputs.Place),
    "dtype": get_args(fields.DType),
    "row": get_args(outputs.Row),
    "box": get_args(outputs.Corners),
    "logits": get_args(outputs.Logits),
    "blank": ("first", "last"),
    "order": get_args(Provider),
    "precision": get_args(tensorrt.Precision),
    "inputs": ("image", "tensor"),
    "outputs": ("classification", "scores", "detection", "heatmap", "ctc", "raw"),
    "runtime": ("onnx", "oip", "python"),
}


class BadPackage(ValueError):
    """A model package that cannot be used; the message names the file, the field and the remedy."""


class Batching(fields.Table, frozen=True, kw_only=True):
    """How many items may run together, and how long the first may wait for the others.

    Both are bounds. An agent measures what batches take and forms them of the size that brings most items
    through; and it waits for company only where that brings more through, and enough comes. Without a delay a
    free executor never waits; batches still form while it is busy.
    """

    max_batch: fields.Positive = 8
    """Items of a batch, at most."""
    max_delay_ms: fields.NonNegative = 0.0
    """For the first item, at most."""
    learn: bool = True
    """Without it the bounds are the rule: whole batches of `max_batch`, and always the whole delay."""


class Providers(fields.Table, frozen=True, kw_only=True):
    """The execution providers to try, the best first. Without `cpu`, the CPU is no way out."""

    order: Annotated[tuple[Provider, ...], msgspec.Meta(min_length=1)] = ("tensorrt", "cuda", "cpu")
    tensorrt: TensorRT = TensorRT()


class Limits(fields.Table, frozen=True, kw_only=True):
    """What is refused before any memory is spent on it."""

    max_pixels: fields.Positive = 16_777_216
    """Width times height of a picture, read from its header."""

    max_unpacked_bytes: fields.Positive = 268_435_456
    """What a compressed Arrow payload may grow to."""


class Manifest(fields.Table, frozen=True, kw_only=True):
    """The whole of `model.toml`."""

    name: str
    version: str
    file: fields.Name = "model.onnx"
    inputs: Annotated[tuple[Input, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(min_length=1)]
    states: tuple[State, ...] = ()
    """What is carried from item to item."""
    memory_mb: fields.Positive | None = None
    """What the loaded model takes, in MiB, as `backhaul models check` measures it; if not said, about as
    much as its files. Agents go by it where memory is short, and providers that can be bound are bound."""
    batching: Batching = Batching()
    runtime: Runtime = Onnx()
    providers: Providers = Providers()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        # Both stand in topics, where a job names its model as `name` or `name@version`.
        topics.check_name(self.name, "`name`:")
        topics.check_name(self.version, "`version`:")
        for what, names in (
            ("inputs", [*(one.name for one in self.inputs), *(one.input for one in self.states)]),
            ("outputs", [one.name for one in self.outputs]),
            ("states", [one.output for one in self.states]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"`{what}` names one of them twice: {', '.join(names)}")
        if self.has_boxes and self.picture is None:
            raise ValueError(
                "`outputs` has boxes in a picture, and no input is one: give an input of kind image"
            )

    @property
    def source(self) -> str:
        """The file of the package that holds the model: the graph, or the module of the Python function.
        Where another server has the model, the manifest is all that there is."""
        match self.runtime:
            case runtimes.Python():
                return self.runtime.file
            case runtimes.Remote():
                return MANIFEST
            case _:
                return self.file

    @property
    def varies(self) -> bool:
        """Whether the size of an input depends on the item."""
        return any(one.varies for one in self.inputs)

    @property
    def picture(self) -> ImageInput | None:
        """The input with the picture that the boxes of outputs lie in: the first that takes pictures."""
        return next((one for one in self.inputs if isinstance(one, inputs.ImageInput)), None)

    @property
    def has_boxes(self) -> bool:
        """Whether an output says where in the picture something is."""
        return any(isinstance(one, outputs.PLACED) for one in self.outputs)

    @property
    def fetched(self) -> tuple[str, ...]:
        """The graph's outputs that a run gives: `tensors`, and then those that are carried on."""
        if not self.states:
            return self.tensors
        return tuple(dict.fromkeys((*self.tensors, *(one.output for one in self.states))))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The graph's outputs that are read, each once, in the order of `outputs`."""
        return tuple(dict.fromkeys(name for one in self.outputs for name in one.tensors))


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

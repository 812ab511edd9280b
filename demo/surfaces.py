"""Grey camera pictures of machined metal, drawn from a seed: what the demo's inspection cameras see.

A picture is composed as light falls on a part: the machining marks (brushed, turned or milled), one defect or
none, the part's edge where it is in view, dust, an uneven lamp, an exposure, and the sensor's noise. Whatever
is not the defect varies in every class alike, so that only the defect tells the classes apart. Faint defects
are drawn too: some pictures are hard, as they are on a real line.

All lengths are in pixels; the origin is the middle of the picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]
"""One number a pixel, SIZE × SIZE."""

Pixels = NDArray[np.uint8]
"""A grey picture, SIZE × SIZE."""

Kind = Literal["png", "jpeg"]

SIZE = 128
LABELS = ("ok", "scratch", "pit", "dent", "stain", "burr")
SHARES = (0.75, 0.06, 0.06, 0.05, 0.05, 0.03)
"""How often each label leaves the demo's line when the caller names none: most parts are good."""

_REACH = SIZE / 2
_X: Field
_Y: Field
_X, _Y = np.meshgrid(*[np.arange(SIZE, dtype=np.float32) - np.float32(_REACH - 0.5)] * 2)
_RADIUS_SQUARED: Field = _X * _X + _Y * _Y
_MARKS = 1024  # length of a table of machining marks, a power of two so that indices wrap by a mask


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A picture as a camera sends it, and the truth about it.

    `image` is the encoded picture; `pixels` is what the sensor saw, before the encoder.
    """

    label: str
    image: bytes
    pixels: Pixels


def generate(rng: np.random.Generator, label: str | None = None, kind: Kind = "png") -> Surface:
    """The next picture of `rng`'s sequence; `label` is drawn by SHARES when it is None.

    Equal generators give equal pictures. Raises ValueError for a label that is not in LABELS.
    """
    if label is None:
        label = LABELS[int(rng.choice(len(LABELS), p=SHARES))]
    pixels = render(rng, label)
    return Surface(label, encode(pixels, kind), pixels)


def encode(pixels: Pixels, kind: Kind = "png") -> bytes:
    """`pixels` (height × width, grey) as a PNG (lossless, about 11 kB) or a JPEG (about 5 kB)."""
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    if kind == "png":
        picture.save(file, "PNG", compress_level=1)  # sensor noise hardly compresses at any level
    else:
        picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(image: bytes) -> Pixels:
    """The pixels of a picture that `encode` made, or of any other PNG or JPEG, as grey (height × width)."""
    with Image.open(io.BytesIO(image)) as picture:
        return np.asarray(picture.convert("L"))


def render(rng: np.random.Generator, label: str) -> Pixels:
    """The pixels of one picture of class `label`. Raises ValueError for a label that is not in LABELS."""
    if label not in LABELS:
        raise ValueError(f"no surface is labelled {label!r}: the labels are {', '.join(LABELS)}")
    part = _Part.clean(rng, edge_in_view=label == "burr" or rng.random() < 0.4)
    if label != "ok":
        _DEFECTS[label](rng, part)
    _sprinkle_dust(rng, part)
    return _photograph(rng, part)


@dataclass(slots=True)
class _Part:
    """A part under the camera, before its picture is taken. A defect is painted by altering these fields."""

    across: Field  # distance across the machining marks
    shine: Field  # brightness of the bare metal; 1 is plain
    depth: Field  # distance from the part's edge, positive on the part
    marks: Field  # the machining marks' brightness by distance across them, MARK_SCALE entries a pixel
    edge_angle: float  # direction in which the edge lies
    lamp_angle: float  # direction from which the light comes

    MARK_SCALE = 4.0

    @classmethod
    def clean(cls, rng: np.random.Generator, *, edge_in_view: bool) -> _Part:
        across, marks = _FINISHES[int(rng.integers(len(_FINISHES)))](rng)
        edge_angle = rng.uniform(0, 2 * math.pi)
        edge_distance = rng.uniform(26, 50) if edge_in_view else 2 * SIZE
        depth = edge_distance - _along(edge_angle)
        part = cls(across, np.ones_like(_X), depth, marks, edge_angle, rng.uniform(0, 2 * math.pi))
        if edge_in_view:
            # A chamfer catches the light along the whole edge: alone, a bright rim is no burr.
            width = rng.uniform(0.6, 3.0)
            part.shine += rng.uniform(-0.15, 0.5) * np.exp(-np.square(depth / width))
        return part

    def place(self, rng: np.random.Generator, margin: float = 10) -> tuple[float, float]:
        """A point in view and on the part, at least `margin` from its edge."""
        while True:  # the middle of the picture is always on the part, so most tries succeed
            x, y = rng.uniform(-42, 42), rng.uniform(-42, 42)
            if self.depth[int(y + _REACH), int(x + _REACH)] > margin:
                return x, y


def _along(angle: float, x: float = 0, y: float = 0) -> Field:
    """Each pixel's distance from (x, y) along the direction `angle` (radians)."""
    return (_X - x) * math.cos(angle) + (_Y - y) * math.sin(angle)


# --- finishes: how the part was machined


def _mark_table(rng: np.random.Generator, roughness: float, width: int, pitch: float = 0) -> Field:
    """Brightness across the marks: rough noise `width` entries wide, and grooves every `pitch` pixels."""
    noise = np.convolve(rng.standard_normal(_MARKS + width - 1), np.ones(width) / math.sqrt(width), "valid")
    table = rng.uniform(0.4, 1.0) * roughness * noise
    if pitch:
        grooves = max(round(_MARKS / (_Part.MARK_SCALE * pitch)), 1)  # a whole number, for the table to wrap
        turns = np.arange(_MARKS) * (grooves / _MARKS)
        table += rng.uniform(0.04, 0.14) * np.sin(2 * math.pi * turns + 0.6 * np.sin(2 * math.pi * turns))
    return table.astype(np.float32)


def _brushed(rng: np.random.Generator) -> tuple[Field, Field]:
    """Straight random hairlines."""
    angle = rng.normal(0, 0.12) + rng.choice([0, math.pi / 2])
    return _along(float(angle)), _mark_table(rng, roughness=0.09, width=int(rng.integers(3, 9)))


def _turned(rng: np.random.Generator) -> tuple[Field, Field]:
    """Rings about the lathe's axis, which is often out of view."""
    distance, angle = rng.uniform(0, 160), rng.uniform(0, 2 * math.pi)
    x, y = distance * math.cos(angle), distance * math.sin(angle)
    return np.hypot(_X - x, _Y - y), _mark_table(rng, 0.05, width=4, pitch=rng.uniform(3.5, 9))


def _milled(rng: np.random.Generator) -> tuple[Field, Field]:
    """The arcs that a face mill leaves behind, one every feed."""
    angle, cutter = rng.uniform(0, 2 * math.pi), rng.uniform(70, 260)
    sideways = _along(angle + math.pi / 2, rng.uniform(-40, 40), rng.uniform(-40, 40))
    across = _along(angle) + sideways * sideways / (2 * cutter)
    return across, _mark_table(rng, 0.04, width=4, pitch=rng.uniform(5, 12))


_FINISHES: tuple[Callable[[np.random.Generator], tuple[Field, Field]], ...] = (_brushed, _turned, _milled)


# --- defects


def _scratch(rng: np.random.Generator, part: _Part) -> None:
    """A thin, slightly bent line: bright metal with a dark shoulder, fading at its ends."""
    x, y = part.place(rng)
    angle = rng.uniform(0, math.pi)
    along, aside = _along(angle, x, y), _along(angle + math.pi / 2, x, y)
    aside -= rng.uniform(-0.004, 0.004) * along * along
    half_length, width = rng.uniform(16, 60), rng.uniform(0.6, 1.3)
    strength = rng.uniform(0.28, 0.75) * (1 if rng.random() < 0.7 else -0.7)
    presence = np.clip((half_length - np.abs(along)) / 8, 0, 1)
    core = np.exp(-np.square(aside / width))
    shoulder = np.exp(-np.square((aside - 2 * width) / width))
    part.shine += (strength * presence) * (core - 0.5 * shoulder)


def _pit(rng: np.random.Generator, part: _Part) -> None:
    """One to three small round holes, dark, with a lit crescent on the rim that faces the lamp."""
    for _ in range(int(rng.integers(1, 4))):
        x, y = part.place(rng)
        radius, darkness = rng.uniform(1.7, 5.0), rng.uniform(0.35, 0.75)
        distance = np.hypot(_X - x, _Y - y)
        hole = np.clip(radius - distance + 0.5, 0, 1)
        rim = np.exp(-np.square((distance - radius - 0.8) / 0.9))
        facing = np.clip(-_along(part.lamp_angle, x, y) / radius, 0, 1)
        part.shine *= 1 - darkness * hole
        part.shine += 0.6 * darkness * rim * facing


def _dent(rng: np.random.Generator, part: _Part) -> None:
    """A shallow hollow: one slope in light and one in shade, and the machining marks bend through it."""
    x, y = part.place(rng)
    angle, long, short = rng.uniform(0, math.pi), rng.uniform(9, 18), rng.uniform(6.5, 9)
    along, aside = _along(angle, x, y) / long, _along(angle + math.pi / 2, x, y) / short
    hollow = np.exp(-0.5 * (along * along + aside * aside))
    slope = _along(part.lamp_angle, x, y) / short * hollow
    part.shine -= rng.uniform(0.22, 0.6) * slope
    part.across += rng.uniform(1.5, 4) * hollow


def _stain(rng: np.random.Generator, part: _Part) -> None:
    """An oil or coolant mark: a lobed darker patch, darkest where its border dried."""
    x, y = part.place(rng)
    bearing = np.arctan2(_Y - np.float32(y), _X - np.float32(x))
    radius = np.full_like(_X, rng.uniform(11, 28))
    for lobes in (2, 3, 5):
        swing = rng.uniform(0, 0.32) / lobes * radius[0, 0]
        radius += swing * np.cos(lobes * bearing + rng.uniform(0, 2 * math.pi))
    within = radius - np.hypot(_X - x, _Y - y)
    softness = rng.uniform(1.0, 4.5)
    patch = np.clip(within / softness + 0.5, 0, 1)
    border = np.exp(-np.square((within - softness) / (softness + 1)))
    part.shine *= 1 - rng.uniform(0.14, 0.42) * patch - rng.uniform(0, 0.12) * border * patch


def _burr(rng: np.random.Generator, part: _Part) -> None:
    """A torn, shiny fringe of metal that stands over the part's edge for some of its length."""
    tangent = _along(part.edge_angle + math.pi / 2)
    flakes = np.clip(rng.normal(0.35, 0.5, SIZE), 0, None)
    flakes = np.convolve(flakes, [0.3, 0.4, 0.3], "same") * rng.uniform(4.5, 9)
    middle, half_length = rng.uniform(-22, 22), rng.uniform(12, 45)
    at = np.arange(SIZE) - _REACH
    flakes *= np.clip((half_length - np.abs(at - middle)) / 5, 0, 1)
    fringe = flakes.astype(np.float32)[np.clip(tangent + _REACH, 0, SIZE - 1).astype(np.intp)]
    torn = np.clip(fringe, 0, 1) * np.exp(-np.square(part.depth / (1.5 + fringe)))
    part.depth += fringe
    part.shine += rng.uniform(0.1, 0.5) * torn


_DEFECTS: dict[str, Callable[[np.random.Generator, _Part], None]] = {
    "scratch": _scratch,
    "pit": _pit,
    "dent": _dent,
    "stain": _stain,
    "burr": _burr,
}


# --- the picture


def _sprinkle_dust(rng: np.random.Generator, part: _Part) -> None:
    """Specks of one or two pixels, on good parts and bad: smaller than any pit."""
    specks = int(rng.integers(0, 14))
    rows, columns = rng.integers(0, SIZE, (2, specks))
    part.shine[rows, columns] *= rng.uniform(0.55, 1.3, specks).astype(np.float32)


def _photograph(rng: np.random.Generator, part: _Part) -> Pixels:
    """Light the part, expose, add the sensor's noise and digitise."""
    index = (part.across * part.MARK_SCALE).astype(np.int32) & (_MARKS - 1)
    metal = part.shine * (1 + part.marks[index])
    # The lamp: a slope of brightness, a broad highlight, and the lens darkening towards the corners.
    metal *= 1 + rng.uniform(0, 0.3) / SIZE * 2 * _along(part.lamp_angle)
    highlight = _along(rng.uniform(0, math.pi), rng.uniform(-60, 60), rng.uniform(-60, 60))
    metal *= 1 + rng.uniform(0, 0.25) * np.exp(-np.square(highlight / rng.uniform(30, 70)))
    metal *= 1 - rng.uniform(0, 0.3) / (2 * _REACH**2) * _RADIUS_SQUARED
    on_part = np.clip(part.depth + 0.5, 0, 1)
    exposure = rng.uniform(75, 165)
    picture = exposure * (rng.uniform(0.08, 0.35) * (1 - on_part) + metal * on_part)
    picture += rng.uniform(1.5, 7) * rng.standard_normal((SIZE, SIZE), np.float32)
    pixels: Pixels = np.clip(picture, 0, 255).astype(np.uint8)
    return pixels

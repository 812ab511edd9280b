"""Encoded pictures to the numbers that a graph takes, written straight into a row of its batch.

The size is read from the header and checked before anything is decoded: a file of a kilobyte may
claim gigapixels. A picture is turned as its EXIF orientation says, so that up is up for the graph, and boxes
are where whoever looks at the picture sees them.
"""

from __future__ import annotations

import functools
import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin

from edge_agent import frames
from shared import jobs, manifests

_DECODERS: Final = {jobs.PNG: PngImagePlugin.PngImageFile, jobs.JPEG: JpegImagePlugin.JpegImageFile}
"""By the first bytes, and no others: each decoder of Pillow is more code that hostile bytes can reach.
`Image.open` would ask one after the other, which takes a tenth of a small picture's time."""

_MODES: Final = {"grey": "L", "rgb": "RGB", "bgr": "RGB"}

_ORIENTATION: Final = 0x0112
"""The tag of EXIF that says how a camera was held."""

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its orientation (EXIF 2.32, 4.6.4 A)."""
_LYING: Final = 5
"""From this orientation on the sides change places."""

_REDUCING_GAP: Final = 2
"""A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8, yet at least at this multiple of the
wanted size, so that the resize after it still averages. Pillow's `Image.thumbnail` does the same."""


class BadImage(ValueError):
    """A picture that cannot be used; the message says why, in words for whoever sent it."""


class Reader:
    """Reads pictures for one input of a graph. Holds no state between pictures: any thread may use it."""

    def __init__(self, spec: manifests.ImageInput, max_pixels: int) -> None:
        self.spec = spec
        self._max_pixels = max_pixels
        self._mode = _MODES[spec.colour]
        self._stretches = spec.resize == "stretch"
        # (pixel * scale - mean) / std, as one multiplication and one addition
        std = np.asarray(spec.std, np.float64)
        self._gain = self._per_channel(spec.scale / std)
        self._offset = self._per_channel(-np.asarray(spec.mean, np.float64) / std)
        self._pad = (np.asarray(spec.pad) * spec.scale - np.asarray(spec.mean)) / std

    def frame(self, encoded: bytes) -> frames.Frame:
        """Where the picture will lie, by its header alone; BadImage if it can't be read."""
        try:
            return self._open(encoded)[1]
        except BadImage:
            raise
        except Exception as error:  # noqa: BLE001 - as below
            raise _undecodable(error) from None

    def read(self, encoded: bytes, out: npt.NDArray[Any], placed: frames.Rows | None = None) -> None:
        """Decode a PNG or JPEG file into `out`, one item of the input; BadImage if it can't be.

        `out` is as large as the picture's frame needs, or larger where the size of the input varies. Where
        the picture lies in it is written into `placed`.
        """
        try:
            picture, frame = self._picture(encoded)
            pixels = np.frombuffer(picture.tobytes(), np.uint8)
        except BadImage:
            raise
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes make a decoder raise, only they fail
            raise _undecodable(error) from None
        pixels = pixels.reshape(frame.inner_height, frame.inner_width, self.spec.channels)
        if self._stretches:
            self._write(pixels, out)
        else:
            self._write(pixels, self._surrounded(out, frame))
        if placed is not None:
            placed[:] = frame

    def _picture(self, encoded: bytes) -> tuple[Image.Image, frames.Frame]:
        """The decoded picture, of the wanted size and colours, and where it is to lie."""
        picture, frame, turn = self._open(encoded)
        size = (frame.inner_width, frame.inner_height)
        if isinstance(picture, JpegImagePlugin.JpegImageFile):
            across, down = size if turn < _LYING else size[::-1]
            roughly = (across * _REDUCING_GAP, down * _REDUCING_GAP)
            picture.draft("L" if self._mode == "L" else None, roughly)
        if picture.mode.startswith("I"):
            picture = _upper_byte(picture)
        if picture.mode != self._mode:
            picture = picture.convert(self._mode)
        if turn != 1:
            picture = picture.transpose(_TURNS[turn])
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        return picture, frame

    def _open(self, encoded: bytes) -> tuple[Image.Image, frames.Frame, int]:
        """The picture with only its header read, where it is to lie, and its orientation."""
        decoder = _DECODERS.get(jobs.sniff(encoded))
        if decoder is None:
            raise BadImage("it is not a PNG or JPEG image")
        picture: Image.Image = decoder(io.BytesIO(encoded))
        width, height = picture.size
        if width * height > self._max_pixels:
            raise BadImage(
                f"it has {width} x {height} pixels, and at most {self._max_pixels:,} are taken: "
                "send it smaller, or raise limits.max_pixels of the model"
            )
        turn = _orientation(picture) if "exif" in picture.info else 1
        if turn >= _LYING:
            width, height = height, width
        return picture, frames.place(self.spec, width, height), turn

    def _surrounded(self, out: npt.NDArray[Any], frame: frames.Frame) -> npt.NDArray[Any]:
        """The part of `out` where the picture lies; the rest is filled with padding."""
        left, top = frame.left, frame.top
        right, bottom = left + frame.inner_width, top + frame.inner_height
        first = self.spec.layout == "nchw"
        lines = out.transpose(1, 2, 0) if first else out
        lines[:top] = lines[bottom:] = self._pad
        lines[top:bottom, :left] = lines[top:bottom, right:] = self._pad
        return out[:, top:bottom, left:right] if first else out[top:bottom, left:right]

    def _write(self, pixels: npt.NDArray[np.uint8], out: npt.NDArray[Any]) -> None:
        if self.spec.colour == "bgr":
            pixels = pixels[..., ::-1]
        if self.spec.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        if self.spec.is_identity:
            out[...] = pixels
        elif out.dtype == np.float16:  # too coarse to calculate in
            out[...] = pixels * self._gain + self._offset
        else:
            out[...] = pixels
            out *= self._gain
            out += self._offset

    def _per_channel(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """One number, or one for each channel, so that it broadcasts over the input's layout."""
        narrow = values.astype(np.float32)
        if narrow.size == 1:
            return narrow.reshape(())
        return narrow.reshape(-1, 1, 1) if self.spec.layout == "nchw" else narrow


@functools.lru_cache(maxsize=256)
def reader(spec: manifests.ImageInput, max_pixels: int) -> Reader:
    """The reader of that input; made once, for it is asked for at every payload."""
    return Reader(spec, max_pixels)


def _orientation(picture: Image.Image) -> int:
    """How the picture is to be turned; not at all where its EXIF data say nothing that can be understood."""
    try:
        said = picture.getexif().get(_ORIENTATION)
        return said if said in _TURNS else 1
    except Exception:  # noqa: BLE001 - broken metadata raise all kinds, and the pixels may well be whole
        return 1


def _undecodable(error: Exception) -> BadImage:
    return BadImage(f"it cannot be decoded: {error}")


def _upper_byte(picture: Image.Image) -> Image.Image:
    """16-bit grey, as industrial cameras write it, brought to 8 bits. Pillow would clip it at 255."""
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))

"""Encoded pictures to the numbers that a graph takes, written straight into a row of its batch.

The size is read from the header and checked before anything is decoded: a file of a kilobyte may
claim gigapixels.
"""

from __future__ import annotations

import functools
import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin

from shared import jobs, manifests

_DECODERS: Final = {jobs.PNG: PngImagePlugin.PngImageFile, jobs.JPEG: JpegImagePlugin.JpegImageFile}
"""By the first bytes, and no others: each decoder of Pillow is more code that hostile bytes can reach.
`Image.open` would ask one after the other, which takes a tenth of a small picture's time."""

_MODES: Final = {"grey": "L", "rgb": "RGB", "bgr": "RGB"}

_REDUCING_GAP: Final = 2
"""A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8, yet at least at this multiple of the
wanted size, so that the resize after it still averages. Pillow's `Image.thumbnail` does the same."""


class BadImage(ValueError):
    """A picture that cannot be used; the message says why, in words for whoever sent it."""


class Reader:
    """Reads pictures for one input of a graph. Holds no state between pictures: any thread may use it."""

    def __init__(self, spec: manifests.ImageInput, max_pixels: int) -> None:
        self._spec = spec
        self._max_pixels = max_pixels
        self._mode = _MODES[spec.colour]
        self._size = (spec.width, spec.height)
        # (pixel * scale - mean) / std, as one multiplication and one addition
        std = np.asarray(spec.std, np.float64)
        self._gain = self._per_channel(spec.scale / std)
        self._offset = self._per_channel(-np.asarray(spec.mean, np.float64) / std)

    def read(self, encoded: bytes, out: npt.NDArray[Any]) -> None:
        """Decode a PNG or JPEG file into `out`, of the input's shape and dtype; BadImage if it can't be."""
        try:
            picture = self._picture(encoded)
            pixels = np.frombuffer(picture.tobytes(), np.uint8)
        except BadImage:
            raise
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes make a decoder raise, only they fail
            raise BadImage(f"it cannot be decoded: {error}") from None
        self._write(pixels.reshape(self._spec.height, self._spec.width, self._spec.channels), out)

    def _picture(self, encoded: bytes) -> Image.Image:
        """The decoded picture, of the wanted size and colours."""
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
        if isinstance(picture, JpegImagePlugin.JpegImageFile):
            roughly = (self._size[0] * _REDUCING_GAP, self._size[1] * _REDUCING_GAP)
            picture.draft("L" if self._mode == "L" else None, roughly)
        if picture.mode.startswith("I"):
            picture = _upper_byte(picture)
        if picture.mode != self._mode:
            picture = picture.convert(self._mode)
        if picture.size != self._size:
            picture = picture.resize(self._size, Image.Resampling.BILINEAR)
        return picture

    def _write(self, pixels: npt.NDArray[np.uint8], out: npt.NDArray[Any]) -> None:
        if self._spec.colour == "bgr":
            pixels = pixels[..., ::-1]
        if self._spec.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        if self._spec.is_identity:
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
        return narrow.reshape(-1, 1, 1) if self._spec.layout == "nchw" else narrow


@functools.lru_cache(maxsize=256)
def reader(spec: manifests.ImageInput, max_pixels: int) -> Reader:
    """The reader of that input; made once, for it is asked for at every payload."""
    return Reader(spec, max_pixels)


def _upper_byte(picture: Image.Image) -> Image.Image:
    """16-bit grey, as industrial cameras write it, brought to 8 bits. Pillow would clip it at 255."""
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))

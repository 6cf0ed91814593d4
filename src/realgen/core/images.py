"""Any picture as 8-bit RGB: what every scorer looks at. Knows no files and no models.

Decoding is bounded before it begins: a header that promises more pixels than the limit is refused unread.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from realgen.core.errors import InputError

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded: 8000 x 8000."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What is decoded, whatever the file is called."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
"""What Pillow raises for data that are not what they say."""

Made = TypeVar("Made")


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in `data` as RGB, upright; its first frame where it moves. InputError says why it cannot be read."""
    if not data:
        raise InputError("the file is empty", hint="give a PNG, JPEG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        return to_rgb(image, max_pixels=max_pixels)
    except Image.DecompressionBombError as error:
        raise InputError(f"more than {max_pixels:,} pixels", hint="make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError("not a readable picture", hint=f"known: {', '.join(FORMATS)}") from error
    except BROKEN as error:
        raise InputError(f"not a readable picture: {error}", hint="give a PNG, JPEG or WebP file") from error


def to_rgb(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`image` as 8-bit RGB: EXIF rotation applied, transparency over white, 16 bits scaled down; never changed itself.

    Raises InputError for a picture of too many pixels or whose data are broken.
    """
    if image.width * image.height > max_pixels:
        raise InputError(f"{image.width} x {image.height} is more than {max_pixels:,} pixels", hint="make it smaller")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            return _from_deep(upright)
        if upright.mode == "La":
            upright = upright.convert("LA")  # all that Pillow turns it into
        if upright.has_transparency_data:
            over = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(over, upright.convert("RGBA")).convert("RGB")
        return upright.convert("RGB")
    except BROKEN as error:
        raise InputError(f"broken picture data: {error}", hint="save it again") from error


def _from_deep(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    scaled = np.nan_to_num(levels / top).clip(0, 1) * 255
    return Image.fromarray(scaled.round().astype(np.uint8), mode="L").convert("RGB")


class ImageBatch(Sequence[Image.Image]):
    """Images as RGB, decoded once for all scorers; the unreadable keep their place and a reason.

    What a scorer derives from the pictures (resized pixels, say) can be kept with `derived`, for the next scorer
    that wants the same.
    """

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self._images: list[Image.Image] = list(images)
        self.reasons: dict[int, str] = {}
        for index, image in enumerate(self._images):
            try:
                self._images[index] = to_rgb(image)
            except InputError as error:
                self.reasons[index] = error.message
        self._derived: dict[tuple[int, Hashable], object] = {}

    @classmethod
    def of(cls, images: Sequence[Image.Image]) -> "ImageBatch":
        """`images` themselves where they are a batch already."""
        return images if isinstance(images, cls) else cls(images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return self._images[index]

    @property
    def readable(self) -> Iterator[int]:
        """Places of the pictures that could be decoded."""
        return (index for index in range(len(self)) if index not in self.reasons)

    def derived(self, index: int, make: Callable[[Image.Image], Made]) -> Made:
        """`make(self[index])`, computed once for each `make` (which must be hashable)."""
        key = (index, make)
        if key not in self._derived:
            self._derived[key] = make(self[index])
        return self._derived[key]  # type: ignore[return-value]

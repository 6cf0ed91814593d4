"""The body of a score call: read within bounds of size and time, taken apart, its images decoded. Scores nothing.

A body that is too long, or that does not say how long it is, is refused before it is read.
"""

import asyncio
import io
import warnings
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from fastapi import Request
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from realgen.apps._refusal import RefusalError
from realgen.core import wire
from realgen.core.errors import InputError
from realgen.core.images import BROKEN, FORMATS, decode

_PARTS = f"one part {wire.REQUEST_PART!r} with JSON, then one file part {wire.IMAGE_PART!r} a prompt"


@dataclass(frozen=True, slots=True)
class Call:
    """A score call: what is asked, and each image's file."""

    asked: wire.ScoreRequest
    files: tuple[bytes, ...]


class Memory:
    """Bytes of the bodies that all calls hold together, so that many long calls cannot fill the machine."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, num: int) -> None:
        """Hold `num` more; a RefusalError where that is too much."""
        if self.held + num > self.most:
            raise RefusalError(429, "too many bytes are under way", hint="ask again later", retry_after=1)
        self.held += num

    def give(self, num: int) -> None:
        """Hold `num` less."""
        self.held -= num


class Body:
    """The body of one request; what was read of it counts in `memory` until `release`."""

    def __init__(self, request: Request, *, limits: wire.Limits, memory: Memory) -> None:
        self._request, self._limits, self._memory = request, limits, memory
        self._taken = 0
        self.is_read = False

    async def read(self, *, seconds: float) -> Call:
        """The call in the body, which must arrive within `seconds`; a RefusalError says what is wrong with it."""
        self._check_headers()
        parser = MultiPartParser(
            self._request.headers,
            self._chunks(),
            max_files=self._limits.max_images + 2,  # one more is said by us, and `request` may come as a file too
            max_fields=1,
            max_part_size=wire.MAX_REQUEST_BYTES,
        )
        parser.spool_max_size = self._limits.max_body_bytes  # stays in memory, where it is counted
        try:
            async with asyncio.timeout(seconds):
                form = await parser.parse()
        except TimeoutError as error:
            raise RefusalError(
                408, f"the body did not arrive within {seconds:g} s", hint="send fewer at once"
            ) from error
        except MultiPartException as error:
            raise RefusalError(422, f"the body cannot be taken apart: {error.message}", hint=_PARTS) from error
        try:
            return await _take_apart(form, self._limits)
        finally:
            await form.close()

    def release(self) -> None:
        """Say that the body is not held any more."""
        self._memory.give(self._taken)
        self._taken = 0

    def _check_headers(self) -> None:
        headers = self._request.headers
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise RefusalError(415, "the body must be multipart/form-data", hint=_PARTS)
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise RefusalError(411, "the body does not say how long it is", hint="send Content-Length, not chunks")
        if int(length) > (most := self._limits.max_body_bytes):
            raise RefusalError(
                413, f"a body of {int(length):,} bytes: at most {most:,}", hint="send fewer images at once"
            )

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._request.stream():
            self._memory.take(len(chunk))
            self._taken += len(chunk)
            yield chunk
        self.is_read = True


async def _take_apart(form: FormData, limits: wire.Limits) -> Call:
    parts = form.getlist(wire.REQUEST_PART)
    files = [part for part in form.getlist(wire.IMAGE_PART) if isinstance(part, UploadFile)]
    if len(parts) != 1 or 1 + len(files) != len(form.multi_items()):
        named = ", ".join(sorted({name[:40] for name, _ in form.multi_items()})) or "nothing"
        raise RefusalError(422, f"the body holds {named}", hint=_PARTS)
    asked = _read_request(await parts[0].read() if isinstance(parts[0], UploadFile) else parts[0])
    if max(len(files), len(asked.prompts)) > limits.max_images:
        raise RefusalError(413, f"more than {limits.max_images} images in one call", hint="send fewer at once")
    if len(asked.prompts) != len(files):
        raise RefusalError(422, f"{len(asked.prompts)} prompts for {len(files)} images", hint=_PARTS)
    for index, file in enumerate(files):
        if (size := file.size or 0) > limits.max_image_bytes:
            message = f"image {index}: {size:,} bytes, at most {limits.max_image_bytes:,}"
            raise RefusalError(413, message, hint="send a smaller file")
    return Call(asked, tuple([await file.read() for file in files]))


def _read_request(text: str | bytes) -> wire.ScoreRequest:
    if len(text) > wire.MAX_REQUEST_BYTES:
        raise RefusalError(413, f"the part {wire.REQUEST_PART!r} is longer than {wire.MAX_REQUEST_BYTES:,} bytes")
    try:
        return wire.ScoreRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"the part {wire.REQUEST_PART!r}: {where or 'value'}: {first['msg']}"
        hint = f"this server speaks version {wire.SCHEMA} of the wire" if where == "schema_version" else _PARTS
        raise RefusalError(422, message, hint=hint) from error


def decode_all(files: Sequence[bytes], *, max_pixels: int) -> list[Image.Image | str]:
    """Each file as an RGB image, or why it cannot be read; a RefusalError where a header promises too many pixels."""
    for index, file in enumerate(files):
        if (pixels := num_pixels(file)) > max_pixels:
            message = f"image {index}: {pixels:,} pixels, at most {max_pixels:,}"
            raise RefusalError(422, message, hint="send a smaller image")
    return [_decoded(file, max_pixels) for file in files]


def num_pixels(data: bytes) -> int:
    """Pixels that the file's header promises; 0 where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except Image.DecompressionBombError:
        return 2 * (Image.MAX_IMAGE_PIXELS or 2**31)  # Pillow refuses more than that itself
    except BROKEN:
        return 0
    return width * height


def _decoded(file: bytes, max_pixels: int) -> Image.Image | str:
    try:
        return decode(file, max_pixels=max_pixels)
    except InputError as error:
        return error.message

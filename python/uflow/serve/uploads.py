"""An image out of a request: as large as it may be, an image at all, of a size that can be judged."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..files import one_line
from ..images import image_size, open_image

__all__ = ["Held", "Room", "check_image", "declared_length", "read_upload"]

MAX_NAME = 200  # characters
MAX_FIELDS = 20  # of a form, beside its image
FORM_BYTES = 10_000  # what a form may hold beside its image
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}


class Room:
    """Memory for what is being received, so that no number of senders can fill it."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._lock = threading.Lock()

    def hold(self) -> Held:
        """What one sender has of it: nothing yet."""
        return Held(self)

    def take(self, size: int) -> None:
        """Take so many bytes; HTTPException 503 where they are not left."""
        with self._lock:
            if size > self.left:
                raise HTTPException(503, "too many images are on their way", {"retry-after": "1"})
            self.left -= size

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self.left += size


class Held:
    """What one sender has of a room; it grows with what has come, not with what is announced."""

    def __init__(self, room: Room) -> None:
        self.room, self.size = room, 0

    def grow(self, size: int) -> None:
        """Take more; HTTPException 503 where it is not left."""
        self.room.take(size)
        self.size += size

    def give(self) -> None:
        """Give all of it back."""
        self.room.give(self.size)
        self.size = 0


def declared_length(request: Request, limit: int) -> int:
    """How many bytes a request may have by what it says of itself; HTTPException where that is more than `limit`.

    What a form holds beside an image is allowed for.
    """
    text = request.headers.get("content-length")
    if text is None:
        return limit + FORM_BYTES
    if not text.isdecimal():
        raise HTTPException(400, "content-length is no number")
    if int(text) > limit + FORM_BYTES:
        raise _too_large(limit)
    return int(text)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"more than {limit} bytes, which is the limit")


async def read_upload(request: Request, limit: int, held: Held) -> tuple[bytes, str | None]:
    """The image file in a request, and how its sender calls it.

    Of a form the file in it, and that file's name; else the whole body, and what ``?name=`` says.

    Raises:
        HTTPException: it is too large, empty, no form, or has no file or several.
    """
    name: str | None = request.query_params.get("name")
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        content, file_name = await _read_form(request, limit, held)
        name = name or file_name
    else:
        content = b"".join([chunk async for chunk in _bounded(request, limit, held)])
    if not content:
        raise HTTPException(400, "there is no image in the request: send its file as the body, or in a form")
    if name is not None and (len(name) > MAX_NAME or not name.isprintable()):
        raise HTTPException(400, f"a name is at most {MAX_NAME} characters that can be printed")
    return content, name


async def _read_form(request: Request, limit: int, held: Held) -> tuple[bytes, str | None]:
    """The file of a form and its name; what other fields say is left out."""
    chunks = _bounded(request, limit + FORM_BYTES, held)
    try:
        parser = MultiPartParser(request.headers, chunks, max_files=1, max_fields=MAX_FIELDS, max_part_size=FORM_BYTES)
        parser.spool_max_size = limit + FORM_BYTES  # never to the disk, which may be full
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(400, f"the form cannot be read: {getattr(error, 'message', 'no boundary')}") from None
    try:
        for _, value in form.multi_items():
            if isinstance(value, UploadFile):
                return await value.read(), value.filename
    finally:
        await form.close()
    return b"", None


async def _bounded(request: Request, limit: int, held: Held) -> AsyncGenerator[bytes, None]:
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            held.grow(len(chunk))
            yield chunk
    except ClientDisconnect:
        raise HTTPException(400, "the sender went away") from None


def check_image(content: bytes) -> str:
    """The suffix of a file of this format, such as .png; only the header is read.

    Raises:
        HTTPException: no image, or one of too many pixels.
    """
    try:
        with open_image(content) as image:
            suffix = SUFFIXES[image.format or ""]
    except ValueError as error:
        raise HTTPException(415, one_line(error)) from None
    try:
        image_size(content)
    except ValueError as error:
        raise HTTPException(413, one_line(error)) from None
    return suffix

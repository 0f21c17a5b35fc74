"""What a client sends: read within limits of bytes and time, and decoded within a limit of pixels.

Of Pillow's formats only those are read that cameras, phones and browsers write: each further decoder is one more that hostile
bytes can reach.
"""

import asyncio
import contextlib
import email.message
import io
import math
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.decoding import decoded_size, formats, silence_pillow, to_rgb, turned
from jax_brcd.search.service.budget import Budget
from jax_brcd.search.service.errors import Refused

if TYPE_CHECKING:
    import PIL.Image
    from starlette.requests import Request

PHOTOGRAPHS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
FIELD = "image"
MULTIPART = "multipart/form-data"
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, section 5.1.1
NO_IMAGE = f"no image that is read here ({', '.join(PHOTOGRAPHS)}); send the bytes of an image file"


@contextlib.asynccontextmanager
async def read_body(request: "Request", limit: int, seconds: float, budget: Budget) -> AsyncIterator[bytes]:
    """The body of a request, which draws its bytes from the budget of all bodies as long as the block lasts.

    Raises:
        Refused: for more than `limit` bytes, as soon as that is known; for a body that is not whole in time; and where all
            bodies together are more than the budget.
    """
    too_large = Refused(413, f"the body is larger than {limit} bytes; send a smaller one")
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > limit:
        raise too_large
    body, drawn = bytearray(), 0
    try:
        try:
            async with asyncio.timeout(seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise too_large
                    if not budget.draw(len(part)):
                        raise Refused(503, "too many uploads at a time; send it again later")
                    drawn += len(part)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {seconds:g} s; send it at once") from None
        yield bytes(body)
    finally:
        budget.give_back(drawn)


async def image_of(request: "Request", body: bytes) -> bytes:
    """The bytes of the image that a request holds, as its body or as the field `image` of a form.

    Raises:
        Refused: for no bytes, and for a form without such a field or with others.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == MULTIPART:
        body = await _of_form(request, body)
    if not body:
        raise Refused(400, f"no bytes came; send an image as the body, or as the field '{FIELD}' of a form")
    return body


async def _of_form(request: "Request", body: bytes) -> bytes:
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def parts() -> AsyncIterator[bytes]:
        yield body

    try:
        headers = Headers({"content-type": f'{MULTIPART}; boundary="{_boundary(request)}"'})
        form = await MultiPartParser(headers, parts(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        problem = getattr(error, "message", "it is broken")
        raise Refused(400, f"a form that cannot be read ({problem}); send the image as the body instead") from None
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise Refused(400, f"a form without a file in its field '{FIELD}'; name it so")
        others = ", ".join(sorted(set(form) - {FIELD}))
        if others:
            raise Refused(400, f"a form with other fields than '{FIELD}' ({others}); what is asked for goes into the URL")
        return await file.read()
    finally:
        await form.close()


def _boundary(request: "Request") -> str:
    """What parts the fields of a form: all that is taken of its header, as some character sets take hours to decode."""
    head = email.message.Message()
    head["content-type"] = request.headers["content-type"]
    boundary = head.get_boundary("")
    if not BOUNDARY.fullmatch(boundary):
        raise Refused(400, "a form without a boundary that it may have; send the image as the body instead")
    return boundary


def open_image(file: io.IOBase, pixels: int | None = None) -> "PIL.Image.Image":
    """An image whose head has been read and which has no more than so many pixels, or than Pillow reads at all.

    Raises:
        Refused: for what is no image, and for larger ones.
    """
    from PIL import Image

    silence_pillow()
    formats()  # which has Pillow load its readers
    try:
        image = Image.open(file, formats=[name for name in PHOTOGRAPHS if name in Image.OPEN])
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS if pixels is None else pixels
        raise Refused(413, f"an image of more than {most} pixels; make it smaller") from None
    except Exception:  # Pillow's readers raise almost anything for damaged files
        raise Refused(415, NO_IMAGE) from None
    if pixels is None:
        return image
    try:
        width, height = decoded_size(image)
    except ValueError:
        raise Refused(415, NO_IMAGE) from None
    if width * height > pixels:
        what = "an image" if (width, height) == image.size else "an image in tiles"
        raise Refused(413, f"{what} of {width} x {height} pixels, more than {pixels}; make it smaller")
    return image


def pixels_of(body: bytes, pixels: int) -> int:
    """How many pixels of an upload are decoded at once, by its head. Raises Refused as `open_image`."""
    return math.prod(decoded_size(open_image(io.BytesIO(body), pixels)))


def decode(body: bytes, pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an upload, turned as its orientation tag says, in RGB by `data.decoding.to_rgb`.

    Raises:
        Refused: as `open_image`, and for an image that is damaged.
    """
    image = open_image(io.BytesIO(body), pixels)
    try:
        image.load()
        return np.array(to_rgb(turned(image)))
    except MemoryError:
        raise Refused(503, "no memory for this image now; send it again later, or a smaller one") from None
    except Exception as error:  # as above
        reason = str(error) or type(error).__name__
        raise Refused(415, f"an image that is truncated or corrupt ({reason[:200]}); send the whole file") from None

"""What an index asks of the files that people keep: which they are, what stands on them upright, and a small picture.

It is done in worker processes, so reasons and not exceptions tell why a file is not read, as in `decoding`.
"""

import io
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.decoding import no_file, read_rgb, refused
from jax_brcd.runtime.files import file_sha256

if TYPE_CHECKING:
    import PIL.Image

THUMBNAIL_SIDE = 192  # pixels at most
QUALITY = 80  # of a thumbnail's JPEG: some 6 kB each


class Known(NamedTuple):
    """A file by its content, and by what shows that it was not changed since: bytes, and seconds of the clock."""

    digest: str
    size: int
    mtime: float


class Photo(NamedTuple):
    """What stands on a picture, upright, and a small JPEG of it."""

    pixels: UInt8[np.ndarray, "height width 3"]
    thumbnail: bytes


def know(path: str) -> Known | str:
    """What file it is, or why that cannot be told."""
    try:
        reason = no_file(path)
        if reason is not None:
            return reason
        before = os.stat(path)
        digest = file_sha256(path)
        after = os.stat(path)
    except OSError as error:
        return refused(error)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return "changed while it was read"
    return Known(digest, after.st_size, after.st_mtime)


def read_photo(path: str) -> Photo | str:
    """A picture, or why there is none."""
    image = read_rgb(path, upright=True)
    if isinstance(image, str):
        return image
    if 0 in image.size:
        return "without pixels"
    return Photo(np.asarray(image), thumbnail_of(image))


def thumbnail_of(image: "PIL.Image.Image") -> bytes:
    """A small JPEG of an image in RGB."""
    small = image.copy() if max(image.size) <= THUMBNAIL_SIDE else image.resize(_small(*image.size), reducing_gap=2.0)
    small.info.clear()  # of the original's place and time nothing goes along
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _small(width: int, height: int) -> tuple[int, int]:
    """The size of a thumbnail, in the proportions of the image."""
    longer = max(width, height)
    return max(1, round(width * THUMBNAIL_SIDE / longer)), max(1, round(height * THUMBNAIL_SIDE / longer))

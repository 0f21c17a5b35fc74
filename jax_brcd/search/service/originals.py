"""The pictures of an index: thumbnails, and originals by id. No path ever comes from a request: it is looked up in the index,
and the file is sent only where it is still the one that was indexed."""

import math
import os
import stat
from typing import Any, BinaryIO, NamedTuple

from jax_brcd.data.decoding import to_rgb, turned
from jax_brcd.data.photos import THUMBNAIL_SIDE, thumbnail_of
from jax_brcd.search.service.errors import Refused
from jax_brcd.search.service.uploads import open_image

KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}  # what stores keep, by its first bytes
CLOCK = 1e-3  # seconds by which a time may differ after a store has kept it
GONE = "the original is not where it was when it was indexed; add its folder again"


class Picture(NamedTuple):
    """Bytes of an image file and its type."""

    content: bytes
    kind: str


def kept_thumbnail(content: bytes) -> Picture | None:
    """A thumbnail that a store keeps; None where it is of no type that a page shows."""
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    return None if kind is None else Picture(content, kind)


def open_original(attributes: dict[str, Any]) -> tuple[BinaryIO, str]:
    """The file that an item of the index was made of, opened at its beginning, and its type.

    Raises:
        Refused: where the item knows no file, where the file is gone, is another than was indexed, or is no image.
    """
    path = attributes.get("path")
    if not isinstance(path, str):
        raise Refused(404, "the index knows no file of this item")
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # without waiting for a pipe's writer
    except (OSError, ValueError):
        raise Refused(404, GONE) from None
    try:
        _check_same(os.fstat(file.fileno()), attributes)
        kind = open_image(file).get_format_mimetype()
        if kind is None or not kind.startswith("image/"):
            raise Refused(404, GONE)
        file.seek(0)
    except BaseException as error:
        file.close()
        if isinstance(error, Refused) and error.status != 404:
            raise Refused(404, f"the original cannot be shown: {error.problem}") from None
        raise
    return file, kind


def make_thumbnail(attributes: dict[str, Any], pixels: int) -> Picture:
    """A small JPEG of the original. Raises Refused as `open_original`, and for a damaged file."""
    file, _ = open_original(attributes)
    with file:
        try:
            image = open_image(file, pixels)
            image.draft("RGB", (2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))  # of a JPEG not much more is decoded than is shown
            return Picture(thumbnail_of(to_rgb(turned(image))), "image/jpeg")
        except Refused as error:
            raise Refused(404, f"the original has no thumbnail: {error.problem}") from None
        except Exception:  # Pillow's decoders raise almost anything for damaged files
            raise Refused(404, "the original is damaged and has no thumbnail; mend the file and add its folder again") from None


def _check_same(now: os.stat_result, attributes: dict[str, Any]) -> None:
    """Raises Refused where a file is none, or has another size or time than the index says."""
    size, mtime = attributes.get("size"), attributes.get("mtime")
    changed = mtime is not None and not math.isclose(mtime, now.st_mtime, rel_tol=0, abs_tol=CLOCK)
    if not stat.S_ISREG(now.st_mode) or changed or size not in (None, now.st_size):
        raise Refused(404, GONE)

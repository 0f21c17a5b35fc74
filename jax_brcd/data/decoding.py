"""Image files as squares of one size, decoded by Pillow in Grain's worker processes.

A square is what `Resize(256)` and `CenterCrop(256)` of torchvision make of the decoded RGB image, to the last bit: its
shorter side resized to 256 pixels, the middle of the longer one kept. `CenterCrop(224)` of the square is therefore the
published evaluation view exactly. Where a model is to see more, squares are larger in the same proportion. Training views
are drawn from the square too, so a crop of 0.5 to 1 is a share of the square's area, where the published `RandomResizedCrop`
sees the whole image: the outer parts of an elongated image (an eighth on either side at 4:3) never train. In exchange an
image is decoded once and not once a view.

Every format that Pillow reads and that holds photographs is read, whatever the file is called. Of an animation or a file of
several pages the first picture counts.
"""

import contextlib
import functools
import math
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Union

import numpy as np
from jaxtyping import UInt8

from jax_brcd.runtime import interruption
from jax_brcd.runtime.workers import cores, end_with_parent

if TYPE_CHECKING:  # Pillow and Grain are imported where files are decoded: together they take more than a second
    import PIL.Image

SIDE = 256  # pixels, unless told
# Pillow's formats that run outside programs, are films, documents, drawings or other data, or have no known range of values
NO_PHOTOGRAPHS = frozenset({"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"})
DEEPEST = 2**16  # values of a pixel of 16 bits
# Beyond this, resizing a whole image to cut out its middle could take gigabytes
ELONGATED = 16
# Pillow's warnings, of large images and odd tags: what they are about is read, or refused with a reason
UNHEARD = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
IMAGES_A_WORKER = 256  # what pays for starting a process
TILE = (322, 323)  # the tags of a TIFF for width and length of its tiles
ENTRIES = 2**16  # of a TIFF's directory that are looked at; libtiff reads none of more than 4096
NO_TILES = "tiles of a size that cannot be told"
FOLDER = "a folder, and no image file"
BUFFERED = 16  # decoded images of the usual side that wait, for each worker


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read: HEIC among them where the package pi_heif is installed."""
    from PIL import Image

    with contextlib.suppress(ImportError):
        import pi_heif

        pi_heif.register_heif_opener()
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NO_PHOTOGRAPHS))


@functools.cache
def suffixes() -> frozenset[str]:
    """How files of these formats are called, in lower case with the dot."""
    from PIL import Image

    read = {*formats(), "MPO"}  # several JPEG images in a file, which Pillow's JPEG reader opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in read)


def square_bytes(side: int) -> int:
    """Of a square of `side` pixels."""
    return side * side * 3


def as_many(count: int, side: int) -> int:
    """How many squares of `side` pixels take the memory of `count` of the usual side; one at least."""
    return max(1, count * square_bytes(SIDE) // square_bytes(side))


def square(image: "PIL.Image.Image", side: int = SIDE) -> UInt8[np.ndarray, "side side 3"]:
    """The middle of an image whose shorter side is resized to `side` pixels (antialiased, bilinear), in RGB by `to_rgb`."""
    from PIL import Image

    image = to_rgb(image)
    width, height = image.size
    target_width, target_height = ((side, int(side * height / width)) if width <= height
                                   else (int(side * width / height), side))
    left, top = round((target_width - side) / 2), round((target_height - side) / 2)
    if max(image.size) <= ELONGATED * min(image.size):
        resized = image.resize((target_width, target_height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + side, top + side)))
    columns, rows = width / target_width, height / target_height
    box = (left * columns, top * rows, (left + side) * columns, (top + side) * rows)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def to_rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """An image in RGB. Gray and palette images are spread over three channels, alpha is dropped and what lay under it shows,
    CMYK is converted without a profile, of 16 bits the upper 8 are kept. Orientation tags are ignored, as by torchvision's
    image folders.

    Raises:
        ValueError: for pixels whose range is not known (floats, or whole numbers beyond 16 bits) and colours that Pillow cannot
            convert.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("float pixels, whose range is not known; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= DEEPEST:
            raise ValueError(f"pixels from {values.min()} to {values.max()}; save it with 8 or 16 bits a channel")
        if image.mode == "I" and 0 < values.max() < 256:
            raise ValueError("32-bit pixels of 0 to 255, whose range is not known; save it with 8 or 16 bits a channel")
        return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:  # else Pillow warns that it is about to be lost
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def read_rgb(path: str | os.PathLike, *, upright: bool = False) -> Union["PIL.Image.Image", str]:
    """An image file in RGB by `to_rgb`, or why there is none: a reason and not an exception, which may travel between processes
    and is counted. `upright` turns it as its orientation tag says."""
    from PIL import Image, UnidentifiedImageError

    silence_pillow()
    try:
        reason = no_file(path)
        if reason is not None:
            return reason
        with Image.open(path, formats=formats()) as image:
            pixels, most = math.prod(decoded_size(image)), Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > 2 * most:  # as Pillow says of images, but not of their tiles
                raise Image.DecompressionBombError
            image.load()
            if upright:
                image = turned(image)
    except UnidentifiedImageError:
        return "no JPEG, PNG, WebP, TIFF or other image that Pillow reads"
    except Image.DecompressionBombError:
        return f"too large, of more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    except MemoryError:
        return "too large for the memory that is free"
    except OSError as error:
        return refused(error)
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        return f"truncated or corrupt ({str(error) or type(error).__name__})"
    try:
        return to_rgb(image)
    except ValueError as error:
        return str(error)


def decoded_size(image: "PIL.Image.Image") -> tuple[int, int]:
    """Width and height of what is decoded of an image that has just been opened: its own, or those of a larger tile of a TIFF,
    which libtiff decodes whole for the one pixel of it that the image shows. (Strips it cuts at the image's end.)

    Raises:
        ValueError: for a TIFF whose tiles cannot be told from its head.
    """
    if image.format != "TIFF":
        return image.size
    try:
        tile, tags = tuple(image.tag_v2.get(tag, 0) for tag in TILE), _tags(image)
    except Exception:  # Pillow raises almost anything for damaged tags
        raise ValueError(NO_TILES) from None
    # Of a tag that is there twice, or of a type that Pillow passes over, libtiff may read another value
    if any(tags.count(tag) != (tag in image.tag_v2) for tag in TILE) or not all(isinstance(side, int) for side in tile):
        raise ValueError(NO_TILES)
    return max(image.size, tile, key=math.prod)


def _tags(image: "PIL.Image.Image") -> list[int]:
    """The tags of a TIFF's first directory as they stand in the file."""
    image.fp.seek(0)
    count, entry = ("Q", "H18x") if image.fp.read(3).endswith(b"+") else ("H", "H10x")
    order = "<" if image.tag_v2.prefix == b"II" else ">"
    image.fp.seek(image.tag_v2.offset)
    (entries,) = struct.unpack(order + count, image.fp.read(struct.calcsize(order + count)))
    entry = struct.Struct(order + entry)
    return [tag for (tag,) in entry.iter_unpack(image.fp.read(min(entries, ENTRIES) * entry.size))]


def no_file(path: str | os.PathLike) -> str | None:
    """Why a path is none of a file; None where it is. Raises OSError where the system does not tell."""
    if stat.S_ISREG(os.stat(path).st_mode):
        return None
    return FOLDER if os.path.isdir(path) else "no file, but a pipe or a device"  # of a pipe one would wait for the end


def refused(error: OSError) -> str:
    """Why the system, or a decoder, does not read a file."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"cannot be read ({error.strerror})" if error.errno else f"truncated or corrupt ({error})"


def turned(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """An image turned as its orientation tag says; as it is where its tags are damaged, which its pixels are not."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises almost anything for damaged tags
        return image


def silence_pillow() -> None:
    """Keeps Pillow's warnings from being printed, in this process from now on."""
    if UNHEARD not in warnings.filters:
        warnings.filterwarnings("ignore", module=UNHEARD[3].pattern)


def decode(path: str | os.PathLike, side: int = SIDE) -> UInt8[np.ndarray, "side side 3"] | str:
    """The square of an image file, or why there is none."""
    image = read_rgb(path)
    return image if isinstance(image, str) else square(image, side)


def _decode_to_bytes(path: str, side: int) -> bytes | str:
    """As `decode`, but bytes travel through a pipe: Grain would put arrays into shared memory, which a killed run leaks."""
    decoded = decode(path, side)
    return decoded if isinstance(decoded, str) else decoded.tobytes()


def decode_all(
    paths: Sequence[str], *, workers: int | None, side: int = SIDE
) -> Iterator[UInt8[np.ndarray, "side side 3"] | str]:
    """`decode` of every path, in order, a bounded number ahead of what is taken.

    Args:
        workers: processes; 0 for threads of this one; None for the cores, or fewer where there are few images.
    """
    import grain
    from absl import flags

    if workers is None:
        workers = min(cores(), len(paths) // IMAGES_A_WORKER)
    source = grain.MapDataset.source(paths).map(functools.partial(_decode_to_bytes, side=side))
    buffered = as_many(BUFFERED, side)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which nothing here defines or parses
        images = source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffered), worker_init_fn=end_with_parent)
    else:
        threads = cores()
        images = source.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered * threads))
    iterator = iter(images)
    try:
        for image in iterator:
            interruption.check()
            yield image if isinstance(image, str) else np.frombuffer(image, np.uint8).reshape(side, side, 3)
    finally:
        iterator.close()

"""Image files as squares of one size, decoded by Pillow in Grain's worker processes.

A square is what `Resize(256)` and `CenterCrop(256)` of torchvision make of the decoded RGB image, to the last bit: its
shorter side resized to 256 pixels, the middle of the longer one kept. `CenterCrop(224)` of the square is therefore the
published evaluation view exactly. Training views are drawn from the square too, so a crop of 0.5 to 1 is a share of the
square's area, where the published `RandomResizedCrop` sees the whole image: the outer parts of an elongated image (an
eighth on either side at 4:3) never train. In exchange an image is decoded once and not once a view.
"""

import multiprocessing
import multiprocessing.connection
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

SIDE = 256
SQUARE_BYTES = SIDE * SIDE * 3
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # Pillow's others run outside programs or are no photographs
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
# Beyond this, resizing a whole image to cut out its middle could take gigabytes
ELONGATED = 16
IMAGES_A_WORKER = 256  # what pays for starting a process
BUFFERED = 16  # decoded images that wait, for each worker


def square(image: Image.Image) -> UInt8[np.ndarray, "256 256 3"]:
    """The middle of an image whose shorter side is resized to 256 pixels (antialiased, bilinear), in RGB.

    Gray and palette images become RGB, alpha is dropped, CMYK is converted without a profile, of 16 bits the upper 8 are
    kept. Orientation tags are ignored, as by torchvision's image folders.
    """
    image = _to_rgb(image)
    width, height = image.size
    target_width, target_height = ((SIDE, int(SIDE * height / width)) if width <= height
                                   else (int(SIDE * width / height), SIDE))
    left, top = round((target_width - SIDE) / 2), round((target_height - SIDE) / 2)
    if max(image.size) <= ELONGATED * min(image.size):
        resized = image.resize((target_width, target_height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)))
    columns, rows = width / target_width, height / target_height
    box = (left * columns, top * rows, (left + SIDE) * columns, (top + SIDE) * rows)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:  # else Pillow warns that it is about to be lost
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def decode(path: str | pathlib.Path) -> UInt8[np.ndarray, "256 256 3"] | str:
    """The square of an image file, or why there is none.

    A reason and not an exception: it comes back from another process, and the caller counts it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return square(image)
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "no JPEG, PNG, WebP, BMP or GIF image"
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        return f"truncated or corrupt ({error})" if str(error) else f"truncated or corrupt ({type(error).__name__})"


def _decode_to_bytes(path: str) -> bytes | str:
    """As `decode`, but bytes travel through a pipe: Grain would put arrays into shared memory, which a killed run leaks."""
    decoded = decode(path)
    return decoded if isinstance(decoded, str) else decoded.tobytes()


def decode_all(paths: Sequence[str], *, workers: int | None) -> Iterator[UInt8[np.ndarray, "256 256 3"] | str]:
    """`decode` of every path, in order, a bounded number ahead of what is taken.

    Args:
        workers: processes; 0 for threads of this one; None for the cores, or fewer where there are few images.
    """
    if workers is None:
        workers = min(os.cpu_count() or 1, len(paths) // IMAGES_A_WORKER)
    source = grain.MapDataset.source(paths).map(_decode_to_bytes)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which nothing here defines or parses
        images = source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BUFFERED), worker_init_fn=_end_with_parent)
    else:
        threads = os.cpu_count() or 1
        images = source.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BUFFERED * threads))
    iterator = iter(images)
    try:
        for image in iterator:
            yield image if isinstance(image, str) else np.frombuffer(image, np.uint8).reshape(SIDE, SIDE, 3)
    finally:
        iterator.close()


def _end_with_parent(*_: int) -> None:
    """Ends this worker when the run is killed: it would wait for ever to hand over its next image."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

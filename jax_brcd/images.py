"""Images as users give them, one after the other: arrays, Pillow images and paths, in any mix of sizes."""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.workers import cores
from jax_brcd.views.images import CHANNELS, CONVERSIONS, FROM_FLOATS

Image = Any  # a uint8 array (height, width, 3), a Pillow image, or the path of an image file
WANTED = "give a uint8 array (height, width, 3), a Pillow image or the path of a file"
AHEAD = 8  # files that are read before they are asked for, for each core


def as_items(images: Any) -> Iterable[Image]:
    """An image, a stack of images or an iterable of images as an iterable of single images.

    Raises:
        InputError: for what is none of these.
    """
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, np.ndarray):
        return _of_array(images)
    if _is_path(images) or _is_pillow(images):
        return [images]
    if isinstance(images, (bytes, bytearray, Mapping, Set)) or not isinstance(images, Iterable):
        raise InputError(f"{type(images).__name__} is no image and no list of images; {WANTED}, or a list of these")
    return images


def _of_array(images: np.ndarray) -> Iterable[Image]:
    if images.ndim == 1 and (images.dtype.kind in "OU" or not len(images)):
        return images.tolist()  # paths or images of different sizes
    if images.ndim != 4:
        check_pixels(images)
        return images[None]
    if len(images):
        if images.shape[1] == 3 != images.shape[3]:
            raise InputError(f"images {images.dtype} {images.shape}: channels first, which np.moveaxis(images, 1, -1) puts "
                             "last")
        check_pixels(images[0])
    return images


def check_pixels(image: np.ndarray) -> None:
    """Raises InputError for anything but uint8 RGB (height, width, 3), saying how to convert it."""
    shown = f"image {image.dtype} {image.shape}"
    problem = _shape_problem(image.shape)
    if problem:
        raise InputError(f"{shown}: {problem}; {WANTED}")
    if image.dtype != np.uint8:
        raise InputError(f"{shown}: {CONVERSIONS.get(image.dtype.kind, FROM_FLOATS)}; {WANTED}".replace("images", "image"))


def _shape_problem(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return "gray, which becomes colour by np.repeat(image[..., None], 3, axis=-1)"
    if len(shape) != 3:
        return f"{len(shape)} axes instead of 3"
    if 0 in shape:
        return "without pixels"
    if shape[2] == 3:
        return ""
    if shape[0] == 3:
        return "channels first, which np.moveaxis(image, 0, -1) puts last"
    if shape[2] in CHANNELS:
        return CHANNELS[shape[2]].replace("images", "image")
    return (f"{shape[2]} channels where 3 are red, green and blue; a stack of gray images becomes colour by "
            "np.repeat(images[..., None], 3, axis=-1)")


def read_item(image: Image) -> UInt8[np.ndarray, "height width 3"]:
    """An image's pixels.

    Raises:
        InputError: for what is no image.
    """
    from jax_brcd.data.reading import read_image

    if isinstance(image, jax.Array):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        check_pixels(image)
        return image
    if _is_path(image):
        return read_image(as_path(image))
    if not _is_pillow(image):
        raise InputError(f"{type(image).__name__} is no image; {WANTED}")
    try:
        pixels = read_image(image)
    except Exception as error:  # of a damaged file that is read only now, where decoders raise almost anything
        raise InputError(f"Pillow image of mode {image.mode}: {str(error) or type(error).__name__}; give one that can be read "
                         "as RGB") from None
    check_pixels(pixels)
    return pixels


def read_ahead(items: Iterable[Image]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The pixels of each image in order. Files are read by threads, as many as there are cores, a few images ahead.

    Raises:
        InputError: for what is no image, with its place among several.
    """
    threads = cores()
    waiting: collections.deque[Future | Image] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for number, item in enumerate(items):
            waiting.append(pool.submit(read_item, item) if _is_path(item) else item)
            if len(waiting) == AHEAD * threads:
                yield _pixels(waiting.popleft(), number + 1 - AHEAD * threads)
        first = number + 1 - len(waiting) if waiting else 0
        for number in range(len(waiting)):
            yield _pixels(waiting.popleft(), first + number)


def _pixels(item: Future | Image, number: int) -> np.ndarray:
    if isinstance(item, Future):
        return item.result()
    try:
        return read_item(item)
    except InputError as error:
        raise error if number == 0 else InputError(f"image number {number}, counted from 0: {error}") from None


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


def _is_pillow(image: Any) -> bool:
    return hasattr(image, "convert") and hasattr(image, "mode")

"""Encoding whole image collections: fixed batches, the last one padded, the next one computed while the last comes back."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8

from jax_brcd.runtime import devices, interruption
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, evaluation_views
from jax_brcd.views.images import check_images

ENCODING_BATCH = 128
Colour = tuple[float, float, float]
Item = TypeVar("Item")


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("size", "resize", "mean", "std", "interpolation"))
def encode_batch(
    graph: nnx.GraphDef, state: nnx.State, images: UInt8[Array, "batch height width 3"], *, size: int,
    resize: int | None = None, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD,
    interpolation: str = "bilinear",
) -> Float[Array, "batch outputs"]:
    """Features or logits of un-augmented images in evaluation mode; `graph` and `state` are a split model."""
    views = evaluation_views(images, size, resize=resize, mean=mean, std=std, interpolation=interpolation)
    return devices.gathered(nnx.merge(graph, state)(views, train=False))


def encoding_batch(count: int) -> int:
    """How many of `count` images are encoded at once: a power of two where they are few, so that little is padding.

    Raised to what the devices divide.
    """
    return devices.whole_size(min(ENCODING_BATCH, 1 << max(count - 1, 0).bit_length()))


def padded_batches(images: np.ndarray, batch_size: int, begin: int = 0) -> Iterator[tuple[np.ndarray, int]]:
    """Consecutive batches of one size, from an image on, and how many of their rows count; of no images one that does not."""
    for begin in range(begin, max(len(images), 1), batch_size):
        batch = images[np.arange(begin, min(begin + batch_size, len(images)))]
        count = len(batch)
        yield np.concatenate([batch, np.zeros((batch_size - count, *batch.shape[1:]), batch.dtype)]), count


def streamed(
    compute: Callable[[np.ndarray], Array], images: np.ndarray, *, description: str, begin: int = 0,
    progress: Progress = silent,
) -> Iterator[np.ndarray]:
    """`compute` over images in padded batches, one batch ahead of what has been fetched. Gives (batch, width) of each batch.

    `progress` is told after each batch how many images are done.

    Args:
        begin: the image to begin with, the first of a batch.
    """
    size, done = encoding_batch(len(images)), begin
    for result, count in _one_ahead((compute(batch), count) for batch, count in padded_batches(images, size, begin)):
        yield np.asarray(result)[:count]
        done += count
        progress(description, done, len(images))


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each given when the one after it has begun."""
    interruption.check()
    ahead = next(items)
    for item in items:
        interruption.check()
        yield ahead
        ahead = item
    yield ahead


def encode(
    module: nnx.Module, images: Shaped[np.ndarray | Array, "..."], *, description: str, progress: Progress = silent, **view: Any
) -> np.ndarray:
    """Features (a backbone) or logits (a hash model) of un-augmented images, float32 (images, width); none give (0, width).

    Args:
        images: uint8 (images, height, width, 3). description: what `progress` is told they are.
        view: how they are prepared: `size`, and where they differ from the defaults `resize`, `mean`, `std` and
            `interpolation` of `evaluation_views`.

    Raises:
        InputError: for images that are something else, with how to convert them.
    """
    return np.concatenate(list(encoded(module, images, description=description, progress=progress, **view)))


def encoded(
    module: nnx.Module, images: Shaped[np.ndarray | Array, "..."], *, description: str, begin: int = 0,
    progress: Progress = silent, **view: Any,
) -> Iterator[np.ndarray]:
    """What `encode` gives, a batch at a time; `begin` as in `streamed`."""
    check_images(images)
    graph, state = devices.replicate(nnx.split(module))
    return streamed(lambda batch: encode_batch(graph, state, devices.spread(batch), **view), images, description=description,
                    begin=begin, progress=progress)

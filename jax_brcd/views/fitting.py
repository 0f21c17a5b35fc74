"""Evaluation views of images of any sizes: each on a square canvas, so that one compiled program serves all sizes up to it.

What an image becomes depends on its own pixels alone, not on what is encoded beside it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from jax_brcd.views.augmentation import Taps, each_image, normalise, resize_image

SMALLEST = 32  # pixels of the smallest canvas


def canvas_side(height: int, width: int) -> int:
    """Pixels of the canvas of an image: powers of two and what lies half-way between them."""
    side = SMALLEST
    while side < max(height, width):
        side = side * 3 // 2 if side & (side - 1) == 0 else side * 4 // 3
    return side


@functools.partial(jax.jit, static_argnames=("size", "resize", "mean", "std"))
def fitted_views(
    canvases: UInt8[Array, "batch side side 3"], sizes: Int[Array, "batch 2"], *, size: int, resize: int | None,
    mean: tuple[float, float, float], std: tuple[float, float, float],
) -> Float[Array, "batch size size 3"]:
    """What `augmentation.evaluation_views` makes of each image, which fills the upper left of its canvas.

    Args:
        sizes: height and width of each image. size, resize: as in `evaluation_views`.
    """
    side = canvases.shape[1]

    def view(canvas, image_size):
        height, width = image_size
        if resize is None:
            rows, columns = (_taps(length, jnp.int32(size), size, side, size) for length in (height, width))
        else:
            shorter = jnp.minimum(height, width)
            rows, columns = (_taps(length, resize * length // shorter, size, side, resize) for length in (height, width))
        return normalise(resize_image(canvas, rows, columns), mean, std)

    return each_image(view, canvases, sizes)


def _taps(length: Int[Array, ""], target: Int[Array, ""], size: int, side: int, smallest: int) -> Taps:
    """Antialiased bilinear resize of an axis of `length` pixels to `target`, of which the middle `size` are kept.

    The arithmetic is that of `augmentation.resize_taps`, with the numbers known only when it runs. `side` bounds the length and
    `smallest` the target from below, which bounds how many pixels are averaged.
    """
    excess = target - size
    half = excess // 2
    begin = half + (excess % 2) * (half % 2)  # halves to even, as torchvision's CenterCrop rounds
    taps = -(-2 * max(side, smallest) // smallest)
    centre = length * (2 * (begin + jnp.arange(size, dtype=jnp.int32)) + 1)
    support = 2 * jnp.maximum(length, target)
    first = jnp.maximum((centre - support + target) // (2 * target), 0)
    position = first[:, None] + jnp.arange(taps, dtype=jnp.int32)
    distance = jnp.abs((2 * position + 1) * target - centre[:, None]).astype(jnp.float32)
    weights = jnp.where(position < length, jnp.maximum(1.0 - distance / support.astype(jnp.float32), 0.0), 0.0)
    return Taps(jnp.minimum(position, length - 1), weights / jnp.sum(weights, axis=1, keepdims=True))
